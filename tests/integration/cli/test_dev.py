"""``bus dev``: Redis, a worker, Flower and the events in one terminal, with nothing left behind."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from bridge.celery import app as example_app
from bridge.cli.application import app_name
from bridge.testing.redis_server import RedisServer
from tests.support import ROOT
from tests.support.ports import free_port
from tests.support.terminal import OpenTerminal, Terminal
from tests.support.waiting import eventually


def descendants(terminal: Terminal) -> list[psutil.Process]:
    return psutil.Process(terminal.process.pid).children(recursive=True)


def plain(terminal: Terminal) -> str:
    """Return its output without colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", terminal.text)


def run_as_told(dev: Terminal, **environment: str) -> None:
    """Run the command that ``bus dev`` proposes for another terminal."""
    (command,) = re.findall(r"^  (.*bus publish .*?)\r$", plain(dev), re.MULTILINE)
    words = shlex.split(command)
    assert words[0] == "celery"  # the address is that of the application, in both terminals
    arguments = words[words.index("celery") + 1 :]
    subprocess.run(
        [sys.executable, "-m", "celery", *arguments], cwd=ROOT, env=os.environ | environment, check=True, timeout=20
    )


def test_everything_runs_and_goes_together(terminal: OpenTerminal) -> None:
    """The proposed command publishes an event, a worker runs its task, and Flower responds; Ctrl-C ends all of them."""
    here = {"REDIS_URL": f"redis://localhost:{free_port()}/0", "BRIDGE_CHANNEL_PREFIX": "dev:"}
    dev = terminal("bus", "dev", app="bridge", columns=200, **here)
    dev.shows("Ctrl-C stops everything")
    dev.shows("the worker is ready")
    assert "bridge.celery, queues celery, index" in plain(dev)
    run_as_told(dev, **here)
    dev.shows("dream.ready")  # published by a task in another queue
    (flower,) = re.findall(r"http://127\.0\.0\.1:\d+", dev.text)
    eventually(lambda: answers(flower), "Flower responds")
    children = descendants(dev)
    assert len(children) >= 4  # Redis, Flower, the worker and its pool
    dev.process.send_signal(signal.SIGINT)
    assert dev.wait() == 0
    assert psutil.wait_procs(children, timeout=5)[1] == []
    assert "Traceback" not in dev.text
    with Redis.from_url(here["REDIS_URL"]) as client, pytest.raises(RedisConnectionError):
        client.ping()


def answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/healthcheck", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_a_given_redis_is_used_and_warnings_are_shown(terminal: OpenTerminal, server: RedisServer, prefix: str) -> None:
    """A Redis that is running at the address is used and keeps running, and warnings of the worker are shown."""
    dev = terminal("bus", "dev", "--no-flower", "-c", "1", columns=200)
    dev.shows("the worker is ready")
    assert "the server that is running at redis://127.0.0.1" in plain(dev)
    assert "queues celery, elsewhere, routed" in plain(dev)
    environment = {"REDIS_URL": server.url, "BRIDGE_CHANNEL_PREFIX": prefix}
    command = [sys.executable, "-m", "celery", "-A", "tests.app", "bus", "publish", "failing.created"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, timeout=20)
    dev.shows("failing.created")
    dev.shows("RuntimeError: as intended")
    assert re.search(r"worker \| .*\(tests\.app\.failing\) ended in a dead letter \(failure\)", plain(dev))
    dev.process.terminate()
    assert dev.wait() == 0
    with Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_worker_that_dies_ends_it(terminal: OpenTerminal, tmp_path: Path, server: RedisServer) -> None:
    """If the worker exits, ``bus dev`` shows its output and exits with status 1."""
    (tmp_path / "broken_shop.py").write_text(
        "import sys, bridge, celery\n"
        "app = celery.Celery('shop')\n"
        "bridge.install(app)\n"
        "if 'worker' in sys.argv:\n"
        "    raise RuntimeError('no stock')\n"
    )
    dev = terminal("bus", "dev", "--no-flower", app="broken_shop", PYTHONPATH=str(tmp_path), REDIS_URL=server.url)
    assert dev.wait() == 1
    assert "no stock" in dev.text
    assert "worker exited with status 2" in plain(dev)
    assert "the worker has ended, so there is nothing left to run" in dev.text


def test_a_taken_port_is_not_taken_again(terminal: OpenTerminal, server: RedisServer) -> None:
    """If the port for Flower is in use, Flower gets another one."""
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        dev = terminal("bus", "dev", "--flower-port", str(port), REDIS_URL=server.url)
        dev.shows("flower")
        dev.shows("Ctrl-C stops everything")
        (taken,) = re.findall(r"http://127\.0\.0\.1:(\d+)", dev.text)
        assert int(taken) != port
        dev.process.terminate()
        assert dev.wait() == 0


def test_a_redis_that_is_down_is_named(terminal: OpenTerminal) -> None:
    """If a Redis that cannot be started here is down, the error names its address, and nothing else is started."""
    dev = terminal("bus", "dev", REDIS_URL="redis://127.0.0.2:1/0")
    assert dev.wait() == 3
    assert "does not answer" in dev.text
    assert "worker" not in dev.text


def test_the_application_is_found_again() -> None:
    """The name for ``-A`` is found from the module that contains the application."""
    assert app_name(example_app) == "bridge.celery"
    assert app_name(Celery("nowhere", set_as_current=False)) is None
