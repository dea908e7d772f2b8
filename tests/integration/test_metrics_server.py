"""Two subscribers with the same port for metrics."""

from __future__ import annotations

import signal
import socket

import pytest

from bridge.errors import SettingsError
from tests.support.apps import StartSubscriber
from tests.support.processes import Processes


def test_the_port_is_taken(
    register_handlers, start_subscriber: StartSubscriber, processes: Processes, port: int
) -> None:
    """If the port is in use, neither a worker nor ``bus subscribe`` starts, and the error has a hint."""
    register_handlers("t.all")
    advice = f"bridge_metrics_port: cannot bind to 127.0.0.1:{port}"
    with socket.create_server(("127.0.0.1", port)):
        environment = {"BRIDGE_METRICS_PORT": str(port)}
        worker = processes.worker("w1", **environment)
        subscriber = processes.celery("bus", "subscribe", name="subscriber", **environment)
        with pytest.raises(SettingsError, match="each subscriber of a host needs its own") as caught:
            start_subscriber(metrics_port=port)
        assert str(caught.value).startswith(advice)
        assert worker.wait(20) not in (0, -signal.SIGKILL)
        assert subscriber.wait(20) not in (0, -signal.SIGKILL)
    assert advice in processes.log("w1")
    assert advice in processes.log("subscriber")
    assert "Traceback" not in processes.log("subscriber")
    start_subscriber(metrics_port=port)  # the port is free again
