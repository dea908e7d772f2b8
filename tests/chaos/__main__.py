"""``make chaos``: inject random faults into a site under load, and print one row of Markdown for each scenario.

The same seed selects the same faults; their exact moments depend on the machine. The exit status is 1 if an event was
lost, an effect was duplicated, or a task became an unexpected dead letter. In this case, the logs are kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.ending import come_to_rest
from tests.chaos.oracle import Verdict
from tests.chaos.scenarios import SCENARIOS, Scenario
from tests.chaos.site import Site

#: The time in which a site must finish its work after the last fault: several times each of its timeouts.
SETTLE_S = 180.0
#: The time in which the processes of a site must start, publish and run something.
START_S = 30.0

COLUMNS = (
    "scenario",
    "seed",
    "servers",
    "faults",
    "events",
    "lost in window",
    "lost",
    "duplicate deliveries",
    "duplicate effects",
    "repeats of unguarded effects",
    "result",
)


@dataclass(frozen=True)
class Goal:
    """The goals of a run, which continues until all of them are reached."""

    seconds: float
    faults: int = 0
    events: int = 0

    def reached(self, site: Site, began: float) -> bool:
        if time.monotonic() - began < self.seconds or site.done.total() < self.faults:
            return False
        return self.events == 0 or len(site.accepted()) >= self.events


@dataclass(frozen=True)
class Outcome:
    """The result of a run; *left* is the work that was not finished."""

    shared: bool
    faults: Counter[str]
    restarts: Counter[str]
    verdict: Verdict
    left: str

    @property
    def green(self) -> bool:
        return self.verdict.green and not self.left and self.faults.total() > 0


def run(name: str, seed: int, goal: Goal, directory: Path) -> Outcome:
    """Run one scenario on a separate site, whose logs are written to *directory*."""
    scenario = SCENARIOS[name]
    chance = random.Random(f"{seed} {name}")
    shared = chance.random() < 0.5
    size = 1 if scenario.neighbours else 2  # of each application
    how: dict[str, Any] = {"fsync": scenario.fsync, "proxies": scenario.proxies, "neighbours": scenario.neighbours}
    with Site(directory, seed, shared=shared, size=size, **how) as site:
        _until_published(site, 1)
        began = time.monotonic()
        while not goal.reached(site, began):
            _harm(site, scenario, chance)
            site.tend()
        _until_published(site, 1)  # events that are published after the last fault must be handled in any case
        site.stop("publisher")
        left, verdict = come_to_rest(site, SETTLE_S)
        return Outcome(shared, site.done, site.restarts, verdict, left)


def _harm(site: Site, scenario: Scenario, chance: random.Random) -> None:
    # Each fault has its own generator, so the next fault does not depend on how many numbers this one draws.
    own = random.Random(chance.random())
    (fault,) = chance.choices(list(scenario.faults), list(scenario.faults.values()))
    time.sleep(chance.uniform(0, scenario.pause_s))
    if name := fault(site, own):
        site.done[name] += 1


def _until_published(site: Site, more: int) -> None:
    deadline, before = time.monotonic() + START_S, len(site.accepted())
    while len(site.accepted()) < before + more and time.monotonic() < deadline:
        time.sleep(0.1)


def row(*cells: object) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def line(name: str, seed: int, outcome: Outcome) -> str:
    """Return the row of the table for a run."""
    verdict = outcome.verdict
    return row(
        name,
        seed,
        "one" if outcome.shared else "two",
        ", ".join(f"{count} {fault}" for fault, count in sorted(outcome.faults.items())),
        f"{verdict.events:,}",
        len(verdict.excused),
        len(verdict.lost),
        verdict.delivered_again,
        len(verdict.duplicates),
        verdict.repeats,
        "passed" if outcome.green else "failed",
    )


def explain(name: str, seed: int, outcome: Outcome, directory: Path) -> str:
    """Return the details of a failed run."""
    verdict = outcome.verdict
    return (
        f"\nlost: {verdict.lost[:20]}\nduplicates: {verdict.duplicates[:20]}\n"
        f"unexpected dead letters: {dict(verdict.unexpected)}\nunfinished work: {outcome.left or 'nothing'}\n"
        f"processes that exited unexpectedly: {dict(outcome.restarts)}\n"
        f"logs: {directory}\nto repeat: python -m tests.chaos --scenario {name} --seed {seed}\n"
    )


def main() -> int:
    """Run the scenarios that the command line selects; return 1 if one fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=30, help="total for all scenarios")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--faults", type=int, default=0, help="minimum per scenario")
    parser.add_argument("--events", type=int, default=0, help="minimum per scenario")
    options = parser.parse_args()
    names = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    goal = Goal(options.minutes * 60 / len(names), options.faults, options.events)
    print(f"seed {options.seed}\n\n{row(*COLUMNS)}\n{row(*('---' for _ in COLUMNS))}", flush=True)
    status = 0
    for name in names:
        directory = Path(tempfile.mkdtemp(prefix=f"bridge-chaos-{name}-"))
        outcome = run(name, options.seed, goal, directory)
        print(line(name, options.seed, outcome), flush=True)
        if outcome.green:
            shutil.rmtree(directory)
        else:
            status = 1
            print(explain(name, options.seed, outcome, directory), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
