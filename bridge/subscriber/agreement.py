"""Whether the groups of a bus agree: applications that are configured on their own, and share one journal.

Nothing here changes a setting. Subscribers log what they find when they start, and ``bus check`` reports it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bridge.config import BridgeSettings
from bridge.storage import GroupSettings
from bridge.subscriber.finding import Finding

_REFUSED = "an event that one of them accepts becomes a dead letter of the other"
#: What follows if two groups have different values. Those that are not here may differ.
_CONSEQUENCES = {
    "max_event_bytes": _REFUSED,
    "max_event_depth": _REFUSED,
    "max_hops": _REFUSED,
    "accepted_types": _REFUSED,
    "rejected_types": _REFUSED,
    "require_signature": f"unsigned events enter the journal, and {_REFUSED}",
    "signature_max_age_s": _REFUSED,
    "signing_keys": "events that one of them signs are refused by the other",
    "max_events_per_s_per_source": "the limit for a source depends on which of them receives its events first",
}


#: Settings that count only if both groups have this one: a group without keys neither signs nor verifies.
_ONLY_WITH = {"signing_keys": "signing_keys", "signature_max_age_s": "require_signature"}


def disagreements(settings: BridgeSettings, groups: Mapping[str, GroupSettings]) -> list[Finding]:
    """Find settings that differ between this application and groups of the bus but must not.

    Arguments:
        settings: Of this application.
        groups: The settings by group. If its own group is among them, its subscribers are compared with *settings*.
    """
    own = GroupSettings.of(settings)
    return [finding for name in sorted(groups) for finding in _compared(settings.group, own, name, groups[name])]


def _compared(own_name: str, own: GroupSettings, name: str, other: GroupSettings) -> Iterator[Finding]:
    if name == own_name:
        for setting, value in own.values.items():
            if other.values.get(setting, value) != value:
                problem = f"{_text(value)} here, {_text(other.values[setting])} in the subscribers of group {name}"
                advice = "use one configuration, and restart the subscribers"
                yield Finding(f"bridge_{setting}", problem, advice, level="warn")  # a new version may be on its way
        return
    for setting, consequence in _CONSEQUENCES.items():
        ours, theirs = own.values[setting], other.values.get(setting, own.values[setting])
        needed = _ONLY_WITH.get(setting)
        if ours == theirs or (needed and not (own.values[needed] and other.values.get(needed))):
            continue
        problem = f"{_text(ours)} in group {own_name}, {_text(theirs)} in group {name}: {consequence}"
        yield Finding(f"bridge_{setting}", problem, "use the same value in all applications of this bus")
    for (short_name, short), (long_name, long) in (((own_name, own), (name, other)), ((name, other), (own_name, own))):
        if short.dedup_ttl_s <= long.event_ttl_s:
            problem = f"{short.dedup_ttl_s} in group {short_name}, but the journal is kept for {long.event_ttl_s} s, "
            problem += f"as group {long_name} needs it: an event could be processed again when its marks have expired"
            advice = f"set bridge_event_ttl_s to {long.event_ttl_s} or more for group {short_name} too"
            yield Finding("bridge_dedup_ttl_s", problem, advice)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "empty"
    return "not set" if value is None else str(value)
