"""The bridge: events of a Redis event bus become Celery tasks, once, whatever dies in between.

Importing this builds no Celery application and opens no connection.
"""

from bridge.bus import EventBus
from bridge.context import current_event
from bridge.errors import (
    BridgeError,
    BusUnavailable,
    EventInvalid,
    EventLoop,
    HandlerInvalid,
    JournalLost,
    SettingsError,
)
from bridge.event import Event
from bridge.execution import mark_done
from bridge.handlers import on_event
from bridge.local_bus import LocalBus, Publication
from bridge.publishing import get_bus, publish_event
from bridge.settings import BridgeSettings
from bridge.task import EventTask
from bridge.worker import install

__all__ = [
    "BridgeError",
    "BridgeSettings",
    "BusUnavailable",
    "Event",
    "EventBus",
    "EventInvalid",
    "EventLoop",
    "EventTask",
    "HandlerInvalid",
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
