"""Message templates: Celery and kombu render one message per route, which is filled in for each event.

An ordinary ``apply_async`` spends most of its time on work that is the same for every event of a route. So Celery
renders one message per route into a recorder; for each event only ids, timestamps, the body and the text that Flower
shows are replaced. For a queue in Redis, kombu also renders this message down to the text that it would push. A
:class:`~bridge.broker.stamp.Stamp` of this text makes the bytes for each event.
"""

from __future__ import annotations

import uuid
from binascii import b2a_base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count
from typing import Any

from celery import Celery
from celery.utils.time import maybe_make_aware
from kombu import Connection, Producer, Queue
from kombu.compression import compress
from kombu.serialization import dumps
from kombu.transport import redis as kombu_redis
from kombu.utils import json

from bridge.broker.declarations import DELAYS
from bridge.broker.stamp import Stamp
from bridge.events import TRACEPARENT, TRACESTATE, EncodedEvent, now_ms
from bridge.handlers import SENT_HEADER, EventTask, describe
from bridge.telemetry import continuing

_EXAMPLE = EncodedEvent("-", "example", None, b"{}")


@dataclass(frozen=True)
class Template:
    """A message of a route as Celery renders it, without what differs from event to event.

    Arguments:
        app: Has the clock and the time zone of timestamps.
        headers, publish: Arguments of :meth:`kombu.Producer.publish` that are the same for every message.
        embed: What Celery adds to the arguments of the task in the body.
        serializer: Name of kombu's serializer.
        timestamps: Headers that are times, and how many seconds after the sending they are.
        queue_key: The Redis list that is the queue; empty if there are no stamps.
        stamps: The text that kombu pushes to this list, by the number of headers with the trace context of the event:
            0, 1 or 2. Empty if messages have to go through kombu.
        delayed_to: The queue to which RabbitMQ moves the message at its ``eta``; None: it goes there at once.
    """

    app: Celery
    headers: Mapping[str, Any]
    publish: Mapping[str, Any]
    embed: Any
    serializer: str
    timestamps: Mapping[str, float]
    queue_key: str = ""
    stamps: tuple[Stamp, ...] = ()
    delayed_to: Queue | None = None

    @property
    def exchange(self) -> str:
        """Name of the exchange; empty if it is the default exchange, or is declared with the queue."""
        exchange = self.publish["exchange"]
        name = str(getattr(exchange, "name", exchange) or "")
        return "" if any(queue.exchange.name == name for queue in self.publish["declare"] or ()) else name

    def content(self, event: EncodedEvent) -> tuple[str, str, bytes]:
        """Return content type, encoding and body of the message for an event."""
        if self.serializer != "json":
            content_type, encoding, body = dumps(([event.event.to_dict()], {}, self.embed), self.serializer)
            return content_type, encoding, body.encode() if isinstance(body, str) else body
        return "application/json", "utf-8", self._json(event)

    def filled_in(self, event: EncodedEvent, task_id: str, content: tuple[str, str, bytes]) -> dict[str, Any]:
        """Return the arguments of :meth:`kombu.Producer.publish` for the message with this content."""
        argsrepr = describe(event)
        headers = {**self.headers, "id": task_id, "root_id": task_id, "argsrepr": argsrepr, SENT_HEADER: sent_now()}
        if self.timestamps:
            headers |= self._times()
        if trace := event.trace:
            headers |= trace.headers
        content_type, encoding, body = content
        own = {"content_type": content_type, "content_encoding": encoding, "correlation_id": task_id}
        return {**self.publish, **own, "body": body, "headers": headers, "argsrepr": argsrepr}

    def stamped(self, event: EncodedEvent, task_id: bytes, tag: bytes, sent: bytes) -> bytes:
        """Return what kombu would push for an event; empty if there are no stamps.

        Arguments:
            tag: The delivery tag, which no other message may have.
            sent: Value of :data:`SENT_HEADER`.
        """
        if not self.stamps:
            return b""
        body = self._json(event)
        if compression := self.publish.get("compression"):
            body = compress(body, compression)[0]
        times = tuple(time.encode() for time in self._times().values()) if self.timestamps else ()
        own = (task_id, describe(event).encode(), tag, b2a_base64(body, newline=False), sent)
        trace = () if event.traced_by is None else event.trace_headers
        return self.stamps[len(trace)].fill(*own, *trace, *times)

    def _json(self, event: EncodedEvent) -> bytes:
        return b"[[%b], {}, %b]" % (event.data, self.embed)

    def _times(self) -> dict[str, str]:
        """Return the headers that are times, for a message that is sent now."""
        if not self.timestamps:
            return {}
        app, now = self.app, self.app.now()
        times = {header: now + timedelta(seconds=after_s) for header, after_s in self.timestamps.items()}
        return {header: maybe_make_aware(time, tz=app.timezone).isoformat() for header, time in times.items()}


