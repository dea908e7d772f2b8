"""What the bridge keeps on Celery's request while a task runs in a worker."""

from __future__ import annotations

import heapq
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from celery.exceptions import Retry

from bridge.events import Event, TraceContext

#: Attribute of the request. A task that calls itself as a function gets a copy of its request, with the same state.
_ATTRIBUTE = "bridge_run"


class Numbers:
    """Numbers from 0, for each key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: dict[str, int] = defaultdict(int)
        self._returned: dict[str, list[int]] = defaultdict(list)

    @contextmanager
    def take(self, key: str) -> Iterator[int]:
        """Yield the smallest number of this key that is not taken. An error in the block returns it."""
        with self._lock:
            returned = self._returned[key]
            number = heapq.heappop(returned) if returned else self._next[key]
            self._next[key] = max(self._next[key], number + 1)
        try:
            yield number
        except BaseException:
            with self._lock:
                heapq.heappush(returned, number)
            raise


@dataclass
class RunState:
    """One run of a task, of a handler or of a subtask.

    Arguments:
        event: What the handler was called with; None in other tasks.
        published: Numbers the events of each type that this run has published.
        began_s: When the handler's lease was taken, by the monotonic clock; None before, and in other tasks.
        has_effect_transaction: Whether this run has entered its effect transaction.
        retry: What Celery has sent as the retry of this run; None before.
        trace: The span of this run, for what other threads of the task publish; None without one.
        announced: Type and fields of the worker event about its end, if the bridge has sent one.
    """

    event: Event[Any] | None = None
    published: Numbers = field(default_factory=Numbers)
    began_s: float | None = None
    has_effect_transaction: bool = False
    retry: Retry | None = None
    trace: TraceContext | None = None
    announced: tuple[str, Mapping[str, Any]] = ("", MappingProxyType({}))


def run_state(request: Any) -> RunState:
    """Return the state of the run that Celery's *request* describes."""
    attributes = request.__dict__
    state: RunState | None = attributes.get(_ATTRIBUTE)
    if state is None:
        state = attributes[_ATTRIBUTE] = RunState()
    return state
