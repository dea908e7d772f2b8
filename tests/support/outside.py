"""An external publisher, which has only a Redis client, and possibly signing keys."""

from __future__ import annotations

import hmac
import time
from typing import Any

from pydantic import SecretStr
from redis import Redis

from bridge import BridgeSettings, Event
from bridge.events.dialects import TYPESCRIPT_BUS_SOURCE
from bridge.events.signing import Keyring
from bridge.storage.dead_letter import DeadLetter
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage

SECRETS = {
    "new": SecretStr("the newer secret of the tests, 32 bytes and more"),
    "old": SecretStr("the older one: " * 3),
}
#: Settings of a bus that accepts ``billing.*`` only with a signature.
SIGNED: dict[str, Any] = {"signing_keys": SECRETS, "require_signature": ["billing.*"]}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def as_typescript_broadcasts(event: Event) -> Event:
    """Return *event* with the marker that the TypeScript bus writes in place of the source of every broadcast."""
    return event.model_copy(update={"source": TYPESCRIPT_BUS_SOURCE})


class Outside:
    """A program that writes to the bus without the bridge."""

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self.client = client
        self.settings = settings
        self.keys = Keys(settings.channel_prefix)
        self.keyring = Keyring(SECRETS, settings.channel_prefix)

    def signed(self, event_id: str, event_type: str = "billing.paid", payload: Any = 1, **fields: Any) -> bytes:
        return self.keyring.encode(Event(id=event_id, type=event_type, payload=payload, **fields))

    def sign(self, text: str, key_id: str = "new") -> bytes:
        """Sign a JSON text, in any spelling, as docs/explanation/signing.md describes."""
        signed = f"bridge-event:{key_id}:{self.keys.prefix}\n{text}".encode()
        digest = hmac.new(SECRETS[key_id].get_secret_value().encode(), signed, "sha256").hexdigest()
        return f'{text[:-1]},"signature":"{key_id}:{digest}"}}'.encode()

    def unsigned(self, event_id: str, event_type: str = "billing.paid", payload: Any = 1, **fields: Any) -> bytes:
        return Event(id=event_id, type=event_type, payload=payload, **fields).encode()

    def say(self, data: bytes, event_type: str = "billing.paid") -> None:
        assert self.client.publish(self.keys.channel(event_type), data) > 0, "a subscriber receives it"

    def keep(self, event_id: str, data: bytes) -> None:
        self.client.set(self.keys.event(event_id), data, ex=3600)

    def write(self, data: bytes, entry_id: str = "*", **fields: str) -> None:
        """Write an entry to the journal directly, without a mark."""
        self.client.xadd(self.keys.journal, {"event": data, **fields}, id=entry_id)

    def letters(self) -> list[DeadLetter]:
        """Return all dead letters, oldest first."""
        return list(reversed(Storage(self.client, self.settings).dead_letters.latest(100)))

    def reasons(self) -> list[str]:
        return [letter.reason for letter in self.letters()]

    def forget_marks(self) -> None:
        """Delete the marks of accepted events, finished tasks and dead letters, as if their TTL had expired."""
        for pattern in ("seen:*", "done:*", "parked:*"):
            for name in self.client.scan_iter("{" + self.keys.prefix + "}" + pattern, count=1000):
                self.client.delete(name)
