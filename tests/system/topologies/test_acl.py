"""Permissions if the bus is more than one server: each node of a cluster and each Sentinel has its own users."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.cli import bus as bus_command
from bridge.errors import BusUnavailable
from bridge.storage.keys import Keys
from bridge.storage.lua import provide_scripts
from bridge.testing.redis_server import RedisServer
from tests.support.apps import StartSubscriber
from tests.support.recorder import Recorder, Words
from tests.support.restricted_redis import RestrictedRedis
from tests.support.servers.clusters import ClusterServers
from tests.support.servers.sentinels import Replicated
from tests.support.waiting import eventually


class Nodes:
    """Servers on which one user has the same permissions."""

    def __init__(self, servers: Sequence[RedisServer], **login: Any) -> None:
        self.admins = [Redis(port=server.port, single_connection_client=True, **login) for server in servers]

    def grant(self, rules: Sequence[str]) -> None:
        for admin in self.admins:
            words = [word for rule in rules for word in rule.split(" ")]
            admin.execute_command("ACL", "SETUSER", "shop", *words, ">s3cret")
            admin.acl_log_reset()

    def provide_scripts(self) -> None:
        """Load the scripts of publishers, as a subscriber does."""
        for admin in self.admins:
            provide_scripts(admin)

    def refusals(self) -> set[str]:
        rows: list[Any] = [row for admin in self.admins for row in admin.acl_log()]
        return {f"{row['reason']} {row['object']}" for row in rows if row["username"] == "shop"}

    @contextmanager
    def recorded(self) -> Iterator[list[Words]]:
        found: list[Words] = []
        with ExitStack() as stack:
            recorders = [stack.enter_context(Recorder(admin)) for admin in self.admins]
            yield found
        found += [words for one in recorders for words in one.commands]


def rules(app: Celery, url: str, prefix: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, list[str]]:
    """Return the rules that ``bus acl`` prints, by their purpose."""
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.setenv("BRIDGE_CHANNEL_PREFIX", prefix)
    result = CliRunner().invoke(bus_command, ["acl", *arguments, "--json"], obj=SimpleNamespace(app=app))
    assert result.exit_code == 0, result.output
    assert "s3cret" not in result.output
    return {", ".join(line["for"]): line["rules"] for line in map(json.loads, result.stdout.splitlines())}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterServers]:
    with ClusterServers() as running:
        yield running


def with_login(url: str) -> str:
    return url.replace("//", "//shop:s3cret@")


def test_publishing_in_a_cluster(
    app: Celery, cluster: ClusterServers, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A publisher is refused nothing, even while a slot moves, and each of its permissions is needed."""
    nodes, keys = Nodes(cluster.servers), Keys(prefix)
    found = rules(app, cluster.url, prefix, monkeypatch, "publisher")["bus"]
    nodes.grant(found)
    settings = BridgeSettings.load(redis_url=with_login(cluster.url), channel_prefix=prefix)
    with cluster.client() as everywhere:
        for cause, count in (("n2", 60), ("n3", 1001)):  # one index is trimmed, the other one removed
            everywhere.zadd(keys.consequences(cause), {f"c{number}": 1 for number in range(count)})
    with Nodes(cluster.primaries()).recorded() as commands, EventBus(settings) as bus:
        nodes.provide_scripts()
        bus.publish_many([Event(type="dream.created", id=f"n{number}") for number in range(5)])
        assert bus.publish("dream.created", id="n1").duplicate
        cluster.ask(cluster.owner(keys.event("n1")), "DEL", keys.event("n1"))  # the key may expire before the mark
        assert bus.publish("dream.other", id="n1").conflict
        for cause in ("n2", "n3"):
            bus.publish(Event(type="dream.created", id=cause).child("dream.told"))
        home = cluster.owner(keys.event("moving"))
        to = next(server for server in cluster.primaries() if server is not home)
        cluster.move_slot(keys.event("moving"), to, lambda: bus.publish("dream.created", id="moving"))
    assert nodes.refusals() == set()
    place = RestrictedRedis(cluster.servers[0], prefix, app, nodes.admins[0])
    others = place.refused(found, commands)  # of this test, which queries and moves slots
    assert place.superfluous(found, [words for words in commands if words not in others]) == []


def test_subscribing_in_a_cluster(
    app: Celery,
    cluster: ClusterServers,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    start_subscriber: StartSubscriber,
    register_handlers,
) -> None:
    """A subscriber is refused nothing on any node, and ingests external events."""
    register_handlers("t.exact")
    nodes, keys = Nodes(cluster.servers), Keys(prefix)
    nodes.grant(rules(app, cluster.url, prefix, monkeypatch, "subscriber")["bus"])
    with cluster.client() as everywhere:
        everywhere.set(keys.event("kept"), Event(type="dream.created", id="kept").encode(), ex=60)
        start_subscriber(redis_url=with_login(cluster.url))
        everywhere.publish(keys.channel("dream.created"), Event(type="dream.created", id="heard").encode())
        eventually(lambda: everywhere.xlen(keys.journal) == 2, "both are in the journal")
    assert nodes.refusals() - {"command config|get"} == set()


def test_the_servers_behind_sentinels_and_the_sentinels(
    app: Celery, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers and Sentinels have separate rules; if a rule of the Sentinels is missing, the error names it."""
    with Replicated(password="s3cret") as servers:
        url = servers.url
        found = rules(app, url, prefix, monkeypatch, "publisher")
        assert set(found) == {"bus", "sentinels"}
        app.conf.broker_url = ";".join(f"sentinel://:s3cret@{host}/0" for host in servers.hosts.split(","))
        app.conf.broker_transport_options |= {"master_name": servers.service}
        assert set(rules(app, url, prefix, monkeypatch, "worker")) == {"bus, broker", "sentinels"}
        nodes, sentinels = Nodes(servers.servers, password="s3cret"), Nodes(servers.sentinels, password="s3cret")
        nodes.grant(found["bus"])
        nodes.provide_scripts()
        sentinels.grant(found["sentinels"])
        login = f"redis+sentinel://shop:s3cret@{servers.hosts}/bus?sentinel_username=shop&sentinel_password=s3cret"
        settings = BridgeSettings.load(redis_url=login, channel_prefix=prefix, publish_timeout_s=1)
        with EventBus(settings) as bus:
            assert not bus.publish("dream.created").duplicate
        assert nodes.refusals() | sentinels.refusals() == set()
        sentinels.grant([rule for rule in found["sentinels"] if "masters" not in rule])
        with pytest.raises(BusUnavailable) as caught:
            EventBus(settings).publish("dream.created")
        assert "+sentinel|masters" in str(caught.value)
        assert "s3cret" not in str(caught.value)
