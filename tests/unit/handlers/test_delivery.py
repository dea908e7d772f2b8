"""What a task message says about itself, with both of Celery's task protocols."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from celery.app.task import Context
from celery.exceptions import Retry

from bridge.handlers.delivery import SENT_HEADER, delay_s, delivery_of, mark_retry
from bridge.storage import Delivery


@pytest.mark.parametrize("protocol", [1, 2])
def test_a_retry_keeps_what_its_message_says(protocol: int) -> None:
    """The request of a message, and that of its retry, have the headers of the message."""
    sent = {SENT_HEADER: "5"}
    first = Context({"headers": sent} if protocol == 1 else sent, id="t1", retries=0)
    assert delivery_of(vars(first)) == Delivery(0, "", 5)
    mark_retry(first, "token")
    headers = first.as_execution_options()["headers"]
    retry = Context({"headers": headers} if protocol == 1 else headers, id="t1", retries=1)
    assert delivery_of(vars(retry)) == Delivery(1, "token", 5)


@pytest.mark.parametrize("headers", [{}, {"headers": None}, {SENT_HEADER: "soon"}, {"headers": {SENT_HEADER: None}}])
def test_a_message_may_say_nothing(headers: dict[str, object]) -> None:
    """Messages that users send have none of the headers."""
    assert delivery_of(headers) == Delivery()


def test_when_a_retry_starts() -> None:
    """A retry has a delay or a time. Celery takes a time without a zone as UTC, whatever the zone of the machine is."""
    in_a_minute = datetime.now(UTC) + timedelta(minutes=1)
    assert delay_s(Retry(when=None)) == 0
    assert delay_s(Retry(when=60)) == 60
    for when in (in_a_minute, in_a_minute.replace(tzinfo=None), in_a_minute.astimezone(timezone(timedelta(hours=5)))):
        assert 50 < delay_s(Retry(when=when)) <= 60
