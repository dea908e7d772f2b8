"""The checks that only ``bus check`` makes: permissions, broker, subscribers, handlers and workers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import probe, probe_connection
from bridge.cli.connect import Unreachable
from bridge.config import BridgeSettings
from bridge.handlers import IMPORT_ADVICE, registry
from bridge.operations import routes_of
from bridge.operations.acl import (
    BrokerKeys,
    Role,
    broker_grants,
    missing_grants,
    missing_permissions,
    queues_of,
    user_of,
)
from bridge.storage import Storage, handler_differences, read_status
from bridge.subscriber import Finding, first_of, missing_broker

#: How long to wait for the replies of the workers.
_WORKERS_S = 1.0
#: How often a worker that has replied once is asked for its queues: without its reply they would be reported as unused.
_TRIES = 2
#: Most handlers or workers that a finding names.
_MAX_NAMED = 10
_START = "celery -A APP worker"


def check_permissions(client: Redis, settings: BridgeSettings, role: Role) -> list[Finding]:
    """Find permissions on the bus that the user in *settings* needs for a role and does not have."""
    return _missing(user_of(client), missing_permissions(client, settings, role), role)


def check_broker(app: Celery, settings: BridgeSettings, role: Role) -> list[Finding]:
    """Connect to the broker, and find missing permissions if it is a Redis.

    Raises:
        Unreachable: It does not answer, or refuses the login.
    """
    missing = missing_broker(app, settings)
    try:
        probe(app)
        with probe_connection(app) as connection:
            if connection.transport.driver_type != "redis":
                return [missing] if missing else []
            grants = broker_grants(role, BrokerKeys(app, connection, queues_of(app, settings)))
            channel: Any = connection.default_channel
            client = Redis(connection_pool=channel.pool)
            return _missing(f"{user_of(client)} of the broker", missing_grants(client, grants), role)
    except Exception as error:
        problem = f"{missing.setting} is {missing.problem}: " if missing else ""
        raise Unreachable(f"{problem}{str(error) or type(error).__name__}") from error


def _missing(user: str, refused: Sequence[str], role: Role) -> list[Finding]:
    advice = f"run ACL SETUSER with the line that bus acl {role} prints"
    command = f"celery -A APP bus acl {role}"
    return [Finding(f"user {user} has no permission", what, advice, command) for what in refused]


def check_subscribers(storage: Storage) -> list[Finding]:
    """Find problems of the group and its subscribers."""
    name = storage.settings.group
    group = read_status(storage).group(name)
    if group is None:
        problem = "does not exist: no subscriber has run yet, or the group was deleted"
        return [Finding(f"group {name}", problem, "start a worker, or bus subscribe", _START)]
    found = [
        Finding(one.name, "; ".join(one.problems), "see its log")
        for one in group.subscribers
        if one.alive and one.problems
    ]
    if missing := handler_differences(group.subscribers):
        rows = [f"{handler} is missing on {', '.join(names)}" for handler, names in missing.items()]
        more = f"; and {len(rows) - _MAX_NAMED} more" if len(rows) > _MAX_NAMED else ""
        advice = "wait, if a new version is being deployed; otherwise give each application a bridge_group"
        found.append(
            Finding(f"handlers of group {group.name}", f"differ: {'; '.join(rows[:_MAX_NAMED])}{more}", advice)
        )
    if not group.alive:
        problem = f"no live subscriber; backlog: {group.backlog} events"
        found.append(Finding(f"group {group.name}", problem, "start a worker, or bus subscribe", _START))
    return found


def check_handlers(app: Celery, settings: BridgeSettings) -> Iterator[Finding]:
    """Find handlers whose tasks cannot be sent; this needs no worker."""
    if not registry.names:
        yield Finding("handlers", "none registered", IMPORT_ADVICE)
    for route in routes_of(app, settings):
        if route.problem:
            advice = "correct its options, or bridge_routes"
            yield Finding(f"handler {route.handler}", f"its tasks cannot be sent: {route.problem}", advice)


def check_workers_and_queues(app: Celery, storage: Storage) -> Iterator[Finding]:
    """Find what keeps tasks from running: of each queue, only that its messages wait if they do.

    Raises:
        RedisError: Redis does not answer.
        Unreachable: The broker does not answer.
    """
    waiting = list(_waiting_queues(storage))
    yield from waiting
    reported = {finding.setting for finding in waiting}
    yield from (finding for finding in _workers(app, storage.settings) if finding.setting not in reported)


def _waiting_queues(storage: Storage) -> Iterator[Finding]:
    """Find queues in which messages wait and that none leaves, as the subscribers of the group have measured them."""
    group = read_status(storage).group(storage.settings.group)
    for queue in () if group is None else group.queues or ():
        command = f"{_START} -Q {shlex.quote(queue.name)}"
        waiting = f"{queue.messages} message{' waits' if queue.messages == 1 else 's wait'}"
        if queue.problem == "no_consumer":
            problem = f"{waiting}, and no worker takes tasks from it"
            yield Finding(f"queue {queue.name}", problem, "start one, or add the queue to the -Q of another", command)
        elif queue.problem == "stalled":
            problem = f"{waiting}, and none has left it for {queue.stalled_s:.0f} s"
            advice = "its workers are busy with long tasks, or hang: see celery inspect active, or start another one"
            yield Finding(f"queue {queue.name}", problem, advice, command)


def _workers(app: Celery, settings: BridgeSettings) -> Iterator[Finding]:
    """Find handlers that no live worker has registered, and queues that none consumes, or that a wrong one does."""
    if not registry.names:
        return
    try:
        registered: dict[str, list[str]] = app.control.inspect(timeout=_WORKERS_S).registered() or {}
        queues: dict[str, Any] = {}
        for _ in range(_TRIES):
            if silent := sorted(registered.keys() - queues.keys()):
                queues |= app.control.inspect(silent, timeout=_WORKERS_S).active_queues() or {}
    except (RedisError, OperationalError, OSError) as error:
        raise Unreachable(f"broker: {error}") from error
    if not registered:
        yield Finding("workers", "none replied", "start one", _START)
        return
    has = {worker: {text.split(" ")[0] for text in texts} for worker, texts in registered.items()}
    takes = {worker: {queue["name"] for queue in some} for worker, some in queues.items()}
    known: set[str] = set().union(*has.values())
    taken: set[str] = set().union(*takes.values())
    for handler in registry:
        if handler.task_name not in known:
            problem = f"no live worker has registered it, so its tasks would be rejected ({handler.defined_at})"
            yield Finding(f"handler {handler.task_name}", problem, "deploy it to the workers before the subscribers")
    if unknown := sorted(registered.keys() - queues.keys()):
        yield Finding(", ".join(unknown), "did not reply with its queues", "check again when it is less busy")
        return
    routes = [(route.queue, route.handler) for route in routes_of(app, settings) if route.queue]
    yield from _wrong_workers([one for one in routes if one[1] in known], has, takes, settings)
    for queue in sorted({queue for queue, _ in routes} - taken):
        command = f"{_START} -Q {shlex.quote(queue)}"
        yield Finding(f"queue {queue}", "no live worker consumes it", "start one, or add it to task_queues", command)


def _wrong_workers(
    routes: Sequence[tuple[str, str]], has: dict[str, set[str]], takes: dict[str, set[str]], settings: BridgeSettings
) -> Iterator[Finding]:
    """Find workers that take tasks from the queue of a handler that they do not have: Celery discards these tasks.

    Arguments:
        routes: Queues and the handlers that are sent to them.
        has: The names of the tasks of each worker.
        takes: The queues of each worker.
    """
    for queue in sorted({queue for queue, _ in routes}):
        handlers = {handler for name, handler in routes if name == queue}
        lacking = {worker: handlers - has[worker] for worker, queues in sorted(takes.items()) if queue in queues}
        if lacking := {worker: missing for worker, missing in lacking.items() if missing}:
            handlers = set().union(*lacking.values())
            discarded, workers = (first_of(names, _MAX_NAMED) for names in (sorted(handlers), list(lacking)))
            problem = (
                f"tasks of {discarded} are discarded by {workers}, which take from it "
                f"without having these handlers; they are sent again after {settings.redispatch_after_s:.0f} s"
            )
            advice = "give each application a separate queue, or wait if a new version is being deployed"
            command = f'app.conf.task_default_queue = "{settings.group}"'
            yield Finding(f"workers of queue {queue}", problem, advice, command)
