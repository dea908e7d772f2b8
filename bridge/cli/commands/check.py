"""``celery -A APP bus check``: whether servers, settings and workers are as the bridge needs them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from bridge.broker import probe, probe_connection
from bridge.cli import output
from bridge.cli.connect import Unreachable, errors_as_cli_messages, load, open_storage
from bridge.cli.options import json_option
from bridge.cli.table import Styled
from bridge.config import BridgeSettings
from bridge.handlers import IMPORT_ADVICE, registry
from bridge.operations import routes_of
from bridge.operations.acl import (
    ROLES,
    BrokerKeys,
    Role,
    broker_grants,
    missing_grants,
    missing_permissions,
    queues_of,
    user_of,
)
from bridge.storage import Storage, handler_differences, read_status
from bridge.subscriber import (
    Finding,
    check_clock,
    check_journal_ids,
    check_prefixes,
    check_settings,
    disagreements,
    refused_handlers,
)

#: How long to wait for the replies of the workers.
_WORKERS_S = 1.0
#: How often a worker that has replied once is asked for its queues: without its reply they would be reported as unused.
_TRIES = 2
#: Most handlers that a finding names.
_MAX_NAMED = 10


@click.command(short_help="Check servers, settings, permissions, clocks, routes and workers.")
@click.option("--ready", is_flag=True, help="Check only whether the subscribers of this host are ready.")
@click.option(
    "--role", type=click.Choice(ROLES), default="worker", show_default=True, help="Role whose permissions are checked."
)
@json_option
@click.pass_context
def check(ctx: click.Context, /, ready: bool, role: Role, as_json: bool) -> None:
    """Check servers, settings, permissions, clocks, routes and workers, and print how to fix each problem.

    Exit code 0: no problem. 1: there is a problem. 3: Redis or the broker is unreachable or refused the request.

    The check logs in to bus and broker as the users in the settings, and checks that they have the permissions of a
    worker; with --role operator, those that these commands need. bus acl prints the permissions of each role.

    --ready checks only whether the subscribers of this host are running and ready, as their /readyz does. It is a
    single look-up in Redis, for the health check of a container.

    \b
    Example:
      celery -A APP bus check
      celery -A APP bus check --ready
    """
    settings = load(ctx.obj.app)
    with open_storage(settings) as storage:
        steps = _readiness(storage) if ready else _steps(ctx.obj.app, storage, role)
        worst = 0
        for name, find in steps:
            try:
                with errors_as_cli_messages(settings):
                    findings = find()
            except Unreachable as error:
                _report(
                    name,
                    [
                        Finding(
                            name, error.message, "make sure that it is running; check its address, user and permissions"
                        )
                    ],
                    as_json,
                )
                worst = 3
                break  # the next checks need it, too
            _report(name, findings, as_json)
            worst = max(worst, 1 if findings else 0)
    ctx.exit(worst)


Steps = Iterator[tuple[str, Callable[[], Sequence[Finding]]]]


def _steps(app: Celery, storage: Storage, role: Role) -> Steps:
    client, settings = storage.client, storage.settings
    yield f"bus at {settings.redacted_url}", list
    yield "permissions of the bus user", lambda: _permissions(client, settings, role)
    yield "clock", lambda: check_clock(client)
    yield f"subscribers of group {settings.group}", lambda: _subscribers(storage)
    yield "broker", lambda: _broker(app, settings, role)
    tasks = [app.tasks[handler.task_name] for handler in registry]
    yield "durability, memory and Celery's settings", lambda: check_settings(settings, app, tasks)
    yield "settings of all groups", lambda: disagreements(settings, storage.group_settings.all())
    yield "ids of the journal", lambda: check_journal_ids(storage)
    yield "prefixes of other buses on this Redis", lambda: check_prefixes(client, settings)
    yield "accepted types", lambda: refused_handlers(settings, registry.patterns)
    yield "handlers and their workers", lambda: list(_workers(app, settings))


def _readiness(storage: Storage) -> Steps:
    host = socket.gethostname()

    def ready() -> list[Finding]:
        here = [one for one in storage.presence.all() if one.host == host and one.alive]
        if not here:
            return [Finding(f"subscriber on {host}", "no live subscriber", "see the log of its worker")]
        return [Finding(one.name, "; ".join(one.problems), "see bus check") for one in here if not one.ready]

    yield f"subscribers on {host}", ready


def _permissions(client: Redis, settings: BridgeSettings, role: Role) -> list[Finding]:
    return _missing(user_of(client), missing_permissions(client, settings, role), role)


def _broker(app: Celery, settings: BridgeSettings, role: Role) -> list[Finding]:
    try:
        probe(app)
        with probe_connection(app) as connection:
            if connection.transport.driver_type != "redis":
                return []
            grants = broker_grants(role, BrokerKeys(app, connection, queues_of(app, settings)))
            channel: Any = connection.default_channel
            client = Redis(connection_pool=channel.pool)
            return _missing(f"{user_of(client)} of the broker", missing_grants(client, grants), role)
    except Exception as error:
        raise Unreachable(str(error) or type(error).__name__) from error


def _missing(user: str, refused: Sequence[str], role: Role) -> list[Finding]:
    advice = f"run ACL SETUSER with the line that bus acl {role} prints"
    return [Finding(f"user {user} has no permission", what, advice) for what in refused]


def _subscribers(storage: Storage) -> list[Finding]:
    name = storage.settings.group
    group = read_status(storage).group(name)
    if group is None:
        problem = "does not exist: no subscriber has run yet, or the group was deleted"
        return [Finding(f"group {name}", problem, "start a worker, or bus subscribe")]
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
        found.append(Finding(f"group {group.name}", problem, "start a worker, or bus subscribe"))
    return found


def _workers(app: Celery, settings: BridgeSettings) -> Iterator[Finding]:
    """Find handlers that no live worker has registered, and queues that no live worker consumes."""
    if not list(registry):
        yield Finding("handlers", "none registered", IMPORT_ADVICE)
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
        yield Finding("workers", "none replied", "start one: celery -A APP worker")
        return
    known = {text.split(" ")[0] for texts in registered.values() for text in texts}
    taken = {queue["name"] for some in queues.values() for queue in some}
    for handler in registry:
        if handler.task_name not in known:
            problem = f"no live worker has registered it, so its tasks would be rejected ({handler.defined_at})"
            yield Finding(f"handler {handler.task_name}", problem, "deploy it to the workers before the subscribers")
    if unknown := sorted(registered.keys() - queues.keys()):
        yield Finding(", ".join(unknown), "did not reply with its queues", "check again when it is less busy")
        return
    for queue in sorted({route.queue for route in routes_of(app, settings)} - taken - {""}):
        yield Finding(
            f"queue {queue}", "no live worker consumes it", f"start one with -Q {queue}, or add it to task_queues"
        )


def _report(name: str, findings: Sequence[Finding], as_json: bool) -> None:
    if as_json:
        output.as_json({"check": name, "ok": not findings, "findings": [asdict(finding) for finding in findings]})
        return
    if not findings:
        output.line(Styled("ok    ", "green"), name)
    for finding in findings:
        output.line(Styled("FAIL  ", "bold red"), finding.setting, ": ", finding.problem)
        output.line(Styled(f"      -> {finding.advice}", "dim"))
