"""Effects that commit in one transaction with the done mark of their task: only the first copy to end has an effect."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.app.trace import build_tracer
from celery.contrib.testing.app import setup_default_app
from redis import Redis
from redis.exceptions import WatchError

from bridge import BridgeError, BridgeSettings, Event, effect_transaction, get_bus, on_event
from bridge.storage import Ended, Storage
from tests.support.apps import make_app

EVENT = Event(type="a.b", id="e1")

#: Runs a function as the handler of ``EVENT``, in the task t1, as a worker does. Returns the state of the task.
RunHandler = Callable[..., str]


@pytest.fixture
def storage(client: Redis, settings: BridgeSettings) -> Storage:
    return Storage(client, settings)


@pytest.fixture
def balance(prefix: str) -> str:
    return f"{prefix}balance"


@pytest.fixture
def run_handler(settings: BridgeSettings, register_handlers: object) -> Iterator[RunHandler]:
    with make_app(settings.url, settings.channel_prefix) as app, setup_default_app(app):
        app.set_current()
        app.conf.update(bridge_redis_url=settings.url, bridge_channel_prefix=settings.channel_prefix)
        app.conf.update(bridge_group="tests", result_backend="cache+memory://")

        def run(function: Callable[[], Any], **options: Any) -> str:
            def handler(event: Event) -> None:
                function()

            task = app.tasks[on_event("a.b", name=f"t.{uuid.uuid4().hex}", **options)(handler).name]
            request = {"id": "t1", "hostname": "here", "delivery_info": {"routing_key": "q"}}
            traced = build_tracer(task.name, task, app=app)("t1", [EVENT.to_dict()], {}, request)
            return traced.info.state if traced.info else "SUCCESS"

        yield run
        get_bus().close()


def test_effect_and_done_mark_are_one_transaction(
    run_handler: RunHandler, storage: Storage, client: Redis, balance: str
) -> None:
    """Nothing is written before the block ends; then the effect exists and the task has ended."""

    def handler() -> None:
        with effect_transaction() as pipe:
            pipe.incrby(balance, 5)
            assert not client.exists(balance)
            assert not storage.ledger.has_ended("t1")
        assert client.get(balance) == b"5"
        assert storage.ledger.has_ended("t1")

    assert run_handler(handler) == "SUCCESS"
    assert run_handler(handler) == "IGNORED"
    assert client.get(balance) == b"5"


@pytest.mark.parametrize("moment", ["before the block", "in the block"])
@pytest.mark.parametrize("options", [{}, {"autoretry_for": (Exception,)}], ids=["plain", "autoretry"])
def test_a_copy_that_comes_too_late_has_no_effect(
    run_handler: RunHandler, storage: Storage, client: Redis, balance: str, moment: str, options: dict[str, Any]
) -> None:
    """A copy whose task another copy has ended in the meantime is skipped: no error, no retry, no dead letter."""

    def end_elsewhere() -> None:
        storage.ledger.end("t1", Ended(queue="elsewhere"))

    def handler() -> None:
        if moment == "before the block":
            end_elsewhere()
        with effect_transaction() as pipe:
            pipe.incrby(balance, 5)
            if moment == "in the block":
                end_elsewhere()
        raise AssertionError("the handler continued after the block")

    assert run_handler(handler, **options) == "IGNORED"
    assert not client.exists(balance)
    (status,) = storage.ledger.task_statuses(["t1"])
    assert status.ended == Ended(queue="elsewhere")
    assert not storage.dead_letters.latest(1)


def test_an_error_in_the_block_commits_nothing(
    run_handler: RunHandler, storage: Storage, client: Redis, balance: str
) -> None:
    """If the block raises an error, neither the effect nor a done mark of success is written."""

    def handler() -> None:
        with effect_transaction() as pipe:
            pipe.incrby(balance, 5)
            raise ValueError("as intended")

    assert run_handler(handler) == "FAILURE"
    assert not client.exists(balance)
    assert [letter.detail for letter in storage.dead_letters.latest(2)] == ["ValueError: as intended"]


def test_keys_that_an_effect_depends_on(run_handler: RunHandler, storage: Storage, client: Redis, balance: str) -> None:
    """If a watched key changes during the block, the effect is discarded and the handler can try again."""
    client.set(balance, 1)
    changes = iter([True, False])

    def double() -> None:
        with effect_transaction(balance) as pipe:
            before = int(client.get(balance) or 0)
            if next(changes):
                client.set(balance, 10)
            pipe.set(balance, 2 * before)

    def handler() -> None:
        with pytest.raises(WatchError):
            double()
        assert not storage.ledger.has_ended("t1")
        double()

    assert run_handler(handler) == "SUCCESS"
    assert client.get(balance) == b"20"


def test_misuse(run_handler: RunHandler, client: Redis, balance: str) -> None:
    """Outside a task, or for a second block in one run, the error explains what to do."""
    with pytest.raises(BridgeError, match="inside a handler"), effect_transaction():
        pass

    def handler() -> None:
        with effect_transaction() as pipe:
            pipe.incrby(balance, 5)
            with pytest.raises(BridgeError, match="same block"), effect_transaction():
                pass
        with pytest.raises(BridgeError, match="same block"), effect_transaction():
            pass

    assert run_handler(handler) == "SUCCESS"
    assert client.get(balance) == b"5"


def test_commands_after_execute_are_refused(
    run_handler: RunHandler, storage: Storage, client: Redis, balance: str
) -> None:
    """After an early execute(), which writes the done mark, further commands raise an error and have no effect."""

    def handler() -> None:
        with effect_transaction() as pipe:
            pipe.incrby(balance, 5)
            pipe.execute()
            assert storage.ledger.has_ended("t1")
            pipe.incrby(balance, 100)

    assert run_handler(handler) == "FAILURE"
    assert client.get(balance) == b"5"
    assert "leave it to effect_transaction()" in storage.dead_letters.latest(1)[0].detail
