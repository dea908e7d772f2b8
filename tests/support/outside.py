"""Who reaches the bus with a Redis client alone, with keys to sign with or without."""

from __future__ import annotations

import hmac
import time
from typing import Any

from pydantic import SecretStr
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.events.signing import Keyring
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage

SECRETS = {
    "new": SecretStr("the newer secret of the tests, 32 bytes and more"),
    "old": SecretStr("the older one: " * 3),
}
#: Settings of a bus on which ``billing.*`` counts only when it is signed.
SIGNED: dict[str, Any] = {"signing_keys": SECRETS, "require_signature": ["billing.*"]}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Outside:
    """A program that writes to the bus by hand."""

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.channel_prefix)
        self.keyring = Keyring(SECRETS, settings.channel_prefix)

    def signed(self, event_id: str, event_type: str = "billing.paid", payload: Any = 1, **fields: Any) -> bytes:
        return self.keyring.encode(Event(id=event_id, type=event_type, payload=payload, **fields))

    def sign(self, text: str, key_id: str = "new") -> bytes:
        """Sign a JSON text, however it is spelt, as docs/signing.md says."""
        signed = f"bridge-event:{key_id}:{self.keys.prefix}\n{text}".encode()
        digest = hmac.new(SECRETS[key_id].get_secret_value().encode(), signed, "sha256").hexdigest()
        return f'{text[:-1]},"signature":"{key_id}:{digest}"}}'.encode()

    def unsigned(self, event_id: str, event_type: str = "billing.paid", payload: Any = 1, **fields: Any) -> bytes:
        return Event(id=event_id, type=event_type, payload=payload, **fields).encode()

    def say(self, data: bytes, event_type: str = "billing.paid") -> None:
        assert self.client.publish(self.keys.channel(event_type), data) > 0, "somebody hears it"

    def keep(self, event_id: str, data: bytes) -> None:
        self.client.set(self.keys.event(event_id), data, ex=3600)

    def write(self, data: bytes, entry_id: str = "*", **fields: str) -> None:
        """Write straight into the journal, as a library does, without its mark."""
        self.client.xadd(self.keys.journal, {"event": data, **fields}, id=entry_id)

    def letters(self) -> list[DeadLetter]:
        """The dead letters there are, the oldest first."""
        return list(reversed(Storage(self.client, self.settings).dead_letters.latest(100)))

    def reasons(self) -> list[str]:
        return [letter.reason for letter in self.letters()]

    def forget_marks(self) -> None:
        """Do what time does to the marks of what came and of what was done."""
        for pattern in ("seen:*", "done:*", "parked:*"):
            for name in self.client.scan_iter("{" + self.keys.prefix + "}" + pattern, count=1000):
                self.client.delete(name)
