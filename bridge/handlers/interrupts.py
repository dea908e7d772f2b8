"""What interrupts a handler from outside: its soft time limit, and the end of its worker.

Celery's soft time limit is a signal whose Python handler raises ``SoftTimeLimitExceeded`` wherever the process is. The
limit is meant for the handler. While the bridge waits for Redis before and after the handler, the signal is only noted.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined]  # not in the stubs
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery.exceptions import WorkerShutdown, WorkerTerminate


class SoftLimit:
    """The soft time limit of the task that is running in this process. Only pool processes have one."""

    def __init__(self) -> None:
        self._deferred = False
        self._installed_in: int | None = None
        #: Whether the limit was reached since :meth:`defer`.
        self.struck = False

    def defer(self) -> None:
        """From now on, only note that the limit is reached."""
        self._deferred, self.struck = True, False
        if self._installed_in != os.getpid():  # billiard installs its own handler when a pool process starts
            self._installed_in = os.getpid()
            if SIG_SOFT_TIMEOUT is not None and signal.getsignal(SIG_SOFT_TIMEOUT) is soft_timeout_sighandler:
                signal.signal(SIG_SOFT_TIMEOUT, self._on_signal)

    def allow(self) -> None:
        """From now on, raise ``SoftTimeLimitExceeded`` when the limit is reached."""
        self._deferred = False

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if not self._deferred:
            raise SoftTimeLimitExceeded
        self.struck = True


soft_limit = SoftLimit()


def ends_worker(error: BaseException) -> bool:
    """Return whether *error* was raised in a task because its worker ends, so that the task has to run elsewhere."""
    if isinstance(error, WorkerShutdown | WorkerTerminate):
        return True
    if isinstance(error, KeyboardInterrupt):  # otherwise user code has raised it
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    greenlet = sys.modules.get("greenlet")  # the pools gevent and eventlet kill their tasks with this
    if greenlet is not None and isinstance(error, greenlet.GreenletExit):
        return True
    return bool(terminate_handler_fired())


def is_interruption(error: BaseException | None) -> bool:
    """Return whether *error* may come from outside of the code that it has left, as a time limit does."""
    return error is not None and (isinstance(error, SoftTimeLimitExceeded) or not isinstance(error, Exception))


def is_ordinary(error: BaseException) -> bool:
    """Return whether Celery treats *error* of a task as its failure.

    A ``MemoryError`` would end the worker. After a ``BaseException``, threads would not acknowledge the message,
    and a pool process could end.
    """
    return isinstance(error, Exception) and not isinstance(error, MemoryError)
