"""Metrics and health of one subscriber over HTTP: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz``."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from socketserver import ThreadingMixIn
from typing import Any
from weakref import WeakSet
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from bridge.config import BridgeSettings
from bridge.errors import SettingsError
from bridge.storage import GroupStatus, QueueStatus, read_status
from bridge.subscriber.monitoring.health import Health
from bridge.telemetry import Counters, Delays

#: Counters of events, by type. Each of the others is a separate metric.
OUTCOMES = {
    "received": "Received on the event channels.",
    "duplicate": "In the journal already. This includes all events of publish_event(), which writes the journal first.",
    "appended": "Received, and new to the journal.",
    "caught_up": "Not received, but found in their keys, by the scan after a start or a gap.",
    "stale": "Skipped: the event is older than bridge_event_ttl_s, or of unknown age, and its key lives longer.",
    "repaired": "Accepted with half a surrogate pair in their text, such as half an emoji; U+FFFD stands in its place.",
    "invalid": "Messages that are not valid events, or were rejected; each became a dead letter.",
    "rate_limited": "Over bridge_max_events_per_s_per_source; each became a dead letter.",
    "dispatched": "Task messages; an event with two handlers counts twice.",
    "handed_over": "Handed over to a subscriber of the group that has handlers which this one lacks.",
    "no_handler": "No handler in this application matches.",
    "invalid_trace": "Dispatched without their trace context, because it is malformed.",
    "replayed": "Dispatched again by a replay.",
    "redispatched": "Task messages that were sent again, because their tasks had not ended in time.",
    "dead_lettered": "Dead letters of this subscriber. bridge_dead_letters_written_total includes those of tasks.",
    "lost": "Removed from the journal before they were dispatched.",
    "trimmed": "Journal entries that were older than their retention.",
}
_OTHERS = {
    "subscription_gaps": "Subscriptions that were lost and restored; each time a scan looked for missed events.",
    "reconnects": "Outages of Redis or the broker that are over.",
    "errors": "Failed requests to Redis or the broker.",
    "dispatch_backpressure": "Batches that waited because a queue had max_queue_length messages.",
    "dead_letters_lost": "Dead letters of rejected messages that were discarded because Redis refused them.",
    "journal_lost": "Times that the journal or its group was deleted, or that another program removed entries.",
    "entries_claimed": "Entries claimed from dead consumers.",
    "consumers_removed": "Dead consumers removed from the group.",
}
#: Longest time until a stop is noticed.
_STOP_NOTICED_S = 0.1
#: Largest bucket of a histogram: 2 ** 22 ms, 70 minutes.
_MAX_EXPONENT = 22


class MetricsServer:
    """Serves the metrics and the health of one subscriber. Its port is bound when it is created.

    Arguments:
        settings: ``metrics_host`` and ``metrics_port``, which must be set.
        counters, health: Of the subscriber.
        consumer: Name of the subscriber.

    Raises:
        SettingsError: The port cannot be bound.
    """

    def __init__(self, settings: BridgeSettings, counters: Counters, health: Health, consumer: str) -> None:
        registry = CollectorRegistry()
        registry.register(_SubscriberCollector(settings, counters, health, consumer))
        self._metrics: Any = make_wsgi_app(registry)
        self._health = health
        host, port = settings.metrics_host, int(settings.metrics_port or 0)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            server_class = type("Server", (_Server,), {"address_family": family})
            self._server: WSGIServer = make_server(str(address[0]), port, self._answer, server_class, _QuietHandler)
        except OSError as error:
            text = (
                f"bridge_metrics_port: cannot bind to {host}:{port} ({error}); each subscriber of a host needs its own"
            )
            raise SettingsError(text) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_STOP_NOTICED_S,), name="bridge-metrics", daemon=True
        )
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        _servers.add(self._server)

    def start(self) -> None:
        """Start to serve requests, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and close the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start_response)  # type: ignore[no-any-return]  # untyped in prometheus_client
        if path == "/healthz":
            return _verdict(self._health.stuck(), start_response)
        if path == "/readyz":
            return _verdict(self._health.problems(), start_response, waits=self._health.dispatch.waiting_for)
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"there are /metrics, /healthz and /readyz\n"]


def _verdict(problems: list[str], start_response: Callable[..., Any], **more: str) -> list[bytes]:
    start_response(
        "503 Service Unavailable" if problems else "200 OK",
        [("Content-Type", "application/json"), ("Cache-Control", "no-store")],
    )
    return [json.dumps({"ok": not problems, "problems": problems, **more}).encode() + b"\n"]


