"""``make chaos``: a busy site, faults at random, and a verdict; one row of Markdown per scenario.

The same seed chooses the same faults; when exactly they hit is up to the machine. Exit status 1 when an event was lost,
an effect was had twice, or a task became a dead letter that should not; the logs are then kept.
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

from tests.faults.oracle import Verdict
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.site import Site

#: For a site to come to rest after the last fault: some rounds of every timeout above it.
SETTLE_S = 180.0

HEADER = (
    "| scenario | seed | servers | faults | events | delivered again | repeats of unguarded effects "
    "| lost in window | lost | duplicate effects | result |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Goal:
    """A run goes on until it has all of these."""

    seconds: float
    faults: int = 0
    events: int = 0


@dataclass
class Outcome:
    """What a run has shown; *left* is what had not come to rest."""

    faults: Counter[str]
    verdict: Verdict
    left: str

    @property
    def green(self) -> bool:
        return self.verdict.green and not self.left and self.faults.total() > 0


def run(scenario: Scenario, seed: int, shared: bool, goal: Goal, directory: Path) -> Outcome:
    """Run one scenario on a site of its own."""
    moments = random.Random(seed)
    with Site(directory, seed, fsync=scenario.fsync, shared=shared, proxies=scenario.proxies) as site:
        began = time.monotonic()
        while not site.accepted() and time.monotonic() < began + 30:
            time.sleep(0.1)
        faults, weights = list(scenario.faults), list(scenario.faults.values())
        while not _reached(goal, site, began):
            time.sleep(moments.uniform(0, scenario.pause_s))
            (fault,) = moments.choices(faults, weights)
            if name := fault(site, moments):
                site.done[name] += 1
            site.tend()
        site.stop("publisher")
        left = site.settle(SETTLE_S)
        return Outcome(site.done, site.verdict(), left)


def _reached(goal: Goal, site: Site, began: float) -> bool:
    if time.monotonic() - began < goal.seconds or site.done.total() < goal.faults:
        return False
    return goal.events == 0 or site.accepted() >= goal.events


def row(name: str, seed: int, shared: bool, outcome: Outcome) -> str:
    """Return the line of the table."""
    verdict = outcome.verdict
    cells = [
        name,
        seed,
        "one" if shared else "two",
        ", ".join(f"{count} {fault}" for fault, count in sorted(outcome.faults.items())),
        f"{verdict.events:,}",
        verdict.delivered_again,
        verdict.repeats,
        len(verdict.lost_in_window),
        len(verdict.lost),
        len(verdict.duplicates),
        "green" if outcome.green else "RED",
    ]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=30, help="of all scenarios together")
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--faults", type=int, default=0, help="at least so many per scenario")
    parser.add_argument("--events", type=int, default=0, help="at least so many per scenario")
    options = parser.parse_args()
    names = list(SCENARIOS) if options.scenario == "all" else [options.scenario]
    goal = Goal(options.minutes * 60 / len(names), options.faults, options.events)
    print(f"seed {options.seed}\n\n{HEADER}", flush=True)
    red = False
    for number, name in enumerate(names):
        shared = bool((options.seed + number) % 2)
        directory = Path(tempfile.mkdtemp(prefix=f"bridge-chaos-{name}-"))
        outcome = run(SCENARIOS[name], options.seed, shared, goal, directory)
        print(row(name, options.seed, shared, outcome), flush=True)
        if outcome.green:
            shutil.rmtree(directory)
        else:
            red = True
            verdict = outcome.verdict
            print(f"\nlost: {verdict.lost[:20]}\nduplicates: {verdict.duplicates[:20]}\ndead: {verdict.dead}\n")
            print(f"left: {outcome.left}\nlogs: {directory}\nagain: --scenario {name} --seed {options.seed - number}\n")
    return int(red)


if __name__ == "__main__":
    sys.exit(main())
