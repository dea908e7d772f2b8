"""The errors that the bridge raises in programs. Those of its commands and pages are defined where they are raised.

::

    BridgeError
    ├── SettingsError       a setting is unknown, missing or contradicts another
    │   └── AddressMissing  nothing says where the bus is
    ├── InvalidHandler      a use of @on_event cannot work
    ├── HandlerAborted      a handler has raised an exception that is not an ``Exception``
    ├── InvalidEvent        an event violates the wire format or a limit
    ├── HopLimitExceeded    tasks and events cause each other beyond ``max_hops``
    ├── RedactedError       replaces a handler's error whose text quotes sensitive values
    ├── BusUnavailable      Redis did not execute a command, after bounded retries
    │   └── NotReplicated   it did, but fewer than ``wait_replicas`` replicas have confirmed
    ├── JournalLost         the journal or its consumer group no longer exists in Redis
    └── JournalAhead        its ids are ahead of the clock of Redis; the subscriber repairs that

All of them take positional arguments only and can be pickled, because Celery passes exceptions between processes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class BridgeError(Exception):
    """Base class of all errors of the bridge."""


class SettingsError(BridgeError):
    """A setting is unknown, missing or contradicts another one."""


class AddressMissing(SettingsError):
    """Neither a setting nor the broker of the application says where the bus is."""


class InvalidHandler(BridgeError, TypeError):
    """A use of ``@on_event`` cannot work."""


class InvalidEvent(BridgeError):
    """An event violates the wire format or one of its limits.

    Arguments:
        reason: Stable short name, used as the reason of a dead letter and in metrics, e.g. ``non_finite``.
        field: Path of the invalid field, e.g. ``payload.items[3].price``; empty for the whole message.
        detail: What is wrong with it, as text.
    """

    def __init__(self, reason: str, field: str, detail: str) -> None:
        super().__init__(reason, field, detail)
        self.reason = reason
        self.field = field
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.field or 'event'}: {self.detail} [{self.reason}]"


class HopLimitExceeded(BridgeError):
    """An event would be more than ``max_hops`` publications away from the event that started the chain.

    Arguments:
        event_type: Type of the rejected event.
        hops: Number of hops that it would have had.
        max_hops: The limit.
    """

    def __init__(self, event_type: str, hops: int, max_hops: int) -> None:
        super().__init__(event_type, hops, max_hops)
        self.event_type = event_type
        self.hops = hops
        self.max_hops = max_hops

    def __str__(self) -> str:
        return (
            f"{self.event_type!r} would be hop {self.hops} of a chain; the limit is {self.max_hops}. "
            "Look for a handler that publishes a type which leads back to itself. "
            "If the chain is meant to be this long, raise bridge_max_hops."
        )


class HandlerAborted(BridgeError):
    """A handler has raised what Celery does not expect of a task, e.g. SystemExit or CancelledError; the text names it.

    The task has failed with a dead letter, like with any other error. The cause of this exception is the original one.
    """


class RedactedError(BridgeError):
    """Replaces an error of a handler whose text quotes a value of ``redact_paths``; the text names its type."""


class BusUnavailable(BridgeError, ConnectionError):
    """Redis could not be reached or returned an error, after bounded retries. The text names the cause."""


class NotReplicated(BusUnavailable):
    """A published event is on the primary, but on fewer than ``wait_replicas`` replicas: a failover may lose it.

    Publishing the same event again is safe, and waits for the replicas again.

    Arguments:
        replicas: How many replicas have confirmed.
        wanted: How many are required.
    """

    def __init__(self, replicas: int, wanted: int) -> None:
        super().__init__(replicas, wanted)
        self.replicas = replicas
        self.wanted = wanted

    def __str__(self) -> str:
        have = f"{self.replicas} replicas have confirmed it, bridge_wait_replicas requires {self.wanted}"
        advice = "Check the replicas, then publish the same event again, which waits for them again."
        return f"published, but a failover may lose the event: {have}. {advice}"


class JournalLost(BridgeError):
    """The journal or its consumer group no longer exists in Redis (FLUSHALL, DEL, XGROUP DESTROY)."""


class JournalAhead(BridgeError):
    """Ids of the journal are ahead of the clock of Redis, which is repaired before any further dispatch."""


def did_you_mean(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return ``did you mean NAME?`` for the known name that is closest to *name*; empty if none is close.

    Arguments:
        spell: How the text spells a known name.
    """
    guess = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {spell(guess[0])}?" if guess else ""