class _SubscriberCollector(Collector):
    """The metrics for Prometheus: the counters of this process, and the status of all groups of the bus in Redis."""

    def __init__(self, settings: BridgeSettings, counters: Counters, health: Health, consumer: str) -> None:
        self._settings = settings
        self._counters = counters
        self._health = health
        self._consumer = consumer

    def collect(self) -> Iterator[Metric]:
        group = self._settings.group
        info = GaugeMetricFamily("bridge_info", "Always 1.", labels=["group", "consumer", "version"])
        info.add_metric([group, self._consumer, version("celery-event-bridge")], 1)
        yield info
        yield from self._own(group)
        bus, broker = self._health.bus(), self._health.broker()
        yield _gauge("bridge_bus_up", "1 if the Redis of the bus responds and has the group.", not bus)
        yield _gauge("bridge_broker_up", "1 if Celery's broker accepts a connection.", not broker)
        yield _gauge("bridge_ready", "1 if this subscriber is ready, as in /readyz.", not self._health.problems())
        text = "1 while dispatch waits for room in a queue (bridge_max_queue_length)."
        yield _gauge("bridge_dispatch_waiting", text, bool(self._health.dispatch.waiting_for))
        try:
            groups = read_status(self._health.storage).groups
        except (RedisError, OSError):
            return  # bridge_bus_up reports it; old values would be mistaken for current ones
        yield from _of_groups(groups)

    def _own(self, group: str) -> Iterator[Metric]:
        values = self._counters.by_type()
        text = "Events by outcome. " + " ".join(f"{name}: {what}" for name, what in OUTCOMES.items())
        events = CounterMetricFamily("bridge_events", text, labels=["group", "outcome", "type"])
        # Each starts at 0: Prometheus does not count the first value of a new series as an increase.
        zeros = {(name, ""): 0 for name in OUTCOMES}
        for (name, event_type), value in (zeros | values).items():
            if name in OUTCOMES:
                events.add_metric([group, name, event_type], value)
        yield events
        for name, text in _OTHERS.items():
            family = CounterMetricFamily(f"bridge_{name}", text, labels=["group"])
            family.add_metric([group], values.get((name, ""), 0))
            yield family
        text = "Time from the journal entry of an event to a task message in its queue, for each message."
        delays = HistogramMetricFamily("bridge_dispatch_delay_seconds", text, labels=["group"])
        _add(delays, [group], self._counters.dispatch_delays())
        yield delays


def _of_groups(groups: Iterable[GroupStatus]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[GroupStatus], float]]] = {
        "bridge_backlog_events": ("Journal entries that the group has not dispatched yet.", lambda g: g.backlog),
        "bridge_backlog_oldest_seconds": (
            "Age of the oldest entry of the backlog; 0 without a backlog.",
            lambda g: g.oldest_s or 0,
        ),
        "bridge_pending_events": (
            "Entries of the backlog that a consumer has read.",
            lambda g: sum(g.pending.values()),
        ),
        "bridge_tasks_in_flight": (
            "Tasks that were sent and have not ended, with those given up.",
            lambda g: g.in_flight,
        ),
        "bridge_tasks_overdue": ("Tasks in flight that should have ended.", lambda g: g.overdue),
        "bridge_dead_letters": ("Dead letters that are stored.", lambda g: g.dead_letters),
        "bridge_subscribers": ("Live subscribers.", lambda g: g.alive),
    }
    counters: dict[str, tuple[str, Callable[[GroupStatus], float]]] = {
        "bridge_dead_letters_written": (
            "Dead letters written in total, by subscribers and tasks.",
            lambda g: g.dead_letters_written,
        ),
        "bridge_dead_letters_evicted": (
            "Dead letters that were evicted because of the limits.",
            lambda g: g.dead_letters_evicted,
        ),
    }
    groups = list(groups)
    for kind, figures in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (text, value) in figures.items():
            family = kind(
                name, f"{text} Every subscriber of a bus reports the same value: do not add them up.", labels=["group"]
            )
            for group in groups:
                family.add_metric([group.name], value(group))
            yield family
    yield from _of_queues(groups)
    text = "Time from the journal entry of an event to the first start of its task, for each task. Do not add these up."
    starts = HistogramMetricFamily("bridge_task_start_delay_seconds", text, labels=["group"])
    for group in groups:
        _add(starts, [group.name], group.starts)
    yield starts


def _of_queues(groups: Iterable[GroupStatus]) -> Iterator[Metric]:
    gauges: dict[str, tuple[str, Callable[[QueueStatus], float | None]]] = {
        "bridge_queue_messages": ("Messages that wait in a queue.", lambda q: q.messages),
        "bridge_queue_oldest_seconds": (
            "For how long the next message of a queue has waited; 0 if none waits.",
            lambda q: q.oldest_s,
        ),
        "bridge_queue_consumers": ("Workers that take tasks from a queue.", lambda q: q.consumers),
        "bridge_queue_stalled_seconds": (
            "For how long messages have waited in a queue while none left it; 0 if none waits.",
            lambda q: q.stalled_s,
        ),
    }
    for name, (text, value) in gauges.items():
        family = GaugeMetricFamily(
            name,
            f"{text} Missing if unknown. Every subscriber of a bus reports the same value: do not add them up.",
            labels=["group", "queue"],
        )
        for group in groups:
            for queue in group.queues or ():
                if (number := value(queue)) is not None:
                    family.add_metric([group.name, queue.name], number)
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _add(family: HistogramMetricFamily, labels: list[str], delays: Delays) -> None:
    total = 0
    buckets: list[tuple[str, float]] = []
    for exponent in range(_MAX_EXPONENT + 1):
        total += delays.counts[exponent]
        buckets.append((str(2**exponent / 1000), total))
    buckets.append(("+Inf", sum(delays.counts.values())))
    family.add_metric(labels, buckets=buckets, sum_value=delays.sum_ms / 1000)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128  # otherwise some of many simultaneous clients would wait for seconds


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that sends nothing must not keep its thread longer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line for each scrape is of no use."""


_servers: WeakSet[WSGIServer] = WeakSet()


def _close_in_child() -> None:
    for server in _servers:  # a child of the pool must not keep the port after its parent has ended
        server.socket.close()


os.register_at_fork(after_in_child=_close_in_child)
