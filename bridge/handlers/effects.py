"""``effect_transaction()``: the effect of a handler in Redis and the done mark of its task, in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery.exceptions import Ignore
from redis.client import Pipeline
from redis.exceptions import WatchError

from bridge.bus import current_request, get_bus, run_state
from bridge.errors import BridgeError
from bridge.handlers.leases import end_of
from bridge.redis import attempt


class EndedElsewhere(Ignore):
    """Another copy of the running task has ended, so this run must not have an effect. Celery drops its message."""


@contextmanager
def effect_transaction(*watched: str) -> Iterator[Pipeline]:
    """Commit the effect of the running handler together with the done mark of its task.

    Without it, the end of a task is recorded after the handler has returned, and a worker that is killed between its
    effect and that record repeats the effect. For effects in the Redis of the bus, this closes the gap::

        with effect_transaction() as pipe:
            pipe.incrby("balance", event.payload["amount"])

    Commands on *pipe* are queued. They are executed at the end of the block, all or none of them; an error in the
    block discards them. If another copy of the task has ended, because this run lost its lease in a long freeze, the
    handler is left with Celery's ``Ignore`` and without an effect, and the task counts as deduplicated.

    For effects elsewhere, write the task's id (``task.request.id``, the same for every copy and retry) as a unique
    key in the same transaction.

    Arguments:
        watched: Keys that the effect depends on. Read them in the block, through ``get_bus().client``; if one of them
            changes before the end of the block, nothing is committed.

    Raises:
        BridgeError: There is no running task, or its run has had an effect transaction, or the block has called
            ``pipe.execute()`` before its last command.
        WatchError: One of the *watched* keys has changed.
        RedisError: Redis did not answer. A retry of the task has the effect if this run has not.
    """
    request = current_request()
    if request is None or request.id is None:
        raise BridgeError("effect_transaction() needs a running task: use it inside a handler that a worker runs")
    state = run_state(request)
    if state.has_effect_transaction:
        raise BridgeError("a run can have one effect_transaction(): put all effects of the handler into the same block")
    bus, task_id = get_bus(), str(request.id)
    ledger = bus.storage.ledger
    state.has_effect_transaction = True
    try:
        with bus.client.pipeline(transaction=True) as pipe:
            if not ledger.end_first(task_id, end_of(request), pipe, watched):
                raise EndedElsewhere
            try:
                yield pipe
                if len(pipe) and not pipe.explicit_transaction:
                    raise BridgeError("pipe.execute() has ended the transaction: leave it to effect_transaction()")
                pipe.execute()
            except WatchError:
                if attempt(
                    bus.settings, f"checking whether task {task_id} has ended", lambda: ledger.has_ended(task_id)
                ):
                    raise EndedElsewhere from None
                raise
    except BaseException:
        state.has_effect_transaction = False
        raise
