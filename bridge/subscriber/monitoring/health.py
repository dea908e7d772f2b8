"""Liveness and readiness of the subscriber of this process, for ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from celery import Celery
from redis.exceptions import RedisError

from bridge.broker import probe
from bridge.config import BridgeSettings
from bridge.redis import connect
from bridge.storage import Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.telemetry import Liveness

#: A loop without a round for this long is stuck, or for several socket timeouts if that is longer.
_STUCK_S = 60.0
_STUCK_TIMEOUTS = 4
#: Longest wait for Redis to accept a connection, and to answer.
_BUS_TIMEOUT_S = 1.0
#: How late a heartbeat may be received, or by one interval if that is shorter.
_LATE_S = 3.0
#: How long a result is cached: there may be many requests, and a probe of the broker opens a connection.
_KEEP_S = 1.0
_KEEP_BROKER_S = 5.0


class DispatchState(Protocol):
    """What dispatch reports about itself."""

    @property
    def problem(self) -> str:
        """Why dispatch fails now; empty if it does not."""

    @property
    def waiting_for(self) -> str:
        """What dispatch waits for, such as room in a queue, which is not a problem; empty if it does not wait."""


class Health:
    """Health of one subscriber; safe for several threads.

    Arguments:
        app: Its broker is probed.
        settings: The address of the bus.
        liveness: Liveness of the threads of the subscriber.
        caught_up: Set once the events that were missed before the start are in the journal.
        dispatch: The dispatch of the subscriber.
        dead_letters: Reports whether the subscriber can write its dead letters.
    """

    def __init__(
        self,
        app: Celery,
        settings: BridgeSettings,
        liveness: Liveness,
        caught_up: threading.Event,
        dispatch: DispatchState,
        dead_letters: DeadLetterWriter,
    ) -> None:
        self._app = app
        self._settings = settings
        self._liveness = liveness
        self._caught_up = caught_up
        self.dispatch = dispatch
        self._dead_letters = dead_letters
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}
        self.storage = Storage(connect(settings, _BUS_TIMEOUT_S), settings)

    def stuck(self) -> list[str]:
        """Return why this process must be restarted; empty if it need not. Waiting for a server is not a reason."""
        limit_s = max(_STUCK_S, _STUCK_TIMEOUTS * self._settings.socket_timeout_s)
        loops = ("bridge-dispatch", "bridge-listen") if self._settings.enable_pubsub else ("bridge-dispatch",)
        ages = {name: self._liveness.age_s(name) for name in loops}
        return [f"thread {name} is stuck for {age_s:.0f} s" for name, age_s in ages.items() if age_s > limit_s]

    def problems(self) -> list[str]:
        """Return why this subscriber is not ready; empty if it is. Takes a few seconds at most."""
        return [problem for problem in self._problems() if problem]

    def bus(self) -> str:
        """Return why the bus cannot be used; empty if it can."""
        return self._remembered("bus", _KEEP_S, self._try_bus)

    def broker(self) -> str:
        """Return why the broker cannot be used; empty if it can."""
        return self._remembered("broker", _KEEP_BROKER_S, self._try_broker)

    def _problems(self) -> Iterator[str]:
        bus = self.bus()
        yield bus
        if not bus and self._settings.enable_pubsub:
            yield self._subscription()
        yield self.broker()
        yield self.dispatch.problem
        yield self._dead_letters.problem
        yield from self.stuck()

    def _subscription(self) -> str:
        # A heartbeat is sent after each interval in which nothing was received.
        silent_s, interval_s = self._liveness.age_s("received"), self._settings.heartbeat_interval_s
        if silent_s > interval_s + min(interval_s, _LATE_S):
            return f"nothing received on the event channels for {silent_s:.0f} s"
        if not self._liveness.has("received"):
            return "not subscribed to the event channels yet"
        if not self._caught_up.is_set():
            return "still scanning the event keys for events that were missed before the start"
        return ""

    def _try_bus(self) -> str:
        try:
            if self._settings.group in self.storage.journal.groups():
                return ""
        except (RedisError, OSError) as error:
            return f"Redis at {self._settings.redacted_url}: {error or type(error).__name__}"
        return f"the journal has no group {self._settings.group} yet"

    def _try_broker(self) -> str:
        try:
            probe(self._app)
        except Exception as error:  # noqa: BLE001  # the broker's client may raise anything
            return f"broker: {error or type(error).__name__}"
        return ""

    def _remembered(self, name: str, keep_s: float, find_out: Callable[[], str]) -> str:
        with self._lock:  # concurrent requests wait for the same result
            at_s, text = self._known.get(name, (float("-inf"), ""))
            if time.monotonic() - at_s > keep_s:
                text = find_out()
                self._known[name] = time.monotonic(), text
            return text
