"""What a task message says about itself, in headers that Celery keeps when a run sends the message again.

Celery makes every header an attribute of the request of its task.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bridge.storage import Delivery

#: When the first message of the task was sent, ms since the epoch as text. Messages that users send do not have it.
SENT_HEADER = "bridge_sent_ms"
#: The token of the run that has sent this message as its retry.
_RETRY_OF_HEADER = "bridge_retry_of"


def delivery_of(headers: Mapping[str, Any]) -> Delivery:
    """Return what the message with these headers says about itself."""
    retry_of, sent = headers.get(_RETRY_OF_HEADER), str(headers.get(SENT_HEADER))
    sent_ms = int(sent) if sent.isascii() and sent.isdecimal() else 0
    return Delivery(headers.get("retries") or 0, retry_of if isinstance(retry_of, str) else "", sent_ms)


def mark_retries(request: Any, token: str) -> None:
    """Have Celery add to the message that this *request* is retried with that the run of this *token* has sent it."""
    request.headers = {**(request.headers or {}), _RETRY_OF_HEADER: token}


def delay_s(error: BaseException) -> float:
    """Return in how many seconds the task runs again whose run raised *error*, Celery's ``Retry`` or ``Reject``."""
    when = getattr(error, "when", None)  # a Retry has seconds or a time, a Reject has neither
    if isinstance(when, datetime):
        return (when - datetime.now(when.tzinfo or UTC)).total_seconds()
    return float(when or 0)
