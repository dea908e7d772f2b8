"""Stateful models. They try the same sequences of calls in each run, or ``MODEL_EXAMPLES=5000`` random ones."""

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
    deadline=None,  # the machine may be under load
    suppress_health_check=[HealthCheck.too_slow],
)


class RepeatingMachine(RuleBasedStateMachine):
    """A model whose callers may lose a reply and then repeat the call."""

    def __init__(self) -> None:
        super().__init__()
        self.last_call: Callable[[], None] = lambda: None

    @rule()
    def the_reply_was_lost(self) -> None:
        """The last caller repeats its call with the same arguments."""
        self.last_call()


def repeatable(do: Callable[..., None]) -> Callable[..., None]:
    """Mark a rule as one that may be repeated with the same arguments."""

    @wraps(do)
    def call(self: RepeatingMachine, *args: Any, **options: Any) -> None:
        self.last_call = partial(do, self, *args, **options)
        self.last_call()

    return call


def run_model(make: Callable[[], RuleBasedStateMachine], sequences: int) -> None:
    """Try many sequences of the machine's rules; the shortest failing sequence that was found is printed."""
    run_state_machine_as_test(make, settings=settings(_SETTINGS, max_examples=int(_EXAMPLES or examples(sequences))))
