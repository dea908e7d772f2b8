"""Stateful models: they try the same orders of calls each time, or ``MODEL_EXAMPLES=5000`` other ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.support.strategies import examples

_EXAMPLES = os.environ.get("MODEL_EXAMPLES")
_SETTINGS = settings(
    stateful_step_count=40,
    derandomize=_EXAMPLES is None,
    deadline=None,  # the machine may be busy
    suppress_health_check=[HealthCheck.too_slow],
)


class RepeatingMachine(RuleBasedStateMachine):
    """A model whose callers may not hear an answer, and then call again."""

    def __init__(self) -> None:
        super().__init__()
        self.last_call: Callable[[], None] = lambda: None

    @rule()
    def the_reply_was_lost(self) -> None:
        """Whoever called last calls again with the same arguments."""
        self.last_call()


def repeatable(do: Callable[..., None]) -> Callable[..., None]:
    """Mark a rule as one that may be called again with the same arguments."""

    @wraps(do)
    def call(self: RepeatingMachine, *args: Any, **options: Any) -> None:
        self.last_call = partial(do, self, *args, **options)
        self.last_call()

    return call


def run_model(make: Callable[[], RuleBasedStateMachine]) -> None:
    """Try many orders of the machine's rules; of those that fail, the shortest found is printed."""
    run_state_machine_as_test(make, settings=settings(_SETTINGS, max_examples=int(_EXAMPLES or examples(100))))
