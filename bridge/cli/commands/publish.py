"""``celery -A APP bus publish``: publish one event, or one for each line of JSON."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO

import click

from bridge.bus import EventBus, Publication
from bridge.cli import output
from bridge.cli.connect import Unreachable, open_bus
from bridge.cli.lines import Line, Lines
from bridge.cli.options import json_option
from bridge.errors import BusUnavailable, InvalidEvent
from bridge.events import Event, wire


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.argument("payload", metavar="[JSON|-|@FILE]", default="null")
@click.option("--id", "event_id", help="Event id; publishing the same event again has no effect.")
@click.option("--correlation-id", help="Correlation id of the chain of events that it belongs to.")
@json_option
@click.pass_context
def publish(ctx: click.Context, /, event_type: str, payload: str, as_json: bool, **ids: str | None) -> None:
    """Publish events.

    The payload is JSON; the default is null. - reads it from standard input, @FILE from a file. If the first line of
    the input is a complete JSON value, each line becomes one event; otherwise the input is one document.
    A line that cannot be published is reported with its number, and the command continues with the next one. Prints the
    id of each event.

    \b
    Example:
      celery -A APP bus publish dream.created '{"dreamId": "d1", "text": "I could fly."}'
      celery -A APP bus publish dream.created @dream.json --id d1
      jq -c '.dreams[]' export.json | celery -A APP bus publish dream.created -
    """
    fields: dict[str, Any] = {"type": event_type, "correlation_id": ids["correlation_id"]}
    if ids["event_id"] is not None:
        fields["id"] = ids["event_id"]
    is_input = payload == "-" or payload.startswith("@")
    try:
        event = Event(**fields, payload=None if is_input else _parsed(payload.encode(errors="surrogateescape")))
    except InvalidEvent as error:
        hint = ". Write a string with its quotes: '\"text\"'" if error.reason == "json" else ""
        raise click.UsageError(f"{error}{hint}") from error
    with open_bus(ctx.obj.app) as storage, EventBus(storage.settings, log_conflicts=False) as bus:
        if not is_input:
            _Publisher(bus, fields, as_json).publish_one(event)
            return
        with _opened(payload) as stream:
            _Publisher(bus, fields, as_json).publish_all(stream, alone="id" in fields)


class _Publisher:
    """Publishes events that have the same *fields* and different payloads, and prints the result."""

    def __init__(self, bus: EventBus, fields: dict[str, Any], as_json: bool) -> None:
        self._bus = bus
        self._fields = fields
        self._as_json = as_json
        self._published = 0
        self._refused = 0
        self._last_line = 0

    def publish_one(self, event: Event) -> None:
        """Publish one event.

        Raises:
            click.ClickException: Another event has its id.
        """
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
            return Event(**self._fields, payload=_parsed(b"\n".join(texts)))
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
                ready.append((line.number, Event(**self._fields, payload=_parsed(line.text))))
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


def _parsed(text: bytes) -> Any:
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


@contextmanager
def _opened(payload: str) -> Iterator[BinaryIO]:
    if payload == "-":
        if sys.stdin.isatty():
            output.note("reading JSON from the keyboard; Ctrl-D ends the input")
        yield sys.stdin.buffer
        return
    try:
        stream = open(payload[1:], "rb")  # noqa: SIM115  # closed below; only an error of open() is one of usage
    except OSError as error:
        raise click.UsageError(f"{payload[1:]}: {error.strerror}") from error
    with stream:
        yield stream


def _size_of(stream: BinaryIO) -> int | None:
    """Return the size of *stream* in bytes; None if it is unknown."""
    try:
        about = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None
