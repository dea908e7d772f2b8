"""The variants in deploy/compose: real servers with these files, a worker, and an event of an external publisher."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.sentinel import Sentinel

from bridge.operations.acl.rules import version_of
from bridge.testing.redis_server import RedisServer, binary_on_path
from tests.support import ROOT
from tests.support.requirements import missing
from tests.support.servers.compose import PATH, Site
from tests.support.servers.rabbitmq import RabbitNode, find_programs
from tests.support.servers.sentinels import fail_over
from tests.support.waiting import eventually

PREFIX = "dreamnet:events:"
PASSWORD = "0123456789abcdef"
USERS = ROOT / "deploy" / "compose" / "tls-acl" / "users.acl"
#: Permissions for the commands that the tasks in tasks/ themselves send to the Redis of the bus.
OF_TASKS = " (+zadd +zremrangebyrank +zrevrank ~{dreamnet:events:}dreams:*)"
#: Values that each variant requires.
VARIANTS = {
    "tls-acl.yml": ("WORKER_PASSWORD", "TASKS_PASSWORD", "OPERATOR_PASSWORD"),
    "sentinel.yml": ("BUS_PASSWORD",),
    "cluster.yml": ("BUS_PASSWORD",),
    "rabbitmq.yml": ("RABBITMQ_PASSWORD",),
}

Make = Callable[..., Site]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Create a site from some files; its processes are killed at the end of the test."""
    made: list[Site] = []

    def one(*overrides: str) -> Site:
        made.append(Site(tmp_path, *overrides))
        return made[-1]

    yield one
    for site in made:
        site.end()


def see_it_done(site: Site, client: Any) -> None:
    """Publish like an external publisher; wait for the tasks of the event and of the events that they publish."""
    before = Counter(done(site))
    event = {"id": str(uuid.uuid4()), "type": "dream.created", "payload": {"dreamId": "d1", "text": "flying"}}
    text = json.dumps(event | {"timestamp": 1795000000000, "source": "dream-service"})
    client.set(f"{PREFIX}event:{event['id']}", text, ex=3600)
    client.publish(f"{PREFIX}dream.created", text)
    wanted = before + Counter({"dreams.analyse": 1, "dreams.index": 1, "activity.record": 3})
    eventually(lambda: Counter(done(site)) >= wanted, f"all tasks have run; {site.log('worker')}", 30)


def done(site: Site) -> list[str]:
    logs = "".join(path.read_text() for path in site.folder.glob("*.log"))
    return re.findall(r"Task tasks\.(\S+)\[\S+\] succeeded", logs)


def is_well(site: Site) -> None:
    eventually(lambda: site.healthy("worker"), f"the worker is healthy; {site.log('worker')}", 30)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_is_open(name: str, make: Make) -> None:
    """No file contains a secret, only Flower's port is published, only locally, and services have no capabilities."""
    site = make(name)
    files = [path for path in site.folder.rglob("*") if path.is_file() and path.name != "users.acl"]
    for path in files:
        for line in path.read_text().splitlines():
            if re.search(r"pass(word)?\b.*[:= ]", line, re.I) and not line.lstrip().startswith("#"):
                assert re.search(r"\$|--pass\b.*none|password:$|: \*password|for user in", line), f"{path.name}: {line}"
    site.load(**dict.fromkeys(VARIANTS[name], PASSWORD))
    published = {key: one["ports"] for key, one in site.services.items() if "ports" in one}
    assert published == {"flower": ["127.0.0.1:5555:5555/tcp"]}
    for key, service in site.services.items():
        if key != "redis":  # its image starts as root, to make its volume accessible to its user
            assert service["cap_drop"] == ["ALL"], key
            assert service["security_opt"] == ["no-new-privileges:true"], key
        assert service.get("restart") == "no" or "healthcheck" in service, key


@pytest.mark.parametrize("name", VARIANTS)
def test_a_password_that_is_missing(name: str, make: Make) -> None:
    """Without its password, Compose starts nothing, and the error says how to create it."""
    with pytest.raises(AssertionError, match=r"run secrets.sh|see the beginning of"):
        make(name).load()


