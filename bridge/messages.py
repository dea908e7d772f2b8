"""Celery task messages for events: made once per route by Celery itself, then filled in per event.

An ordinary ``apply_async`` spends most of its time on work that is the same for every event of a route. So Celery
renders one message per route into a recorder, and each event replaces what differs: ids, body and the text that
Flower shows. Where that would not be what Celery sends, ``apply_async`` does it: when someone listens to the publish
signals, when sent-events are on, when a routing function decides, and for routes with an ETA or expiry.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from celery import Celery, Task
from celery.app.routes import MapRoute
from celery.signals import after_task_publish, before_task_publish
from kombu import Producer
from kombu.exceptions import OperationalError
from kombu.serialization import dumps
from redis.exceptions import RedisError

from bridge.context import PROPAGATOR
from bridge.errors import HandlerInvalid, SettingsError
from bridge.event import Event
from bridge.handlers import SEND_OPTIONS, Handler, check_send_options
from bridge.patterns import compile_pattern
from bridge.settings import BridgeSettings
from bridge.task import EventTask, describe

#: Derives task ids; any fixed UUID serves, this one must never change: a repeated dispatch has the same task id.
_TASK_IDS = uuid.UUID("2b9b1d1e-64c1-4f0f-8a52-6c5d2d7c9a10")

#: kombu waits for ever for a broker that is gone, unless told; these are for Redis, where it is so.
_REDIS_BROKER_TIMEOUTS = {"socket_timeout": 10.0, "socket_connect_timeout": 3.0, "socket_keepalive": True}


@dataclass(frozen=True)
class _Template:
    """One message of a route as Celery renders it, without what differs from event to event."""

    headers: Mapping[str, Any]
    embed: Any
    serializer: str
    publish: Mapping[str, Any]


@dataclass(frozen=True)
class Route:
    """Where the messages of one handler and event type go: options for Celery, and what comes of them."""

    options: Mapping[str, Any]
    queue: str
    priority: int
    #: None when Celery has to make the message itself.
    template: _Template | None


@dataclass(frozen=True)
class Message:
    """A task message ready to go: nothing about its event can fail any more."""

    task: EventTask
    task_id: str
    event: Event
    route: Route
    #: Content type, encoding and content.
    body: tuple[str, str, Any] | None


@dataclass(frozen=True)
class Refused:
    """A message that cannot be sent, and the *detail* of why, for a person."""

    message: Message
    detail: str


class Outbox:
    """Makes task messages and sends them in batches; used by one thread.

    Arguments:
        app: The Celery application whose tasks and broker these are.
        settings: ``group`` goes into the task ids, ``routes`` choose queues by event type.

    Raises:
        SettingsError: ``bridge_routes`` holds an option that does not concern sending.
    """

    def __init__(self, app: Celery, settings: BridgeSettings) -> None:
        self._app = app
        self._group = settings.group
        self._routes = [(compile_pattern(pattern), options) for pattern, options in settings.routes.items()]
        self._rendered: dict[tuple[str, int], Route] = {}
        self._producer: Any = None  # kombu.Producer; its stubs know no batch()
        for pattern, options in settings.routes.items():
            if unknown := options.keys() - SEND_OPTIONS:
                known = ", ".join(sorted(SEND_OPTIONS))
                raise SettingsError(f"bridge_routes[{pattern!r}]: {', '.join(sorted(unknown))} is none of {known}")
            try:
                check_send_options(options)
            except HandlerInvalid as error:
                raise SettingsError(f"bridge_routes[{pattern!r}]: {error}") from error

    def prepare(self, handler: Handler, event: Event) -> Message:
        """Make the message that calls *handler* with *event*. Raises whatever is wrong with either."""
        task = cast("EventTask", self._app.tasks[handler.task_name])
        route = self._route(task, handler, event)
        template = route.template
        body = dumps(([event.to_dict()], {}, template.embed), template.serializer) if template else None
        task_id = task_id_for(self._group, event.id, handler.task_name, event.replay)
        return Message(task, task_id, event, route, body)

    def send(self, messages: Sequence[Message]) -> list[Refused]:
        """Send *messages* through one broker batch.

        An error leaves open which of them went out; sending all of them again gives them the same task ids.

        Returns:
            Those that cannot be sent, though the broker is well: Celery calls user code for the messages it makes.

        Raises:
            Exception: Whatever the broker's client raises; the connection is then made anew next time.
        """
        refused: list[Refused] = []
        if not messages:
            return refused
        try:
            producer = self._connected()
            with producer.batch():
                for message in messages:
                    if message.route.template is not None and message.body is not None:
                        _send_filled_in(producer, message, message.route.template, message.body)
                        continue
                    try:
                        _send_by_celery(producer, message)
                    except Exception as error:
                        if _is_outage(error, producer.connection):
                            raise
                        refused.append(Refused(message, f"{type(error).__name__}: {error}"))
        except BaseException:
            self.close()
            raise
        return refused

    def waiting(self, queue: str) -> int:
        """Return how many messages are in *queue*, those that workers have taken not counted.

        Raises:
            Exception: Whatever the broker's client raises; the connection is then made anew next time.
        """
        try:
            producer = self._connected()
            # With Redis there is nothing to declare, and kombu looks for the queue without its global_keyprefix.
            passive = producer.connection.transport.driver_type != "redis"
            try:
                return int(producer.channel.queue_declare(queue, passive=passive).message_count)
            except producer.connection.channel_errors:
                self.close()  # an AMQP channel is of no use after that
                return 0  # there is no such queue
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the broker connection; the next message opens another."""
        if self._producer is not None:
            connection, self._producer = self._producer.connection, None
            connection.release()

    def _route(self, task: EventTask, handler: Handler, event: Event) -> Route:
        number = next((i for i, (pattern, _) in enumerate(self._routes) if pattern.fullmatch(event.type)), -1)
        options = {**(self._routes[number][1] if number >= 0 else {}), **handler.send_options}
        if self._only_celery_may_send() or self._differs_by_event(task):
            # An unknown queue, or a router that fails, is the fault of this handler: say so before the batch.
            chosen = self._router.route(dict(options), task.name, [event.to_dict()], {}, task)
            return _route_of(options, chosen.get("queue"), chosen.get("priority"), None)
        key = (task.name, number)
        if key not in self._rendered:
            self._rendered[key] = self._render(task, options)
        return self._rendered[key]

    def _render(self, task: EventTask, options: Mapping[str, Any]) -> Route:
        recorder = _Recorder(self._app.connection_for_write(), auto_declare=False)
        task.apply_async(({},), task_id="-", argsrepr="-", producer=recorder, add_to_parent=False, **options)
        body, publish = recorder.recorded
        queue, priority = next(iter(publish["declare"] or ()), None), publish.get("priority")
        headers, serializer = publish.pop("headers"), publish.pop("serializer")
        if not isinstance(body, tuple) or headers["eta"] or headers["expires"]:
            # task protocol 1, or moments that differ from event to event
            return _route_of(options, queue, priority, None)
        template = _Template(headers, body[2], serializer, publish | {"retry": False, "retry_policy": None})
        return _route_of(options, queue, priority, template)

    def _differs_by_event(self, task: EventTask) -> bool:
        """Whether user code that looks at the event has a say in the message."""
        overridden = (
            type(task).shadow_name is not Task.shadow_name or type(task).apply_async is not EventTask.apply_async
        )
        return overridden or not all(isinstance(route, MapRoute) for route in self._router.routes)

    @property
    def _router(self) -> Any:  # its stubs know neither its routes nor a task instance
        return self._app.amqp.router

    def _only_celery_may_send(self) -> bool:
        others = any(key[0] != PROPAGATOR for key, *_ in before_task_publish.receivers or ())
        return bool(others or after_task_publish.receivers or self._app.conf.task_send_sent_event)

    def _connected(self) -> Any:
        if self._producer is None:
            connection = self._app.connection_for_write()
            if connection.transport.driver_type == "redis":
                options = _REDIS_BROKER_TIMEOUTS | self._app.conf.broker_transport_options
                connection = self._app.connection_for_write(transport_options=options)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        return self._producer


