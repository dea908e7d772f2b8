"""What a task message says about itself, in headers that Celery keeps when a run sends the message again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import Retry

from bridge.storage import Delivery

#: When the first message of the task was sent, ms since the epoch as text. Messages that users send do not have it.
SENT_HEADER = "bridge_sent_ms"
#: The token of the run that has sent this message as its retry.
_RETRY_OF_HEADER = "bridge_retry_of"


def delivery_of(headers: Mapping[str, Any]) -> Delivery:
    """Return what the message with these headers says about itself, as the attributes of a request or of a message."""
    custom = headers.get("headers") or headers  # with task protocol 1 they are one level deeper
    retry_of, sent = custom.get(_RETRY_OF_HEADER), str(custom.get(SENT_HEADER))
    sent_ms = int(sent) if sent.isascii() and sent.isdecimal() else 0
    return Delivery(headers.get("retries") or 0, retry_of if isinstance(retry_of, str) else "", sent_ms)


def mark_retry(request: Any, token: str) -> None:
    """Have Celery add to the message that this *request* is retried with that the run of this *token* has sent it."""
    request.headers = {**(request.headers or {}), _RETRY_OF_HEADER: token}


def delay_s(retry: Retry) -> float:
    """Return in how many seconds the task runs again."""
    when = retry.when
    if isinstance(when, datetime):  # Celery takes a time without a zone as UTC
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    return float(when or 0)
