"""What programs of the original TypeScript bus publish, and what of it arrives: one row for each shape.

The shapes are those of the programs around that bus. A row has the fields of the object that is given to ``publish()``,
and what arrives: the event as handlers get it, or the reason of its dead letter. ``test_shapes.py`` sends each as that
bus does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: A time in the fields of a row, ms since the epoch.
AT = 1_764_500_000_000
ISO = "2025-11-30T10:53:20.000Z"


@dataclass(frozen=True)
class Arrives:
    """The event arrives as it was published, apart from these *changes*; a field that is None is left out."""

    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """There is one dead letter for the event, with this *reason*."""

    reason: str


@dataclass(frozen=True)
class Shape:
    """One object that is published, and its *outcome*."""

    name: str
    fields: dict[str, Any]
    outcome: Arrives | Refused

    @property
    def id(self) -> str:
        """The id under which the TypeScript bus stores the event."""
        return _in_a_name(self.fields.get("id", "undefined"))

    @property
    def type(self) -> str:
        """The type at the end of the channel on which it broadcasts the event."""
        return _in_a_name(self.fields.get("type", "undefined"))

    @property
    def kept(self) -> bytes:
        """The content of the event key."""
        return stringified(self.fields)

    @property
    def broadcast(self) -> bytes:
        """The broadcast, in which a marker takes the place of the source."""
        return stringified(self.fields | {"source": "RedisEventBus"})

    def arrived(self, **changes: Any) -> dict[str, Any]:
        """Return the fields of the event that handlers get, with further *changes*."""
        assert isinstance(self.outcome, Arrives)
        fields = self.fields | self.outcome.changes | changes
        return {name: value for name, value in fields.items() if value is not None} | {"payload": fields["payload"]}


def _in_a_name(value: Any) -> str:
    return "null" if value is None else str(value)


def stringified(value: Any) -> bytes:
    """Return what ``JSON.stringify()`` makes of *value*."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text).encode()


def row(name: str, /, _outcome: Arrives | Refused | None = None, **fields: Any) -> Shape:
    """Return a shape with a separate id, unless it has one; without an outcome it arrives unchanged."""
    given = {"id": "s-" + re.sub(r"[^a-z0-9]+", "-", name.lower())} | fields
    return Shape(name, given, _outcome or Arrives())


def without(name: str, missing: str, _outcome: Arrives | Refused, **fields: Any) -> Shape:
    """Return a shape that lacks a field."""
    shape = row(name, _outcome, **fields)
    return Shape(name, {key: value for key, value in shape.fields.items() if key != missing}, _outcome)


def spine(event_type: str, source: str, payload: Any, **more: Any) -> Shape:
    """Return an envelope of createEventEnvelope(), as the wrappers of the spine publish it."""
    category = event_type.partition(".")[0].lower()
    more = {"metadata": {"category": category}, "correlationId": f"corr-{event_type}"} | more
    return row(event_type, type=event_type, timestamp=AT, source=source, payload=payload, **more)


def envelopes() -> Iterator[Shape]:
    shield = ["ThreatDetected", "ThreatAnalyzed", "SpikeFired", "PhaseShifted", "ThreatBlocked", "ShieldStatus", "Scan"]
    for name in shield:
        yield spine(f"Security.{name}", "ShieldCoreWrapper", {"threatId": "t-1", "blocked": True, "level": 3})
    for name in ("NavigationAttempted", "ActionBlocked", "ActionAllowed", "ActionCompleted", "ActionFailed"):
        yield spine(f"Browser.{name}", "BrowserAgentWrapper", {"url": "https://dream.net/?q=ä&b=1", "ms": 12.5})
    for name in ("Initiated", "Completed", "Failed", "StatusChecked", "Listed"):
        yield spine(f"Deployment.{name}", "DeploymentWrapper", {"id": "d-1", "env": {}, "logs": ["a", None]})
    for name in ("Announced", "Withdrawn"):
        yield spine(f"Agent.Route.{name}", "agent-7", {"prefix": "agent/*", "hops": ["a", "b"], "cost": 0.1})
    for name in ("Registered", "Removed"):
        yield spine(f"Interop.Provider.{name}", "AgentInteropRegistry", {"providerId": "p", "capabilities": []})
    yield row("Test.Event", type="Test.Event", timestamp=AT, source="validate-spine", payload={})