def test_the_users_are_what_the_command_prints() -> None:
    """Each line of users.acl has the permissions that ``bus acl`` prints, and a placeholder for a password's hash."""
    text = USERS.read_text()
    commands = re.findall(r"^#   (celery .* --user (\w+) .*)$", text, re.M)
    asked = [
        (user, subprocess.Popen(line.split(), cwd=ROOT, env={"PATH": PATH}, stdout=PIPE)) for line, user in commands
    ]
    printed = {user: process.communicate(timeout=30)[0].decode() for user, process in asked}
    for user, command in printed.items():
        rights = command.strip().replace("ACL SETUSER", "user")
        lines = [rights + own + f" #<{user}>" for own in ("", OF_TASKS)]
        assert set(lines) & set(text.splitlines()), f"run the commands in users.acl again, for {user}"
    assert len(printed) == 4


def of_this_redis(site: Site) -> None:
    """Remove a permission that Redis 7.0, which this system may have, does not know."""
    with RedisServer(binary_on_path()) as server, Redis.from_url(server.url) as client:
        if version_of(client) < (7, 2):
            users = site.folder / USERS.relative_to(ROOT)
            users.write_text(users.read_text().replace(" +client|setinfo", ""))


@pytest.fixture
def tls(make: Make) -> Site:
    """The running site with TLS and users."""
    site = make("tls-acl.yml")
    of_this_redis(site)
    site.prepare("deploy/compose/tls-acl/secrets.sh", "redis")
    site.load()
    site.up("worker", "tasks")
    return site


def as_user(site: Site, user: str, password: str | None = None) -> Redis:
    place = site.environment("worker")["REDIS_URL"].partition("@")[2]
    password = password or site.values()[f"{user.upper()}_PASSWORD"]
    return Redis.from_url(f"rediss://{user}:{password}@{place}", decode_responses=True, retry=None)


def test_tls_and_users(tls: Site) -> None:
    """Each program works with its user's permissions; a publisher cannot access queues, and a login is required."""
    with as_user(tls, "publisher") as publisher:
        see_it_done(tls, publisher)
        is_well(tls)
        told = tls.run("flower", "celery", "-A", "bridge", "bus", "check", "--role", "operator")
        assert told.returncode == 0, told.stdout + told.stderr
        with as_user(tls, "admin") as admin:
            # A worker attempts to read the settings of Redis to find out whether it is permitted.
            assert {(one["username"], one["object"]) for one in admin.acl_log()} <= {("worker", "config|get")}
        for forbidden in (["LPUSH", "celery", "x"], ["GET", f"{PREFIX}event:x"], ["KEYS", "*"], ["ACL", "LIST"]):
            with pytest.raises(NoPermissionError):
                publisher.execute_command(*forbidden)
    with pytest.raises(AuthenticationError):
        as_user(tls, "default", "x").ping()
    place = tls.environment("worker")["REDIS_URL"].partition("@")[2]
    with pytest.raises(RedisError):  # without a client certificate
        Redis.from_url(f"rediss://health:none@{place.partition('&ssl_certfile')[0]}", retry=None).ping()
    assert Redis.from_url(f"rediss://health:none@{place}", retry=None).ping()


def test_secrets_are_made_anew(tls: Site) -> None:
    """As in docs/operate/redis.md, both passwords are valid for a while, and a new certificate needs no restart."""
    old = tls.values()["PUBLISHER_PASSWORD"]
    secrets, env = tls.folder / "deploy/compose/tls-acl/secrets", tls.folder / ".env"
    env.write_text(re.sub(r"PUBLISHER_PASSWORD=.*\n", "", env.read_text()))
    certificate = (secrets / "redis/redis.pem").read_text()
    (secrets / "redis/redis.pem").unlink()
    tls.prepare("deploy/compose/tls-acl/secrets.sh", "redis")
    new = tls.values()["PUBLISHER_PASSWORD"]
    assert new != old
    tls.mount("redis")
    with as_user(tls, "admin") as admin:
        admin.execute_command("ACL", "SETUSER", "publisher", f">{new}")
        for password in (old, new):
            with as_user(tls, "publisher", password) as client:
                assert client.ping()
        admin.execute_command("ACL", "LOAD")
        with pytest.raises(AuthenticationError):
            as_user(tls, "publisher", old).ping()
        before = tls.presented("redis")
        folder = tls.here("redis", "/run/bridge")
        admin.execute_command(
            "CONFIG SET", "tls-cert-file", f"{folder}/redis.pem", "tls-key-file", f"{folder}/redis.key"
        )
        assert before.split() == certificate.split() != tls.presented("redis").split()
        see_it_done(tls, as_user(tls, "publisher", new))