def render(
    app: Celery, task: EventTask, options: Mapping[str, Any], offline: Connection | None
) -> tuple[Template | None, Any, int | None]:
    """Render a message of *task* with Celery.

    Arguments:
        options: For ``apply_async``.
        offline: A connection to the broker, if a stamp is wanted; nothing is sent over it.

    Returns:
        The template, or None if Celery has to make each message itself; the queue, or None if the message reaches
        another one; and the priority.

    Raises:
        Exception: Celery refuses the options, or does not know the queue.
    """
    recorder = _Recorder(app.connection_for_write(), auto_declare=False)
    # OpenTelemetry's receivers ignore a message without an id. This one is not sent, so it must not have a span.
    headers = {**(options.get("headers") or {}), "id": None}
    own = {"task_id": "-", "argsrepr": "-", "producer": recorder, "add_to_parent": False, "headers": headers}
    task.apply_async(({},), **{**options, **own})
    body, publish = recorder.recorded
    headers, serializer = publish.pop("headers"), publish.pop("serializer")
    ahead = {"eta": options.get("countdown"), "expires": options.get("expires", task.expires)}
    timestamps = {name: ahead[name] for name in ahead if isinstance(body, tuple) and headers[name]}
    queue, priority = next(iter(publish["declare"] or ()), None), publish.get("priority")
    queue = queue_reached(queue, publish["exchange"], publish["routing_key"])
    if not isinstance(body, tuple) or not all(isinstance(ahead_s, int | float) for ahead_s in timestamps.values()):
        return None, queue, priority  # task protocol 1, or a fixed time
    if delayed := publish["declare"] is None and getattr(publish["exchange"], "name", "") == DELAYS:
        # Celery delays messages for quorum queues in this way, and does not name the queue.
        router: Any = app.amqp.router  # its stubs know no task instance
        queue = router.route(dict(options), task.name, (), {}, task)["queue"]
        publish["declare"] = [queue]
    embed = json.dumps(body[2]).encode() if serializer == "json" else body[2]
    publish |= {"retry": False, "retry_policy": None}
    template = Template(app, headers, publish, embed, serializer, timestamps, delayed_to=queue if delayed else None)
    return template if offline is None else _with_stamps(template, offline), queue, priority


def queue_reached(queue: Any, exchange: Any, routing_key: str | None) -> Any:
    """Return *queue*, the name of a queue or kombu's object, if a message reaches it; None if that is not known.

    Celery names the default queue, too, if the options name another exchange.
    """
    name = str(getattr(exchange, "name", exchange) or "")
    own = getattr(queue, "exchange", None)
    known = not name or (own is not None and (own.name, queue.routing_key) == (name, routing_key))
    return queue if known else None


def _with_stamps(template: Template, offline: Connection) -> Template:
    """Add the stamps if a message goes to exactly one list: bindings of a named exchange, in Redis, may change."""
    queues, publish = template.publish["declare"] or (), template.publish
    expiring = any(queue.expires or "x-expires" in (queue.queue_arguments or {}) for queue in queues)
    if publish["exchange"] or expiring or template.serializer != "json":
        return template
    channel = _Offline(offline.transport)
    try:
        content = ("application/json", "utf-8", b"")
        filled_in = template.filled_in(_EXAMPLE, "-", content) | {"declare": None}
        Producer(channel, auto_declare=False).publish(**filled_in)
        key, text = channel.pushed
    finally:
        channel.close()
    message = json.loads(text)
    headers, properties = message["headers"], message["properties"]
    in_order = (TRACEPARENT, TRACESTATE)

    def example(task_id: str, argsrepr: str, tag: str, body: str, sent: str, *further: str) -> bytes:
        message["body"], properties["delivery_tag"] = body, tag
        headers.update({"id": task_id, "root_id": task_id, "argsrepr": argsrepr, SENT_HEADER: sent})
        names = (*in_order[: len(further) - len(template.timestamps)], *template.timestamps)
        headers.update(zip(names, further, strict=True))
        properties.update({"correlation_id": task_id, "argsrepr": argsrepr})
        return json.dumps(message).encode()

    places = 5 + len(template.timestamps)
    stamps = tuple(Stamp.from_example(example, places + traced) for traced in range(len(in_order) + 1))
    return replace(template, queue_key=key, stamps=stamps)


def send_by_celery(producer: Producer, task: EventTask, event: EncodedEvent, options: Mapping[str, Any]) -> None:
    """Make a message with Celery and send it."""
    trace = event.trace
    headers = {**(options.get("headers") or {}), SENT_HEADER: sent_now(), **(trace.headers if trace else {})}
    own = {"argsrepr": describe(event), "producer": producer, "retry": False, "add_to_parent": False}
    with continuing(trace):
        task.apply_async((event.event.to_dict(),), **{**options, **own, "headers": headers})


def sent_now() -> str:
    """Return the value of :data:`SENT_HEADER` for a message that is sent now."""
    return str(now_ms())


def delivery_tags() -> Iterator[bytes]:
    """Yield unique tags for :meth:`Template.stamped`, which look like UUIDs."""
    start = str(uuid.uuid4())[:24].encode()
    return (b"%b%012x" % (start, number) for number in count())


class _Recorder(Producer):
    """A producer that records a message instead of sending it."""

    recorded: tuple[Any, dict[str, Any]]

    def publish(self, body: Any, **options: Any) -> None:  # type: ignore[override]  # accepts any arguments of Celery
        self.recorded = (body, options)


class _Offline(kombu_redis.Channel):
    """A channel that never connects and records what it would push: the list and the text."""

    pushed: tuple[str, str]

    def _create_client(self, asynchronous: bool = False) -> _Client:
        return _Client(self)


class _Client:
    """The Redis client of this channel, with what the channel calls to push one message."""

    connection = None

    def __init__(self, channel: _Offline) -> None:
        self._channel = channel

    def ping(self) -> bool:
        return True

    def lpush(self, key: str, text: str) -> None:
        self._channel.pushed = (f"{self._channel.global_keyprefix}{key}", text)
