"""Responses of a subscriber's HTTP server, and types of the fixtures that observe commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

#: Runs a function; returns the commands that clients sent, and the commands inside their scripts.
Listen = Callable[[Callable[[], Any]], tuple[list[str], list[str]]]
#: Requests a path from a subscriber; returns status and body.
Ask = Callable[[str], tuple[int, str]]
#: Runs a function twice; returns the number of round trips of the second run.
RoundTrips = Callable[[Callable[[], Any]], int]


class Page:
    """One response of /metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the sum of the samples with this name and these labels; None if no sample matches."""
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(found) if found else None

    def events(self, outcome: str) -> dict[str, float]:
        """Return the number of events with this outcome by type. Each outcome starts at 0, without a type."""
        rows = [one for one in self.samples if one.name == "bridge_events_total" and one.labels["outcome"] == outcome]
        assert rows
        return {one.labels["type"]: one.value for one in rows if one.value}

    def buckets(self, name: str, group: str = "tests") -> list[tuple[float, float]]:
        """Return the upper bound and the count of each bucket of a histogram."""
        rows = [one for one in self.samples if one.name == f"{name}_bucket" and one.labels["group"] == group]
        return [(float(one.labels["le"]), one.value) for one in rows]


#: Requests the metrics of a subscriber.
Scrape = Callable[[], Page]


def ready(ask: Ask) -> bool:
    return ask("/readyz")[0] == 200


def problems(ask: Ask) -> str:
    """Return why the subscriber is not ready; empty if it is ready or does not respond."""
    status, text = ask("/readyz")
    return "; ".join(json.loads(text)["problems"]) if status == 503 else ""


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process accepts connections."""
    return {tuple(one.laddr) for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
