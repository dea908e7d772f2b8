"""A publisher that continues in spite of all errors, and the replies that it got."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any, Self

from bridge import BusUnavailable, Event, EventBus
from bridge.errors import NotReplicated
from tests.support.waiting import eventually


class Load:
    """Publishes events one after another in a thread, each with the same id until it is accepted.

    Arguments:
        event_type: Type of the events.
        name: Prefix of their ids.
        settings: Settings of the bus.
    """

    def __init__(self, event_type: str, name: str = "e", **settings: Any) -> None:
        self._type = event_type
        self._name = name
        self._bus = EventBus(publish_timeout_s=2, **settings)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: The ids of accepted events, and the times at which they were accepted.
        self.accepted: list[str] = []
        self.moments: list[float] = []
        #: The texts of errors by their kind.
        self.refused: dict[str, list[str]] = {}

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.002):
            event = Event(type=self._type, id=f"{self._name}{number}")
            number += 1
            while not self._publish(event):
                if self._stop.wait(0.02):
                    return
            self.accepted.append(event.id)
            self.moments.append(time.monotonic())

    def _publish(self, event: Event) -> bool:
        try:
            self._bus.publish(event)
        except BusUnavailable as error:
            kind = "not replicated" if isinstance(error, NotReplicated) else "unavailable"
            self.refused.setdefault(kind, []).append(str(error))
            return False
        return True

    def __enter__(self) -> Self:
        self._thread.start()
        self.goes_on()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join(20)
        self._bus.close()
        assert not self._thread.is_alive()

    def goes_on(self, count: int = 50) -> None:
        """Wait until *count* more events are accepted."""
        wanted = len(self.accepted) + count
        eventually(lambda: len(self.accepted) >= wanted, f"{count} more events are accepted; {self.refused}", 40)

    def longest_pause_s(self, since: float) -> float:
        """Return the longest time without an accepted publication since a moment."""
        times = [since, *(moment for moment in self.moments if moment > since)]
        return max(after - before for before, after in pairwise(times))
