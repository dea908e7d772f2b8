"""Handlers, and the Celery tasks that run them in workers.

A run begins with a lease in the ledger and ends with a done mark or a dead letter, so only one of two copies of a
message runs. The lease of a crashed worker expires; then another copy of the message runs.
"""

from bridge.handlers.decorator import SEND_OPTIONS, check_send_options, on_event
from bridge.handlers.delivery import SENT_HEADER
from bridge.handlers.effects import effect_transaction
from bridge.handlers.ends import detail_of
from bridge.handlers.handler import IMPORT_ADVICE, Handler, Registry, registry, task_id_for
from bridge.handlers.leases import wait_for_ends
from bridge.handlers.progress import note_stopping, share_progress
from bridge.handlers.task import EventTask, describe, end_revoked

__all__ = [
    "IMPORT_ADVICE",
    "SEND_OPTIONS",
    "SENT_HEADER",
    "EventTask",
    "Handler",
    "Registry",
    "check_send_options",
    "describe",
    "detail_of",
    "effect_transaction",
    "end_revoked",
    "note_stopping",
    "on_event",
    "registry",
    "share_progress",
    "task_id_for",
    "wait_for_ends",
]
