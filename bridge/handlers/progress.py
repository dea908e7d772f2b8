"""How far each pool process of a worker is with its task, in memory that it shares with the main process.

The main process kills a pool process whose task exceeds its hard time limit. Then only this memory shows whether the
handler was running, or the bridge was waiting for Redis before or after it. A pool process writes it without a system
call.
"""

from __future__ import annotations

import mmap
import os
import time
from hashlib import blake2b
from typing import Literal

from billiard import get_start_method
from billiard.process import current_process

#: What a pool process is doing with its task: it has yet to begin, now or when its message is delivered again; the
#: handler runs; a retry was sent, and the lease is being released; or the handler has succeeded, and the end of the
#: task is being recorded.
Stage = Literal["beginning", "handling", "retrying", "ending"]

_CODES: dict[Stage, int] = {"beginning": 1, "handling": 2, "ending": 3, "retrying": 4}
_STAGES: dict[int, Stage] = {code: stage for stage, code in _CODES.items()}
#: Instead of a stage: the main process is about to kill the pool process.
_KILLED = 9
#: The slot of a pool process has its process id and a hash of its task id, then the stage. The first slot, of the main
#: process, has the time since which the worker is stopping, by the monotonic clock.
_PID_BYTES, _HASH_BYTES, _SLOT_BYTES = 8, 16, 32
_STAGE_AT = _PID_BYTES + _HASH_BYTES
#: More than the processes of any pool. Memory that is not written takes no place.
_SLOTS = 4096

#: None in a process that is not a worker, and in pool processes that are not forks.
_memory: mmap.mmap | None = None


def share_progress() -> None:
    """Create the memory. Called in the main process of a worker before its pool forks."""
    global _memory  # noqa: PLW0603  # the state of a process
    _memory = mmap.mmap(-1, _SLOTS * _SLOT_BYTES)


class Progress:
    """The progress of one task in this process. It is noted in a pool process only.

    Arguments:
        task_id: Of the task that is running now.
    """

    def __init__(self, task_id: str) -> None:
        index = getattr(current_process(), "index", None)  # of the pool process; a replaced one hands it on
        self._at = None if index is None or index + 1 >= _SLOTS else (index + 1) * _SLOT_BYTES
        self.reached("beginning")  # before the owner changes: the main process must not read the stage of another task
        if self._at is not None and _memory is not None:
            _memory[self._at : self._at + _STAGE_AT] = _owner(os.getpid(), task_id)

    def reached(self, stage: Stage) -> bool:
        """Note that the task has reached *stage*; return False if this process is being killed and must not go on."""
        if self._at is None or _memory is None:
            return True
        at = self._at + _STAGE_AT
        if stage != "beginning" and _memory[at] == _KILLED:
            return False
        _memory[at] = _CODES[stage]
        return bool(_memory[at] != _KILLED)


def stop(pid: int | None, task_id: str) -> Stage | None:
    """Stop the pool process *pid* of this worker, which is to be killed, from going on with a task.

    Returns:
        How far it is; None if that is not known.
    """
    if _memory is None or pid is None or get_start_method() != "fork":
        return None
    at = _memory.find(_owner(pid, task_id), 0) + _STAGE_AT
    if at < _STAGE_AT:
        return None
    stage = _STAGES.get(_memory[at])
    if stage != "ending":  # an end may be recorded twice
        _memory[at] = _KILLED
        time.sleep(0.001)  # the pool process may have written at the same time, before it could read this
        stage = _STAGES.get(_memory[at], stage)
    return stage


def note_stopping(**_: object) -> None:
    """Note that this worker stops. Called by Celery in the main process, at the signal and when it begins."""
    if _memory is not None and not any(_memory[:_PID_BYTES]):
        _memory[:_PID_BYTES] = time.monotonic_ns().to_bytes(_PID_BYTES, "big")


def stopping_for_s() -> float:
    """Return for how many seconds the worker of this process has been stopping; 0 if it is not."""
    since_ns = 0 if _memory is None else int.from_bytes(_memory[:_PID_BYTES], "big")
    return (time.monotonic_ns() - since_ns) / 1e9 if since_ns else 0.0


def _owner(pid: int, task_id: str) -> bytes:
    return pid.to_bytes(_PID_BYTES, "big") + blake2b(task_id.encode(), digest_size=_HASH_BYTES).digest()
