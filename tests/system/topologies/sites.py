"""Every combination of bus and broker that the behaviour suite runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from amqp import NotFound
from redis import Redis
from redis.cluster import RedisCluster

from bridge import BridgeSettings
from bridge.broker import connection as broker
from bridge.operations.acl.bus import ROLES, bus_grants
from bridge.operations.acl.celery import BrokerKeys, broker_grants, result_grants
from bridge.operations.acl.rules import exact, granted, rules_of, version_of
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.queues import Queues
from tests.support.requirements import missing, redis_binary
from tests.support.servers.certificates import Certificates
from tests.support.servers.clusters import ClusterServers
from tests.support.servers.rabbitmq import RabbitNode, find_programs
from tests.support.servers.sentinels import Replicated
from tests.support.servers.tls import TlsServer

PASSWORD = "s3cret"
_USER = "anybody"
#: A second application on the bus, in some tests.
OTHER_GROUP = "others"


class Waiting(ABC):
    """The task messages that are queued at the broker."""

    @abstractmethod
    def tasks(self) -> Counter[str]:
        """Return how often each task is queued with each event: ``{"t.all dream.created 7": 1}``."""

    @abstractmethod
    def clear(self) -> None:
        """Delete the queued messages."""


class RedisWaiting(Waiting):
    def __init__(self, broker: Redis, prefix: str) -> None:
        self._broker, self._prefix = broker, prefix

    def tasks(self) -> Counter[str]:
        return Queues(self._broker, self._prefix).tasks()

    def clear(self) -> None:
        self._broker.delete(f"broker:{self._prefix}celery")


class RabbitWaiting(Waiting):
    def __init__(self, node: RabbitNode) -> None:
        self._node = node

    def tasks(self) -> Counter[str]:
        found: Counter[str] = Counter()
        # The connection is closed without an acknowledgement, so the messages stay. Without messages, there is no
        # queue.
        with self._node.connect() as connection, suppress(NotFound):
            channel = connection.channel()
            while message := channel.basic_get("celery"):
                found[f"{message.headers['task']} {message.headers['argsrepr'][8:-3]}"] += 1
        return found

    def clear(self) -> None:
        with self._node.connect() as connection, suppress(NotFound):
            connection.channel().queue_purge("celery")


class Site:
    """One combination.

    Arguments:
        bus_url: Address of the bus.
        client: A client of the bus that is not the bridge's.
        broker_url: Address of Celery's broker.
        results_url: Address of Celery's results.
        waiting: Returns access to the broker's queues for the prefix of a test.
        admit: Called with the settings of a test before it; grants the permissions that it needs.
    """

    def __init__(
        self,
        bus_url: str,
        client: Redis | RedisCluster,
        broker_url: str,
        results_url: str,
        waiting: Callable[[str], Waiting],
        admit: Callable[[BridgeSettings], None] = lambda _: None,
    ) -> None:
        self.bus_url = bus_url
        self.client: Any = client
        self.broker_url = broker_url
        self.results_url = results_url
        self.waiting = waiting
        self.admit = admit

    @property
    def cluster(self) -> bool:
        return isinstance(self.client, RedisCluster)

    def shout(self, prefix: str, event: Any) -> None:
        """Publish like an external publisher."""
        self.client.set(f"{prefix}event:{event.id}", event.encode(), ex=3600)
        self.client.publish(prefix + event.type, event.encode())

    def environment(self, prefix: str) -> dict[str, str]:
        """Return settings for processes of this combination."""
        return {
            "REDIS_URL": self.results_url,
            "BRIDGE_REDIS_URL": self.bus_url,
            "CELERY_BROKER_URL": self.broker_url,
            "BRIDGE_CHANNEL_PREFIX": prefix,
            "BRIDGE_BLOCK_MS": "100",
            "TEST_EFFECTS": effects_of(prefix),
            "C_FORCE_ROOT": "1",
            "PYTHONWARNINGS": "ignore::celery.platforms.SecurityWarning",
        }


def _on_redis(stack: ExitStack, bus_url: str, client: Redis | RedisCluster, broker_url: str) -> Site:
    """Return a site with a Redis as its broker."""
    stack.callback(client.close)
    queues = stack.enter_context(Redis.from_url(broker_url))
    return Site(bus_url, client, broker_url, broker_url, partial(RedisWaiting, queues))


@contextmanager
def standalone(binary: str) -> Iterator[Site]:
    """One Redis for bus and broker."""
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer(redis_binary(binary))).url
        yield _on_redis(stack, url, Redis.from_url(url), url)


@contextmanager
def tls(folder: Path) -> Iterator[Site]:
    """One Redis for bus and broker with TLS, client certificates, and a user with the minimum permissions."""
    with ExitStack() as stack:
        server = TlsServer(Certificates(folder), arguments=["--requirepass", PASSWORD])
        stack.enter_context(server)
        query = server.certificates.query() + "&ssl_cert_reqs=required"
        admin_url, url = (server.url_with(query, f"{user}:{PASSWORD}@") for user in ("default", _USER))
        admin = Redis.from_url(admin_url)
        stack.callback(admin.close)
        look = partial(RedisWaiting, admin)
        yield Site(url, admin, url, url, look, lambda settings: _admit(admin, url, settings))
        assert [(one["username"], one["reason"], one["object"]) for one in admin.acl_log()] == [], "refused commands"


def _admit(admin: Redis, broker_url: str, settings: BridgeSettings) -> None:
    """Grant the user of the site what ``bus acl`` prints for each role, and what the handlers of the tests need."""
    with make_app(broker_url, settings.channel_prefix) as app:
        app.conf.result_backend = broker_url
        app.conf.result_backend_transport_options = {"global_keyprefix": f"broker:{settings.channel_prefix}"}
        with broker.probe_connection(app) as connection:
            keys = BrokerKeys(app, connection, {"celery", "elsewhere", "routed"})
        grants = granted(("rpush", [exact(effects_of(settings.channel_prefix))]))
        for role in ROLES:
            for group in (settings.group, OTHER_GROUP):
                grants += bus_grants(role, settings.model_copy(update={"group": group}))
            grants += broker_grants(role, keys)
            grants += result_grants(role, app.backend)
    rules = (word for rule in rules_of(grants, version_of(admin)) for word in rule.split(" "))
    admin.execute_command("ACL", "SETUSER", _USER, *rules)
    admin.execute_command("ACL", "SETUSER", _USER, f">{PASSWORD}")


def effects_of(prefix: str) -> str:
    """Return the key for the effects of tests/app.py. In a cluster, it is in the slot of the bridge's own keys."""
    return f"{{{prefix}}}effects"


