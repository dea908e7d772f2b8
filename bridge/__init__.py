"""The bridge: each event of a Redis event bus becomes the matching Celery tasks, once, even if a process crashes.

Importing this package creates no Celery application and opens no connection.
"""

from bridge.bus import EventBus, LocalBus, Publication, current_event, get_bus, publish_event
from bridge.config import BridgeSettings
from bridge.errors import (
    BridgeError,
    BusUnavailable,
    HopLimitExceeded,
    InvalidEvent,
    InvalidHandler,
    JournalLost,
    SettingsError,
)
from bridge.events import Event
from bridge.handlers import EventTask, effect_transaction, on_event
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
    "effect_transaction",
    "get_bus",
    "install",
    "on_event",
    "publish_event",
]
