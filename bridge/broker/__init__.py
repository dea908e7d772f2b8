"""Task messages, and the connection to Celery's broker.

:class:`Outbox` renders the message that Celery itself would send once per route, and fills in ids and body for each
event. Its caller sends messages that were not confirmed again, with the same task ids. So a crash can duplicate a
message, but cannot lose one.
"""

from bridge.broker.connection import endpoints, probe, probe_connection, service_of
from bridge.broker.messages import Message, Refused, by_queue
from bridge.broker.outbox import Outbox

__all__ = ["Message", "Outbox", "Refused", "by_queue", "endpoints", "probe", "probe_connection", "service_of"]
