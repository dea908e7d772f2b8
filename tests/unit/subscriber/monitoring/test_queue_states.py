"""What becomes known of a queue from one measurement to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridge.broker import QueueLoad
from bridge.storage import QueueRecord, QueueTasks
from bridge.subscriber.monitoring.queue_states import Limits, Measurement, is_kept, next_record

START_MS = 1_800_000_000_000
STEP_S = 5
LIMITS = Limits()


class Watched:
    """A queue that is measured every five seconds."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.record: QueueRecord | None = None
        self.warnings: list[str] = []

    def measure(self, for_s: int = STEP_S, **changes: Any) -> Any:
        """Find the same for some time; return the status and the history."""
        for _ in range(for_s // STEP_S):
            self.now_ms += STEP_S * 1000
            found = replace(Measurement("q", QueueLoad(0), QueueTasks(), 0), **changes)
            before = self.record.history.warned if self.record else ""
            self.record = next_record(self.record, found, self.now_ms, LIMITS)
            if self.record.history.warned != before:
                self.warnings.append(self.record.history.warned)
        assert self.record is not None
        return self.record.status

    def ago(self, seconds: float) -> int:
        return self.now_ms - int(seconds * 1000)


def waiting(messages: int = 3, head: str = "first", since_ms: int | None = START_MS, **more: Any) -> QueueLoad:
    return QueueLoad(messages, None, (head,), since_ms, **more)


def test_a_queue_that_nobody_takes_from() -> None:
    """Without a worker, the warning comes after a minute and once; it is over when the queue moves."""
    queue = Watched()
    status = queue.measure(60, load=waiting())
    assert (status.consumers, status.oldest_s, status.stalled_s, status.problem) == (0, 60.0, 55.0, "")
    assert queue.measure(load=waiting()).problem == "no_consumer"
    assert queue.measure(3600, load=waiting(9)).problem == "no_consumer"
    assert queue.warnings == ["no_consumer"]
    assert queue.measure(load=waiting(8, "second"), takers=1).problem == ""
    assert queue.warnings == ["no_consumer", ""]


def test_the_same_problem_again() -> None:
    """A problem that comes back is logged again, but not within ten minutes of the last time."""
    queue = Watched()
    for rounds in range(5):
        queue.measure(120, load=waiting(head=str(rounds)))
        queue.measure(load=QueueLoad(0), takers=1)
    assert queue.warnings == ["no_consumer", ""]
    queue.measure(300, load=QueueLoad(0), takers=1)
    queue.measure(120, load=waiting(head="again"))
    assert queue.warnings == ["no_consumer", "", "no_consumer"]


def test_workers_that_do_not_start_anything() -> None:
    """With workers, a queue from which nothing has left for five minutes is stalled."""
    queue = Watched()
    assert queue.measure(300, load=waiting(), takers=2).problem == ""
    status = queue.measure(load=waiting(), takers=2)
    assert (status.problem, status.consumers, status.stalled_s) == ("stalled", 2, 300.0)
    assert queue.measure(load=waiting(4, "second"), takers=2).problem == ""
    assert queue.warnings == ["stalled", ""]


def test_a_long_queue_that_moves() -> None:
    """A queue is fine as long as something leaves it: by its next message, its length, or a start in the ledger."""
    queue = Watched()
    for number in range(200):
        status = queue.measure(load=waiting(1_000_000 + number, str(number)), takers=1)
        assert (status.problem, status.stalled_s) == ("", 0.0)
    assert status.oldest_s == 1000.0
    for number in range(200):
        assert queue.measure(load=QueueLoad(10_000 - number, 1)).stalled_s == 0.0
    for _ in range(200):
        tasks = QueueTasks(started_ms=queue.now_ms)
        assert queue.measure(load=QueueLoad(10_000, 1), tasks=tasks).stalled_s <= STEP_S
    assert queue.warnings == []


def test_a_queue_that_is_deep_when_it_is_first_measured() -> None:
    """A new subscriber does not report a long queue as stalled before it has watched it for as long."""
    queue = Watched()
    status = queue.measure(load=waiting(since_ms=START_MS - 7_200_000), takers=1)
    assert (status.oldest_s, status.stalled_s, status.problem) == (7205.0, 0.0, "")


def test_tasks_that_are_not_due() -> None:
    """A message whose eta is in the future does not wait; when it is due, it does. So do due tasks behind it."""
    queue = Watched()
    later = waiting(since_ms=START_MS + 600_000, delayed=True)
    status = queue.measure(600, load=later)
    assert (status.oldest_s, status.stalled_s, status.problem, status.consumers) == (0.0, 0.0, "", 0)
    assert queue.measure(90, load=later).problem == "no_consumer"
    behind = Watched()
    far = waiting(since_ms=START_MS + 86_400_000, delayed=True)
    assert behind.measure(90, load=far, tasks=QueueTasks(oldest_ms=START_MS)).problem == "no_consumer"


def test_a_clock_that_is_ahead() -> None:
    """A message that was sent in the future, by the clock of its sender, waits; its age is unknown."""
    assert Watched().measure(load=waiting(since_ms=START_MS + 14_000)).oldest_s == 0.0
    queue = Watched()
    status = queue.measure(90, load=waiting(since_ms=START_MS + 86_400_000))
    assert (status.oldest_s, status.problem) == (None, "no_consumer")


def test_workers_that_do_not_report() -> None:
    """The consumers are unknown while subscribers of an earlier version run, or while tasks start all the same."""
    queue = Watched()
    assert queue.measure(load=waiting(), unreported=True).consumers is None
    for number in range(100):
        assert queue.measure(load=waiting(head=str(number))).consumers is None
    assert queue.warnings == []
    assert queue.measure(295, load=waiting(head="99")).consumers is None
    assert queue.measure(load=waiting(head="99")).consumers == 0
    by_ledger = Watched()
    tasks = QueueTasks(started_ms=by_ledger.ago(20))
    assert by_ledger.measure(load=waiting(), tasks=tasks).consumers is None


def test_a_worker_that_dies() -> None:
    """When the only worker dies, the queue has no consumers at once, though tasks started shortly before."""
    queue = Watched()
    for number in range(10):
        queue.measure(load=waiting(head=str(number)), takers=1, tasks=QueueTasks(started_ms=queue.now_ms))
    assert queue.measure(load=waiting(head="9"), tasks=QueueTasks(started_ms=queue.now_ms)).consumers == 0


def test_a_broker_that_knows_its_consumers() -> None:
    """RabbitMQ's number counts. It does not show the next message: the oldest task that was found counts meanwhile."""
    queue = Watched()
    status = queue.measure(load=QueueLoad(5, 0), takers=3, tasks=QueueTasks(oldest_ms=START_MS))
    assert (status.consumers, status.oldest_s) == (0, 5.0)
    assert queue.measure(load=QueueLoad(5, 0)).oldest_s == 10.0
    assert queue.measure(load=QueueLoad(4, 1)).oldest_s is None


def test_a_broker_that_cannot_be_measured() -> None:
    """Of other brokers only the consumers are known, and there is no problem to report."""
    status = Watched().measure(3600, load=None, takers=1)
    known = (status.messages, status.oldest_s, status.stalled_s, status.consumers, status.problem)
    assert known == (None, None, None, 1, "")


def test_queues_that_are_used_no_more() -> None:
    """A queue that nothing is sent to is forgotten after a minute, and after ten if messages wait in it."""
    for load, keep_s in ((QueueLoad(0), 60), (waiting(), 600)):
        queue = Watched()
        queue.measure(load=load)
        queue.measure(keep_s, load=load, needed=False)
        assert queue.record is not None
        assert is_kept(queue.record, queue.now_ms)
        queue.measure(load=load, needed=False)
        assert not is_kept(queue.record, queue.now_ms)
