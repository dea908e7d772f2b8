"""The signature of an event: what it covers, what is refused, and whether docs/explanation/signing.md is right."""

from __future__ import annotations

import json
import traceback
from typing import Any

import pytest
from pydantic import SecretStr

from bridge import BridgeSettings, Event
from bridge.errors import InvalidEvent, SettingsError
from bridge.events.encoded import EncodedEvent
from bridge.events.signing import Keyring, is_signed, unsigned
from tests.support import ROOT
from tests.support.walkthrough import texts_of

PAGE = (ROOT / "docs" / "explanation" / "signing.md").read_text()
VECTORS: dict[str, Any] = json.loads(texts_of(PAGE, "json")[0])
KEYS = {key_id: SecretStr(secret) for key_id, secret in VECTORS["keys"].items()}
KEYRING = Keyring(KEYS, VECTORS["prefix"])
SECRET = "a secret of 32 bytes or some more"
load = BridgeSettings.load


@pytest.mark.parametrize("text", VECTORS["valid"])
def test_valid_vectors(text: str) -> None:
    """The valid examples of the page verify, are kept byte for byte, and decode to the events that they contain."""
    fields = KEYRING.verify(text.encode())
    event, kept, *_ = Event.receive(text.encode(), max_bytes=len(text.encode()))
    assert kept == text.encode()
    assert is_signed(event)
    assert event.id == fields["id"]


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda vector: vector["why"])
def test_invalid_vectors(vector: dict[str, str]) -> None:
    """The invalid examples of the page do not verify, although each can be decoded."""
    text = vector["event"].encode()
    with pytest.raises(InvalidEvent) as refused:
        KEYRING.verify(text)
    assert refused.value.reason == "signature"
    assert Event.decode(text, max_bytes=len(text)).id == "d1"


def test_what_is_signed_here_is_the_format_of_the_page() -> None:
    """An event that the bridge signs equals the first example of the page."""
    payload = {"text": "flying"}
    event = Event(id="d1", type="dream.created", payload=payload, timestamp=1795000000000, source="dream-service")
    assert KEYRING.encode(event) == VECTORS["valid"][0].encode()


@pytest.mark.parametrize("place", range(0, len(VECTORS["valid"][0]), 7))
def test_any_other_byte_is_noticed(place: int) -> None:
    """A signed event does not verify if any byte of it is changed."""
    data = bytearray(VECTORS["valid"][0].encode())
    data[place] ^= 1
    assert not KEYRING.has_signed(bytes(data))


def test_one_key_goes_and_another_comes() -> None:
    """The first key signs, and all keys verify; without its key a signature is refused, and the error names the key."""
    old, new = ({key_id: secret} for key_id, secret in KEYS.items())
    event = Event(type="a.b")
    before, between, after = (Keyring(keys, "p:") for keys in (old, new | old, new))
    assert between.has_signed(before.encode(event))
    assert after.has_signed(between.encode(event))
    assert not before.has_signed(between.encode(event))
    with pytest.raises(InvalidEvent, match=r"no key '2026-11' in bridge_signing_keys"):
        after.verify(before.encode(event))


def test_an_event_published_again_has_one_signature() -> None:
    """Encoding an event again replaces or removes our signature, and keeps fields of that name that are not ours."""
    event = Event.decode(VECTORS["valid"][0].encode(), max_bytes=1000)
    assert KEYRING.encode(event) == VECTORS["valid"][0].encode()
    assert b"signature" not in Keyring({}, "p:").encode(event)
    assert not is_signed(unsigned(event))
    assert event.child("c.d").to_dict().keys().isdisjoint({"signature"})
    other = Event.from_dict({"id": "i", "type": "a.b", "timestamp": 1, "signature": "by hand, in ink"})
    assert b"in ink" in Keyring({}, "p:").encode(other)
    assert KEYRING.has_signed(KEYRING.encode(other))


