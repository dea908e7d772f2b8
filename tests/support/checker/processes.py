"""The processes of a site. They call the code of the bridge; what Celery does around it is modelled.

A worker handles one message and is replaced, as with ``worker_max_tasks_per_child=1``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from redis.exceptions import RedisError

from bridge.errors import BusUnavailable
from bridge.events.encoded import EncodedEvent
from bridge.handlers.handler import Handler, Registry
from bridge.handlers.leases import Leases
from bridge.storage import Delivery, Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.members import Members
from bridge.telemetry import Counters
from tests.support.checker.site import HANDLER, QUEUE, START_MS, Site, TaskMessage, ledger_entry
from tests.support.checker.steered import Process

Main = Callable[[Process], None]


def subscriber(site: Site, *, steps: int, claims: bool = False, handler: str = HANDLER) -> Main:
    """Return a subscriber with one handler that dispatches in some steps.

    Arguments:
        claims: First it claims what others have read.
    """

    def main(process: Process) -> None:
        storage = Storage(process.client, site.settings)
        consumer: Any = storage.consumer(process.name)
        consumer.read = lambda count, _: consumer._read(b">", count, None)  # without waiting
        outbox: Any = Outbox()
        registry, counters = Registry(), Counters()
        registry.add(Handler(handler, ("*",)))
        writer, members = DeadLetterWriter(storage, counters), Members(storage, registry, process.name)
        dispatcher = Dispatcher(storage, outbox, registry, writer, counters, consumer, members)
        if claims:
            with suppress(RedisError):
                consumer.claim(0, b"0-0", 50)
            dispatcher.reread_pending()
        for _ in range(steps):
            with suppress(RedisError):
                dispatcher.step()
        with suppress(RedisError):
            dispatcher.finish()

    return main


class Outbox:
    """Makes the messages of tasks, as the outbox of a dispatcher."""

    one_redis = True

    def refresh(self) -> None:
        """Do nothing: no setting changes."""

    def send(self, messages: object) -> list[Any]:
        """Send nothing: the transaction of the dispatcher pushes every message."""
        return []

    def prepare(self, handler: Any, event: EncodedEvent, entry_id: bytes) -> Any:
        """Return the message."""
        return SimpleNamespace(
            queue_key=QUEUE,
            stamped=TaskMessage(handler=handler.task_name).encode().encode(),
            ledger_entry=ledger_entry(entry_id.decode(), handler.task_name),
            task_id=handler.task_name,
            event=event,
            entry_id=entry_id,
        )


def worker(site: Site, messages: int) -> Main:
    """Return a worker that handles some messages."""

    def main(process: Process) -> None:
        for number in range(messages):
            process.forget(number)
            storage = Storage(process.client, site.settings)
            bus: Any = SimpleNamespace(client=process.client, settings=site.settings, storage=storage)
            process.step("takes a message", enabled=lambda: site.queued)
            message = site.take()
            process.saw(message)
            rejected = _handle(site, process.name, message, Leases(bus))
            site.acknowledge(process.name, message, rejected=rejected)

    return main


def _handle(site: Site, worker: str, message: TaskMessage, leases: Leases) -> bool:
    """Do with a message what :class:`bridge.handlers.run.Run` does; return whether it is rejected."""
    delivery = Delivery(message.retries, message.retry_of, START_MS)
    try:
        begun = leases.begin(HANDLER, idempotent=True, delivery=delivery)
    except BusUnavailable:
        return True
    if begun.result == "running":
        site.wait(message)
    if begun.result != "started":
        return False
    site.run_starts(worker, message, leases)
    if site.retries_now:
        due = message.retries + 1
        site.push(TaskMessage(due, leases.token_of(HANDLER)))
        site.run_is_over(worker)
        with suppress(BusUnavailable):
            leases.release(HANDLER, 0, due)
            site.try_is_due(due)
    else:
        site.has_effect()
        leases.end(HANDLER)
    return False


def rescuer(site: Site) -> Main:
    """Return a leader that sends overdue tasks again, once."""

    def main(process: Process) -> None:
        ledger = Storage(process.client, site.settings).ledger
        process.step("wakes up", enabled=lambda: site.overdue)
        with suppress(RedisError):
            queued = {HANDLER} if site.queued else set()
            for task in ledger.sweep_overdue(ledger.find_overdue(10), queued):
                site.push(TaskMessage(task.in_flight.retries))
                again = task.in_flight._replace(redispatches=task.in_flight.redispatches + 1)
                ledger.acknowledge_sent([], [again.entry(HANDLER)])

    return main
