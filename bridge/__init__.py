"""The bridge: each event of a Redis event bus becomes the matching Celery tasks, once, even if a process crashes.

Importing this package creates no Celery application and opens no connection.
"""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    #: Version of the installed distribution, celery-event-bridge.
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return ``__version__``. The metadata of the distribution is read only when a program asks for it."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415  # few programs need it

        return version("celery-event-bridge")
