"""Judging a run: what was accepted against what had its effect, from records that no fault could touch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Handlers of each type of event, by task name.
HANDLERS = {
    "chaos.bare": ("bare",),
    "chaos.guarded": ("guarded", "witness"),
    "chaos.transactional": ("transactional",),
    "chaos.chained": ("link",),
    "chaos.retrying": ("retrying",),
    "chaos.failing": ("failing",),
    "chaos.slow": ("slow",),
}
#: Handlers that take no care of repetitions.
BARE = frozenset({"bare", "witness"})


@dataclass(frozen=True)
class Accepted:
    """An event that a publisher was told is safe, and when."""

    moment: float
    type: str
    event_id: str


@dataclass
class Verdict:
    """What became of a run.

    Arguments:
        events: How many were accepted.
        lost: Pairs ``handler event_id`` without effect and without dead letter.
        lost_in_window: Those of them that were accepted within the documented window before a power loss.
        duplicates: Pairs with more than one effect, of handlers that take care.
        repeats: How often the effect of a handler that takes no care was repeated.
        delivered_again: Messages that reached a worker beyond the first of their task.
        dead: Reasons of dead letters that nobody intended.
    """

    events: int = 0
    lost: list[str] = field(default_factory=list)
    lost_in_window: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    repeats: int = 0
    delivered_again: int = 0
    dead: Counter[str] = field(default_factory=Counter)

    @property
    def green(self) -> bool:
        return self.events > 0 and not (self.lost or self.duplicates or self.dead)


def read_log(path: Path) -> list[Accepted]:
    """Read the log of a publisher; a last line that was cut off does not count."""
    whole = path.read_text().rpartition("\n")[0]
    rows = (line.split() for line in whole.splitlines())
    return [Accepted(float(moment), kind, event_id) for moment, kind, event_id in rows]


def judge(
    accepted: Sequence[Accepted],
    runs: Iterable[str],
    deliveries: Sequence[str],
    dead: Iterable[tuple[str, str, str]],
    power_losses: Sequence[float] = (),
    window_s: float = 2.0,
) -> Verdict:
    """Compare.

    Arguments:
        accepted: What publishers were told.
        runs: Every effect, ``handler event_id``; of a chained event that of its link.
        deliveries: The task id of every message that reached a worker, retries not counted.
        dead: Handler, event id and reason of every dead letter.
        power_losses: When a server lost what it had not synced.
        window_s: How much of that the settings of the server allow.
    """
    verdict = Verdict(events=len(accepted))
    effects = Counter(runs)
    ended = {f"{handler} {event_id}" for handler, event_id, _ in dead}
    for event in accepted:
        for handler in HANDLERS[event.type]:
            pair = f"{handler} {event.event_id}"
            if pair not in effects and pair not in ended:
                # A line of the log may be written a moment after the loss.
                excused = any(-0.5 <= moment - event.moment <= window_s for moment in power_losses)
                (verdict.lost_in_window if excused else verdict.lost).append(pair)
    for pair, count in effects.items():
        if count > 1 and pair.split()[0] in BARE:
            verdict.repeats += count - 1
        elif count > 1:
            verdict.duplicates.append(pair)
    verdict.delivered_again = len(deliveries) - len(set(deliveries))
    verdict.dead = Counter(reason for handler, _, reason in dead if handler != "failing")
    return verdict
