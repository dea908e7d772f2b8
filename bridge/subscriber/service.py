"""A loop in a thread, which restarts after an unexpected error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bridge.redis import BackOff
from bridge.telemetry import Action, Counters, LogThrottle, log_fields

log = logging.getLogger(__name__)

#: A loop that has run for longer than this has recovered from its last failure.
_RECOVERED_S = 60.0


class Service:
    """Runs one loop of a subscriber in a thread until *stop* is set.

    The loop handles outages of Redis and the broker itself. Any other error is a bug. It is logged, and the loop
    restarts after a pause, since one event that causes an error must not stop all others. This includes errors that
    are no ``Exception``: nothing interrupts or cancels this thread.

    Arguments:
        name: Name of the thread.
        loop: Returns soon after its argument, *stop*, is set.
        stop: Ends the loop and the pauses before its restarts.
        counters: Raises ``errors``.
        group, consumer: For log lines.
        recovered_s: How long the loop runs without an error before the next pause is short again.
    """

    def __init__(
        self,
        name: str,
        loop: Callable[[threading.Event], None],
        stop: threading.Event,
        counters: Counters,
        group: str,
        consumer: str,
        recovered_s: float = _RECOVERED_S,
    ) -> None:
        self.name = name
        self._loop = loop
        self._stop = stop
        self._group = group
        self._consumer = consumer
        self._recovered_s = recovered_s
        self._throttle = LogThrottle()
        self._back_off = BackOff(log, f"Thread {name} failed and restarts", counters, stop)
        # A daemon, so that a process that ends for another reason does not wait for it.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread and return at once."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread, at most *timeout_s*; return whether it has ended, or never started."""
        if self._thread.ident is not None:
            self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            started_at = time.monotonic()
            try:
                self._loop(self._stop)
            except BaseException as error:
                if time.monotonic() - started_at > self._recovered_s:
                    self._back_off.reset()
                if self._throttle.allow():
                    extra = log_fields(
                        Action.THREAD_FAILED,
                        group=self._group,
                        consumer=self._consumer,
                        component=self.name,
                        reason=type(error).__name__,
                    )
                    log.exception("Thread %s failed with an unexpected error", self.name, extra=extra)
                self._back_off.wait(error)
