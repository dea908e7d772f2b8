"""The queues of a group as they were measured last. One subscriber measures them, and all report the same values.

The collector keeps with them what it needs to find out whether a queue moves. So another subscriber can go on after a
crash, and each problem is logged once.
"""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from redis import Redis

from bridge.storage.keys import Keys
from bridge.storage.server_time import server_ms

#: A sample that is older is not shown: nobody measures the queues.
SAMPLE_FRESH_S = 30.0
#: How long the collector can go on from it.
_KEEP_MS = 600_000

#: Tasks wait, and no worker takes from the queue; or workers take from it, or may, and nothing leaves it.
QueueProblem = Literal["", "no_consumer", "stalled"]


@dataclass(frozen=True)
class QueueStatus:
    """One queue of the broker, as one group sees it. None stands for what is not known.

    Arguments:
        name: Its name.
        messages: How many messages wait, those of other programs included. What workers have fetched does not count.
        oldest_s: For how long the next message has waited, from its ``eta`` if it has one; 0 if none waits.
        consumers: How many workers take tasks from it.
        stalled_s: For how long messages have waited while none left the queue; 0 if none waits.
        full: Whether it has ``max_queue_length`` messages, so that dispatch waits.
        problem: Set if tasks have waited without a consumer for a minute, or if nothing has left the queue for five.
    """

    name: str
    messages: int | None = None
    oldest_s: float | None = None
    consumers: int | None = None
    stalled_s: float | None = None
    full: bool = False
    problem: QueueProblem = ""


@dataclass(frozen=True)
class QueueHistory:
    """What the collector remembers of a queue; times in ms since the epoch, by the clock of the server, 0: never.

    Arguments:
        heads: Identifies the messages that leave the queue next, one for each priority; empty if they are not known.
        oldest_ms: Since when the next message has waited; None if that is not known.
        needed_ms: When the group last used the queue.
        taken_ms: When a worker was last known to take from it.
        moved_ms: When a message last left it.
        still_ms: Since when messages have waited without any leaving.
        alone_ms: Since when messages have waited and no worker has taken from it.
        warned: The problem that was logged and is not over.
        warned_at_ms: When each problem was last logged.
    """

    heads: tuple[str, ...] = ()
    oldest_ms: int | None = None
    needed_ms: int = 0
    taken_ms: int = 0
    moved_ms: int = 0
    still_ms: int = 0
    alone_ms: int = 0
    warned: QueueProblem = ""
    warned_at_ms: dict[str, int] | None = None


@dataclass(frozen=True)
class QueueRecord:
    """One queue in a sample: what is reported of it, and what the collector remembers."""

    status: QueueStatus
    history: QueueHistory


@dataclass(frozen=True)
class QueueSample:
    """The queues of one group at one time, ms since the epoch, by the clock of the server."""

    at_ms: int
    queues: tuple[QueueRecord, ...] = ()


_JSON = TypeAdapter(QueueSample)


class QueueSamples:
    """The sample of one group. The methods raise redis-py's errors as they come.

    Arguments:
        client: Connected to the bus.
        group: Its group.
        keys: Of the same bus.
    """

    def __init__(self, client: Redis, group: str, keys: Keys) -> None:
        self._client = client
        self._key = keys.queue_sample(group)

    def write(self, sample: QueueSample) -> None:
        """Replace the sample."""
        self._client.set(self._key, _JSON.dump_json(sample), px=_KEEP_MS)

    def read(self) -> tuple[int, QueueSample | None]:
        """Return the time, ms since the epoch, by the clock of the server, and the sample; None if it is missing."""
        with self._client.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.get(self._key)
            time, value = pipe.execute()
        return server_ms(time), read_sample(value)


def read_sample(value: bytes | None) -> QueueSample | None:
    """Return the sample in the value of :meth:`bridge.storage.Keys.queue_sample`; None if it is not one."""
    if value is None:
        return None
    try:
        return _JSON.validate_json(value)
    except ValidationError:  # another version or program wrote it
        return None


def shown_queues(sample: QueueSample | None, now_ms: int) -> tuple[QueueStatus, ...] | None:
    """Return the queues of a sample, by name; None if it is too old or missing."""
    if sample is None or now_ms - sample.at_ms > SAMPLE_FRESH_S * 1000:
        return None
    return tuple(record.status for record in sample.queues)
