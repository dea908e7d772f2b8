"""Events as they come, for ``bus tail`` and ``bus dev``: heard in a thread, shown by the main one."""

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

#: Messages that wait to be shown, in bytes; then they wait in Redis, which cuts the connection off in the end.
_MAX_WAITING_BYTES = 8 * 1024 * 1024
#: How often somebody looks whether to go on.
_TICK_S = 0.2
#: Of a payload in a line of text; --json has all of it.
_PAYLOAD_CHARS = 200
#: Widest column of types that lines are aligned to.
_TYPE_WIDTH = 32
_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta", "orange3")


class Follower:
    """Shows the events of the channels that match.

    Arguments:
        storage: Of the bus.
        patterns: Globs over the event type; none: all.
        as_json: Whether each is a line of JSON.
    """

    def __init__(self, storage: Storage, patterns: Sequence[str], as_json: bool) -> None:
        self._storage = storage
        self._client = storage.client
        self._settings = storage.settings
        self._keys = storage.keys
        self._globs = [compile_pattern(pattern) for pattern in patterns]
        self._show = output.as_json if as_json else None
        self._printer = _Printer()
        self._counters = Counters()

    def follow(self, since_ms: int | None = None, tick: Callable[[], bool] = lambda: True) -> None:
        """Show events until *tick*, asked several times a second, says no, or nobody reads any more.

        Arguments:
            since_ms: Begin with those that the journal took since then, ms since the epoch.

        Raises:
            RedisError: This user may not listen.
        """
        self._may_listen()
        end = self._end()
        waiting = _Waiting()
        with waiting.filled_by(ChannelListener(self._storage, self._counters, self._sift)):
            while not self._subscribed(waiting):
                if not tick() or output.reader_gone():
                    return
            known = set() if since_ms is None else self._past(since_ms, end)
            while tick() and not output.reader_gone():
                if (heard := waiting.take()) is not None:
                    self._heard(heard, known)

    def _may_listen(self) -> None:
        """Ask once: the feed would try for ever, as it should while Redis is away."""
        pubsub: Any = self._client.pubsub()
        try:
            pubsub.psubscribe(self._keys.all_channels)
            pubsub.parse_response(timeout=self._settings.socket_timeout_s)
        finally:
            pubsub.close()

    def _subscribed(self, waiting: _Waiting) -> bool:
        first = waiting.take()
        if first is None:
            return False
        first.subscribed = False  # no gap: there was nothing before
        waiting.put_back(first)
        return True

    def _end(self) -> str:
        rows: Any = self._client.xrevrange(self._keys.journal, count=1)
        return rows[0][0].decode() if rows else "0-0"

    def _past(self, since_ms: int, before: str) -> set[str]:
        """Show what the journal has, and return the ids of what came after *before*: that was heard as well."""
        source = JournalSource(self._storage, EntryFilter(since_ms=since_ms), accepts=self._accepts)
        first, _ = source.selection.bounds
        known = set()
        output.note(Styled(f"from the journal, since {output.moment(since_ms)}:", "dim"))
        for found in source.read(first, self._end()):
            if stream_position(found.place) > stream_position(before):
                known.add(found.event_id)
            if found.event is None:
                output.note(f"no event in the journal at {found.place}: {found.problem}")
            else:
                self._event(found.event, stream_position(found.place)[0])
            if output.reader_gone():
                break
        output.note(Styled("live:", "dim"))
        return known

    def _heard(self, heard: ReceivedBatch, known: set[str]) -> None:
        if heard.subscribed:
            output.note(
                Styled("the connection was lost and is back: events may have been missed", "yellow"),
                "; --since 5m shows what the journal has",
            )
        for message in heard.invalid:
            text = f" on channel {message.origin}: {message.error}, {len(message.data)} bytes"
            output.note(Styled("no event", "red"), text)
        for received in heard.events:
            if received.id in known:
                known.discard(received.id)
            else:
                self._event(received.event, now_ms())

    def _event(self, event: Event, at_ms: int) -> None:
        event = self._settings.redaction.event(event)
        if self._show is not None:
            self._show(event.to_dict())
        else:
            self._printer.event(event, at_ms)

    def _accepts(self, event_type: str) -> bool:
        return not self._globs or any(glob.fullmatch(event_type) for glob in self._globs)

    def _sift(self, broadcasts: list[Broadcast]) -> list[Broadcast]:
        return [broadcast for broadcast in broadcasts if self._accepts(broadcast.event_type)]


class _Waiting:
    """What was heard and is not shown yet, bounded; filled by one thread and emptied by another."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._heard: deque[ReceivedBatch] = deque()
        self._size = 0

    @contextmanager
    def filled_by(self, feed: ChannelListener) -> Iterator[None]:
        """Let *feed* fill it for the time of the block."""
        thread = threading.Thread(target=feed.run, args=(self._stop, self._put), name="bridge-tail", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(2.0)

    def take(self) -> ReceivedBatch | None:
        """Return the next, or None when a tick goes by without one."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._heard, _TICK_S):
                return None
            heard = self._heard.popleft()
            self._size -= _size(heard)
            self._changed.notify_all()
            return heard

    def put_back(self, heard: ReceivedBatch) -> None:
        """Make *heard* the next again."""
        with self._changed:
            self._heard.appendleft(heard)
            self._size += _size(heard)

    def _put(self, heard: ReceivedBatch) -> None:
        with self._changed:
            while self._size > _MAX_WAITING_BYTES and not self._stop.is_set():
                self._changed.wait(_TICK_S)
            self._heard.append(heard)
            self._size += _size(heard)
            self._changed.notify_all()


class _Printer:
    """Prints events as lines of text."""

    def __init__(self) -> None:
        self._width = 0
        self._day = ""

    def event(self, event: Event, at_ms: int) -> None:
        """Print one, which came *at_ms* since the epoch."""
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


def _size(heard: ReceivedBatch) -> int:
    return sum(len(one.data) for one in heard.events) + sum(len(one.data) for one in heard.invalid)
