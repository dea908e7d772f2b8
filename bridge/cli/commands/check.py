"""``celery -A APP bus check``: whether servers, settings and workers are as the bridge needs them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace

import click
from celery import Celery

from bridge.cli import checks, output
from bridge.cli.application import app_name
from bridge.cli.connect import Unreachable, errors_as_cli_messages, load, open_storage
from bridge.cli.options import json_option
from bridge.cli.table import Styled
from bridge.handlers import registry
from bridge.operations.acl import ROLES, Role
from bridge.storage import Storage
from bridge.subscriber import (
    Finding,
    check_clock,
    check_journal_ids,
    check_prefixes,
    check_settings,
    disagreements,
    refused_handlers,
)

_LABELS = {"ok": Styled("ok    ", "green"), "warn": Styled("warn  ", "yellow"), "fail": Styled("FAIL  ", "bold red")}


@click.command(short_help="Check servers, settings, permissions, clocks, routes and workers.")
@click.option("--before-start", is_flag=True, help="Check only what can be known before the first worker runs.")
@click.option("--ready", is_flag=True, help="Check only whether the subscribers of this host are ready.")
@click.option(
    "--role", type=click.Choice(ROLES), default="worker", show_default=True, help="Role whose permissions are checked."
)
@json_option
@click.pass_context
def check(ctx: click.Context, /, before_start: bool, ready: bool, role: Role, as_json: bool) -> None:
    """Check servers, settings, permissions, clocks, routes and workers, and print how to fix each problem.

    Exit code 0: no problem, or warnings only. 1: there is a problem. 3: Redis or the broker is unreachable or refused
    the request.

    \b
    ok     no problem
    warn   events can be lost or late if something else fails, such as Redis; or this is unknown
    FAIL   events are not processed, or are lost

    --before-start leaves out what can be known only while workers are running, for a script that deploys.

    The check logs in to bus and broker as the users in the settings, and checks that they have the permissions of a
    worker; with --role operator, those that these commands need. bus acl prints the permissions of each role.

    --ready checks only whether the subscribers of this host are running and ready, as their /readyz does. It is a
    single look-up in Redis, for the health check of a container.

    \b
    Example:
      celery -A APP bus check
      celery -A APP bus check --before-start && celery -A APP worker
      celery -A APP bus check --ready
    """
    if before_start and ready:
        raise click.UsageError("--ready is for subscribers that have started; give one of the two")
    app, settings = ctx.obj.app, load(ctx.obj.app)
    with open_storage(settings) as storage:
        steps = _readiness(storage) if ready else _steps(app, storage, role, before_start)
        report, exit_code = _Report(app_name(app) or "APP", as_json), 0
        for name, find in steps:
            try:
                with errors_as_cli_messages(settings):
                    found = list(find())
            except Unreachable as error:
                advice = "make sure that it is running; check its address, user and permissions"
                found, exit_code = [Finding(name, error.message, advice)], 3
            report.show(name, found)
            if exit_code:
                break  # the next checks need it, too
    ctx.exit(exit_code or int(report.failed))


Steps = Iterator[tuple[str, Callable[[], Iterable[Finding]]]]


def _steps(app: Celery, storage: Storage, role: Role, before_start: bool) -> Steps:
    client, settings = storage.client, storage.settings
    yield f"bus at {settings.redacted_url}", list
    yield "permissions of the bus user", lambda: checks.check_permissions(client, settings, role)
    yield "clock", lambda: check_clock(client)
    if not before_start:
        yield f"subscribers of group {settings.group}", lambda: checks.check_subscribers(storage)
    yield "broker", lambda: checks.check_broker(app, settings, role)
    tasks = [app.tasks[handler.task_name] for handler in registry]
    yield "durability, memory and Celery's settings", lambda: check_settings(settings, app, tasks)
    yield "settings of all groups", lambda: disagreements(settings, storage.group_settings.all())
    yield "ids of the journal", lambda: check_journal_ids(storage)
    yield "prefixes of other buses on this Redis", lambda: check_prefixes(client, settings)
    yield "accepted types", lambda: refused_handlers(settings, registry.patterns)
    yield "handlers", lambda: checks.check_handlers(app, settings)
    if not before_start:
        yield "workers and queues", lambda: checks.check_workers_and_queues(app, storage)


def _readiness(storage: Storage) -> Steps:
    host = socket.gethostname()

    def ready() -> list[Finding]:
        here = [one for one in storage.presence.all() if one.host == host and one.alive]
        if not here:
            return [Finding(f"subscriber on {host}", "no live subscriber", "see the log of its worker")]
        return [Finding(one.name, "; ".join(one.problems), "see bus check") for one in here if not one.ready]

    yield f"subscribers on {host}", ready


class _Report:
    """Prints what the checks find.

    Arguments:
        app: Name of the application, for the commands to paste.
    """

    def __init__(self, app: str, as_json: bool) -> None:
        self._app = app
        self._as_json = as_json
        #: Whether there was a problem that is more than a warning.
        self.failed = False

    def show(self, name: str, findings: list[Finding]) -> None:
        """Print the result of one check."""
        found = [replace(one, command=one.command.replace("-A APP", f"-A {self._app}")) for one in findings]
        levels = {one.level for one in found}
        self.failed |= "fail" in levels
        if self._as_json:
            level = "fail" if "fail" in levels else "warn" if levels else "ok"
            output.as_json({"check": name, "level": level, "findings": [asdict(one) for one in found]})
            return
        if not found:
            output.line(_LABELS["ok"], name)
        for one in found:
            output.line(_LABELS[one.level], one.setting, ": ", one.problem)
            output.line(Styled(f"      -> {one.advice}", "dim"))
            if one.command:
                output.line(Styled(f"         {one.command}", "bold"))
