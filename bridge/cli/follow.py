"""Shows events as they are published, for ``bus tail`` and ``bus dev``. A thread receives, the main thread prints."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from bridge.bus import Broadcast, ChannelListener, ReceivedBatch
from bridge.cli import output
from bridge.cli.table import Styled, on_terminal
from bridge.events import Event, compile_pattern, now_ms
from bridge.operations import JournalSource
from bridge.storage import EntryFilter, Storage, stream_position
from bridge.telemetry import Counters

#: Most bytes of messages in memory. Further ones stay in Redis, which closes the connection if they become too many.
_MAX_BUFFERED_BYTES = 8 * 1024 * 1024
#: How often the loop checks whether to continue.
_TICK_S = 0.2
#: Characters of a payload in a line of text; --json shows all of it.
_PAYLOAD_CHARS = 200
#: Widest column of event types.
_TYPE_WIDTH = 32
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "orange3")


class Follower:
    """Shows the events that are published on a bus.

    Arguments:
        storage: The storage of the bus.
        patterns: Globs over the event type; empty: all events.
        as_json: Whether to print each event as a line of JSON.
    """

    def __init__(self, storage: Storage, patterns: Sequence[str], as_json: bool) -> None:
        self._storage = storage
        self._client = storage.client
        self._settings = storage.settings
        self._keys = storage.keys
        self._globs = [compile_pattern(pattern) for pattern in patterns]
        self._print_json = output.as_json if as_json else None
        self._printer = _Printer()
        self._counters = Counters()

    def follow(self, since_ms: int | None = None, tick: Callable[[], bool] = lambda: True) -> None:
        """Show events until *tick*, which is called several times a second, returns false or the reader has gone.

        Arguments:
            since_ms: Start with the events in the journal since then, ms since the epoch.

        Raises:
            RedisError: This user has no permission to subscribe.
        """
        self._check_permission()
        end = self._end()
        buffer = _Buffer()
        with buffer.filled_by(ChannelListener(self._storage, self._counters, self._matching)):
            while not self._subscribed(buffer):
                if not tick() or output.reader_gone():
                    return
            known = set() if since_ms is None else self._show_past(since_ms, end)
            while tick() and not output.reader_gone():
                if (batch := buffer.take()) is not None:
                    self._show_batch(batch, known)

    def _check_permission(self) -> None:
        """Subscribe once: the listener would retry indefinitely, as it should while Redis is unavailable."""
        pubsub: Any = self._client.pubsub()
        try:
            pubsub.psubscribe(self._keys.all_channels)
            pubsub.parse_response(timeout=self._settings.socket_timeout_s)
        finally:
            pubsub.close()

    def _subscribed(self, buffer: _Buffer) -> bool:
        first = buffer.take()
        if first is None:
            return False
        first.subscribed = False  # this is the first subscription, not one after a gap
        buffer.put_back(first)
        return True

    def _end(self) -> str:
        rows: Any = self._client.xrevrange(self._keys.journal, count=1)
        return rows[0][0].decode() if rows else "0-0"

    def _show_past(self, since_ms: int, before: str) -> set[str]:
        """Show the events in the journal; return the ids of those after *before*, which the listener receives, too."""
        source = JournalSource(self._storage, EntryFilter(since_ms=since_ms), accepts=self._accepts)
        first, _ = source.selection.bounds
        known = set()
        output.note(Styled(f"from the journal, since {output.moment(since_ms)}:", "dim"))
        for found in source.read(first, self._end()):
            if stream_position(found.place) > stream_position(before):
                known.add(found.event_id)
            if found.event is None:
                output.note(f"invalid event in journal entry {found.place}: {found.problem}")
            else:
                self._show(found.event, stream_position(found.place)[0])
            if output.reader_gone():
                break
        output.note(Styled("live:", "dim"))
        return known

    def _show_batch(self, batch: ReceivedBatch, known: set[str]) -> None:
        if batch.subscribed:
            output.note(
                Styled("the connection was lost and restored: events may be missing here", "yellow"),
                "; --since 5m shows them from the journal",
            )
        for message in batch.invalid:
            text = f" on channel {message.origin}: {message.error}, {len(message.data)} bytes"
            output.note(Styled("invalid event", "red"), text)
        for received in batch.events:
            if received.id in known:
                known.discard(received.id)
            else:
                self._show(received.event, now_ms())

    def _show(self, event: Event, at_ms: int) -> None:
        event = self._settings.redaction.event(event)
        if self._print_json is not None:
            self._print_json(event.to_dict())
        else:
            self._printer.event(event, at_ms)

    def _accepts(self, event_type: str) -> bool:
        return not self._globs or any(glob.fullmatch(event_type) for glob in self._globs)

    def _matching(self, broadcasts: list[Broadcast]) -> list[Broadcast]:
        return [broadcast for broadcast in broadcasts if self._accepts(broadcast.event_type)]


class _Buffer:
    """A bounded buffer of received messages; one thread fills it, another empties it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._batches: deque[ReceivedBatch] = deque()
        self._size = 0

    @contextmanager
    def filled_by(self, listener: ChannelListener) -> Iterator[None]:
        """Let *listener* fill the buffer during the block."""
        thread = threading.Thread(target=listener.run, args=(self._stop, self._put), name="bridge-tail", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(2.0)

    def take(self) -> ReceivedBatch | None:
        """Return the next batch, or None if none arrives within a tick."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._batches, _TICK_S):
                return None
            batch = self._batches.popleft()
            self._size -= _size(batch)
            self._changed.notify_all()
            return batch

    def put_back(self, batch: ReceivedBatch) -> None:
        """Make *batch* the next one again."""
        with self._changed:
            self._batches.appendleft(batch)
            self._size += _size(batch)

    def _put(self, batch: ReceivedBatch) -> None:
        with self._changed:
            while self._size > _MAX_BUFFERED_BYTES and not self._stop.is_set():
                self._changed.wait(_TICK_S)
            self._batches.append(batch)
            self._size += _size(batch)
            self._changed.notify_all()


class _Printer:
    """Prints events as lines of text."""

    def __init__(self) -> None:
        self._width = 0
        self._day = ""

    def event(self, event: Event, at_ms: int) -> None:
        """Print an event that was received at *at_ms*, ms since the epoch."""
        self._width = min(_TYPE_WIDTH, max(self._width, len(event.type)))
        when = output.moment(at_ms)
        payload = json.dumps(event.to_dict()["payload"], ensure_ascii=False)
        if len(payload) > _PAYLOAD_CHARS:
            payload = payload[:_PAYLOAD_CHARS] + "..."
        if on_terminal():
            day, _, when = when.partition("T")
            if day != self._day:
                self._day = day
                output.line(Styled(day, "dim"))
        colour = _COLOURS[crc32(event.type.encode()) % len(_COLOURS)]
        output.line(
            Styled(when, "dim"),
            " ",
            Styled(f"{event.type:<{self._width}}", colour),
            " ",
            event.id,
            " ",
            Styled(payload, "dim"),
            crop=True,
        )


def _size(batch: ReceivedBatch) -> int:
    return sum(len(one.data) for one in batch.events) + sum(len(one.data) for one in batch.invalid)
