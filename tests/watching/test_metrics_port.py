"""The port of metrics and health: who has it, who may ask there, and who asks."""

from __future__ import annotations

import signal
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
from bridge.storage.presence import PresenceStore
from tests.conftest import ROOT, Processes, Start, eventually
from tests.watching.conftest import Ask, listening, ready


def test_the_port_is_taken(use, start: Start, processes: Processes, port: int) -> None:
    """Said at the start, with advice, in the worker and in `bus subscribe`; neither runs without its metrics."""
    use("t.all")
    advice = f"bridge_metrics_port: 127.0.0.1:{port} cannot be had"
    with socket.create_server(("127.0.0.1", port)):
        environment = {"BRIDGE_METRICS_PORT": str(port)}
        worker = processes.worker("w1", **environment)
        subscriber = processes.celery("bus", "subscribe", name="subscriber", **environment)
        with pytest.raises(SettingsError, match="each subscriber of a host needs its own") as caught:
            start(metrics_port=port)
        assert str(caught.value).startswith(advice)
        assert worker.wait(20) not in (0, -signal.SIGKILL)
        assert subscriber.wait(20) not in (0, -signal.SIGKILL)
    assert advice in processes.log("w1")
    assert advice in processes.log("subscriber")
    assert "Traceback" not in processes.log("subscriber")
    start(metrics_port=port)  # it is free again


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_interface_that_is_none(use, start: Start, port: int, host: str) -> None:
    """A host that this machine has not is an error of the settings."""
    use("t.all")
    with pytest.raises(SettingsError, match=f"{host}:{port} cannot be had"):
        start(metrics_port=port, metrics_host=host)


def test_only_this_host_unless_told(use, start: Start, port: int) -> None:
    """Bound to 127.0.0.1; to all interfaces only on request; gone with the subscriber."""
    use("t.all")
    before = listening(psutil.Process())
    subscriber = start(metrics_port=port)
    assert listening(psutil.Process()) - before == {("127.0.0.1", port)}
    subscriber.stop()
    assert listening(psutil.Process()) == before
    subscriber = start(metrics_port=port, metrics_host="0.0.0.0")
    assert listening(psutil.Process()) - before == {("0.0.0.0", port)}
    subscriber.stop()
    start(metrics_port=port, metrics_host="::1")
    assert {host for host, *_ in listening(psutil.Process()) - before} == {"::1"}


def test_off_by_default(use, start: Start) -> None:
    """No port, no thread, and no Prometheus client in memory."""
    use("t.all")
    before = listening(psutil.Process())
    start()
    assert listening(psutil.Process()) == before
    assert "bridge-metrics" not in [thread.name for thread in threading.enumerate()]
    program = "import bridge.worker, sys; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


# Those who ask


def test_other_paths_and_clients_that_say_nothing(use, start: Start, ask: Ask, port: int) -> None:
    """Other paths are told what there is; a connection without a request holds up nobody else."""
    use("t.all")
    start(metrics_port=port)
    assert ask("/")[0] == ask("/metrics/x")[0] == ask("/%00")[0] == 404
    assert "/metrics, /healthz and /readyz" in ask("/")[1]
    assert ask("/healthz?verbose=1")[0] == 200
    begun_s = time.monotonic()
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    assert ask("/healthz")[0] == 200
    assert time.monotonic() - begun_s < 1
    for connection in idle:
        connection.close()


def test_many_ask_at_once(use, start: Start, client: Redis, ask: Ask, port: int) -> None:
    """The broker is not tried for each of those who ask: they get the same answer."""
    use("t.all")
    start(metrics_port=port)
    eventually(lambda: ready(ask), "ready", 5)
    before = client.info("stats")["total_connections_received"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask("/readyz")[0], range(100)))
    assert answers == [200] * 100
    assert client.info("stats")["total_connections_received"] - before < 10


def test_presence_and_health_agree(
    use, start: Start, client: Redis, settings: BridgeSettings, ask: Ask, port: int
) -> None:
    """What is told to Redis is what is told over HTTP, and where that is."""
    use("t.all")
    start(metrics_port=port)
    eventually(lambda: ready(ask), "ready", 5)
    (told,) = eventually(lambda: [one for one in PresenceStore(client, settings).all() if one.ready], "it says so", 5)
    assert told.metrics == f"http://127.0.0.1:{port}"
