"""The task message of a handler, and the way to Celery's broker.

:class:`Outbox` makes the messages that Celery itself would send, once per route, and fills in ids and body for each
event. What it could not confirm is sent again by its caller under the same task ids, so a crash can duplicate a message
and lose none.
"""

from bridge.broker.connection import endpoints, probe, probe_connection, service_of
from bridge.broker.messages import Message, Refused, by_queue
from bridge.broker.outbox import Outbox

__all__ = ["Message", "Outbox", "Refused", "by_queue", "endpoints", "probe", "probe_connection", "service_of"]
