"""Settings that the groups of a bus must agree on: differences are found, and reported with both values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from redis import Redis

from bridge import BridgeSettings
from bridge.storage.group_settings import GroupSettings
from bridge.storage.keys import Keys
from bridge.storage.presence import Presence
from bridge.storage.storage import Storage
from bridge.subscriber.agreement import disagreements
from tests.support.apps import StartSubscriber
from tests.support.waiting import eventually

KEY, OTHER_KEY = "k" * 32, "o" * 32
MINE: dict[str, Any] = {
    "event_ttl_s": 7200,
    "max_event_bytes": 1000,
    "max_event_depth": 8,
    "max_hops": 4,
    "max_events_per_s_per_source": 10,
    "accepted_types": ["b", "a"],
    "rejected_types": ["c"],
    "require_signature": ["a"],
    "signature_max_age_s": 600,
    "signing_keys": {"mine": KEY, "shared": KEY},
}


def settings_of(group: str, **changed: Any) -> BridgeSettings:
    return BridgeSettings.load(group=group, **(MINE | changed))


def found(own: BridgeSettings, *others: BridgeSettings) -> dict[str, str]:
    groups = {other.group: GroupSettings.of(other) for other in others}
    return {finding.setting: finding.problem for finding in disagreements(own, groups)}


def test_groups_that_agree_have_no_findings() -> None:
    """Equal settings, in whatever order, are no finding, nor are retentions that the marks of both outlive."""
    reordered = settings_of("shop", accepted_types=["a", "b"], signing_keys={"shared": OTHER_KEY, "mine": KEY})
    assert found(settings_of("news"), reordered) == {}
    assert found(settings_of("news"), settings_of("shop", event_ttl_s=9000)) == {}


@pytest.mark.parametrize(
    ("setting", "value", "texts"),
    [
        ("max_event_bytes", 2000, ("1000", "2000")),
        ("max_event_depth", 9, ("8", "9")),
        ("max_hops", 5, ("4", "5")),
        ("max_events_per_s_per_source", None, ("10.0", "not set")),
        ("accepted_types", [], ("a, b", "empty")),
        ("rejected_types", ["d"], ("c", "d")),
        ("require_signature", [], ("a", "empty")),
        ("signature_max_age_s", 700, ("600", "700")),
        ("signing_keys", {"shared": KEY}, ("mine, shared", "shared")),
    ],
)
def test_a_difference_is_reported_with_both_values(setting: str, value: object, texts: tuple[str, str]) -> None:
    """The finding names the setting, both groups and their values; secrets are not shown."""
    problems = found(settings_of("news"), settings_of("shop", **{setting: value}))
    assert list(problems) == [f"bridge_{setting}"]
    assert problems[f"bridge_{setting}"].startswith(f"{texts[0]} in group news, {texts[1]} in group shop: ")
    assert KEY not in str(problems)


def test_marks_that_are_shorter_than_the_retention_of_another_group() -> None:
    """Either group is told when the marks of one expire before the entries that the other one keeps."""
    short, long = settings_of("short"), settings_of("long", event_ttl_s=86400, signature_max_age_s=600)
    problem = "10800 in group short, but the journal is kept for 86400 s, as group long needs it: "
    for own, other in ((short, long), (long, short)):
        assert found(own, other)["bridge_dedup_ttl_s"].startswith(problem)


def test_an_application_without_keys_may_be_beside_one_that_signs() -> None:
    """Signing keys, and the age of signatures, are compared only if both groups use them."""
    without: dict[str, Any] = {"signing_keys": {}, "require_signature": [], "signature_max_age_s": 0}
    assert found(settings_of("a", **without), settings_of("b", **without | {"event_ttl_s": 9000})) == {}
    assert found(settings_of("a", **without), settings_of("b", **without | {"signing_keys": {"mine": KEY}})) == {}


def test_commands_are_compared_with_the_subscribers_of_their_group() -> None:
    """A command whose configuration differs from that of the running subscribers of the group is told so."""
    assert found(settings_of("shop"), settings_of("shop", event_ttl_s=9000, max_hops=5)) == {
        "bridge_event_ttl_s": "7200 here, 9000 in the subscribers of group shop",
        "bridge_dedup_ttl_s": "10800 here, 12600 in the subscribers of group shop",
        "bridge_max_hops": "4 here, 5 in the subscribers of group shop",
    }


def test_settings_of_another_version_are_compared_as_far_as_they_are_known(
    client: Redis, settings: BridgeSettings
) -> None:
    """A row with fewer or further settings is compared in those that both have."""
    storage = Storage(client, settings)
    row = f"86400000 90000000 {json.dumps({'max_hops': 3, 'invented_later': 1})}"
    client.hset(Keys(settings.channel_prefix).group_settings, "later", row)
    findings = disagreements(settings, storage.group_settings.all())
    assert [finding.setting for finding in findings] == ["bridge_max_hops"]


def test_a_subscriber_warns_of_another_group(
    register_handlers: Callable[..., None],
    start_subscriber: StartSubscriber,
    client: Redis,
    settings: BridgeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When it starts, a subscriber logs a warning for each setting in which another group of the bus differs."""
    register_handlers("t.all")
    other = settings.model_copy(update={"group": "other", "max_hops": 3})
    Storage(client, other).presence.report(Presence("one"), first=True)
    subscriber = start_subscriber()
    eventually(lambda: "bridge_max_hops: 16 in group tests, 3 in group other" in caplog.text, "the warning is logged")
    assert [text for text in subscriber.info()["warnings"] if "bridge_max_hops" in text]
    stored = Storage(client, settings).group_settings.all()
    assert stored == {"tests": GroupSettings.of(settings), "other": GroupSettings.of(other)}
