"""Task messages: those that the outbox sends equal those that Celery sends, field by field."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from pydantic import SecretStr
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, SettingsError
from bridge.broker.messages import Message
from bridge.broker.outbox import Outbox
from bridge.events.clock import now_ms
from bridge.events.encoded import EncodedEvent
from bridge.handlers.delivery import SENT_HEADER
from bridge.handlers.handler import task_id_for
from bridge.storage.storage import Storage
from bridge.subscriber.subscriber import Subscriber
from tests.handlers import HANDLERS
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually

EVENT = Event(type="billing.paid", id="e1", payload={"price": "9.99", "text": "süß"}, source="shop")

STORED = EncodedEvent.read(EVENT.encode())

#: Fields that differ between any two messages of Celery.
VOLATILE = ("delivery_tag", "reply_to")


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its body decoded and without the fields that differ each time."""
    properties = {name: value for name, value in message["properties"].items() if name not in VOLATILE}
    body = base64.b64decode(message["body"])
    if message["headers"].get("compression"):
        body = zlib.decompress(body)
    return message | {"properties": properties, "body": json.loads(body)}


def only_message(queues: Queues, *names: str) -> dict[str, Any]:
    (found,) = [message for name in names for message in queues.messages(name)]
    return found


ROUTES = {
    "default": ("t.plain", {}, "celery"),
    "routed by type": ("t.plain", {"queue": "billing", "priority": 6}, "billing\x06\x166"),
    "decorator wins": ("t.own", {"queue": "billing", "priority": 3}, "own\x06\x163"),
    "limits and priority": ("t.limited", {}, "limited\x06\x166"),
    "compressed": ("t.packed", {}, "celery"),
    "expires": ("t.expiring", {}, "celery"),
    "countdown": ("t.delayed", {}, "celery"),
    "headers, with a percent sign": ("t.plain", {"headers": {"tenant": "100 %s", "n": 1}}, "celery"),
    "transient": ("t.plain", {"delivery_mode": 1}, "celery"),
    "direct exchange without a key": ("t.plain", {"queue": "q", "exchange": "q"}, "q"),
    "named exchange": ("t.plain", {"queue": "celery", "exchange": "celery", "routing_key": "celery"}, "celery"),
}


@pytest.mark.parametrize("way", ["stamped", "pushed", "published", "sent again by hand"])
@pytest.mark.parametrize(("name", "options", "where"), ROUTES.values(), ids=ROUTES)
def test_messages_equal_celerys_own(
    app: Celery, settings: BridgeSettings, queues: Queues, name: str, options: dict[str, Any], where: str, way: str
) -> None:
    """A message equals the one that apply_async sends, in every way to create it, and has the time when it was sent."""
    app.finalize()
    queues.client.sadd(f"broker:{queues.prefix}_kombu.binding.celery", "celery\x06\x16\x06\x16celery")
    outbox = Outbox(app, settings.model_copy(update={"routes": {"billing.*": options}}))
    message = outbox.prepare(HANDLERS[name], STORED, b"1-1")
    template = message.route.template
    assert template is not None
    if way in ("stamped", "pushed") and not message.stamped:
        assert "routing_key" in options  # kombu looks up bindings for each message
        return
    if way == "stamped":
        assert message.queue_key == f"broker:{queues.prefix}{where}"
        queues.client.lpush(message.queue_key, message.stamped)
    elif way == "pushed":
        outbox.send([message])
    elif way == "published":
        outbox.send([message._replace(stamped=b"", content=template.content(STORED))])
    else:
        outbox.send([message._replace(stamped=b"", content=None)])
    outbox.close()
    ours = only_message(queues, where)
    assert abs(int(ours["headers"].pop(SENT_HEADER)) - now_ms()) < 60_000
    queues.client.delete(f"broker:{queues.prefix}{where}")
    app.tasks[name].apply_async((EVENT,), task_id=message.task_id, **options | dict(HANDLERS[name].send_options))
    assert without_moments(plain(ours)) == without_moments(plain(only_message(queues, where)))


