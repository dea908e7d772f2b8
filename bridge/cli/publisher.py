"""Publishes events that have the same type and different payloads, and prints the result of each."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO

import click

from bridge.bus import EventBus, Publication
from bridge.cli import output
from bridge.cli.connect import Unreachable
from bridge.cli.lines import Line, Lines
from bridge.cli.receivers import Receivers
from bridge.errors import BusUnavailable, InvalidEvent
from bridge.events import Event, wire


class Publisher:
    """Publishes events that have the same *fields* and different payloads, and prints the result.

    Arguments:
        receivers: Checks them first.
    """

    def __init__(self, bus: EventBus, receivers: Receivers, fields: dict[str, Any], as_json: bool) -> None:
        self._bus = bus
        self._receivers = receivers
        self._fields = fields
        self._as_json = as_json
        self._published = 0
        self._refused = 0
        self._last_line = 0

    def publish_one(self, event: Event) -> None:
        """Publish one event.

        Raises:
            click.ClickException: Another event has its id, or its receivers do not accept it.
        """
        self._receivers.check(event)
        done = self._bus.publish(event)
        if self._as_json or not done.conflict:
            self._print([done])
        if done.conflict:
            raise click.ClickException(
                f"not published: id {event.id} belongs to an event with another type or payload; see bus get {event.id}"
            )
        if done.duplicate:
            output.note(f"{event.id} was already published; nothing has changed")

    def publish_all(self, stream: BinaryIO, *, alone: bool) -> None:
        """Publish the content of *stream*: one payload per line, or one document; with *alone* always one document.

        Raises:
            click.ClickException: Something could not be published.
        """
        lines = Lines(stream, self._bus.settings.max_event_bytes)
        arriving = lines.arriving()
        first = next((batch for batch in arriving if batch), None)
        if first is None:
            raise click.ClickException("the input is empty: nothing was published")
        if alone or not _is_whole(first[0]):
            self.publish_one(self._document(first, arriving))
            return
        try:
            with output.progress("publishing", _size_of(stream)) as report:
                self._publish_lines(first)
                report(lines.size, f"{self._published} published")
                for batch in arriving:
                    self._publish_lines(batch)
                    report(lines.size, f"{self._published} published")
        except KeyboardInterrupt:
            output.note(f"interrupted; {self._so_far()}")
            raise SystemExit(130) from None
        except BusUnavailable as error:
            raise Unreachable(f"{error} {self._so_far().capitalize()}.") from error
        self._receivers.report_lines()
        output.note(f"{self._published} published" + (f", not published: {self._refused}" if self._refused else ""))
        if self._refused:
            raise SystemExit(1)

    def _so_far(self) -> str:
        return f"published up to line {self._last_line}, and possibly some of the next {self._bus.settings.batch_size}"

    def _document(self, first: list[Line], arriving: Iterator[list[Line]]) -> Event:
        limit = self._bus.settings.max_event_bytes
        texts: list[bytes] = []
        size = 0
        for line in chain(first, chain.from_iterable(arriving)):
            texts.append(line.text)
            size += limit + 1 if line.too_long else len(line.text) + 1
            if size > limit + 1:
                raise click.ClickException(
                    f"the input is neither lines of JSON nor one JSON document of at most {limit} bytes"
                )
        try:
            return Event(**self._fields, payload=parsed_payload(b"\n".join(texts)))
        except InvalidEvent as error:
            text = "--id expects one document" if "id" in self._fields else "and its first line is not a JSON value"
            raise click.ClickException(f"the input cannot be published: {error}; {text}") from error

    def _publish_lines(self, lines: list[Line]) -> None:
        ready: list[tuple[int, Event]] = []
        for line in lines:
            try:
                if line.too_long:
                    limit = self._bus.settings.max_event_bytes
                    raise InvalidEvent("size", "", f"longer than {limit} bytes (bridge_max_event_bytes)")
                event = Event(**self._fields, payload=parsed_payload(line.text))
                if self._receivers.accept_line(line.number, event):
                    ready.append((line.number, event))
                else:
                    self._refused += 1
            except InvalidEvent as error:
                self._refuse(line.number, error)
        step = self._bus.settings.batch_size
        for start in range(0, len(ready), step):
            self._publish_batch(ready[start : start + step])
        if lines:
            self._last_line = lines[-1].number

    def _publish_batch(self, batch: Sequence[tuple[int, Event]]) -> None:
        try:
            done = self._bus.publish_many([event for _, event in batch])
        except InvalidEvent as error:  # one event is invalid, and nothing was published
            if len(batch) == 1:
                self._refuse(batch[0][0], error)
                return
            for one in batch:
                self._publish_batch([one])
            return
        self._published += len(done)
        self._print(done)
        self._last_line = batch[-1][0]

    def _refuse(self, number: int, error: InvalidEvent) -> None:
        self._refused += 1
        output.note(f"line {number}: {error}")

    def _print(self, done: Sequence[Publication]) -> None:
        output.lines(json.dumps(_row(one)) if self._as_json else one.event.id for one in done)


def _row(done: Publication) -> dict[str, Any]:
    return {"id": done.event.id, "type": done.event.type, "duplicate": done.duplicate, "conflict": done.conflict}


def parsed_payload(text: bytes) -> Any:
    """Return the payload in a JSON text.

    Raises:
        InvalidEvent: It is not JSON, or not JSON that an event can have.
    """
    try:
        return wire.loads(text, sys.maxsize)
    except InvalidEvent as error:
        raise InvalidEvent(error.reason, "payload", error.detail) from error


def _is_whole(line: Line) -> bool:
    """Whether a line is a complete JSON value, even one that exceeds a limit."""
    try:
        if not line.too_long:
            wire.loads(line.text, sys.maxsize)
    except InvalidEvent as error:
        return error.reason != "json"
    return True


def _size_of(stream: BinaryIO) -> int | None:
    """Return the size of *stream* in bytes; None if it is unknown."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None
