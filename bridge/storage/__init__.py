"""What the bridge keeps in Redis, one class per structure, with the Lua scripts that make its steps atomic.

=============  =======================================================================================================
journal        a stream of every event, once; consumer groups read it
event keys     ``{prefix}event:{id}``, shared with the other programs of the bus
ledger         tasks that were sent and have not ended; done marks and leases. Its states: see ``ledger.py``
dead letters   a size-limited stream of what could not be processed, with the reason
presence       which subscribers are running
workers        which queues the workers take tasks from
queue samples  the queues of each group as they were measured last
settings       what the other groups need to know of each group
=============  =======================================================================================================

:class:`Storage` holds all of them for one group; other parts take it as their argument.

Every write can be repeated after a lost reply: a token or a mark identifies the repetition. A crash between two steps
leaves an entry that is read again, or a task whose lease expires; ``subscriber.maintenance`` finds both.
"""

from bridge.storage.dead_letter import DeadLetter, dead_letter_fields
from bridge.storage.entries import Entry, EntryFilter, HandOver, stream_position
from bridge.storage.group_settings import GroupSettings
from bridge.storage.in_flight import Delivery, Ended, InFlightTask, LedgerEntry, Overdue, RunStart, TaskStatus
from bridge.storage.journal import MAX_INDEXED, RATE_WINDOW_S, AppendResult, Mark, group_errors, new_attempt
from bridge.storage.journal_consumer import JournalConsumer
from bridge.storage.journal_repair import MAX_AHEAD_MS
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.storage.lua import provide_scripts, script
from bridge.storage.presence import (
    HEARTBEAT_INTERVAL_S,
    REMEMBERED_S,
    Presence,
    PresenceStore,
    handler_differences,
    handler_labels,
    read_presences,
)
from bridge.storage.queue_sample import QueueHistory, QueueProblem, QueueRecord, QueueSample, QueueStatus
from bridge.storage.server_time import server_ms
from bridge.storage.status import BusStatus, GroupStatus, read_status
from bridge.storage.storage import Storage
from bridge.storage.waiting_tasks import QueueTasks, find_waiting_tasks

__all__ = [
    "HEARTBEAT_INTERVAL_S",
    "MAX_AHEAD_MS",
    "MAX_INDEXED",
    "RATE_WINDOW_S",
    "REMEMBERED_S",
    "AppendResult",
    "BusStatus",
    "DeadLetter",
    "Delivery",
    "Ended",
    "Entry",
    "EntryFilter",
    "GroupSettings",
    "GroupStatus",
    "HandOver",
    "InFlightTask",
    "JournalConsumer",
    "Keys",
    "Ledger",
    "LedgerEntry",
    "Mark",
    "Overdue",
    "Presence",
    "PresenceStore",
    "QueueHistory",
    "QueueProblem",
    "QueueRecord",
    "QueueSample",
    "QueueStatus",
    "QueueTasks",
    "RunStart",
    "Storage",
    "TaskStatus",
    "dead_letter_fields",
    "find_waiting_tasks",
    "group_errors",
    "handler_differences",
    "handler_labels",
    "new_attempt",
    "provide_scripts",
    "read_presences",
    "read_status",
    "script",
    "server_ms",
    "stream_position",
]
