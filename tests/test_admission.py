"""Which events are let in: types that are accepted, and signatures where they are required, whichever way they come."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, InvalidEvent
from bridge.handlers.handler import registry
from bridge.subscriber.checks import refused_handlers
from tests.conftest import ROOT, Processes, Queues, Start, eventually, missing
from tests.outside import SECRETS, SIGNED, Outside
from tests.replays import FAST, Bench, last

PICKY = {"accepted_types": ["dream.*", "billing.*"], "rejected_types": ["billing.v*"]}


@pytest.fixture
def outside(client: Redis, settings: BridgeSettings) -> Outside:
    return Outside(client, settings)


def bus_with(settings: BridgeSettings, **changes: object) -> EventBus:
    return EventBus(redis_url=settings.url, channel_prefix=settings.channel_prefix, source="tests", **changes)


def test_only_accepted_types_come_in(use, start: Start, outside: Outside, queues: Queues) -> None:
    """What accept leaves out and what reject names becomes a dead letter, whichever way it came; the rest runs."""
    use("t.all")
    outside.keep("by-key", outside.unsigned("by-key", "other.type"))
    outside.keep("good-key", outside.unsigned("good-key", "dream.created"))
    start(**PICKY)
    outside.say(outside.unsigned("heard", "other.type"), "other.type")
    outside.say(outside.unsigned("void", "billing.voided"), "billing.voided")
    outside.write(outside.unsigned("written", "billing.voided"))
    outside.say(outside.unsigned("good"), "billing.paid")
    eventually(lambda: queues.length() == 2, "those that are accepted")
    eventually(lambda: len(outside.letters()) == 4, "the others are dead letters")
    assert set(outside.reasons()) == {"not_accepted"}
    details = sorted(letter.detail for letter in outside.letters())
    assert details[0] == "type: 'billing.voided' is one of the types in bridge_rejected_types [not_accepted]"
    assert details[-1] == "type: 'other.type' is none of the types in bridge_accepted_types [not_accepted]"
    assert set(queues.tasks()) == {"t.all dream.created good-key", "t.all billing.paid good"}


def test_types_that_are_not_accepted_are_not_published(settings: BridgeSettings, client: Redis, prefix: str) -> None:
    """publish() raises before anything is written."""
    with bus_with(settings, **PICKY) as bus:
        bus.publish("dream.created")
        for event_type in ("other.type", "billing.voided"):
            with pytest.raises(InvalidEvent, match="not_accepted"):
                bus.publish_many([Event(type="dream.created", id="with-it"), Event(type=event_type, id=event_type)])
    assert client.keys(f"{prefix}event:with-it") == []


def test_events_of_few_levels(use, start: Start, settings: BridgeSettings, outside: Outside, queues: Queues) -> None:
    """What has more than max_event_depth levels is not published, and becomes a dead letter whichever way it came."""
    use("t.exact")
    flat, deep = {"a": [1]}, {"a": [[1]]}
    outside.keep("by-key", outside.unsigned("by-key", "dream.created", deep))
    start(max_event_depth=3)
    outside.say(outside.unsigned("heard", "dream.created", deep), "dream.created")
    outside.write(outside.unsigned("written", "dream.created", deep))
    outside.say(outside.unsigned("flat", "dream.created", flat), "dream.created")
    eventually(lambda: outside.reasons() == ["depth"] * 3, "the deep ones are refused")
    eventually(lambda: list(queues.tasks()) == ["t.exact dream.created flat"], "the flat one runs")
    with bus_with(settings, max_event_depth=3) as bus:
        bus.publish("dream.created", flat)
        with pytest.raises(InvalidEvent, match="nested deeper than 3 levels"):
            bus.publish("dream.created", deep)


def test_what_was_not_accepted_runs_once_it_is(use, start: Start, outside: Outside, client: Redis, queues) -> None:
    """After a change of accept the dead letters can be retried; one that must be signed still has to be."""
    use("t.exact", "t.plain")
    first = start(accepted_types=["other.*"])
    outside.say(outside.unsigned("one", "dream.created"), "dream.created")
    outside.say(outside.unsigned("two"))
    eventually(lambda: len(outside.letters()) == 2, "both are refused")
    first.stop()
    start("second", **SIGNED)
    settings = BridgeSettings.load(
        redis_url=outside.settings.url, channel_prefix=outside.settings.channel_prefix, group="tests", **SIGNED
    )
    progress = last(Bench(client, settings).dead().run(FAST))
    assert (progress.replayed, progress.skipped) == (1, 1)
    eventually(lambda: queues.tasks() == {"t.exact dream.created one": 1}, "what is accepted now")


def test_handlers_of_types_that_never_come(use, settings: BridgeSettings) -> None:
    """A handler whose type is refused is a finding; of a pattern with more than one type nobody can tell."""
    use("t.exact", "t.plain")
    picky = BridgeSettings.load(redis_url=settings.url, accepted_types=["billing.*"])
    patterns = {handler.task_name: handler.patterns for handler in registry}
    (finding,) = refused_handlers(picky, patterns)
    assert finding.setting == "handler t.exact"
    assert "'dream.created' is none of the types in bridge_accepted_types" in finding.problem
    assert refused_handlers(settings, patterns) == []


def test_signed_events_of_required_types_are_let_in(use, start: Start, outside: Outside, queues: Queues) -> None:
    """By channel, by key and in the journal, only signed ones of such types run; of other types all do."""
    use("t.all")
    outside.keep("s1", outside.signed("s1"))
    outside.keep("u1", outside.unsigned("u1"))
    outside.keep("other1", outside.unsigned("other1", "dream.created"))
    start(**SIGNED)
    outside.say(outside.signed("s2"))
    outside.say(outside.unsigned("u2"))
    outside.say(outside.unsigned("other2", "dream.created"), "dream.created")
    outside.write(outside.signed("s3"))
    outside.write(outside.unsigned("u3"))
    eventually(lambda: queues.length() == 5, "what may run")
    eventually(lambda: len(outside.letters()) == 3, "what may not")
    assert set(outside.reasons()) == {"signature"}
    assert {Event.decode(letter.raw, max_bytes=1000).id for letter in outside.letters()} == {"u1", "u2", "u3"}
    assert {name.split()[-1] for name in queues.tasks()} == {"s1", "s2", "s3", "other1", "other2"}


def test_signed_bytes_stay_as_they_came(use, start: Start, outside: Outside, prefix: str) -> None:
    """A subscriber that requires nothing leaves a signed event as it is spelt, for those that do."""
    use("t.all")
    start(group="careless", max_events_per_s_per_source=None)
    text = outside.unsigned("odd").decode().replace('{"id":"odd",', '{ "more" : 1.50e0,\t"id":"odd",')
    outside.say(data := outside.sign(text, "old"))
    eventually(lambda: outside.client.xlen(outside.keys.journal) == 1, "it is in the journal")
    ((_, fields),) = outside.client.xrange(outside.keys.journal)
    assert fields[b"event"] == data
    assert outside.keyring.has_signed(data)


def test_publishers_of_the_library_sign(use, start: Start, settings: BridgeSettings, queues: Queues) -> None:
    """With keys, what EventBus publishes is let in, and what it reads back verifies; without, it is not."""
    use("t.all")
    start(**SIGNED)
    with bus_with(settings, **SIGNED) as bus, bus_with(settings) as careless:
        heard: list[Event] = []
        bus.subscribe("billing.*", heard.append)
        event = bus.publish("billing.paid", 1).event
        forged = careless.publish("billing.paid", 2).event
        careless.publish("billing.other", 3)
        with bus_with(settings, signing_keys=SECRETS) as other:
            last_one = other.publish("billing.paid", 4).event
        eventually(lambda: last_one.id in [one.id for one in heard], "other processes are heard")
        assert [one.id for one in heard] == [event.id, last_one.id]
        assert bus.get_event(last_one.id) == careless.get_event(last_one.id)
        with pytest.raises(InvalidEvent, match="does not end with a signature"):
            bus.get_event(forged.id)
    eventually(lambda: queues.length() == 2, "those that were signed")


def test_a_task_signs_what_it_publishes(processes: Processes, settings: BridgeSettings, client: Redis, prefix) -> None:
    """In a worker whose bus requires signatures of all types, a chain of handlers runs; no secret is in its log."""
    secrets = {key_id: secret.get_secret_value() for key_id, secret in SECRETS.items()}
    processes.environment |= {"BRIDGE_SIGNING_KEYS": json.dumps(secrets), "BRIDGE_REQUIRE_SIGNATURE": '["*"]'}
    processes.worker()
    with bus_with(settings, signing_keys=SECRETS) as bus:
        bus.publish("sub.created", id="first")
    processes.celery("bus", "publish", "dream.created", '{"dreamId": 7}', "--id", "by-hand", name="publish")
    effects = lambda: [line.decode() for line in client.lrange(f"{prefix}effects", 0, -1)]  # noqa: E731
    eventually(lambda: len(effects()) == 5, "three of the chain, two of the command", timeout_s=30)
    assert sorted(line.split()[0] for line in effects()) == ["glob", "plain", "sub", "sub", "sub"]
    assert not any(secret in processes.log(name) for secret in secrets.values() for name in ("w1", "publish"))


def test_the_typescript_example_is_heard(use, start: Start, outside: Outside, queues: Queues, tmp_path: Path) -> None:
    """The example of docs/signing.md publishes an event that a subscriber lets in, and not with another secret."""
    node = shutil.which("node")
    if node is None:
        missing("node")
    (code,) = re.findall(r"```ts\n(.*?)```", (ROOT / "docs" / "signing.md").read_text(), re.S)
    script = tmp_path / "publish.mjs"
    script.write_text(code)  # there are no types in it that Node would have to take out
    use("t.exact")
    start(signing_keys=SECRETS, require_signature=["*"])
    address = outside.client.get_connection_kwargs()
    ids = []
    for secret in (SECRETS["new"].get_secret_value(), "a secret that nobody here has: " * 2):
        command = [node, str(script), address["host"], str(address["port"]), outside.keys.prefix, "new", secret]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        ids.append(done.stdout.strip())
    eventually(lambda: queues.length() == 1 and len(outside.letters()) == 1, "one is let in")
    assert list(queues.tasks()) == [f"t.exact dream.created {ids[0][:8]}..."]
    (letter,) = outside.letters()
    assert letter.detail.startswith("signature: key 'new' has not signed this")
    assert ids[1].encode() in letter.raw
