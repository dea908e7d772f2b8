"""Task messages, and the connection to Celery's broker.

:class:`Outbox` renders the message that Celery itself would send once per route, and fills in ids and body for each
event. Its caller sends messages that were not confirmed again, with the same task ids. So a crash can duplicate a
message, but cannot lose one.
"""

from bridge.broker.connection import broker_id, probe, probe_connection
from bridge.broker.messages import Message, Refused, by_queue
from bridge.broker.outbox import Outbox
from bridge.broker.queue_probe import QueueLoad, QueueProbe
from bridge.broker.worker_queues import excluded_queues, take_queues

__all__ = [
    "Message",
    "Outbox",
    "QueueLoad",
    "QueueProbe",
    "Refused",
    "broker_id",
    "by_queue",
    "excluded_queues",
    "probe",
    "probe_connection",
    "take_queues",
]
