"""Bounded retries: which error they report."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bridge import BridgeSettings, BusUnavailable
from bridge.redis.retry import attempt


@pytest.mark.parametrize(
    ("errors", "reported"),
    [
        ((RedisConnectionError("no certificate"), RedisTimeoutError("cut short")), "no certificate"),
        ((RedisTimeoutError("cut short"),), "cut short"),
    ],
    ids=["after another error", "alone"],
)
def test_an_attempt_that_the_limit_cuts_short_does_not_hide_the_cause(
    errors: tuple[RedisError, ...], reported: str, settings: BridgeSettings
) -> None:
    """The error before it is reported; a timeout only if there was no other error."""
    coming: Iterator[RedisError] = iter(errors)

    def fails() -> None:
        error = next(coming)
        if isinstance(error, RedisTimeoutError):
            threading.Event().wait(0.4)  # like a server that does not answer before the limit
        raise error

    with pytest.raises(BusUnavailable, match=reported):
        attempt(settings, "publishing", fails, limit_s=0.3)
    assert next(coming, None) is None, "each error was raised"
