"""Log lines for programs: each call has an action and fields, and repeated lines are throttled."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from redis import Redis

from bridge import BridgeSettings, Event, EventBus
from bridge.storage.keys import Keys
from bridge.telemetry.logs import Action, Fields, LogThrottle, log_fields
from tests.support import ROOT
from tests.support.apps import StartSubscriber
from tests.support.queues import Queues
from tests.support.waiting import eventually

#: Functions that return ``extra``; their first argument is the action.
HELPERS = {"log_fields", "dead_letter_fields"}
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def logger_calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls of logger methods: ``log.info()``, ``self._log.info()``, ``logging.getLogger(...).info()``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            owner = ast.unparse(node.func.value)
            if re.fullmatch(r"(.*\.)?_?log(ger)?|logging(\.getLogger\(.*\))?", owner):
                yield node


def unknown(code: str) -> list[str]:
    """Return the log calls of *code* whose ``extra`` does not come from a helper with a known action."""
    wrong = []
    for function in [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]:
        assigned = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "extra"
        ]
        for call in logger_calls(function):
            given = next((keyword.value for keyword in call.keywords if keyword.arg == "extra"), None)
            extras = assigned if isinstance(given, ast.Name) and given.id == "extra" else [given]
            if not extras or not all(_known(extra) for extra in extras):
                wrong.append(ast.unparse(call))
    return wrong


def _known(extra: ast.expr | None) -> bool:
    if not (isinstance(extra, ast.Call) and isinstance(extra.func, ast.Name) and extra.func.id in HELPERS):
        return False
    action = extra.args[0] if extra.args else None
    return action is not None and ast.unparse(action) in {f"Action.{one.name}" for one in Action}


def sources() -> list[str]:
    return [path.read_text() for path in sorted((ROOT / "bridge").rglob("*.py"))]


def test_every_log_call_has_a_known_action() -> None:
    """Each log call of the bridge has ``extra=log_fields(...)`` with an action of the list."""
    assert [call for code in sources() for call in unknown(code)] == []


@pytest.mark.parametrize(
    ("code", "is_known"),
    [
        ("log.info('x', extra=log_fields(Action.OUTAGE))", True),
        ("extra = dead_letter_fields(Action.OUTAGE, 1)\n    self._log.error('x', extra=extra)", True),
        ("logging.getLogger(__name__).info('x', extra=log_fields(Action.OUTAGE, count=1))", True),
        ("log.info('x')", False),
        ("log.info('x', extra=extra)", False),
        ("log.exception('x', extra={'action': 'outage'})", False),
        ("logging.getLogger(__name__).warning('x', extra=log_fields(Action.NEVER_HEARD_OF))", False),
        ("extra = log_fields(Action.NONSENSE)\n    log.error('x', extra=extra)", False),
        ("math.log(3)\n    click.info('x')\n    self.app.log.setup()", True),
    ],
)
def test_the_check_itself(code: str, is_known: bool) -> None:
    """The check finds log calls in all their forms, with and without a variable."""
    assert (unknown(f"def f():\n    {code}") == []) is is_known


def test_each_action_has_one_meaning_and_is_used() -> None:
    """Each action has a meaning of one line, and the code logs each action of the list and no other."""
    assert list(Action) == sorted(Action)
    assert all(meaning.endswith(".") and "\n" not in meaning for meaning in (action.meaning for action in Action))
    code = "\n".join(sources())
    used = set(re.findall(r"\b(?:log|dead_letter)_fields\(\s*Action\.(\w+)", code))
    assert used == set(Action.__members__)


def test_fields_have_meanings_and_clash_with_nothing() -> None:
    """Each field has a meaning, and no field has a name that the logging module uses itself."""
    hints = get_type_hints(Fields, include_extras=True)
    assert all(isinstance(hint.__metadata__[0], str) for hint in hints.values())
    values: Any = dict.fromkeys(hints, "x")
    logging.getLogger(__name__).makeRecord("n", 20, "f", 1, "m", (), None, extra=log_fields(Action.OUTAGE, **values))


def test_what_is_not_known_is_left_out() -> None:
    """Fields without a value are left out; zero is a value."""
    assert log_fields(Action.DEAD_LETTER, event_id="", task_id=None, count=0) == {"action": "dead_letter", "count": 0}


def test_a_pace_lets_through_what_is_new() -> None:
    """A throttled line is logged once per interval for each key; keys from long ago are forgotten."""
    slow, fast = LogThrottle(60), LogThrottle(0)
    assert [slow.allow("a"), slow.allow("a"), slow.allow("b"), slow.allow("a")] == [True, False, True, False]
    assert [fast.allow(), fast.allow()] == [True, True]
    assert all(slow.allow(str(number)) for number in range(2000))
    assert slow.allow("a")


# Repeated lines


def actions(caplog: pytest.LogCaptureFixture, action: Action) -> list[Any]:
    """The log records with this action; their fields are attributes."""
    return [record for record in caplog.records if getattr(record, "action", "") == action]


def test_a_broadcast_that_is_refused_again_is_told_once(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An invalid message that is received many times is logged once."""
    register_handlers("t.all")
    subscriber = start_subscriber()
    for _ in range(20):
        client.publish(f"{prefix}a.b", "no json")
    eventually(lambda: subscriber.info().get("received", 0) >= 20, "all messages are received")
    eventually(lambda: actions(caplog, Action.DEAD_LETTER), "the dead letter is logged")
    assert [(line.reason, line.origin) for line in actions(caplog, Action.DEAD_LETTER)] == [("json", f"{prefix}a.b")]


def test_dead_letters_that_redis_refuses_are_logged_once(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    client: Redis,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While no dead letter can be written, many invalid messages cause one log line; another one when they are lost."""
    register_handlers("t.all")
    client.set(Keys(prefix).dead("tests"), "no stream")
    subscriber = start_subscriber()
    for number in range(20):
        client.publish(f"{prefix}a.b", f"no json {number}")
    eventually(lambda: subscriber.info().get("received", 0) >= 20, "all messages are received")
    eventually(lambda: subscriber.info().get("errors", 0), "an error is counted")
    (line,) = eventually(lambda: actions(caplog, Action.DEAD_LETTER_DELAYED), "the refusal is logged")
    assert (line.reason, line.group) == ("ResponseError", "tests")
    subscriber.stop()
    (line,) = actions(caplog, Action.DEAD_LETTER_LOST)
    assert (line.reason, line.group) == ("json", "tests")
    assert subscriber.counters.snapshot()["dead_letters_lost"] == 20


def test_a_queue_that_has_room_for_a_moment_is_told_once(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    client: Redis,
    settings: BridgeSettings,
    queues: Queues,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While tasks are slower than events, dispatch pauses again and again; this is logged once."""
    register_handlers("t.all")
    subscriber = start_subscriber(max_queue_length=5, batch_size=5, block_ms=20)
    with EventBus(redis_url=settings.url, channel_prefix=settings.channel_prefix) as bus:
        bus.publish_many([Event(type="a.b", id=f"n{number}") for number in range(40)])
    taken: list[Any] = []

    def work_off() -> bool:
        if subscriber.info()["state"] != "ready":
            taken.extend(client.rpop(f"{queues.key_prefix}{queues.prefix}celery", 5) or [])
        return subscriber.info().get("dispatched", 0) == 40

    eventually(work_off, "all events are dispatched")
    assert len(taken) > 20
    (line,) = actions(caplog, Action.DISPATCH_BACKPRESSURE)
    assert (line.queue, line.group, line.consumer) == ("celery", "tests", "one")
