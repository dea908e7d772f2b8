"""What commands say about the application: its name for ``-A``, and types that none of its handlers takes."""

from __future__ import annotations

import sys

from celery import Celery

from bridge.errors import did_you_mean
from bridge.events import is_literal
from bridge.handlers import IMPORT_ADVICE, registry


def app_name(app: Celery) -> str | None:
    """Return the name of *app* for ``-A``; None if no module contains it, so that no other process can import it."""
    places = [
        f"{module}:{attribute}"
        for module, content in list(sys.modules.items())
        if module.partition(".")[0] not in ("celery", "__main__")
        for attribute, value in list(getattr(content, "__dict__", {}).items())
        if value is app
    ]
    place = min(places, key=lambda place: (place.count("."), len(place)), default=None)
    module, _, attribute = (place or "").partition(":")
    return module if attribute in ("app", "celery") else place  # which Celery looks for


def no_handlers_text(event_type: str | None = None) -> str:
    """Return that no handler takes *event_type*, with a similar type if one is taken; or that there is no handler."""
    if event_type is None or not registry.names:
        return f"there is no handler: {IMPORT_ADVICE}"
    literal = [pattern for handler in registry for pattern in handler.patterns if is_literal(pattern)]
    return "; ".join(filter(None, [f"no handler matches {event_type}", did_you_mean(event_type, literal)]))
