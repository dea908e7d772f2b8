"""Back-pressure: dispatch pauses while a queue is full; the events wait in the journal."""

from __future__ import annotations

import logging

from bridge.broker import Outbox
from bridge.config import BridgeSettings
from bridge.subscriber.dispatch.router import Batch
from bridge.telemetry import Action, Counters, LogThrottle, log_fields

log = logging.getLogger(__name__)


class BackPressure:
    """Compares queues with ``max_queue_length``. Used by one thread.

    Arguments:
        outbox: Measures queues.
        counters: Counts the batches that had to wait.
        settings: ``max_queue_length``; None: queues are never full.
        consumer: Name within the group, for the log.
    """

    def __init__(self, outbox: Outbox, counters: Counters, settings: BridgeSettings, consumer: str) -> None:
        self._outbox = outbox
        self._counters = counters
        self._group = settings.group
        self._max_length = settings.max_queue_length
        self._consumer = consumer
        self._throttle = LogThrottle()
        #: The full queue that dispatch is waiting for.
        self.full_queue: str | None = None

    def applies_to(self, batch: Batch) -> bool:
        """Whether one of the queues that *batch* goes to is full; all messages before it must have arrived.

        Raises:
            Exception: Whatever the broker's client raises.
        """
        if self._max_length is None:
            return False
        queues = sorted({message.route.queue for message in batch.to_push + batch.to_send} - {""})
        full = next((queue for queue in queues if self._outbox.waiting(queue) >= self._max_length), None)
        if full is not None:
            self._counters.add("dispatch_backpressure")
            # A queue that drains more slowly than events arrive is below its limit now and then, for a short time.
            if full != self.full_queue and self._throttle.allow(full):
                extra = log_fields(Action.DISPATCH_BACKPRESSURE, group=self._group, consumer=self._consumer, queue=full)
                text = "Dispatch paused: queue %s holds %d or more messages (bridge_max_queue_length)"
                log.warning(text, full, self._max_length, extra=extra)
        self.full_queue = full
        return full is not None
