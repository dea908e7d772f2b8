"""What the messages of a route look like: rendered once by Celery and kombu, filled in for each event.

An ordinary ``apply_async`` spends most of its time on work that is the same for every event of a route. So Celery
renders one message per route into a recorder, and each event replaces what differs: ids, moments, body and the text
that Flower shows. For a queue in Redis, kombu renders that message once more, down to the text it would push; of this
a *stamp* is made, a byte string with places for what differs.
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

from bridge.broker.producer import DELAYS
from bridge.events import EncodedEvent
from bridge.handlers import EventTask, describe

_EXAMPLE = EncodedEvent("-", "example", None, b"{}")


@dataclass(frozen=True)
class Template:
    """One message of a route as Celery renders it, without what differs from event to event.

    Arguments:
        app: Says what time it is.
        headers, publish: Of every message, for :meth:`kombu.Producer.publish`.
        embed: What Celery adds to the arguments in the body.
        serializer: Name of kombu's.
        moments: Header to how many seconds ahead of the sending it lies.
        queue_key: The Redis list that is the queue; empty when no stamp can be made.
        stamp: The text that kombu pushes there, to be filled in with ``%``.
        delayed_to: The queue to which RabbitMQ brings it when its time has come; None when it goes there at once.
    """

    app: Celery
    headers: Mapping[str, Any]
    publish: Mapping[str, Any]
    embed: Any
    serializer: str
    moments: Mapping[str, float]
    queue_key: str = ""
    stamp: bytes = b""
    delayed_to: Queue | None = None

    @property
    def exchange(self) -> str:
        """Name of the exchange if it is not declared with the queue; empty for the default one too."""
        exchange = self.publish["exchange"]
        name = str(getattr(exchange, "name", exchange) or "")
        return "" if any(queue.exchange.name == name for queue in self.publish["declare"] or ()) else name

    def content(self, stored: EncodedEvent) -> tuple[str, str, bytes]:
        """Return content type, encoding and body of the message for an event."""
        if self.serializer != "json":
            content_type, encoding, body = dumps(([stored.event.to_dict()], {}, self.embed), self.serializer)
            return content_type, encoding, body.encode() if isinstance(body, str) else body
        return "application/json", "utf-8", self._json(stored)

    def filled_in(self, stored: EncodedEvent, task_id: str, content: tuple[str, str, bytes]) -> dict[str, Any]:
        """Return the arguments of :meth:`kombu.Producer.publish` for the message with this content."""
        argsrepr = describe(stored)
        headers = {**self.headers, "id": task_id, "root_id": task_id, "argsrepr": argsrepr, **self._moments()}
        content_type, encoding, body = content
        own = {"content_type": content_type, "content_encoding": encoding, "correlation_id": task_id}
        return {**self.publish, **own, "body": body, "headers": headers, "argsrepr": argsrepr}

    def stamped(self, stored: EncodedEvent, task_id: bytes, tag: bytes) -> bytes:
        """Return what kombu would push for an event; *tag* is the delivery tag, which no other message may have."""
        body = self._json(stored)
        if compression := self.publish.get("compression"):
            body = compress(body, compression)[0]
        values = {
            b"id": task_id,
            b"argsrepr": describe(stored).encode(),
            b"tag": tag,
            b"body": b2a_base64(body, newline=False),
        }
        if self.moments:
            values |= {header.encode(): moment.encode() for header, moment in self._moments().items()}
        return self.stamp % values

    def _json(self, stored: EncodedEvent) -> bytes:
        return b"[[%b], {}, %b]" % (stored.data, self.embed)

    def _moments(self) -> dict[str, str]:
        if not self.moments:
            return {}
        app, now = self.app, self.app.now()
        moments = {header: now + timedelta(seconds=ahead_s) for header, ahead_s in self.moments.items()}
        return {header: maybe_make_aware(moment, tz=app.timezone).isoformat() for header, moment in moments.items()}


def render(
    app: Celery, task: EventTask, options: Mapping[str, Any], offline: Connection | None
) -> tuple[Template | None, Any, int | None]:
    """Let Celery make a message of *task*.

    Arguments:
        options: For ``apply_async``.
        offline: To the broker, with its options, if a stamp is wanted; nothing is sent over it.

    Returns:
        The template, None when Celery has to make each message itself; the queue, and the priority.

    Raises:
        Exception: Celery refuses the options, or does not know the queue.
    """
    recorder = _Recorder(app.connection_for_write(), auto_declare=False)
    task.apply_async(({},), task_id="-", argsrepr="-", producer=recorder, add_to_parent=False, **options)
    body, publish = recorder.recorded
    headers, serializer = publish.pop("headers"), publish.pop("serializer")
    ahead = {"eta": options.get("countdown"), "expires": options.get("expires", task.expires)}
    moments = {name: ahead[name] for name in ahead if isinstance(body, tuple) and headers[name]}
    queue, priority = next(iter(publish["declare"] or ()), None), publish.get("priority")
    if not isinstance(body, tuple) or not all(isinstance(ahead_s, int | float) for ahead_s in moments.values()):
        return None, queue, priority  # task protocol 1, or a moment that is fixed
    if delayed := publish["declare"] is None and getattr(publish["exchange"], "name", "") == DELAYS:
        # Celery's way to hold messages for quorum queues back; it leaves out for which queue that is.
        router: Any = app.amqp.router  # its stubs know no task instance
        queue = router.route(dict(options), task.name, (), {}, task)["queue"]
        publish["declare"] = [queue]
    embed = json.dumps(body[2]).encode() if serializer == "json" else body[2]
    publish |= {"retry": False, "retry_policy": None}
    template = Template(app, headers, publish, embed, serializer, moments, delayed_to=queue if delayed else None)
    return template if offline is None else _with_stamp(template, offline), queue, priority


def _with_stamp(template: Template, offline: Connection) -> Template:
    """Add the stamp, where one message goes to one list: a named exchange has bindings in Redis, which may change."""
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
    # No text that a message may hold by itself.
    marks = {name: uuid.uuid4().hex for name in ("id", "argsrepr", "tag", "body", *template.moments)}
    message["body"], properties["delivery_tag"] = marks["body"], marks["tag"]
    headers |= {"id": marks["id"], "root_id": marks["id"], "argsrepr": marks["argsrepr"]}
    headers |= {header: marks[header] for header in template.moments}
    properties |= {"correlation_id": marks["id"], "argsrepr": marks["argsrepr"]}
    text = json.dumps(message).replace("%", "%%")
    for name, mark in marks.items():
        text = text.replace(mark, f"%({name})b")
    return replace(template, queue_key=key, stamp=text.encode())


def send_by_celery(
    producer: Producer, task: EventTask, options: Mapping[str, Any], stored: EncodedEvent, task_id: str
) -> None:
    """Let Celery make a message and send it."""
    task.apply_async(
        (stored.event.to_dict(),),
        task_id=task_id,
        argsrepr=describe(stored),
        producer=producer,
        retry=False,
        add_to_parent=False,
        **options,
    )


def delivery_tags() -> Iterator[bytes]:
    """Yield tags for :meth:`Template.stamped`: like UUIDs, each once."""
    start = str(uuid.uuid4())[:24].encode()
    return (b"%b%012x" % (start, number) for number in count())


class _Recorder(Producer):
    """A producer that keeps what it is asked to publish instead of sending it."""

    recorded: tuple[Any, dict[str, Any]]

    def publish(self, body: Any, **options: Any) -> None:  # type: ignore[override]  # takes whatever Celery passes
        self.recorded = (body, options)


class _Offline(kombu_redis.Channel):
    """A channel that connects nowhere and keeps what it would push: the list and the text."""

    pushed: tuple[str, str]

    def _create_client(self, asynchronous: bool = False) -> _Client:
        return _Client(self)


class _Client:
    """What a channel asks of its Redis client to push one message."""

    connection = None

    def __init__(self, channel: _Offline) -> None:
        self._channel = channel

    def ping(self) -> bool:
        return True

    def lpush(self, key: str, text: str) -> None:
        self._channel.pushed = (f"{self._channel.global_keyprefix}{key}", text)