def test_sentinel(make: Make) -> None:
    """Another server becomes the primary and stores this for its next start; the next event is handled."""
    site = make("sentinel.yml")
    site.load(BUS_PASSWORD=PASSWORD)
    site.up("redis-1", "redis-2", "redis-3")
    with Redis(host=site.address("redis-1"), password=PASSWORD) as client:
        # Then the Sentinels, which request the replicas only every ten seconds, know them from the start.
        eventually(lambda: site.healthy("redis-1") and len(client.role()[2]) == 2, "both replicas are connected")
    site.up("sentinel-3", "worker")
    places = [(site.address(f"sentinel-{number}"), 26379) for number in (1, 2, 3)]
    finder = Sentinel(places, sentinel_kwargs={"password": PASSWORD}, password=PASSWORD)
    see_it_done(site, finder.master_for("bus"))
    is_well(site)
    first = finder.discover_master("bus")
    eventually(lambda: fail_over(finder.sentinels[0], "bus"), "a Sentinel knows the replicas")
    second = eventually(
        lambda: (now := finder.discover_master("bus")) != first and now, "another server is the primary"
    )
    before = len(done(site))
    command = ("celery", "-A", "bridge", "bus", "publish", "dream.shared", "{}")
    eventually(lambda: site.run("worker", *command).returncode == 0, "it has a replica and accepts a publication")
    eventually(lambda: len(done(site)) > before, "the tasks of a later event have run")
    name = next(name for name in ("redis-2", "redis-3") if site.address(name) == second[0])
    assert "replicaof" not in (site.folder / "volumes" / name / "own.conf").read_text()


def test_cluster(make: Make) -> None:
    """The cluster is created once, with a replica for each primary; events are handled, wherever their keys are."""
    site = make("cluster.yml")

    def parts_of(client: RedisCluster) -> Counter[str]:
        nodes: Any = client.cluster_nodes()
        return Counter(part for node in nodes.values() for part in node["flags"].split(",") if part != "myself")

    site.load(BUS_PASSWORD=PASSWORD)
    site.up("worker")
    with RedisCluster(host=site.address("redis-1"), port=6379, password=PASSWORD) as client:
        parts = {"master": 3, "slave": 3}
        eventually(lambda: parts_of(client) == parts, "each primary has a replica")
        for _ in range(3):
            see_it_done(site, client)
    is_well(site)
    assert site.start("cluster").wait(20) == 0, site.log("cluster")
    assert site.log("cluster").count("All 16384 slots covered") == 1


@pytest.mark.timeout(180)
def test_rabbitmq(make: Make) -> None:
    """RabbitMQ has only the user of the file, accepts its configuration, and an event is handled."""
    programs = find_programs()
    if programs is None:
        missing("rabbitmq-server")
    site = make("rabbitmq.yml")
    site.load(RABBITMQ_PASSWORD=PASSWORD)
    service = site.services["rabbitmq"]
    configuration = (
        (ROOT / "deploy/compose/rabbitmq/rabbitmq.conf").read_text().replace("1GB", "1MB")
    )  # less is enough here
    login = service["environment"]["RABBITMQ_DEFAULT_USER"], service["environment"]["RABBITMQ_DEFAULT_PASS"]
    with RabbitNode(programs, login=login, configuration=configuration) as node:
        site.instead["rabbitmq:5672"] = f"127.0.0.1:{node.port}"
        site.up("redis")
        site.start("worker")
        with Redis(host=site.address("redis")) as client:
            see_it_done(site, client)
        is_well(site)
        assert login == ("bridge", PASSWORD)
        assert (
            node.evaluate("[U || {_, U, _} <- [{a, rabbit_auth_backend_internal:list_users(), b}]].").count("user,")
            == 1
        )
        assert "7200000" in node.evaluate("application:get_env(rabbit, consumer_timeout).")
        _, program, *words = service["healthcheck"]["test"]
        assert program == "rabbitmq-diagnostics"
        node.diagnose(*(word for word in words if word != "--quiet"))
