"""The memory in which the main process of a worker sees how far its pool processes are."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from billiard import process

from bridge.handlers import progress
from bridge.handlers.progress import Progress, Stage, note_stopping, share_progress, stop, stopping_for_s
from bridge.worker import SubscriberStep
from tests.support.apps import make_app


@pytest.fixture(autouse=True)
def _in_pool_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be the main process of a worker and its only pool process at the same time."""
    monkeypatch.setattr(progress, "_memory", None)
    monkeypatch.setattr(progress, "current_process", lambda: SimpleNamespace(index=3))
    share_progress()


def test_a_process_that_is_to_be_killed_does_not_begin() -> None:
    """The limit strikes while the task waits to begin: the handler is not called, even if the bus answers now."""
    task = Progress("t1")
    assert stop(os.getpid(), "t1") == "beginning"
    assert not task.reached("handling")


@pytest.mark.parametrize("then", ["handling", "ending"])
def test_what_is_stopped_has_one_end(then: Stage) -> None:
    """After the limit has struck in the handler, only the main process ends the task; after the end both may."""
    task = Progress("t1")
    assert task.reached("handling")
    if then == "ending":
        assert task.reached("ending")
    assert stop(os.getpid(), "t1") == then
    assert task.reached("ending") is (then == "ending")


def test_what_is_not_known() -> None:
    """Another process, another task, a task before this one, a process without an index: nothing is known of them."""
    Progress("t0")
    Progress("t1")
    assert stop(os.getpid() + 1, "t1") is None
    assert stop(os.getpid(), "t0") is None
    assert stop(None, "t1") is None


def test_the_main_process_has_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pool of threads, and in a process that is not a worker, a task goes on without a note."""
    monkeypatch.setattr(progress, "current_process", process.current_process)
    task = Progress("t1")
    assert task.reached("handling")
    assert stop(os.getpid(), "t1") is None


def test_a_worker_that_stops_without_a_signal() -> None:
    """`celery control shutdown` sends no signal: the worker counts as stopping since its steps close, or before."""
    with make_app("redis://", "t:") as app:
        worker = SimpleNamespace(app=app, steps=[])
        step = SubscriberStep(worker, no_subscriber=True)
        assert step.include(worker)
        assert worker.steps == [step]
        assert stopping_for_s() == 0.0
        step.start(worker)
        step.close(worker)
        first_s = stopping_for_s()
        assert first_s > 0.0
        note_stopping()
        assert stopping_for_s() > first_s
        step.stop(worker)
