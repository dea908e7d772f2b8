"""Checks events against the handlers of this application before they are published."""

from __future__ import annotations

from collections import Counter

import click
from celery import Celery

from bridge.cli import output
from bridge.cli.application import no_handlers_text
from bridge.events import Event
from bridge.handlers import registry
from bridge.operations import misfits, models_of


class Receivers:
    """The handlers of an event type. What they would not accept is a warning, or with *strict* an error."""

    def __init__(self, app: Celery, event_type: str, *, strict: bool) -> None:
        self._type = event_type
        self._strict = strict
        self._models = models_of(app, event_type)
        self._misfits: Counter[str] = Counter()

    def check_type(self) -> None:
        """Report that no handler takes the type.

        Raises:
            click.ClickException: The same, with *strict*.
        """
        if not registry.matching(self._type):
            self._report(f"in this application {no_handlers_text(self._type)}")

    def check(self, event: Event) -> None:
        """Report the handlers that would not accept *event*.

        Raises:
            click.ClickException: The same, with *strict*.
        """
        for handler, problem in misfits(self._models, event):
            self._report(f"{handler} does not accept it: {problem}")

    def accept_line(self, number: int, event: Event) -> bool:
        """Whether the event of a line can be published; report what a handler would not accept, the first time."""
        for handler, problem in misfits(self._models, event):
            self._misfits[handler] += 1
            if self._strict:
                output.note(f"line {number}: {handler} does not accept it: {problem}")
                return False
            if self._misfits[handler] == 1:
                output.note(f"warning: line {number}: {handler} does not accept it: {problem}")
        return True

    def report_lines(self) -> None:
        """Report how many lines were published that a handler does not accept."""
        for handler, count in self._misfits.items() if not self._strict else ():
            if count > 1:
                output.note(f"warning: {handler} does not accept {count} of them")

    def _report(self, text: str) -> None:
        if self._strict:
            raise click.ClickException(f"nothing was published: {text}")
        output.note(f"warning: {text}")