def sourceless() -> Iterator[Shape]:
    """Events without a source, which must not get the marker as one."""
    yield row("the bus's own example", id="event-123", type="dream.created", payload={"dreamId": "d-1"}, timestamp=AT)
    packets = ["dream.updated", "dream.published", "shield.alert", "mesh.event", "agent.message", "vault.stored"]
    for name in [*packets, "treasury.moved", "wormhole.delivered.mesh.event"]:
        yield row(f"packet {name}", type=name, payload={"a": [1]}, metadata={"fiber": "f-1"}, timestamp=AT)
    for name in ("degradation", "failure", "recovery", "trend"):
        fields = {
            "severity": "critical",
            "subsystem": "DreamVault",
            "message": "DreamVault has failed",
            "timestamp": AT,
        }
        yield row(f"alert {name}", Arrives({"payload": None}), id=f"alert:DreamVault:{name}", type=name, **fields)
    yield row("message of an agent", type="agent_message", payload="[SHIELD] ALERT: …", timestamp=AT, sig="0xabc")
    yield row("empty source", type="dream.created", payload=1, source="", timestamp=AT)
    yield row("null as source", Arrives({"source": None}), type="dream.created", payload=1, source=None, timestamp=AT)
    yield row("source of another form", Arrives({"source": None}), type="a.b", payload=1, source={"n": 1}, timestamp=AT)
    yield row(
        "the marker in the key", Arrives({"source": None}), type="a.b", source="RedisEventBus", timestamp=AT, payload=0
    )


def typeless() -> Iterator[Shape]:
    """Envelopes of other systems, in which something else stands for the type: one dead letter each, and no event."""
    refused = Refused("no_type")
    for kind in ("REQUEST_DECISION", "THREAT_DETECTED", "SEO_APPLIED", "TREASURY_MOVE", "METRIC_SNAPSHOT"):
        context = {"timestamp": ISO, "traceId": "t-1", "sampled": True}
        yield row(
            f"nerve {kind}", refused, channelId="GENERIC", kind=kind, priority=3, context=context, payload={"a": 1}
        )
    yield row("message of the nervous system", refused, ts=AT, role="sensor", topic="alert", payload={}, priority=1)
    yield row("message of the message bus", refused, topic="bridge.message", payload={"a": 1}, timestamp=AT)
    yield row("recovery action", refused, subsystem="DreamVault", action="restart", timestamp=AT)
    yield row("null as type", refused, type=None, payload=1, timestamp=AT)
    yield row("undefined as a text", refused, type="undefined", payload=1, timestamp=AT)
    model = {"dreamId": "d-1", "payload": {"severity": "info"}, "timestamp": ISO, "source": "wormholes"}
    renamed = Arrives({"eventType": None, "type": "dream.remixed"})
    yield row("eventType alone", renamed, eventType="dream.remixed", **model)
    # That bus stores all of these under one key, so the source of each is lost.
    renamed = Arrives({"eventId": None, "eventType": None, "id": "e-1", "type": "dream.created", "source": None})
    fields = {"eventType": "dream.created", "timestamp": AT, "source": "spine", "payload": {}, "severity": "info"}
    yield without("envelope of January 2026", "id", renamed, eventId="e-1", correlationId="c", **fields)


def idless() -> Iterator[Shape]:
    types = ["Market.PriceChanged", "Market.OrderFilled", "Oracle.PricePulse", "DreamBet.RoundSettled"]
    types += ["Agent.ImpactScore", "Agent.TaskAssigned", "Swarm.Heartbeat", "Treasury.Report", "Signal.Emitted"]
    for name in types:
        fields = {"type": name, "payload": {"value": 1.5}, "source": "market", "timestamp": AT}
        yield without(f"without id: {name}", "id", Refused("no_id"), **fields)
    yield without("control core", "id", Refused("no_id"), type="cluster.health", traceId="t-1", timestamp=AT)
    yield without("suggested task", "id", Refused("no_id"), type="task", title="Write docs", priority="high")
    yield row("null as id", Refused("no_id"), id=None, type="dream.created", payload=1, timestamp=AT)


def types() -> Iterator[Shape]:
    for name in ("heartbeat", "journal", "event:created", "done:step", "dead:end", "seen:it", "bridge.message"):
        yield row(f"type {name}", type=name, payload={"ok": True}, timestamp=AT, source="s")
    yield row("type dreamnet.memory.sync", type="dreamnet.memory.sync.user_1", payload={}, timestamp=AT, source="s")
    for name in ("dreamnet.mesh.sync.user 1", "youtube#video", "a@b", "Paddle Tech", "größe", "*", "[SHIELD] ALERT: x"):
        yield row(f"type {name}", Refused("type"), id=f"bad-type-{len(name)}", type=name, payload={}, timestamp=AT)
    yield row("type that is a number", Refused("type"), type=5, payload={}, timestamp=AT)


def numbers() -> Iterator[Shape]:
    """Numbers that JavaScript writes in digits arrive exactly."""
    for name, value in {
        "10 ether in wei": 10**19,
        "1.5e20": 150_000_000_000_000_000_000,
        "the largest in digits": 999_999_999_999_999_934_464,
        "2^53": 2**53,
        "2^63": 2**63,
        "negative": -(10**20),
        "1e21": 1e21,
        "fraction": 0.1,
    }.items():
        yield row(f"number {name}", type="token.moved", payload={"amount": value}, timestamp=AT, source="zora")
    yield row("text of a BigInt", type="token.moved", payload={"amount": str(10**30)}, timestamp=AT, source="zora")
    yield row("larger integer", Refused("integer_range"), type="token.moved", payload=10**21 + 1, timestamp=AT)


