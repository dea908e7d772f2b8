"""Turns events into tasks, in threads of a worker or of ``bus subscribe``.

============  =======================================================================================================
intake        appends events to the journal: those that are broadcast, and those in event keys that were missed
dispatch      sends task messages for journal entries
maintenance   one leader per group: claims entries of dead consumers, trims the journal, sends lost messages again
monitoring    presence, health checks, metrics, and a watch over the queues of the broker
============  =======================================================================================================

Any number of subscribers share the work of a group. A subscriber that crashes leaves entries that it has read and not
acknowledged. Another one claims them after ``claim_idle_s``.
"""

from bridge.subscriber.agreement import disagreements
from bridge.subscriber.checks import check_clock, check_settings, missing_broker, refused_handlers
from bridge.subscriber.finding import Finding, first_of
from bridge.subscriber.journal_checks import check_journal_ids, check_prefixes
from bridge.subscriber.monitoring.worker_reporter import WorkerReporter
from bridge.subscriber.server_checks import server_of
from bridge.subscriber.subscriber import Subscriber, consumer_name

__all__ = [
    "Finding",
    "Subscriber",
    "WorkerReporter",
    "check_clock",
    "check_journal_ids",
    "check_prefixes",
    "check_settings",
    "consumer_name",
    "disagreements",
    "first_of",
    "missing_broker",
    "refused_handlers",
    "server_of",
]
