"""Task messages: what the outbox sends equals what Celery itself sends, field by field."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from redis import Redis

from bridge import BridgeSettings, Event, EventBus, SettingsError
from bridge.dead_letters import DeadLetters
from bridge.messages import Message, Outbox, task_id_for
from bridge.subscriber import Subscriber
from tests.conftest import Queues, Start, eventually
from tests.handlers import HANDLERS

EVENT = Event(type="billing.paid", id="e1", payload={"price": "9.99", "text": "süß"}, source="shop")

#: Differ between any two messages that Celery sends.
VOLATILE = ("delivery_tag", "reply_to")


@pytest.fixture
def outbox(app: Celery, settings: BridgeSettings) -> Iterator[Outbox]:
    app.finalize()
    made = Outbox(app, settings)
    yield made
    made.close()


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message without what differs each time, its body decoded."""
    properties = {name: value for name, value in message["properties"].items() if name not in VOLATILE}
    body = base64.b64decode(message["body"])
    if message["headers"].get("compression"):
        body = zlib.decompress(body)
    return message | {"properties": properties, "body": json.loads(body)}


def only_message(queues: Queues, *names: str) -> dict[str, Any]:
    (found,) = [message for name in names for message in queues.messages(name)]
    return found


@pytest.mark.parametrize(
    ("name", "routes", "where"),
    [
        ("t.plain", {}, "celery"),
        ("t.plain", {"billing.*": {"queue": "billing", "priority": 6}}, "billing\x06\x166"),
        ("t.own", {"billing.*": {"queue": "billing", "priority": 3}}, "own\x06\x163"),
        ("t.limited", {}, "limited\x06\x166"),
        ("t.packed", {}, "celery"),
    ],
    ids=["default", "routed by type", "decorator wins", "limits and priority", "compressed"],
)
def test_filled_in_messages_equal_celerys_own(
    app: Celery, settings: BridgeSettings, queues: Queues, name: str, routes: dict[str, Any], where: str
) -> None:
    """A message made from the template equals, in headers, properties and body, the one apply_async sends."""
    app.finalize()
    settings = settings.model_copy(update={"routes": routes})
    outbox = Outbox(app, settings)
    message = outbox.prepare(HANDLERS[name], EVENT)
    assert message.route.template is not None
    outbox.send([message])
    ours = only_message(queues, where)
    queues.client.delete(f"broker:{queues.prefix}{where}")
    options = routes.get("billing.*", {}) | dict(HANDLERS[name].send_options)
    app.tasks[name].apply_async((EVENT,), task_id=message.task_id, **options)
    assert plain(ours) == plain(only_message(queues, where))
    outbox.close()


@pytest.mark.parametrize("name", ["t.expiring", "t.delayed"])
def test_routes_with_moments_are_left_to_celery(outbox: Outbox, queues: Queues, name: str) -> None:
    """Expiry and countdown are computed for each event, not once per route."""
    message = outbox.prepare(HANDLERS[name], EVENT)
    assert message.route.template is None
    outbox.send([message])
    headers = only_message(queues, "celery")["headers"]
    assert headers["expires"] or headers["eta"]
    assert headers["id"] == message.task_id
    assert headers["argsrepr"] == "(<Event billing.paid e1>,)"


def test_celery_sends_when_someone_listens(app: Celery, outbox: Outbox, queues: Queues) -> None:
    """Receivers of the publish signals see every message, and no rendered placeholder."""
    seen: list[str] = []

    def receiver(headers: dict[str, Any], **_: Any) -> None:
        seen.append(headers["id"])
        headers["traced"] = "yes"

    before_task_publish.connect(receiver)
    try:
        messages = [outbox.prepare(HANDLERS["t.plain"], EVENT), outbox.prepare(HANDLERS["t.own"], EVENT)]
        outbox.send(messages)
    finally:
        before_task_publish.disconnect(receiver)
    assert seen == [message.task_id for message in messages]
    assert only_message(queues, "celery")["headers"]["traced"] == "yes"