def test_the_signature_counts_as_part_of_the_size() -> None:
    """An event that exceeds the size limit only with its signature is refused, because no receiver would accept it."""
    event = Event(type="a.b")
    size = len(KEYRING.encode(event))
    assert len(KEYRING.encode(event, max_bytes=size)) == size
    with pytest.raises(InvalidEvent, match=f"with its signature the event has {size} bytes, the limit is {size - 1}"):
        KEYRING.encode(event, max_bytes=size - 1)


def test_a_signed_event_is_kept_however_it_is_spelt() -> None:
    """Order and white space of a signed event are preserved, so that other subscribers can verify it."""
    odd = VECTORS["valid"][1].encode()
    assert Event.receive(odd, max_bytes=1000)[1] == odd
    without = odd[: odd.index(b',"signature"')] + b"}"
    assert EncodedEvent.receive(without, max_bytes=1000).data.startswith(b'{"id":"d2","type":')


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no keys": ({"require_signature": ["a.*"]}, "require_signature needs signing_keys"),
    "short secret": (
        {"signing_keys": {"k": SECRET[:31]}},
        r"secret of key 1 must be a string of 32 bytes or more; create",
    ),
    "not a text": ({"signing_keys": {"k": 12345}}, "secret of key 1"),
    "key id": ({"signing_keys": {"ok": SECRET, "a:b": SECRET}}, "the id of key 2 is not 1 to 64 of"),
    "mixed up": ({"signing_keys": {SECRET.replace(" ", "-"): "2026-11"}}, "the secret of key 1"),
    "no object": ({"signing_keys": [SECRET]}, "a mapping of key ids to secrets"),
    "pattern": ({"require_signature": ["a.[b"], "signing_keys": {"k": SECRET}}, "require_signature: .* not closed"),
    "accepted_types": ({"accepted_types": [""]}, "accepted_types: .*empty pattern"),
    "too old": (
        {"require_signature": ["*"], "signing_keys": {"k": SECRET}, "signature_max_age_s": 89_701},
        "signature_max_age_s must be at least 300 s below dedup_ttl_s",
    ),
    "too old by default": (
        {"require_signature": ["*"], "signing_keys": {"k": SECRET}, "event_ttl_s": 60, "dedup_ttl_s": 61},
        "signature_max_age_s must be at least 300 s below dedup_ttl_s",
    ),
}


@pytest.mark.parametrize(("explicit", "text"), REFUSED.values(), ids=list(REFUSED))
def test_settings_that_cannot_work(explicit: dict[str, Any], text: str) -> None:
    """Invalid settings are refused at start-up, and the error shows no secret, even in the place of a key id."""
    with pytest.raises(SettingsError, match=text) as refused:
        load(**explicit)
    said = "".join(traceback.format_exception(refused.value))
    assert SECRET[:31] not in said.replace("-", " ")


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing keys in the environment are ordered JSON, and settings as text do not show them."""
    monkeypatch.setenv("BRIDGE_SIGNING_KEYS", json.dumps({"new": SECRET, "old": SECRET + "!"}))
    monkeypatch.setenv("BRIDGE_REQUIRE_SIGNATURE", '["billing.*"]')
    settings = load()
    assert list(settings.signing_keys) == ["new", "old"]
    assert settings.require_signature == ["billing.*"]
    assert settings.signature_max_age_ms == settings.event_ttl_ms
    keyring = Keyring(settings.signing_keys, "p:")
    assert b'"signature":"new:' in keyring.encode(Event(type="a.b"))
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {keyring!r}"


def test_an_environment_that_is_no_json_keeps_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """If signing keys are not valid JSON, the error names the setting but shows nothing of its value."""
    monkeypatch.setenv("BRIDGE_SIGNING_KEYS", "{2026-11: " + SECRET)
    with pytest.raises(SettingsError, match="signing_keys") as refused:
        load()
    assert SECRET not in "".join(traceback.format_exception(refused.value))
