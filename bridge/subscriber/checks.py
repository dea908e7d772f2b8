"""Start-up checks: settings of both servers, of Celery and of the handlers that can lose events."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from celery import Celery, Task
from redis import Redis

from bridge.broker import probe_connection
from bridge.bus import Admission
from bridge.config import BridgeSettings, has_broker, hidden_address
from bridge.errors import InvalidEvent
from bridge.events import is_literal
from bridge.handlers import EventTask
from bridge.subscriber.finding import Finding
from bridge.subscriber.server_checks import broker_server, bus_servers, server_findings, storage_findings

#: A larger difference between clocks makes expiry, countdown and the ages of events wrong.
_CLOCK_SKEW_S = 5.0
#: The default of kombu for a Redis broker.
_DEFAULT_VISIBILITY_TIMEOUT_S = 3600


def check_settings(settings: BridgeSettings, app: Celery, tasks: Sequence[Task[..., Any]]) -> list[Finding]:
    """Check both servers and the configuration. Takes a few seconds at most, even if a server does not answer.

    Arguments:
        settings: The address of the bus.
        app: Its configuration and its broker are checked.
        tasks: The tasks of the handlers.
    """
    bus = bus_servers(settings)
    hidden = hidden_address(app, settings.url, settings.redacted_url)
    findings = [*([Finding(*hidden)] if hidden else []), *server_findings(settings, bus)]
    with probe_connection(app) as connection:
        driver = connection.transport.driver_type
        if driver == "redis":
            server = broker_server(connection)
            if server.run_id is None or server.run_id not in [one.run_id for one in bus]:  # unless one server is both
                findings += storage_findings(server)
    options = app.conf.broker_transport_options
    if driver == "redis":
        findings += _redis_transport(options, tasks)
    elif driver == "amqp":
        findings += _amqp_transport(options)
    return [*findings, *_task_class(cast("Any", app).Task), *_acknowledgement(tasks)]


def missing_broker(app: Celery, settings: BridgeSettings) -> Finding | None:
    """Report that *app* has no broker. Celery then tries to reach RabbitMQ on this machine."""
    if has_broker(app):
        return None
    problem = "not set, so Celery uses RabbitMQ on this machine, amqp://guest@localhost"
    advice = f"set it, for example to the Redis of the bus, {settings.redacted_url}, for exactly-once dispatch"
    return Finding("broker_url", problem, advice, level="warn")


def refused_handlers(settings: BridgeSettings, patterns: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Find event types that have handlers but are excluded by ``accepted_types`` or ``rejected_types``.

    Arguments:
        patterns: Name of a task to the patterns of its handler. Globs are skipped.
    """
    admission, found = Admission(settings), []
    for name, wanted in patterns.items():
        for pattern in wanted:
            try:
                if is_literal(pattern):
                    admission.check_type(pattern)
            except InvalidEvent as error:
                advice = "accept the type, or remove the handler"
                found.append(Finding(f"handler {name}", f"receives nothing: {error.detail}", advice))
    return found


def check_clock(client: Redis) -> list[Finding]:
    """Compare the clock of the Redis server with that of this machine.

    Raises:
        RedisError: The server does not answer.
    """
    before_s = time.time()
    seconds, microseconds = client.time()
    skew_s = seconds + microseconds / 1e6 - (before_s + time.time()) / 2
    if abs(skew_s) <= _CLOCK_SKEW_S:
        return []
    problem = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} that of Redis: expiry and ages are wrong"
    return [Finding("clock of this machine", problem, "synchronise both with NTP", level="warn")]


def _redis_transport(options: Mapping[str, Any], tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    if options.get("socket_timeout") is None:
        problem = "not set: a broker that hangs blocks a worker indefinitely"
        yield _option(options, "socket_timeout", 10.0, problem, "set it")
    visibility_timeout_s = options.get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT_S)
    limit_s, name = max(((task.time_limit or 0, task.name) for task in tasks), default=(0, ""))
    if limit_s >= visibility_timeout_s:
        problem = f"{visibility_timeout_s} s: {name} may run for {limit_s} s, and is redelivered while it runs"
        advice = "set it above the longest time_limit"
        yield _option(options, "visibility_timeout", int(limit_s) + 600, problem, advice)


def _amqp_transport(options: Mapping[str, Any]) -> Iterator[Finding]:
    if not options.get("confirm_publish"):
        # The bridge itself always uses publisher confirms, see ``bridge.broker``.
        problem = "off: messages that tasks send, or that Celery sends to retry them, can be lost"
        yield _option(options, "confirm_publish", True, problem, "set it to True")


def _option(options: Mapping[str, Any], name: str, value: Any, problem: str, advice: str) -> Finding:
    others = "**app.conf.broker_transport_options, " if options else ""
    command = f'app.conf.broker_transport_options = {{{others}"{name}": {value!r}}}'
    return Finding(f"broker_transport_options[{name!r}]", problem, advice, command, "warn")


def _task_class(task_class: type[Any]) -> Iterator[Finding]:
    """Check the class that all tasks of the application have, those of handlers included."""
    if issubclass(task_class, EventTask):
        problem = "an EventTask: all tasks that are no handlers fail, also Celery's own such as celery.chord_unlock"
        yield Finding("task_cls", problem, "derive it from celery.Task; handlers get the rest from @on_event")
        return
    for name in ("Request", "Strategy"):
        if getattr(task_class, name) != getattr(Task, name):
            problem = "not used by handlers, because the bridge's own one ends a task whose process is killed"
            yield Finding(f"{name} of task_cls", problem, "use hooks of the task or Celery's signals for handlers")


def _acknowledgement(tasks: Sequence[Task[..., Any]]) -> Iterator[Finding]:
    for task in tasks:
        for setting in ("acks_late", "reject_on_worker_lost"):
            if not getattr(task, setting):
                problem = "off: if its worker crashes, the task is sent again only after bridge_redispatch_after_s"
                yield Finding(f"{setting} of task {task.name}", problem, "leave it on", level="warn")
                break  # reject_on_worker_lost has no effect without acks_late
