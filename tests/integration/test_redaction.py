"""``bus tail`` does not show sensitive values."""

from __future__ import annotations

import json

from redis import Redis

from bridge import BridgeSettings, EventBus
from bridge.events.redaction import REDACTED
from tests.support.processes import Processes
from tests.support.sensitive import PAYLOAD, SENSITIVE
from tests.support.waiting import eventually


def test_tail(processes: Processes, settings: BridgeSettings, client: Redis) -> None:
    """Sensitive values are redacted in live events and in events from the journal."""
    with EventBus(settings) as bus:
        bus.publish("dream.created", PAYLOAD, id="e1")
        for name, options in (("text", []), ("json", ["--json"])):
            environment = {"BRIDGE_REDACT_PATHS": json.dumps(SENSITIVE)}
            processes.celery("bus", "tail", "--since", "1h", *options, name=name, **environment)
            eventually(lambda name=name: "live:" in processes.log(name), "it is subscribed")
            bus.publish("dream.created", PAYLOAD, id=f"live-{name}")
            eventually(lambda name=name: f"live-{name}" in processes.log(name), "the event is shown")
            assert processes.log(name).count(REDACTED) == processes.log(name).count("Ada") >= 2
            assert "lovelace" not in processes.log(name)
