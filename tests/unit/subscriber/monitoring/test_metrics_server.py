"""The port of metrics and health: which interface it binds, and which requests it serves."""

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
    """A host that is not an interface of this machine is an error of the settings."""
    register_handlers("t.all")
    with pytest.raises(SettingsError, match=f"cannot bind to {host}:{port}"):
        start_subscriber(metrics_port=port, metrics_host=host)


def test_only_this_host_unless_told(register_handlers, start_subscriber: StartSubscriber, port: int) -> None:
    """The port is bound to 127.0.0.1 by default, to others on request, and closed with the subscriber."""
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
    """By default there is no port, no thread, and the Prometheus client is not imported."""
    register_handlers("t.all")
    before = listening(psutil.Process())
    start_subscriber()
    assert listening(psutil.Process()) == before
    assert "bridge-metrics" not in [thread.name for thread in threading.enumerate()]
    program = "import bridge.worker, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# Requests


def test_other_paths_and_clients_that_say_nothing(
    register_handlers, start_subscriber: StartSubscriber, ask: Ask, port: int
) -> None:
    """Other paths return 404 with the list of paths; idle connections block no other client."""
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
    """Many simultaneous requests share one probe of the broker and get the same reply."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    before = client.info("stats")["total_connections_received"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask("/readyz")[0], range(100)))
    assert answers == [200] * 100
    assert client.info("stats")["total_connections_received"] - before < 10


def test_presence_and_health_agree(
    register_handlers, start_subscriber: StartSubscriber, client: Redis, settings: BridgeSettings, ask: Ask, port: int
) -> None:
    """The status in Redis matches the one over HTTP and contains its address."""
    register_handlers("t.all")
    start_subscriber(metrics_port=port)
    eventually(lambda: ready(ask), "the subscriber is ready", 5)
    (told,) = eventually(
        lambda: [one for one in Storage(client, settings).presence.all() if one.ready], "the status is stored", 5
    )
    assert told.metrics == f"http://127.0.0.1:{port}"
