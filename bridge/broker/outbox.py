"""Makes the task messages of events, each in the fastest way that gives what Celery itself would send.

If the broker is Redis, a message is *stamped*: its bytes are those that kombu would push. The dispatch transaction
pushes them if the bus is on the same Redis; otherwise the outbox does. For any other broker, kombu publishes a message
that was rendered once per route and filled in. Celery makes and sends each message itself if something intercepts it,
see :mod:`~bridge.broker.interception`, if sent-events are on, or if it depends on user code that gets the event.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

from celery import Celery, Task
from celery.app.routes import MapRoute

from bridge.broker import connection as broker
from bridge.broker import interception
from bridge.broker.messages import Message, Refused, Route, by_queue
from bridge.broker.producer import BrokerProducer
from bridge.broker.templates import delivery_tags, queue_reached, render, sent_now
from bridge.config import BridgeSettings, is_redis
from bridge.errors import InvalidHandler, SettingsError
from bridge.events import EncodedEvent, Event, compile_pattern, example_of
from bridge.handlers import SEND_OPTIONS, EventTask, Handler, check_send_options, task_id_for
from bridge.telemetry import Action, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: Event types are few. A program that invents new ones endlessly must not fill the memory.
_MAX_ROUTES = 10_000

_throttle = LogThrottle(math.inf)  # once in each process


class Outbox:
    """Makes task messages, and sends those that the dispatch transaction does not push. Used by one thread.

    Arguments:
        app: The Celery application whose tasks and broker these are.
        settings: ``group``, from which task ids are derived; ``routes``, which choose queues by type; ``tracing``.
        rabbitmq_timeout_s: See :class:`BrokerProducer`.

    Raises:
        SettingsError: ``bridge_routes`` contains an option that is unknown or invalid.
    """

    def __init__(self, app: Celery, settings: BridgeSettings, *, rabbitmq_timeout_s: float = 10.0) -> None:
        connection = app.connection_for_write()
        self._app = app
        self._group = settings.group
        self._traced = settings.tracing != "off"
        self._rule_patterns = tuple(settings.routes)
        self._rules = [(compile_pattern(pattern), options) for pattern, options in settings.routes.items()]
        self._routes: dict[tuple[str, str], Route] = {}
        self._made_for: Any = None
        self._producer = BrokerProducer(app, rabbitmq_timeout_s)
        #: Whether bus and broker are the same database of the same Redis.
        self.one_redis = broker.is_redis_at(connection, settings.url)
        self._stamps = is_redis(connection)
        self._tags = delivery_tags()
        #: When the messages of a batch are sent. To read the clock for each of them would cost too much.
        self._sent = sent_now().encode()
        _check_routes(settings)

    def prepare(self, handler: Handler, event: EncodedEvent, entry_id: bytes, retries: int = 0) -> Message:
        """Make the message that calls *handler* with an event of the journal.

        Arguments:
            event, entry_id: The event, and the entry that it was read from.
            retries: Number of the try that is due, of a task that is sent again. Celery makes the message of a retry.

        Raises:
            Exception: User code, a route or an option of the handler fails for this event.
        """
        if not self._traced:
            event.traced_by = None
        route = self._routes.get((handler.task_name, event.type)) or self._route(handler, event)
        task_id, template = task_id_for(self._group, event.id, handler.task_name, event.replay), route.template
        if template is None or retries:
            return Message(route, task_id, event, entry_id, retries=retries)
        if template.queue_key:
            text = template.stamped(event, task_id.encode(), next(self._tags), self._sent)
            return Message(route, task_id, event, entry_id, None, text)
        return Message(route, task_id, event, entry_id, template.content(event))

    def route_of(self, handler: Handler, event_type: str) -> Route:
        """Return the route of the messages that call *handler* with events of one type, without sending any.

        The route is kept, and tells Celery to ignore results. So an outbox that is asked for routes must not send.

        Raises:
            Exception: User code, a route or an option of the handler fails.
        """
        event = Event(type=event_type, id="example")
        # Celery renders the message. If it kept the result, it would connect to the result backend to listen for it.
        silent = replace(handler, send_options=dict(handler.send_options) | {"ignore_result": True})
        return self.prepare(silent, EncodedEvent.of(event, event.encode()), b"0-0").route

    def queues(self, handlers: Iterable[Handler]) -> set[str]:
        """Return the names of the queues that *handlers* are sent to, by their patterns and the routes of the bridge.

        A queue that a router chooses by the content of an event is not among them. See :meth:`route_of`.
        """
        found = set()
        for handler in handlers:
            for pattern in (*handler.patterns, *self._rule_patterns):
                if handler.matches(example := example_of(pattern)):
                    with suppress(Exception):  # routers are user code, and Celery refuses options in many ways
                        found.add(self.route_of(handler, example).queue)
        return found - {""}

    def refresh(self) -> None:
        """Take the time of the next messages; forget the routes if Celery's configuration or an interceptor changes."""
        self._sent = sent_now().encode()
        made_for = (self._app.conf.changes, interception.state(), tuple(self._router.routes))
        if made_for != self._made_for:
            self._made_for = (dict(made_for[0] or {}), *made_for[1:])
            self._routes.clear()

    def send(self, messages: Sequence[Message]) -> list[Refused]:
        """Send *messages*: the stamped ones are pushed, the others are published in one batch.

        An error leaves open which of them were sent. Send all of them again: they have the same task ids.

        Returns:
            Those that cannot be sent though the broker is available: user code that Celery calls failed, or the route
            leads to no queue.

        Raises:
            Exception: Whatever the broker's client raises; the next call connects again.
        """
        to_publish = [message for message in messages if not message.stamped]
        refused = self._producer.publish(to_publish) if to_publish else []
        self._producer.push(by_queue(message for message in messages if message.stamped))
        return refused

    def waiting(self, queue: str) -> int:
        """Return how many messages wait in *queue*; those that workers have prefetched do not count.

        Raises:
            Exception: Whatever the broker's client raises; the next call connects again.
        """
        return self._producer.waiting(queue)

    def close(self) -> None:
        """Close the broker connection; the next message opens another."""
        self._producer.close()

    def _route(self, handler: Handler, event: EncodedEvent) -> Route:
        task = cast("EventTask", self._app.tasks[handler.task_name])
        chosen = next((options for pattern, options in self._rules if pattern.fullmatch(event.type)), {})
        options = {**chosen, **handler.send_options}
        if self._only_celery_may_send(task) or self._differs_by_event(task):
            # If the queue is unknown or a router fails, only this handler must fail, not the whole batch later.
            routed = self._router.route(dict(options), task.name, [event.event.to_dict()], {}, task)
            queue = queue_reached(routed.get("queue"), routed.get("exchange"), routed.get("routing_key"))
            return Route.of(task, options, queue, routed.get("priority"), None)
        template, queue, priority = render(
            self._app, task, options, broker.connect(self._app) if self._stamps else None
        )
        if len(self._routes) >= _MAX_ROUTES:
            self._routes.clear()
        route = self._routes[handler.task_name, event.type] = Route.of(task, options, queue, priority, template)
        return route

    def _differs_by_event(self, task: EventTask) -> bool:
        """Whether the message depends on user code that gets the event."""
        overridden = type(task).shadow_name is not Task.shadow_name
        return overridden or not all(isinstance(route, MapRoute) for route in self._router.routes)

    @property
    def _router(self) -> Any:  # Celery's stubs know neither its routes nor task instances
        return self._app.amqp.router

    def _only_celery_may_send(self, task: EventTask) -> bool:
        found = interception.interceptors(self._app, task)
        if found and _throttle.allow(names := ", ".join(sorted(set(found)))):
            extra = log_fields(Action.PUBLISHING_IS_WRAPPED, handler=task.name)
            text = (
                "Celery makes each task message of %s separately, because %s may change it or must be called for it: "
                "dispatch is about ten times slower, and at least once also where bus and broker are one Redis. To "
                "avoid that, switch this integration off in processes that run a subscriber"
            )
            log.warning(text, task.name, names, extra=extra)
        return bool(found or self._app.conf.task_send_sent_event)


def _check_routes(settings: BridgeSettings) -> None:
    for pattern, options in settings.routes.items():
        if unknown := options.keys() - SEND_OPTIONS:
            known = ", ".join(sorted(SEND_OPTIONS))
            raise SettingsError(f"bridge_routes[{pattern!r}]: {', '.join(sorted(unknown))} is not one of {known}")
        try:
            check_send_options(options)
        except InvalidHandler as error:
            raise SettingsError(f"bridge_routes[{pattern!r}]: {error}") from error
