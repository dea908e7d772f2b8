"""The bridge: events of a Redis event bus become Celery tasks, once, whatever dies in between.

Importing this builds no Celery application and opens no connection.
"""

from bridge.bus.bus import EventBus
from bridge.bus.causation import current_event
from bridge.bus.local import LocalBus, Publication
from bridge.bus.publish import get_bus, publish_event
from bridge.config.settings import BridgeSettings
from bridge.errors import (
    BridgeError,
    BusUnavailable,
    HopLimitExceeded,
    InvalidEvent,
    InvalidHandler,
    JournalLost,
    SettingsError,
)
from bridge.events.event import Event
from bridge.handlers.leases import mark_done
from bridge.handlers.on_event import on_event
from bridge.handlers.task import EventTask
from bridge.worker import install

__all__ = [
    "BridgeError",
    "BridgeSettings",
    "BusUnavailable",
    "Event",
    "EventBus",
    "EventTask",
    "HopLimitExceeded",
    "InvalidEvent",
    "InvalidHandler",
    "JournalLost",
    "LocalBus",
    "Publication",
    "SettingsError",
    "current_event",
    "get_bus",
    "install",
    "mark_done",
    "on_event",
    "publish_event",
]
