"""``celery -A APP bus acl``: what each kind of program may do on Redis, as lines for ACL SETUSER."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import click
from celery import Celery
from celery.app import backends
from celery.backends.redis import RedisBackend
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError

from bridge import broker
from bridge.acl import ROLES, Role, bus_grants, sentinel_grants
from bridge.acl_celery import BrokerKeys, broker_grants, result_grants
from bridge.cli import output
from bridge.cli.connect import load, told
from bridge.cli.options import json_option
from bridge.cli.routes import routes_of
from bridge.connection import connect
from bridge.grants import MIN_VERSION, Grant, rules_of, version_of
from bridge.settings import BridgeSettings

#: Longest wait for a server that is asked for its version.
_PATIENCE_S = 1.5


class Place(NamedTuple):
    """Where a user is made: one server, those behind Sentinels or of a cluster, or the Sentinels themselves.

    Arguments:
        name: The path of a socket, or what the Sentinels call the server.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    name: str = ""

    @classmethod
    def of_server(cls, path: str | None, host: str | None, port: Any) -> Place:
        """Return that of one server; what its address leaves out is usual."""
        host = "127.0.0.1" if host in (None, "", "localhost") else host
        return cls("socket", (), path) if path else cls("server", ((host, int(port or 6379)),))

    def __str__(self) -> str:
        hosts = ", ".join(f"{host}:{port}" for host, port in self.hosts)
        return {"sentinel": f"{self.name} behind Sentinels {hosts}", "socket": self.name}.get(self.kind, hosts)


@dataclass(frozen=True)
class Part:
    """What a role needs of one place, in one of its uses.

    Arguments:
        use: ``bus``, ``broker``, ``results`` or ``sentinels``.
        client: Makes a client for it, to ask its version.
    """

    use: str
    place: Place
    grants: list[Grant]
    client: Callable[[], Any]


@click.command(short_help="Print what a kind of program may do on Redis, for ACL SETUSER.")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--raw", is_flag=True, help="A publisher without the bridge: event keys and broadcasts, nothing else.")
@click.option("--no-subscriber", is_flag=True, help="A worker that only runs tasks.")
@click.option("--queue", multiple=True, help="A task queue that the configuration does not name; may be repeated.")
@click.option("--user", help="Name of the user; the group and the role unless given.")
@click.option("--on", type=click.Choice(["bus", "broker", "results", "sentinels"]), help="Only the line for this.")
@click.option("--redis", metavar="VERSION", help="Version of the servers, e.g. 7.0; they are asked unless given.")
@json_option
@click.pass_context
def acl(ctx: click.Context, /, role: Role, as_json: bool, user: str | None, on: str | None, **asked: Any) -> None:
    """Print what a kind of program may do on Redis, as lines for ACL SETUSER.

    \b
    publisher   calls publish_event, or writes event keys and broadcasts (--raw)
    subscriber  bus subscribe: turns events into tasks
    worker      a worker with its subscriber, or without (--no-subscriber)
    operator    these commands, and Flower

    The least there is for these settings: prefix, group, queues. One line for each server, which replaces the rights of
    the user and leaves its passwords alone: give it one of your own with ACL SETUSER NAME '>PASSWORD'; until then
    nobody can log in. In a cluster, with Sentinels and replicas, each node has users of its own, and needs the line.

    \b
    Example:
      celery -A bridge bus acl worker
      celery -A bridge bus acl publisher --raw --user dream-service
      celery -A bridge bus acl worker --on bus | redis-cli -u redis://admin:...@redis.internal
    """
    app = ctx.obj.app
    settings = load(app)
    with told(settings):
        version = asked.pop("redis")
        parts = [part for part in _parts(app, settings, role, **asked) if part.grants]
        lines = list(_lines(parts, user or f"{settings.group}-{role}", version))
    shown = [line for line in lines if on is None or on in line["for"]]
    for line in shown:
        if as_json:
            output.as_json(line)
        else:
            output.note(output.Styled(f"{', '.join(line['for'])} at {line['at']}", "bold"), _told(line["version"]))
            output.line("ACL SETUSER ", line["user"], " ", " ".join(line["rules"]))
    if not shown:
        raise click.ClickException(f"a {role} needs nothing of the {on}, or that is no Redis")


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
            raise click.UsageError(f"--redis: {asked!r} is no version; write it like 7.0") from None
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
    return ", which does not tell its version: for 7.2 and later give --redis, or add +client|setinfo"


def _parts(
    app: Celery, settings: BridgeSettings, role: Role, raw: bool, no_subscriber: bool, queue: Sequence[str]
) -> Iterator[Part]:
    grants = bus_grants(role, settings, raw=raw, subscriber=not no_subscriber)
    found = [Part("bus", _place_of_bus(settings), grants, lambda: connect(settings, _PATIENCE_S))]
    found += _of_celery(app, settings, role, queue, subscriber=not no_subscriber)
    yield from found
    for part in found:
        if part.place.kind == "sentinel" and part.grants:
            host, port = part.place.hosts[0]
            options = settings.address.sentinel_options | {"socket_timeout": _PATIENCE_S}
            sentinels = Place("sentinels", part.place.hosts)
            yield Part("sentinels", sentinels, sentinel_grants(), partial(Redis, host=host, port=port, **options))
            break


def _of_celery(
    app: Celery, settings: BridgeSettings, role: Role, extra: Iterable[str], *, subscriber: bool
) -> Iterator[Part]:
    with broker.look(app) as connection:
        if connection.transport.driver_type == "redis":
            keys = BrokerKeys(app, connection, {*queues_of(app, settings), *extra})
            grants = broker_grants(role, keys, subscriber=subscriber)
            yield Part("broker", _place_of_broker(connection), grants, lambda: _client_of(app))
    found: Any = backends.by_url(app.conf.result_backend, app.loader)
    kind, url = found
    if issubclass(kind, RedisBackend):
        backend = kind(app=app, url=url)  # not that of the application, which may have been told to have none
        yield Part("results", _place_of_results(backend), result_grants(role, backend), lambda: backend.client)


def queues_of(app: Celery, settings: BridgeSettings) -> set[str]:
    """Return the names of the queues that workers of *app* take from, and that its tasks and handlers go to."""
    router = cast("Any", app.amqp).router
    routed = [router.route({}, name).get("queue") for name in app.tasks if not name.startswith("celery.")]
    names = {getattr(queue, "name", queue) for queue in routed} | {route.queue for route in routes_of(app, settings)}
    return {*app.amqp.queues, *names} - {"", None}


def _client_of(app: Celery) -> Any:
    with broker.look(app) as connection:
        channel: Any = connection.default_channel
        return channel._create_client()


def _place_of_bus(settings: BridgeSettings) -> Place:
    address = settings.address
    if address.kind != "server":
        return Place(address.kind, tuple(sorted(address.hosts)), address.service)
    return Place.of_server(*(address.options.get(part) for part in ("path", "host", "port")))


def _place_of_broker(connection: Any) -> Place:
    if (service := broker.service_of(connection)) is not None:
        return Place("sentinel", tuple(sorted(broker.places(connection))), service)
    path = (connection.hostname or "").partition("://")[2]
    return Place.of_server(path, connection.hostname, connection.port)


def _place_of_results(backend: Any) -> Place:
    options = backend.connparams
    if (hosts := options.get("hosts")) is None:
        return Place.of_server(*(options.get(part) for part in ("path", "host", "port")))
    name = str(backend.app.conf.result_backend_transport_options.get("master_name", ""))
    return Place("sentinel", tuple(sorted((one["host"], int(one["port"])) for one in hosts)), name)
