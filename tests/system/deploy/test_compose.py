"""The commands of docker-compose.yml and the Dockerfile, run without Docker."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from redis import Redis

from bridge.testing.redis_server import RedisServer
from tests.support import ROOT, wheel
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.requirements import missing, program
from tests.support.waiting import eventually

COMPOSE_FILE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
#: The services use their commands without a path; these are in the virtual environment or on the system.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def words(section: str, key: str) -> list[str]:
    """Return the JSON list at *key* of a section, as Compose reads it: lines folded, ``$$`` for ``$``."""
    found = re.search(rf" {key}: (\[.*?\])$", COMPOSE_FILE[COMPOSE_FILE.index(f"\n{section}:") :], re.M | re.S)
    assert found, f"{section} has no {key} that is a JSON list"
    return [word.replace("$$", "$") for word in json.loads(re.sub(r"\s*\n\s*", " ", found[1]))]


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command until it exits; return its result."""
    environment = os.environ | {"PATH": PATH} | environment
    return subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=40)


@pytest.fixture(scope="module")
def redis_service() -> Iterator[RedisServer]:
    """The Redis of the Compose file with its arguments, except for its own port and folder."""
    name, *arguments = words("  redis", "command")
    assert name == "redis-server"
    with RedisServer(arguments=arguments) as running:
        yield running


@pytest.fixture
def compose() -> list[str]:
    """The command that starts Compose, version 1 or 2."""
    for command in (["docker-compose"], ["docker", "compose"]):
        if shutil.which(command[0]) and run(*command, "version").returncode == 0:
            return command
    return missing("docker-compose")


def test_compose_accepts_the_file(compose: list[str]) -> None:
    """The file is valid without settings, and with a login for Flower."""
    for login in ("", "me:secret"):
        result = run(*compose, "-f", "docker-compose.yml", "config", "-q", FLOWER_BASIC_AUTH=login)
        assert result.returncode == 0, result.stderr
    services = run(*compose, "-f", "docker-compose.yml", "config", "--services").stdout.split()
    assert set(services) == {"redis", "worker", "tasks", "flower"}


def test_redis_is_durable(redis_service: RedisServer) -> None:
    """Redis accepts its arguments, and they have the documented effect."""
    with Redis.from_url(redis_service.url, decode_responses=True) as client:
        assert client.config_get("append*")["appendonly"] == "yes"
        assert client.config_get("appendfsync") == {"appendfsync": "everysec"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        limits = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
    assert f"pubsub {256 * 2**20} {64 * 2**20} 60" in limits


def test_redis_health(own_server: RedisServer) -> None:
    """The health check of Redis passes; it fails if Redis replies with an error or does not reply."""
    program("redis-cli")
    _, redis_cli, *arguments = words("  redis", "test")
    check = [redis_cli, "-p", str(own_server.port), *arguments]
    assert run(*check).stdout == "PONG\n"
    with Redis.from_url(own_server.url) as client:
        client.acl_setuser("default", enabled=True, nopass=True, commands=["-ping"])
    assert run(*check).returncode != 0
    own_server.kill()
    assert run(*check).returncode != 0


@pytest.mark.parametrize("service", ["worker", "tasks", "flower"])
def test_options_are_known(service: str) -> None:
    """Celery knows the command of each service and all of its options."""
    result = run(*words(f"  {service}", "command"), "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.mark.parametrize(
    ("service", "checked", "subscribes"), [("worker", "  worker", True), ("tasks", "x-worker", False)]
)
def test_worker_runs(
    service: str, checked: str, subscribes: bool, redis_service: RedisServer, processes: Processes
) -> None:
    """Each worker becomes ready and healthy, has a subscriber if configured, and exits on SIGTERM."""
    environment = processes.environment | {"REDIS_URL": redis_service.url, "PATH": PATH}
    worker = processes.start(*words(f"  {service}", "command"), name=service, **environment)
    eventually(lambda: " ready." in processes.log(service), f"{service} is ready")

    kind, check = words(checked, "test")
    assert kind == "CMD-SHELL"
    assert ("bus check --ready" in check) is subscribes
    eventually(
        lambda: run("sh", "-c", check, HOSTNAME=socket.gethostname(), **environment).returncode == 0, "it is healthy"
    )
    health = run("sh", "-c", check.replace("--timeout 5", "--timeout 1"), HOSTNAME="another", **environment)
    assert health.returncode != 0, health.stdout

    with Redis.from_url(redis_service.url) as client:
        present = client.keys(f"{{{environment['BRIDGE_CHANNEL_PREFIX']}}}subscribers:*")
    assert bool(present) is subscribes

    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0, processes.log(service)


@pytest.mark.parametrize("login", ["", "me:secret"], ids=["generated", "chosen"])
def test_flower_wants_a_login(login: str, redis_service: RedisServer, processes: Processes) -> None:
    """Flower starts, is healthy, and accepts only the configured login or the one that it printed."""
    port = free_port()
    environment = {"REDIS_URL": redis_service.url, "PATH": PATH}
    options = {"FLOWER_PORT": str(port), "FLOWER_ADDRESS": "127.0.0.1", "FLOWER_BASIC_AUTH": login}
    command = [*words("  flower", "entrypoint"), *words("  flower", "command")]
    flower = processes.start(*command, name="flower", **environment, **options)
    eventually(lambda: status(port, "/healthcheck") == 200, "Flower responds")

    _, *check = words("  flower", "test")
    health = run(*(word.replace(":5555", f":{port}") for word in check), **environment)
    assert health.returncode == 0, health.stderr

    printed = re.search(r"^Flower login: (bridge:\w{24})$", processes.log("flower"), re.M)
    assert bool(printed) is not bool(login)
    assert status(port, "/workers") == 401
    assert status(port, "/workers", "bridge:") == 401
    assert status(port, "/workers", printed[1] if printed else login) == 200

    flower.send_signal(signal.SIGTERM)
    assert flower.wait(timeout=20) == 0, processes.log("flower")


def test_image_holds_what_the_commands_need(tmp_path: Path) -> None:
    """The application and its handlers load with only the files that the Dockerfile copies."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        for source in arguments.split()[:-1]:
            assert source in allowed, f".dockerignore keeps {source} from the image"
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path)

    code = f"""if True:
        import sys
        sys.path = [entry for entry in sys.path if entry != {str(ROOT)!r}]  # the path of an editable install
        from bridge.celery import app
        app.loader.import_default_modules()
        for name in ("bridge", "tasks", "celeryconfig"):
            print(sys.modules[name].__file__)
        assert "tasks.dreams.analyse" in app.tasks, list(app.tasks)
    """
    result = run(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert all(path.startswith(str(tmp_path)) for path in result.stdout.split()), result.stdout


def test_image_lacks_no_package() -> None:
    """The application, its broker and Flower load without the packages that only developers have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["flower"]]
    installed = wheel.required(map(Requirement, texts)) | {project["name"]}
    hidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if not installed & {canonicalize_name(owner) for owner in owners}
    ]
    code = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({hidden}))  # importing a module set to None raises ImportError
        from bridge.celery import app
        import bridge.cli, flower.command
        app.loader.import_default_modules()
        app.connection("redis://").transport, app.backend
    """
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def test_image_is_pinned_and_unprivileged() -> None:
    """The image has Flower, the tested versions of all packages, and an unprivileged user."""
    assert "-c constraints.txt '.[flower]'" in DOCKERFILE
    assert re.findall(r"^USER (\w+)$", DOCKERFILE, re.M)[-1] != "root"


def status(port: int, path: str, login: str | None = None) -> int | None:
    """Return the status of a GET request; None while the port is closed."""
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()