def texts() -> Iterator[Shape]:
    """Text that ``slice()`` has cut within an emoji."""
    moon = "\U0001f319"
    yield row("whole emoji", type="dream.told", payload={"text": moon * 2}, timestamp=AT, source="s")
    cut = Arrives({"payload": {"text": moon + "\ufffd"}})
    yield row("half an emoji", cut, type="dream.told", payload={"text": moon + "\ud83c"}, timestamp=AT, source="s")
    back = Arrives({"payload": ["\ufffd" + moon]})
    yield row("other half", back, type="dream.told", payload=["\udf19" + moon], timestamp=AT, source="s")
    name = Arrives({"payload": {"\ufffd": 1}})
    yield row("half in a name", name, type="dream.told", payload={"\ud83c": 1}, timestamp=AT, source="s")
    meta = Arrives({"metadata": {"title": "\ufffd"}})
    yield row("half in metadata", meta, type="dream.told", payload=1, metadata={"title": "\ud83c"}, timestamp=AT)
    source = Arrives({"source": "\ufffd"})
    yield row("half in the source", source, type="dream.told", payload=1, source="\ud83c", timestamp=AT)
    yield row("control characters", type="dream.told", payload="a\0\u2028\n", timestamp=AT, source="s")


def fields() -> Iterator[Shape]:
    """Fields that are missing, or have other forms."""
    for topic in ("Governor", "Deploy", "System", "Economy", "Vault"):
        name = f"{topic}.changed"
        yield row(
            f"no payload: {topic}", Arrives({"payload": None}), type=name, topic=topic, timestamp=AT, source="star"
        )
    yield row("number as id", Arrives({"id": "7001"}), id=7001, type="a.b", payload=1, timestamp=AT)
    yield row("null as metadata", Arrives({"metadata": None}), type="a.b", payload=1, metadata=None, timestamp=AT)
    yield row("list as metadata", Refused("metadata"), type="a.b", payload=1, metadata=[1], timestamp=AT)
    yield row(
        "number as correlation id", Refused("correlationId"), type="a.b", payload=1, correlationId=1, timestamp=AT
    )
    yield row("text as timestamp", type="a.b", payload=1, timestamp=ISO, source="s")
    yield row("seconds as timestamp", type="a.b", payload=1, timestamp=AT // 1000, source="s")
    yield row("no timestamp", type="a.b", payload=1, source="s")
    yield row("ts", type="a.b", payload=1, ts=AT, source="s")
    yield row("object as timestamp", Refused("timestamp"), type="a.b", payload=1, timestamp={})
    yield row("other signature", type="a.b", payload=1, signature="0xabc", timestamp=AT, source="s")
    yield row("names of the bridge", type="a.b", payload=1, metadata={"replay": True, "taskId": "t"}, timestamp=AT)
    yield row("hops", Refused("hop_limit"), type="a.b", payload=1, timestamp=AT, metadata={"hops": 17})
    for number, name in enumerate(("YWJj/ZGVm==", "order#12", "a b")):
        yield row(f"id {number}", Refused("id"), id=name, type="a.b", payload=1, timestamp=AT)


def limits() -> Iterator[Shape]:
    deep: Any = 1
    for _ in range(64):
        deep = [deep]
    yield row("65 levels", Refused("depth"), type="a.b", payload=deep, timestamp=AT)
    yield row("over 1 MiB", Refused("size"), type="Browser.Screenshot", payload="x" * 1024 * 1024, timestamp=AT)
    celery = {"__type__": "datetime", "__value__": ISO}
    yield row("an object of Celery", Refused("reserved"), type="a.b", payload=celery, timestamp=AT)


def cloudevents() -> Iterator[Shape]:
    attributes = {"specversion": "1.0", "type": "com.example.order", "source": "/orders", "time": ISO}
    mapped = {"payload": {"n": 1}, "data": None, "time": None, "timestamp": AT}
    yield row("CloudEvent", Arrives(mapped), **attributes, data={"n": 1}, subject="s", dataschema="https://e.com/1")
    chain = {"correlationid": "c-1", "causationid": "e-0", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    moved = {"correlationId": "c-1", "metadata": {"causationId": "e-0", "traceparent": chain["traceparent"]}}
    moved = dict.fromkeys(chain, None) | moved
    yield row("CloudEvent of a chain", Arrives(mapped | moved), **attributes, **chain, data={"n": 1})
    yield row("CloudEvent with binary data", Refused("cloudevent"), **attributes, data_base64="AAECAw==")


SHAPES = [
    *(*envelopes(), *sourceless(), *typeless(), *idless(), *types(), *numbers(), *texts(), *fields(), *limits()),
    *cloudevents(),
]
ARRIVING = [shape for shape in SHAPES if isinstance(shape.outcome, Arrives)]
REFUSED = [shape for shape in SHAPES if isinstance(shape.outcome, Refused)]
