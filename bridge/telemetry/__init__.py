"""What the bridge reports about itself: log actions, counters, spans, liveness of its threads, errors without secrets.

Counters and liveness belong to one process and start at zero. What must survive a crash is counted in Redis, by the
scripts of ``storage``.
"""

from bridge.telemetry import json_logs
from bridge.telemetry.counters import Counters, Delays
from bridge.telemetry.error_redaction import redact_worker_logs, redacting_errors
from bridge.telemetry.liveness import Liveness
from bridge.telemetry.logs import Action, LogThrottle, log_fields
from bridge.telemetry.span import Span, is_opentelemetry
from bridge.telemetry.tracing import continuing, process_span, publish_span

__all__ = [
    "Action",
    "Counters",
    "Delays",
    "Liveness",
    "LogThrottle",
    "Span",
    "continuing",
    "is_opentelemetry",
    "json_logs",
    "log_fields",
    "process_span",
    "publish_span",
    "redact_worker_logs",
    "redacting_errors",
]
