"""Presence: a subscriber reports to Redis that it is running, its problems and where its metrics are.

With each report it loads the scripts of publishers, which a restart of Redis removes.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress

from redis.exceptions import RedisError, ResponseError

from bridge.config import BridgeSettings
from bridge.storage import HEARTBEAT_INTERVAL_S, Presence, provide_scripts
from bridge.subscriber.members import Members
from bridge.subscriber.monitoring.health import Health
from bridge.telemetry import Counters, Liveness

#: Heartbeats over which the dispatch rate is measured.
_RATE_HEARTBEATS = 5


class PresenceReporter:
    """Reports the presence of one subscriber, in a thread, and serves its metrics, until stopped.

    Arguments:
        settings: If ``metrics_port`` is set, the metrics are served.
        counters, liveness, health: Of the subscriber.
        members: Its name and handlers, and the others, which learn of both by these reports.

    Raises:
        SettingsError: The metrics port cannot be used.
    """

    def __init__(
        self, settings: BridgeSettings, counters: Counters, liveness: Liveness, health: Health, members: Members
    ) -> None:
        self._counters = counters
        self._liveness = liveness
        self._health = health
        self._members = members
        self._presence_store = health.storage.presence
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bridge-presence", daemon=True)
        self._dispatched: deque[tuple[float, int]] = deque(maxlen=_RATE_HEARTBEATS + 1)
        self._metrics_server = None
        if settings.metrics_port is not None:
            from bridge.subscriber.monitoring.metrics_server import MetricsServer  # noqa: PLC0415  # most subscribers serve none

            self._metrics_server = MetricsServer(settings, counters, health, members.name)

    def start(self) -> None:
        """Start the threads and return at once."""
        self._thread.start()
        if self._metrics_server is not None:
            self._metrics_server.start()

    def stop(self, timeout_s: float) -> None:
        """Report the stop, and stop; wait for at most *timeout_s*."""
        self._stop.set()
        if self._metrics_server is not None:
            self._metrics_server.stop()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._health.storage.client.close()

    def _run(self) -> None:
        # The first report is early: the others must know the handlers of this subscriber, and its health takes a while.
        name, handlers = self._members.name, self._members.handlers
        presence = Presence(name, socket.gethostname(), ["starting"], handlers=handlers, reports_queues=True)
        first = True
        while not self._stop.is_set():
            reported = self._report(presence, first=first)
            self._stop.wait(0 if first and reported else HEARTBEAT_INTERVAL_S)
            first = first and not reported
            presence = self._presence()
        with suppress(RedisError, OSError):  # the last report expires later
            self._presence_store.leave(presence, differs=self._members.differ)
        self._members.withdrawn.set()

    def _report(self, presence: Presence, *, first: bool) -> bool:
        """Report, and return whether Redis has stored it."""
        try:
            self._presence_store.report(presence, first=first)
            self._members.announced.set()
            provide_scripts(self._health.storage.client)
        except ResponseError:
            self._members.announced.set()  # a Redis without memory must not delay the dispatch of a backlog
            return False
        except (RedisError, OSError):
            return False  # the other threads log it
        return True

    def _presence(self) -> Presence:
        problems = self._health.problems()
        gap_ms = int((time.time() - self._liveness.age_s("gap")) * 1000) if self._liveness.has("gap") else 0
        return Presence(
            self._members.name,
            socket.gethostname(),
            problems,
            self._health.dispatch.waiting_for,
            self._rate(),
            gap_ms,
            self._metrics_server.url if self._metrics_server else "",
            self._members.handlers,
            reports_queues=True,
        )

    def _rate(self) -> float:
        self._dispatched.append((time.monotonic(), self._counters.snapshot().get("dispatched", 0)))
        (first_s, first), (last_s, last) = self._dispatched[0], self._dispatched[-1]
        return round((last - first) / (last_s - first_s), 1) if last_s > first_s else 0.0
