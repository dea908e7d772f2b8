"""Messages of handlers whose application has a task class: as that class has them, field by field."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
from celery import Celery, Task

from bridge import BridgeSettings, Event
from bridge.broker.outbox import Outbox
from bridge.events.encoded import EncodedEvent
from tests.handlers import HANDLERS
from tests.support.queues import Queues

EVENT = Event(type="billing.paid", id="e1", payload={"tenant": "north"})


class Attributes(Task):  # type: ignore[type-arg]  # generic in the stubs only
    abstract = True
    queue = "own"
    priority = 3
    expires = 600
    time_limit = 30


class Tenant(Task):  # type: ignore[type-arg]
    """Takes something of the event into the message."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        headers = {**(options.pop("headers", None) or {}), "tenant": args[0]["payload"]["tenant"]}
        return super().apply_async(args, kwargs, headers=headers, **options)


@pytest.mark.parametrize(("task_cls", "stamped"), [(Attributes, True), (Tenant, False)], ids=["attributes", "method"])
def test_messages_are_those_of_the_task_class(
    app: Celery, settings: BridgeSettings, queues: Queues, task_cls: Any, stamped: bool
) -> None:
    """Its attributes are in the message; if it has its own ``apply_async``, Celery makes each message."""
    app.task_cls = task_cls  # type: ignore[attr-defined]  # not in the stubs
    app.finalize()
    outbox = Outbox(app, settings)
    message = outbox.prepare(HANDLERS["t.plain"], EncodedEvent.read(EVENT.encode()), b"1-1")
    assert bool(message.stamped) is stamped
    if stamped:
        queues.client.lpush(str(message.queue_key), message.stamped)
    else:
        outbox.send([message])
    outbox.close()
    ours = sent(queues)
    app.tasks["t.plain"].apply_async((EVENT.to_dict(),), task_id=message.task_id)
    celerys = sent(queues)
    assert isinstance(app.tasks["t.plain"], task_cls)
    assert ours["headers"].pop("bridge_sent_ms")
    assert {name: value for name, value in ours["headers"].items() if name != "expires"} == {
        name: value for name, value in celerys["headers"].items() if name != "expires"
    }
    assert bool(ours["headers"]["expires"]) == bool(celerys["headers"]["expires"]) == (task_cls is Attributes)
    assert ours["properties"]["priority"] == celerys["properties"]["priority"]
    assert json.loads(b64decode(ours["body"])) == json.loads(b64decode(celerys["body"]))


def sent(queues: Queues) -> dict[str, Any]:
    """Take the only message from the queues, which have a list for each priority."""
    keys = [key for key in queues.client.scan_iter(f"broker:{queues.prefix}*") if queues.client.type(key) == b"list"]
    (raw,) = [raw for key in keys for raw in queues.client.lrange(key, 0, -1)]
    queues.client.delete(*keys)
    message: dict[str, Any] = json.loads(raw)
    return message
