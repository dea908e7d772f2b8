"""What the bridge reports about itself: log actions, counters, liveness of its threads, errors without secrets.

Counters and liveness belong to one process and start at zero. What must survive a crash is counted in Redis, by the
scripts of ``storage``.
"""

from bridge.telemetry import json_logs
from bridge.telemetry.counters import Counters, Delays
from bridge.telemetry.error_redaction import redact_worker_logs, redacting_errors
from bridge.telemetry.liveness import Liveness
from bridge.telemetry.logs import Action, LogThrottle, log_fields

__all__ = [
    "Action",
    "Counters",
    "Delays",
    "Liveness",
    "LogThrottle",
    "json_logs",
    "log_fields",
    "redact_worker_logs",
    "redacting_errors",
]
