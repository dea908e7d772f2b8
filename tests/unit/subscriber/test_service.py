"""Services: loops in threads, which restart after an unexpected error."""

from __future__ import annotations

import threading

import pytest

from bridge.subscriber.service import Service
from bridge.telemetry.counters import Counters
from tests.support.waiting import eventually


def test_a_loop_restarts_after_an_unexpected_error(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged with its traceback and counted, and the loop runs again until it is stopped."""
    stop, counters, rounds = threading.Event(), Counters(), []

    def loop(until: threading.Event) -> None:
        rounds.append(threading.current_thread().name)
        if len(rounds) == 1:
            raise LookupError("a bug")
        until.wait()

    service = Service("bridge-example", loop, stop, counters, "shop", "one")
    service.start()
    eventually(lambda: len(rounds) == 2, "the loop runs again")
    assert not service.join(0.05)
    stop.set()
    assert service.join(5)
    assert rounds == ["bridge-example"] * 2
    assert counters.snapshot() == {"errors": 1}
    (line,) = [record for record in caplog.records if record.exc_info]
    assert vars(line).items() >= {
        ("action", "thread_failed"),
        ("group", "shop"),
        ("consumer", "one"),
        ("component", "bridge-example"),
        ("reason", "LookupError"),
    }


def test_a_loop_survives_what_is_no_exception() -> None:
    """An error such as SystemExit restarts the loop too; a loop that ran well for long starts with a short pause."""
    stop, counters, rounds = threading.Event(), Counters(), []

    def loop(until: threading.Event) -> None:
        rounds.append(service._back_off.failures)
        if len(rounds) < 4:
            raise SystemExit
        until.wait()

    service = Service("bridge-example", loop, stop, counters, "shop", "one", recovered_s=0)
    service.start()
    eventually(lambda: len(rounds) == 4, "the loop runs again")
    stop.set()
    assert service.join(5)
    assert rounds == [0, 1, 1, 1]


def test_a_service_that_never_started_has_ended() -> None:
    """Joining a service that was never started returns immediately."""
    service = Service("bridge-example", lambda stop: None, threading.Event(), Counters(), "shop", "one")
    assert service.join(0)
