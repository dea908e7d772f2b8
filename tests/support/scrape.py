"""What a subscriber answers over HTTP, and the types of the fixtures that watch commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

#: Runs a function and returns the commands of clients, and the commands inside their scripts.
Listen = Callable[[Callable[[], Any]], tuple[list[str], list[str]]]
#: Asks a subscriber for a path; returns status and text.
Ask = Callable[[str], tuple[int, str]]
#: Runs a function twice and returns how many round trips the second took.
RoundTrips = Callable[[Callable[[], Any]], int]


class Page:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples of this name that have these labels; None when there is none."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None

    def events(self, outcome: str) -> dict[str, float]:
        """How many events came to this, by type; every outcome is there from the beginning, at 0 without a type."""
        rows = [one for one in self.samples if one.name == "bridge_events_total" and one.labels["outcome"] == outcome]
        assert rows
        return {one.labels["type"]: one.value for one in rows if one.value}

    def buckets(self, name: str, group: str = "tests") -> list[tuple[float, float]]:
        """Upper bound and count of each class of a histogram."""
        rows = [one for one in self.samples if one.name == f"{name}_bucket" and one.labels["group"] == group]
        return [(float(one.labels["le"]), one.value) for one in rows]


#: Asks a subscriber for its metrics.
Scrape = Callable[[], Page]


def ready(ask: Ask) -> bool:
    return ask("/readyz")[0] == 200


def problems(ask: Ask) -> str:
    """Why the subscriber is not ready; empty when it is, or does not answer."""
    status, text = ask("/readyz")
    return "; ".join(json.loads(text)["problems"]) if status == 503 else ""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Where a process accepts connections."""
    return {tuple(one.laddr) for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