@pytest.mark.parametrize("name", ["t.delayed", "t.plain"])
def test_a_retry_that_is_sent_again_keeps_its_number(app: Celery, outbox: Outbox, queues: Queues, name: str) -> None:
    """A task whose retry was lost is sent again with the number of that try and without the delay of the first."""
    app.finalize()
    outbox.send([outbox.prepare(HANDLERS[name], STORED, b"1-1", 2)])
    again = only_message(queues, "celery")
    queues.client.delete(f"broker:{queues.prefix}celery")
    outbox.send([outbox.prepare(HANDLERS[name], STORED, b"1-1")])
    first = only_message(queues, "celery")
    assert (again["headers"].pop("retries"), again["headers"].pop("eta")) == (2, None)
    assert (first["headers"].pop("retries"), bool(first["headers"].pop("eta"))) == (0, name == "t.delayed")
    for message in (first, again):
        assert message["headers"].pop(SENT_HEADER)
    assert plain(again) == plain(first)


def without_moments(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with each timestamp of its headers as minutes from now."""
    for name in ("eta", "expires"):
        if moment := message["headers"][name]:
            ahead_s = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
            message["headers"][name] = (round(ahead_s / 60), moment[-6:])
    return message


def test_messages_have_the_time_of_their_batch(outbox: Outbox) -> None:
    """The next batch has a later time than the one before."""

    def sent_ms() -> int:
        outbox.refresh()
        return int(json.loads(outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1").stamped)["headers"][SENT_HEADER])

    first_ms = sent_ms()
    eventually(lambda: sent_ms() > first_ms, "the clock advances")


@pytest.mark.parametrize("changed", ["a listener", "sent events", "routes"])
def test_configuration_that_changes_is_noticed(app: Celery, outbox: Outbox, changed: str) -> None:
    """Routes are created again when the configuration changes or a signal receiver is connected."""

    def listener(**_: Any) -> None: ...

    outbox.refresh()
    before = outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1")
    assert before.stamped
    if changed == "a listener":
        before_task_publish.connect(listener)
    elif changed == "sent events":
        app.conf.task_send_sent_event = True
    else:
        app.conf.task_routes = {"t.plain": {"queue": "elsewhere"}}
        app.amqp.flush_routes()
        app.amqp.router = app.amqp.Router()
    outbox.refresh()
    after = outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1")
    before_task_publish.disconnect(listener)
    if changed == "routes":
        assert after.queue_key == before.queue_key.replace("celery", "elsewhere")
    else:
        assert after.route.template is None


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("redis://localhost:6379/0", True),
        ("redis://localhost", True),
        ("redis://localhost:6379/1", False),
        ("redis://localhost:6380/0", False),
        ("redis://other:6379/0", False),
        ("redis://user:secret@localhost:6379/0", False),
        ("rediss://localhost:6379/0", False),
        ("redis://localhost;redis://other", False),
        ("sentinel://localhost:6379/0", False),
        ("amqp://localhost", False),
        ("memory://", False),
    ],
)
def test_one_redis_is_told_from_the_addresses(settings: BridgeSettings, url: str, same: bool) -> None:
    """Dispatch is exactly-once only if bus and broker are the same database of one Redis, for the same user."""
    with Celery("x", broker=url, set_as_current=False) as app:
        at_home = settings.model_copy(update={"redis_url": SecretStr("redis://localhost:6379/0")})
        assert Outbox(app, at_home).one_redis is same


@pytest.mark.parametrize(
    ("url", "master_name", "same"),
    [
        ("sentinel://b:26379;sentinel://a:26380/1", "bus", False),
        ("sentinel://b:26379/1;sentinel://a:26380/1", "bus", True),
        ("sentinel://b:26379/1;sentinel://a:26380/1", "other", False),
        ("sentinel://b:26379/1", "bus", False),
        ("redis://b:26379/1;redis://a:26380/1", "bus", False),
    ],
)
def test_one_redis_is_told_from_its_sentinels(settings: BridgeSettings, url: str, master_name: str, same: bool) -> None:
    """Behind Sentinels, Redis is the same if the Sentinels, the service name and the database are the same."""
    with Celery("x", broker=url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"master_name": master_name}
        at_home = settings.model_copy(update={"redis_url": SecretStr("redis+sentinel://a:26380,b/bus/1")})
        assert Outbox(app, at_home).one_redis is same
        clustered = settings.model_copy(update={"redis_url": SecretStr("redis+cluster://a:26380,b")})
        assert not Outbox(app, clustered).one_redis


def test_celery_sends_when_someone_listens(app: Celery, outbox: Outbox, queues: Queues) -> None:
    """Receivers of the publish signals get every message, with real values instead of placeholders."""
    seen: list[str] = []

    def receiver(headers: dict[str, Any], **_: Any) -> None:
        seen.append(headers["id"])
        headers["traced"] = "yes"

    before_task_publish.connect(receiver)
    try:
        messages = [
            outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1"),
            outbox.prepare(HANDLERS["t.own"], STORED, b"1-1"),
        ]
        outbox.send(messages)
    finally:
        before_task_publish.disconnect(receiver)
    assert seen == [message.task_id for message in messages]
    assert only_message(queues, "celery")["headers"]["traced"] == "yes"


def test_task_ids_follow_from_group_event_and_task(outbox: Outbox) -> None:
    """The same group, event and handler give the same task id; any other combination gives another id."""
    message: Message = outbox.prepare(HANDLERS["t.plain"], STORED, b"1-1")
    assert message.task_id == task_id_for("tests", "e1", "t.plain")
    others = [("other", "e1", "t.plain"), ("tests", "e2", "t.plain"), ("tests", "e1", "t.own")]
    assert len({message.task_id, *(task_id_for(*other) for other in others)}) == 4


def test_unknown_route_options_fail_at_start(app: Celery, settings: BridgeSettings) -> None:
    """A misspelt option in bridge_routes is an error before any event is dispatched."""
    with pytest.raises(SettingsError, match=r"bridge_routes\['a.\*'\]: qeue is not one of"):
        Outbox(app, settings.model_copy(update={"routes": {"a.*": {"qeue": "x"}}}))


def test_an_unknown_queue_is_the_handlers_fault(app: Celery, settings: BridgeSettings, queues: Queues) -> None:
    """A queue that must not be created raises an error when the message is created, not in the middle of a batch."""
    app.conf.task_create_missing_queues = False
    app.finalize()
    with pytest.raises(Exception, match="own"):
        Outbox(app, settings).prepare(HANDLERS["t.own"], STORED, b"1-1")
    assert queues.length() == 0


def test_routing_functions_see_the_event(app: Celery, settings: BridgeSettings, queues: Queues) -> None:
    """A function in task_routes chooses the route of each event from its arguments, as in Celery."""
    app.conf.task_routes = (lambda name, args, *_, **__: {"queue": args[0]["payload"]["queue"]},)
    app.finalize()
    outbox = Outbox(app, settings)
    events = [Event(type="a.b", payload={"queue": name}) for name in ("x", "y", "x")]
    outbox.send([outbox.prepare(HANDLERS["t.plain"], EncodedEvent.read(event.encode()), b"1-1") for event in events])
    assert (queues.length("x"), queues.length("y")) == (2, 1)
    outbox.close()


def test_user_code_that_fails_for_one_event_stops_no_other(
    register_handlers, start_subscriber: StartSubscriber, settings: BridgeSettings, queues: Queues, client: Redis
) -> None:
    """If user code fails for an event, its handler gets a dead letter, and all other messages are sent."""
    register_handlers("t.all", "t.picky")
    subscriber = start_subscriber()
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", id=name, payload={name: "x"}) for name in ("name", "other", "name2")])
        bus.publish("a.b", {"name": "x"}, id="last")
    expected = Counter(
        {f"t.all a.b {name}": 1 for name in ("name", "other", "name2", "last")}
        | {f"t.picky a.b {name}": 1 for name in ("name", "last")}
    )
    eventually(lambda: queues.tasks() == expected, "all other messages are sent")
    kept = Storage(client, settings).dead_letters
    letters = eventually(lambda: len(found := kept.latest(10)) == 2 and found, "both dead letters are written")
    assert {(letter.reason, letter.handler, letter.event_id) for letter in letters} == {
        ("message_failed", "t.picky", "other"),
        ("message_failed", "t.picky", "name2"),
    }
    assert "KeyError" in letters[0].detail
    assert "errors" not in subscriber.info()


def test_unsendable_options_of_a_route_fail_at_start(app: Celery, settings: BridgeSettings) -> None:
    """An unknown compression in bridge_routes is an error at start-up, not an outage of all handlers."""
    with pytest.raises(SettingsError, match="nope"):
        Outbox(app, settings.model_copy(update={"routes": {"a.*": {"compression": "nope"}}}))


def test_a_subscriber_needs_a_broker(app: Celery, settings: BridgeSettings) -> None:
    """With task_always_eager there is no broker, so a subscriber refuses to start."""
    app.conf.task_always_eager = True
    with pytest.raises(SettingsError, match="task_always_eager"):
        Subscriber(app, settings, "one")
