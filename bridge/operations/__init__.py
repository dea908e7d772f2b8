"""Inspection and repair, for operators: the command line and Flower show what this part finds.

Reading changes nothing. A replay stores its position in Redis, so an interrupted one resumes where it stopped.
"""

from bridge.operations.examples import NoExample, example_payload, misfits, models_of
from bridge.operations.groups import Groups
from bridge.operations.history import Header, History
from bridge.operations.ids import AmbiguousId, full_id, only_id
from bridge.operations.impact import Impact, ImpactReader
from bridge.operations.replay import Progress, Replay
from bridge.operations.replay_sources import DeadLetterSource, JournalSource, ReplayItem
from bridge.operations.routes import HandlerRoute, routes_for, routes_of
from bridge.operations.task_states import EventNode, TaskNode, TaskStates
from bridge.operations.trace import Trace, Tracer, further

__all__ = [
    "AmbiguousId",
    "DeadLetterSource",
    "EventNode",
    "Groups",
    "HandlerRoute",
    "Header",
    "History",
    "Impact",
    "ImpactReader",
    "JournalSource",
    "NoExample",
    "Progress",
    "Replay",
    "ReplayItem",
    "TaskNode",
    "TaskStates",
    "Trace",
    "Tracer",
    "example_payload",
    "full_id",
    "further",
    "misfits",
    "models_of",
    "only_id",
    "routes_for",
    "routes_of",
]