def test_task_ids_follow_from_group_event_and_task(outbox: Outbox) -> None:
    """The same event and handler give the same task id; another group, event or handler another one."""
    message: Message = outbox.prepare(HANDLERS["t.plain"], EVENT)
    assert message.task_id == task_id_for("tests", "e1", "t.plain")
    others = [("other", "e1", "t.plain"), ("tests", "e2", "t.plain"), ("tests", "e1", "t.own")]
    assert len({message.task_id, *(task_id_for(*other) for other in others)}) == 4


def test_unknown_route_options_fail_at_start(app: Celery, settings: BridgeSettings) -> None:
    """A misspelt option in bridge_routes is an error before any event comes."""
    with pytest.raises(SettingsError, match=r"bridge_routes\['a.\*'\]: qeue is none of"):
        Outbox(app, settings.model_copy(update={"routes": {"a.*": {"qeue": "x"}}}))


def test_an_unknown_queue_is_the_handlers_fault(app: Celery, settings: BridgeSettings, queues: Queues) -> None:
    """A queue that must not be created fails when the message is made, not in the middle of a batch."""
    app.conf.task_create_missing_queues = False
    app.finalize()
    with pytest.raises(Exception, match="own"):
        Outbox(app, settings).prepare(HANDLERS["t.own"], EVENT)
    assert queues.length() == 0


def test_routing_functions_see_the_event(app: Celery, settings: BridgeSettings, queues: Queues) -> None:
    """A function in task_routes decides for each event, with its arguments, as Celery has it."""
    app.conf.task_routes = (lambda name, args, *_, **__: {"queue": args[0]["payload"]["queue"]},)
    app.finalize()
    outbox = Outbox(app, settings)
    outbox.send([outbox.prepare(HANDLERS["t.plain"], Event(type="a.b", payload={"queue": q})) for q in ("x", "y", "x")])
    assert (queues.length("x"), queues.length("y")) == (2, 1)
    outbox.close()


def test_user_code_that_fails_for_one_event_stops_no_other(
    use, start: Start, settings: BridgeSettings, queues: Queues, client: Redis
) -> None:
    """Its event becomes a dead letter of the handler, as it is sent and as it is sent again; the others are sent."""
    use("t.all", "t.picky")
    subscriber = start()
    with EventBus(settings) as bus:
        bus.publish_many([Event(type="a.b", id=name, payload={name: "x"}) for name in ("name", "other", "name2")])
        bus.publish("a.b", {"name": "x"}, id="last")
    eventually(lambda: queues.tasks()["t.picky a.b last"] == 1, "the last one is sent")
    assert queues.tasks() == Counter(
        {f"t.all a.b {name}": 1 for name in ("name", "other", "name2", "last")}
        | {f"t.picky a.b {name}": 1 for name in ("name", "last")}
    )
    letters = DeadLetters(client, settings).latest(10)
    assert {(letter.reason, letter.handler, letter.event_id) for letter in letters} == {
        ("message", "t.picky", "other"),
        ("message", "t.picky", "name2"),
    }
    assert "KeyError" in letters[0].detail
    assert "errors" not in subscriber.info()


def test_unsendable_options_of_a_route_fail_at_start(app: Celery, settings: BridgeSettings) -> None:
    """A compression nobody knows is an error before any event comes, not an outage of all handlers."""
    with pytest.raises(SettingsError, match="nope"):
        Outbox(app, settings.model_copy(update={"routes": {"a.*": {"compression": "nope"}}}))


def test_a_subscriber_needs_a_broker(app: Celery, settings: BridgeSettings) -> None:
    """With task_always_eager there is nowhere to send to."""
    app.conf.task_always_eager = True
    with pytest.raises(SettingsError, match="task_always_eager"):
        Subscriber(app, settings, "one")
