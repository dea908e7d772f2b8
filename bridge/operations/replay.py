"""Replays events from the journal or from the dead letters to one group.

A replay appends the events to the journal again, marked with ``metadata.replay`` and with the group. Because of the
mark their tasks get new ids, so the done marks of earlier runs do not stop them; the event keeps its id. Nothing is
broadcast, no event key is written, and other groups skip the entries.

Each replay has a name. Its progress is stored under that name in the same step that appends the events, so an
interrupted replay resumes without missing or repeating an event. Its end is fixed when it starts, so a replay never
replays its own entries.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from bridge.config import BATCH_BYTES
from bridge.errors import BridgeError
from bridge.events import Event, Keyring, is_signed, now_ms, unsigned
from bridge.operations.replay_sources import ReplayItem, Source
from bridge.redis import attempt
from bridge.storage import Storage, script

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,100}")
#: Most events appended in one step, and most steps per second at a low rate.
_STEP_EVENTS = 100
_STEPS_PER_S = 10


@dataclass(frozen=True)
class Progress:
    """The progress of a replay.

    Arguments:
        cursor, until: Where it resumes and where it ends, as arguments of XRANGE.
        at_ms: When it started, ms since the epoch.
        replayed, skipped: How many events were appended; how many cannot be replayed, or need not, because their task
            has ended since in another way.
    """

    cursor: str
    until: str
    at_ms: int
    replayed: int = 0
    skipped: int = 0
    finished: bool = False


class Replay:
    """A replay with a name, for one group.

    Arguments:
        storage: The bus, as the group sees it. The progress is kept for ``dedup_ttl_s``.
        source: What to replay.
        name: 1 to 100 of A-Z a-z 0-9 . _ @ -; goes into ``metadata.replay`` and into the ids of the tasks.
        filters: The filters as the user wrote them, ``2h`` and not the time it means. They make sure that the same
            name means the same replay.

    Raises:
        BridgeError: The name is invalid.
    """

    def __init__(self, storage: Storage, source: Source, name: str, filters: Mapping[str, Any]) -> None:
        if not _NAME.fullmatch(name):
            raise BridgeError(
                f"{name[:120]!r} is not a valid name for a replay; use 1 to 100 characters of A-Z a-z 0-9 . _ @ -"
            )
        settings, keys = storage.settings, storage.keys
        self._client = storage.client
        self._settings = settings
        self._source = source
        self._name = name
        self._filters = json.dumps(filters, sort_keys=True)
        self._names = keys
        self._key = keys.replay(settings.group, name)
        self._keys = [keys.journal, self._key, keys.dead(settings.group), keys.dead_size(settings.group)]
        self._keys += [keys.inflight(settings.group), keys.inflight_tasks(settings.group)]
        self._keyring = Keyring(settings.signing_keys, settings.channel_prefix)
        self._replay = script(storage.client, "replay")

    def progress(self) -> Progress | None:
        """Return the progress; None if the replay has not started.

        Raises:
            BridgeError: It was started with other filters.
            BusUnavailable: Redis does not answer, after bounded retries.
        """
        rows: Any = attempt(self._settings, f"looking up replay {self._name}", lambda: self._client.hgetall(self._key))
        if not rows:
            return None
        stored = {name.decode(): value.decode() for name, value in rows.items()}
        if stored["filters"] != self._filters:
            raise BridgeError(
                f"replay {self._name!r} was started with {stored['filters']}, not with {self._filters}; "
                "use the same filters to resume it, or choose another name"
            )
        return Progress(
            stored["cursor"],
            stored["until"],
            int(stored.get("at_ms", 0)),
            int(stored.get("replayed", 0)),
            int(stored.get("skipped", 0)),
            finished=stored.get("finished") == "1",
        )

    def remaining(self) -> Iterator[ReplayItem]:
        """Yield what :meth:`run` would replay or skip; write nothing.

        Raises:
            BridgeError, BusUnavailable: As :meth:`progress`.
        """
        progress = self.progress()
        if progress is not None and progress.finished:
            return iter(())
        return self._source.read(progress.cursor, progress.until) if progress else self._source.read(*self._bounds)

    def run(self, rate: float) -> Iterator[Progress]:
        """Start or resume the replay, and yield the progress after each step; nothing if it is already finished.

        The caller may stop at any time; another call resumes.

        Arguments:
            rate: Most events per second.

        Raises:
            BridgeError: Nothing matches, the name was used with other filters, or another process runs it.
            BusUnavailable: Redis does not answer, after bounded retries; another call resumes.
        """
        progress = self.progress() or self._begin()
        if progress.finished:
            return
        due_s = 0.0
        for step in self._steps(progress, limit=max(1, min(_STEP_EVENTS, int(rate / _STEPS_PER_S)))):
            time.sleep(max(0.0, due_s - time.monotonic()))
            progress = self._take(progress, step)
            due_s = time.monotonic() + len(step.events) / rate
            yield progress

    @cached_property
    def _bounds(self) -> tuple[str, str]:
        """Where to start, and the newest existing entry as the end; "0-0" if the source is empty.

        It is looked up once: :meth:`run` ends where :meth:`remaining` did, although entries were appended meanwhile.
        """
        first, last = self._source.selection.bounds
        what = f"looking up the end of {self._source.key}"
        rows: Any = attempt(
            self._settings, what, lambda: self._client.xrevrange(self._source.key, last, first, count=1)
        )
        return first, rows[0][0].decode() if rows else "0-0"

    def _begin(self) -> Progress:
        first, until = self._bounds
        found = next(self._source.read(first, until), None)
        if found is None:
            raise BridgeError(f"nothing to replay matches {self._filters}; try fewer filters with --dry-run")
        fields = {"filters": self._filters, "cursor": found.place, "until": until, "at_ms": now_ms()}

        def begin() -> None:
            with self._client.pipeline(transaction=True) as pipe:
                for name, value in fields.items():
                    pipe.hsetnx(self._key, name, str(value))  # another process may have started it
                pipe.pexpire(self._key, self._settings.dedup_ttl_ms)
                pipe.execute()

        attempt(self._settings, f"starting replay {self._name}", begin)
        return self.progress() or self._begin()

    def _steps(self, progress: Progress, limit: int) -> Iterator[_Step]:
        step = _Step()
        for found in self._source.read(progress.cursor, progress.until):
            step.to = f"({found.place}"
            if found.event is None:
                step.skipped += 1
                continue
            event = found.event
            data = self._marked(event, found, progress.at_ms)
            step.events.append((found.dead_letter_id, event.id, event.type, data, found.handler, found.task_id))
            step.size += len(data)
            if len(step.events) == limit or step.size >= BATCH_BYTES:
                yield step
                step = _Step()
        step.to, step.finished = f"({progress.until}", True
        yield step

    def _marked(self, event: Event, found: ReplayItem, at_ms: int) -> bytes:
        """Encode *event*, which was *found*, with the mark of this replay, which may exceed the size limit.

        The mark names the group and the handler that the event is for, so that no one can address it to others. A
        signed event is signed again; the mark holds the time of that, which may be long after the event.
        """
        if is_signed(event) and not self._keyring:
            raise BridgeError(
                f"event {event.id} is signed, and a replay changes its JSON; set bridge_signing_keys here, too, "
                "so that it can be signed again"
            )
        mark: dict[str, Any] = {"name": self._name, "at": at_ms, "group": self._settings.group}
        if found.handler:
            mark["handler"] = found.handler
        if found.signed:
            mark["signed"] = now_ms()
        marked = event.model_copy(update={"metadata": (event.metadata or {}) | {"replay": mark}})
        return self._keyring.encode(marked) if found.signed else unsigned(marked).encode()

    def _take(self, progress: Progress, step: _Step) -> Progress:
        """Append the events of *step*, which starts at the cursor of *progress*; safe to repeat."""
        ttl_ms, group = self._settings.dedup_ttl_ms, self._settings.group
        head: list[Any] = [progress.cursor, step.to, ttl_ms, step.skipped, int(step.finished), group, self._name]
        args = [*head, *(part for event in step.events for part in event)]
        keys = list(self._keys)
        for _, event_id, *_, task_id in step.events:
            keys += [self._names.replays(group, event_id), self._names.done(task_id)]
        counts = attempt(self._settings, f"replay {self._name}", lambda: self._replay(keys=keys, args=args))
        if counts is None:
            raise BridgeError(f"another process is running replay {self._name!r}; wait for it, or choose another name")
        replayed, skipped = map(int, counts)
        return replace(progress, cursor=step.to, replayed=replayed, skipped=skipped, finished=step.finished)


@dataclass
class _Step:
    """Events that are appended in one step, as arguments of the script, and the cursor after them."""

    to: str = ""
    events: list[tuple[str, str, str, bytes, str, str]] = field(default_factory=list)
    size: int = 0
    skipped: int = 0
    finished: bool = False
