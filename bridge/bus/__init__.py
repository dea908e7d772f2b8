"""Publish and listen, in any program, with Celery or without.

When :func:`publish_event` returns, the event is in its key and in the journal, once, and was broadcast. If a publisher
crashes before that, the event may or may not be published; publishing it again with the same id is safe. A broadcast
is lost if no program is subscribed; the intake of a subscriber then finds the event by its key.
"""

from bridge.bus.admission import Admission
from bridge.bus.bus import EventBus
from bridge.bus.causation import PROPAGATOR, current_event, handling, install_propagation
from bridge.bus.listener import MORE_BYTES, Broadcast, ChannelListener, InvalidMessage, ReceivedBatch
from bridge.bus.local import LocalBus, Publication
from bridge.bus.publish import get_bus, per_bus, publish_event
from bridge.bus.run_state import RunState, run_state
from bridge.bus.running import current_request, install_tracking

__all__ = [
    "MORE_BYTES",
    "PROPAGATOR",
    "Admission",
    "Broadcast",
    "ChannelListener",
    "EventBus",
    "InvalidMessage",
    "LocalBus",
    "Publication",
    "ReceivedBatch",
    "RunState",
    "current_event",
    "current_request",
    "get_bus",
    "handling",
    "install_propagation",
    "install_tracking",
    "per_bus",
    "publish_event",
    "run_state",
]