def task_id_for(group: str, event_id: str, task_name: str, replay: str | None = None) -> str:
    """Return the id of the task that *task_name* of *group* runs for an event: the same until it is replayed."""
    attempt = "" if replay is None else f":{replay}"
    return str(uuid.uuid5(_TASK_IDS, f"{group}:{event_id}:{task_name}{attempt}"))


def _route_of(options: Mapping[str, Any], queue: Any, priority: int | None, template: _Template | None) -> Route:
    name = queue if isinstance(queue, str) else getattr(queue, "name", "")
    return Route(options, name, priority or 0, template)


def _send_filled_in(producer: Any, message: Message, template: _Template, body: tuple[str, str, Any]) -> None:
    content_type, content_encoding, content = body
    task_id, argsrepr = message.task_id, describe(message.event)
    own = {"content_type": content_type, "content_encoding": content_encoding, "correlation_id": task_id}
    producer.publish(
        content,
        headers={**template.headers, "id": task_id, "root_id": task_id, "argsrepr": argsrepr},
        **{**template.publish, **own, "argsrepr": argsrepr},
    )


def _send_by_celery(producer: Any, message: Message) -> None:
    message.task.apply_async(
        (message.event.to_dict(),),
        task_id=message.task_id,
        argsrepr=describe(message.event),
        producer=producer,
        retry=False,
        add_to_parent=False,
        **message.route.options,
    )


def _is_outage(error: Exception, connection: Any) -> bool:
    # kombu counts KeyError among the errors of a connection to Redis; user code raises it as well.
    of_broker = [kind for kind in connection.connection_errors + connection.channel_errors if kind is not KeyError]
    return isinstance(error, (OperationalError, RedisError, OSError, *of_broker))


class _Recorder(Producer):
    """A producer that keeps what it is asked to publish instead of sending it."""

    recorded: tuple[Any, dict[str, Any]]

    def publish(self, body: Any, **options: Any) -> None:  # type: ignore[override]  # takes whatever Celery passes
        self.recorded = (body, options)
