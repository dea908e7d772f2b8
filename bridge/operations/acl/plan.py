"""Which permissions a role needs on which server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from celery import Celery
from celery.backends.redis import RedisBackend
from redis import Redis

from bridge.broker import probe_connection
from bridge.config import BridgeSettings, endpoints, service_of
from bridge.operations import routes_of
from bridge.operations.acl.bus import Role, bus_grants, sentinel_grants
from bridge.operations.acl.celery import BrokerKeys, broker_grants, result_grants
from bridge.operations.acl.rules import Grant
from bridge.redis import connect

#: Longest wait for a server to report its version.
_TIMEOUT_S = 1.5


class Place(NamedTuple):
    """Where a user is created: on one server, on those behind Sentinels or of a cluster, or on the Sentinels.

    Arguments:
        name: The path of a socket, or the name that the Sentinels have for the server.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...] = ()
    name: str = ""

    @classmethod
    def of_server(cls, path: str | None, host: str | None, port: Any) -> Place:
        """Return the place of one server, with defaults for what its address leaves out."""
        host = "127.0.0.1" if host in (None, "", "localhost") else host
        return cls("socket", (), path) if path else cls("server", ((host, int(port or 6379)),))

    def __str__(self) -> str:
        hosts = ", ".join(f"{host}:{port}" for host, port in self.hosts)
        return {"sentinel": f"{self.name} behind Sentinels {hosts}", "socket": self.name}.get(self.kind, hosts)


@dataclass(frozen=True)
class Part:
    """The permissions that a role needs in one place, for one use of that server.

    Arguments:
        use: ``bus``, ``broker``, ``results`` or ``sentinels``.
        client: Creates a client for it, to read its version.
    """

    use: str
    place: Place
    grants: list[Grant]
    client: Callable[[], Any]


def parts_of(
    app: Celery, settings: BridgeSettings, role: Role, no_bridge: bool, no_subscriber: bool, queue: Sequence[str]
) -> Iterator[Part]:
    """Yield the permissions that *role* needs in each place.

    Arguments:
        no_bridge: Whether the publisher does not use the bridge.
        no_subscriber: Whether the worker only runs tasks.
        queue: Names of further queues.
    """
    grants = bus_grants(role, settings, no_bridge=no_bridge, subscriber=not no_subscriber)
    found = [Part("bus", _place_of_bus(settings), grants, lambda: connect(settings, _TIMEOUT_S))]
    found += _of_celery(app, settings, role, queue, subscriber=not no_subscriber)
    yield from found
    for part in found:
        if part.place.kind == "sentinel" and part.grants:
            host, port = part.place.hosts[0]
            options = settings.address.sentinel_options | {"socket_timeout": _TIMEOUT_S}
            sentinels = Place("sentinels", part.place.hosts)
            yield Part("sentinels", sentinels, sentinel_grants(), partial(Redis, host=host, port=port, **options))
            break


def _of_celery(
    app: Celery, settings: BridgeSettings, role: Role, extra: Iterable[str], *, subscriber: bool
) -> Iterator[Part]:
    with probe_connection(app) as connection:
        if connection.transport.driver_type == "redis":
            keys = BrokerKeys(app, connection, {*queues_of(app, settings), *extra})
            grants = broker_grants(role, keys, subscriber=subscriber)
            yield Part("broker", _place_of_broker(connection), grants, lambda: _client_of(app))
    if isinstance(backend := app.backend, RedisBackend):
        yield Part("results", _place_of_results(backend), result_grants(role, backend), lambda: backend.client)


def queues_of(app: Celery, settings: BridgeSettings) -> set[str]:
    """Return the names of the queues that workers of *app* consume, and of those that its tasks are sent to."""
    router = cast("Any", app.amqp).router
    routed = [router.route({}, name).get("queue") for name in app.tasks if not name.startswith("celery.")]
    names = {getattr(queue, "name", queue) for queue in routed} | {route.queue for route in routes_of(app, settings)}
    return {*app.amqp.queues, *names} - {"", None}


def _client_of(app: Celery) -> Any:
    with probe_connection(app) as connection:
        channel: Any = connection.default_channel
        return channel._create_client()


def _place_of_bus(settings: BridgeSettings) -> Place:
    address = settings.address
    if address.kind != "server":
        return Place(address.kind, tuple(sorted(address.hosts)), address.service)
    return Place.of_server(*(address.options.get(part) for part in ("path", "host", "port")))


def _place_of_broker(connection: Any) -> Place:
    if (service := service_of(connection)) is not None:
        return Place("sentinel", tuple(sorted(endpoints(connection))), service)
    path = (connection.hostname or "").partition("://")[2]
    return Place.of_server(path, connection.hostname, connection.port)


def _place_of_results(backend: Any) -> Place:
    options = backend.connparams
    if (hosts := options.get("hosts")) is None:
        return Place.of_server(*(options.get(part) for part in ("path", "host", "port")))
    name = str(backend.app.conf.result_backend_transport_options.get("master_name", ""))
    return Place("sentinel", tuple(sorted((one["host"], int(one["port"])) for one in hosts)), name)