@contextmanager
def sentinel(binary: str) -> Iterator[Site]:
    """A primary with replicas behind Sentinels, all with passwords, and another Redis as broker."""
    with ExitStack() as stack:
        servers = stack.enter_context(Replicated(redis_binary(binary), PASSWORD))
        queues = stack.enter_context(RedisServer(redis_binary(binary)))
        yield _on_redis(stack, servers.url, servers.client(), queues.url)


@contextmanager
def cluster(binary: str) -> Iterator[Site]:
    """A Redis Cluster, and another Redis as broker."""
    with ExitStack() as stack:
        servers = stack.enter_context(ClusterServers(redis_binary(binary)))
        queues = stack.enter_context(RedisServer(redis_binary(binary)))
        yield _on_redis(stack, servers.url, servers.client(), queues.url)


@contextmanager
def rabbitmq() -> Iterator[Site]:
    """A Redis as bus, and a RabbitMQ as broker."""
    programs = find_programs()
    if programs is None:
        missing("rabbitmq-server")
    with RedisServer() as server, RabbitNode(programs) as node, Redis.from_url(server.url) as client:
        yield Site(server.url, client, node.url, server.url, lambda _: RabbitWaiting(node))


#: The sites by name; ``tls`` needs a folder for its certificates.
SITES: dict[str, Callable[[Path], Any]] = {
    "standalone-system": lambda _: standalone("system"),
    "standalone-wheel": lambda _: standalone("wheel"),
    "tls-acl-system": tls,  # the server of the wheel was built without TLS
    "sentinel-system": lambda _: sentinel("system"),
    "sentinel-wheel": lambda _: sentinel("wheel"),
    "cluster-system": lambda _: cluster("system"),
    "cluster-wheel": lambda _: cluster("wheel"),
    "rabbitmq": lambda _: rabbitmq(),
}
