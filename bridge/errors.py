"""Every error the bridge raises.

::

    BridgeError
    ├── SettingsError       a setting is unknown, missing or contradicts another
    ├── InvalidHandler      @on_event was used in a way that cannot work
    ├── InvalidEvent        an event breaks the wire format or a limit
    ├── HopLimitExceeded    tasks and events feed each other beyond ``max_hops``
    ├── RedactedError       a handler's error quoted what is sensitive; this one stands for it
    ├── BusUnavailable      Redis did not do what was asked, after bounded retries
    │   └── NotReplicated   it did, but fewer replicas than ``wait_replicas`` say that they have it
    └── JournalLost         the journal or its consumer group is gone from Redis

All of them take positional arguments only and can be pickled, because Celery carries exceptions from
one process to another.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class BridgeError(Exception):
    """Root of the tree above."""


class SettingsError(BridgeError):
    """A setting is unknown, missing or contradicts another one."""


class InvalidHandler(BridgeError, TypeError):
    """``@on_event`` was used in a way that cannot work."""


class InvalidEvent(BridgeError):
    """An event breaks the wire format or one of its limits.

    Arguments:
        reason: Stable short name, used as the reason of a dead letter and as a metric, e.g. ``non_finite``.
        field: The offending field as a path, e.g. ``payload.items[3].price``; empty for the whole message.
        detail: What is wrong with it, for a person.
    """

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(reason, field, detail)
        self.reason = reason
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field or 'event'}: {self.detail} [{self.reason}]"


class HopLimitExceeded(BridgeError):
    """An event would be more than ``max_hops`` publications away from the one that started the chain.

    Arguments:
        event_type: Type of the event that was refused.
        hops: Distance it would have had.
        max_hops: The limit.
    """

    def __init__(self, event_type: str, hops: int, max_hops: int) -> None:
        super().__init__(event_type, hops, max_hops)
        self.event_type = event_type
        self.hops = hops
        self.max_hops = max_hops

    def __str__(self) -> str:
        return (
            f"{self.event_type!r} would be hop {self.hops} of a chain, the limit is {self.max_hops}. "
            "Look for a handler that publishes a type which leads back to itself; "
            "raise bridge_max_hops if the chain is meant to be this long."
        )


class RedactedError(BridgeError):
    """Stands for an error of a handler whose text quoted what ``redact_paths`` names; the text has its type."""


class BusUnavailable(BridgeError, ConnectionError):
    """Redis could not be reached, or refused, after bounded retries. The text names the cause."""


class NotReplicated(BusUnavailable):
    """A publication is on the primary, and on fewer replicas than ``wait_replicas``: a failover may lose it.

    Publishing the same event again is safe, and waits for the replicas again.

    Arguments:
        replicas: How many have it.
        wanted: How many should.
    """

    def __init__(self, replicas: int, wanted: int) -> None:
        super().__init__(replicas, wanted)
        self.replicas = replicas
        self.wanted = wanted

    def __str__(self) -> str:
        have = f"{self.replicas} replicas have it, bridge_wait_replicas asks for {self.wanted}"
        advice = "Look after the replicas, and publish the same event again, which waits again."
        return f"published, but a failover would lose it: {have}. {advice}"


class JournalLost(BridgeError):
    """The journal or its consumer group is gone from Redis (FLUSHALL, DEL, XGROUP DESTROY)."""


def did_you_mean(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return ``did you mean NAME?`` for the known name that is closest to *name*; empty if none is close.

    Arguments:
        spell: How the text spells a known name.
    """
    guess = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {spell(guess[0])}?" if guess else ""
