"""``celery -A APP bus acl``: what each kind of program may do on Redis, as lines for ACL SETUSER."""

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


@click.command(short_help="Print what a kind of program may do on Redis, for ACL SETUSER.")
@click.argument("role", type=click.Choice(ROLES))
@click.option(
    "--no-bridge", is_flag=True, help="A publisher without the bridge: event keys and broadcasts, nothing else."
)
@click.option("--no-subscriber", is_flag=True, help="A worker that only runs tasks.")
@click.option("--queue", multiple=True, help="A task queue that the configuration does not name; may be repeated.")
@click.option("--user", help="Name of the user; the group and the role unless given.")
@click.option(
    "--server",
    type=click.Choice(["bus", "broker", "results", "sentinels"]),
    help="Print only the line for this server.",
)
@click.option(
    "--redis-version", metavar="VERSION", help="Version of the servers, e.g. 7.0; they are asked unless given."
)
@json_option
@click.pass_context
def acl(ctx: click.Context, /, role: Role, as_json: bool, user: str | None, server: str | None, **asked: Any) -> None:
    """Print what a kind of program may do on Redis, as lines for ACL SETUSER.

    \b
    publisher   calls publish_event, or writes event keys and broadcasts (--no-bridge)
    subscriber  bus subscribe: turns events into tasks
    worker      a worker with its subscriber, or without (--no-subscriber)
    operator    these commands, and Flower

    The least there is for these settings: prefix, group, queues. One line for each server, which replaces the rights of
    the user and leaves its passwords alone: give it one of your own with ACL SETUSER NAME '>PASSWORD'; until then
    nobody can log in. In a cluster, with Sentinels and replicas, each node has users of its own, and needs the line.

    \b
    Example:
      celery -A bridge bus acl worker
      celery -A bridge bus acl publisher --no-bridge --user dream-service
      celery -A bridge bus acl worker --server bus | redis-cli -u redis://admin:...@redis.internal
    """
    app = ctx.obj.app
    settings = load(app)
    with errors_as_cli_messages(settings):
        version = asked.pop("redis_version")
        parts = [part for part in parts_of(app, settings, role, **asked) if part.grants]
        lines = list(_lines(parts, user or f"{settings.group}-{role}", version))
    shown = [line for line in lines if server is None or server in line["for"]]
    for line in shown:
        if as_json:
            output.as_json(line)
        else:
            output.note(Styled(f"{', '.join(line['for'])} at {line['at']}", "bold"), _told(line["version"]))
            output.line("ACL SETUSER ", line["user"], " ", " ".join(line["rules"]))
    if not shown:
        raise click.ClickException(f"a {role} needs nothing of the {server}, or that is no Redis")


def _lines(parts: Iterable[Part], user: str, version: str | None) -> Iterator[dict[str, Any]]:
    places: dict[Place, list[Part]] = {}
    for part in parts:
        places.setdefault(part.place, []).append(part)
    for some in places.values():
        first = some[0]
        found = _version(version, first)
        uses = [part.use for part in some]
        # A line replaces what the user may, so that a server with two addresses must not get two for the same.
        name = user if uses[0] == "bus" else f"{user}-{uses[0]}"
        rules = rules_of((grant for part in some for grant in part.grants), found or MIN_VERSION)
        told_version = ".".join(map(str, found)) if found else ""
        yield {"user": name, "for": uses, "at": str(first.place), "version": told_version, "rules": rules}


def _version(asked: str | None, part: Part) -> tuple[int, ...] | None:
    """Return the version of a server, None when it does not tell.

    Raises:
        click.ClickException: It is too old.
    """
    found = None
    if asked is not None:
        try:
            found = tuple(map(int, asked.split(".")[:2]))
        except ValueError:
            raise click.UsageError(f"--redis-version: {asked!r} is no version; write it like 7.0") from None
    else:
        with suppress(RedisError, OperationalError, OSError, KeyError):
            client = part.client()
            try:
                found = version_of(client)
            finally:
                client.close()
    if found is not None and found < MIN_VERSION:
        wanted, has = (".".join(map(str, one)) for one in (MIN_VERSION, found))
        text = (
            f"the {part.use} at {part.place} is Redis {has}, whose users have no selectors; these lines need {wanted}"
        )
        raise click.ClickException(text)
    return found


def _told(version: str) -> str:
    if version:
        return f", Redis {version}"
    return ", which does not tell its version: for 7.2 and later give --redis-version, or add +client|setinfo"
