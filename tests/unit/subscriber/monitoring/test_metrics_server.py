"""The port of metrics and health: who has it, who may ask there, and who asks."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.errors import SettingsError
from bridge.storage.storage import Storage
from tests.support import ROOT
from tests.support.apps import StartSubscriber
from tests.support.scrape import Ask, listening, ready
from tests.support.waiting import eventually


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_interface_that_is_none(register_handlers, start_subscriber: StartSubscriber, port: int, host: str) -> None:
    """A host that this machine has not is an error of the settings."""
    register_handlers("t.all")
    with pytest.raises(SettingsError, match=f"cannot bind to {host}:{port}"):
        start_subscriber(metrics_port=port, metrics_host=host)


def test_only_this_host_unless_told(register_handlers, start_subscriber: StartSubscriber, port: int) -> None:
    """Bound to 127.0.0.1; to all interfaces only on request; gone with the subscriber."""
    register_handlers("t.all")
    before = listening(psutil.Process())
    subscriber = start_subscriber(metrics_port=port)
    assert listening(psutil.Process()) - before == {("127.0.0.1", port)}
    subscriber.stop()
    assert listening(psutil.Process()) == before
    subscriber = start_subscriber(metrics_port=port, metrics_host="0.0.0.0")
    assert listening(psutil.Process()) - before == {("0.0.0.0", port)}
    subscriber.stop()
    start_subscriber(metrics_port=port, metrics_host="::1")
    assert {host for host, *_ in listening(psutil.Process()) - before} == {"::1"}


def test_off_by_default(register_handlers, start_subscriber: StartSubscriber) -> None:
    """No port, no thread, and no Prometheus client in memory."""
    register_handlers("t.all")
    before = listening(psutil.Process())
    start_subscriber()
    assert listening(psutil.Process()) == before
    assert "bridge-metrics" not in [thread.name for thread in threading.enumerate()]
    program = "import bridge.worker, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# Those who ask


def test_other_paths_and_clients_that_say_nothing(
    register_handlers, start_subscriber: StartSubscriber, ask: Ask, port: int
) -> None:
    """Other paths are told what there is; a connection without a request holds up nobody else."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    assert ask("/")[0] == ask("/metrics/x")[0] == ask("/%00")[0] == 404
    assert "/metrics, /healthz and /readyz" in ask("/")[1]
    assert ask("/healthz?verbose=1")[0] == 200
    begun_s = time.monotonic()
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    assert ask("/healthz")[0] == 200
    assert time.monotonic() - begun_s < 1
    for connection in idle:
        connection.close()


def test_many_ask_at_once(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, ask: Ask, port: int
) -> None:
    """The broker is not tried for each of those who ask: they get the same answer."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "ready", 5)
    before = client.info("stats")["total_connections_received"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask("/readyz")[0], range(100)))
    assert answers == [200] * 100
    assert client.info("stats")["total_connections_received"] - before < 10


def test_presence_and_health_agree(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, ask: Ask, port: int
) -> None:
    """What is told to Redis is what is told over HTTP, and where that is."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "ready", 5)
    (told,) = eventually(
        lambda: [one for one in Storage(client, settings).presence.all() if one.ready], "it says so", 5
    )
    assert told.metrics == f"http://127.0.0.1:{port}"
