"""``celery -A APP bus acl``: the Redis permissions that each kind of program needs, as lines for ACL SETUSER."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import click
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from bridge.cli import output
from bridge.cli.connect import errors_as_cli_messages, load
from bridge.cli.options import json_option
from bridge.cli.table import Styled
from bridge.operations.acl import MIN_VERSION, ROLES, Part, Place, Role, parts_of, rules_of, version_of


@click.command(short_help="Print the Redis permissions that a program needs, for ACL SETUSER.")
@click.argument("role", type=click.Choice(ROLES))
@click.option(
    "--no-bridge", is_flag=True, help="For a publisher without the bridge, which only writes event keys and broadcasts."
)
@click.option("--no-subscriber", is_flag=True, help="For a worker that only runs tasks.")
@click.option("--queue", multiple=True, help="A task queue that the configuration does not name; can be repeated.")
@click.option("--user", help="Name of the user.  [default: GROUP-ROLE]")
@click.option(
    "--server",
    type=click.Choice(["bus", "broker", "results", "sentinels"]),
    help="Print only the line for this server.",
)
@click.option(
    "--redis-version",
    metavar="VERSION",
    help="Redis version of the servers, e.g. 7.0; by default it is read from the servers.",
)
@json_option
@click.pass_context
def acl(ctx: click.Context, /, role: Role, as_json: bool, user: str | None, server: str | None, **given: Any) -> None:
    """Print the Redis permissions that a kind of program needs, as lines for ACL SETUSER.

    \b
    publisher   calls publish_event, or (--no-bridge) writes event keys and broadcasts
    subscriber  runs bus subscribe
    worker      runs tasks and a subscriber, or (--no-subscriber) only tasks
    operator    runs these commands and Flower

    The permissions are minimal for the current settings: prefix, group and queues. The command prints one line for each
    server. A line replaces all permissions of the user and keeps its passwords. A new user cannot log in until you set
    a password: ACL SETUSER NAME '>PASSWORD'. Each node of a cluster, each replica and each Sentinel has its own users:
    apply the line to all of them.

    \b
    Example:
      celery -A APP bus acl worker
      celery -A APP bus acl publisher --no-bridge --user dream-service
      celery -A APP bus acl worker --server bus | redis-cli -u redis://admin:...@redis.internal
    """
    app = ctx.obj.app
    settings = load(app)
    with errors_as_cli_messages(settings):
        version = given.pop("redis_version")
        parts = [part for part in parts_of(app, settings, role, **given) if part.grants]
        lines = list(_lines(parts, user or f"{settings.group}-{role}", version))
    shown = [line for line in lines if server is None or server in line["for"]]
    for line in shown:
        if as_json:
            output.as_json(line)
        else:
            output.note(Styled(f"{', '.join(line['for'])} at {line['at']}", "bold"), _version_note(line["version"]))
            output.line("ACL SETUSER ", line["user"], " ", " ".join(line["rules"]))
    if not shown:
        raise click.ClickException(f"a {role} needs no permissions on the {server}, or the {server} is not on Redis")


def _lines(parts: Iterable[Part], user: str, version: str | None) -> Iterator[dict[str, Any]]:
    places: dict[Place, list[Part]] = {}
    for part in parts:
        places.setdefault(part.place, []).append(part)
    for of_place in places.values():
        first = of_place[0]
        found = _version(version, first)
        uses = [part.use for part in of_place]
        # A line replaces all permissions, so a server with two addresses must not get two lines for one user.
        name = user if uses[0] == "bus" else f"{user}-{uses[0]}"
        rules = rules_of((grant for part in of_place for grant in part.grants), found or MIN_VERSION)
        version_text = ".".join(map(str, found)) if found else ""
        yield {"user": name, "for": uses, "at": str(first.place), "version": version_text, "rules": rules}


def _version(given: str | None, part: Part) -> tuple[int, ...] | None:
    """Return the version of a server; None if it is unknown.

    Raises:
        click.ClickException: It is too old.
    """
    found = None
    if given is not None:
        try:
            found = tuple(map(int, given.split(".")[:2]))
        except ValueError:
            raise click.UsageError(f"--redis-version: {given!r} is not a version; write it like 7.0") from None
    else:
        with suppress(RedisError, OperationalError, OSError, KeyError):
            client = part.client()
            try:
                found = version_of(client)
            finally:
                client.close()
    if found is not None and found < MIN_VERSION:
        wanted, has = ".".join(map(str, MIN_VERSION)), ".".join(map(str, found))
        text = (
            f"the {part.use} at {part.place} is Redis {has}, which has no ACL selectors; these lines require {wanted}"
        )
        raise click.ClickException(text)
    return found


def _version_note(version: str) -> str:
    if version:
        return f", Redis {version}"
    return ", version unknown: for 7.2 and later use --redis-version, or add +client|setinfo"
