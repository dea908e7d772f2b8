"""Checks of the journals on the server: the ids of this one, and others that share channels with it."""

from __future__ import annotations

from collections.abc import Iterator

from redis import Redis

from bridge.config import BridgeSettings
from bridge.redis import servers_of
from bridge.storage import MAX_AHEAD_MS, Keys, Storage, read_status
from bridge.subscriber.finding import Finding

#: Names that Redis inspects in one step of a scan.
_SCAN_COUNT = 5000


def check_journal_ids(storage: Storage) -> list[Finding]:
    """Compare the last id of the journal with the clock of the server.

    Raises:
        RedisError: The server does not answer.
    """
    status = read_status(storage)
    ahead_ms = status.last_ms - status.at_ms
    if ahead_ms <= MAX_AHEAD_MS:
        return []
    problem = f"the last one is {ahead_ms / 1000:.0f} s ahead of the clock of Redis: entries are not trimmed in time"
    advice = (
        "start a worker, or bus subscribe, which repairs it; check the clock of the server, and who can write to it"
    )
    return [Finding(f"ids of {storage.keys.journal}", problem, advice, level="warn")]


def check_prefixes(client: Redis, settings: BridgeSettings) -> list[Finding]:
    """Find other buses on the same Redis whose channel prefix begins with that of this one, or the other way round.

    Without broadcasts they do not meet.

    Raises:
        RedisError: A server does not answer.
    """
    if not settings.enable_pubsub:
        return []
    prefix = settings.channel_prefix
    advice = "choose prefixes of which none begins with another one"
    findings = []
    for other in sorted(_prefixes(client) - {prefix}):
        if other.startswith(prefix):
            problem = f"the bus {other!r} begins with it: this bus receives what is broadcast there"
            findings.append(Finding("channel_prefix", f"{problem}, and publishers of this bus reach that one", advice))
        elif prefix.startswith(other):
            problem = f"it begins with that of the bus {other!r}: that bus receives what is broadcast here"
            findings.append(Finding("channel_prefix", f"{problem}, and publishers of that bus reach this one", advice))
    return findings


def _prefixes(client: Redis) -> set[str]:
    """Return the prefixes of the buses that have a journal on the servers of *client*."""
    return {prefix for _, server in servers_of(client) for prefix in _prefixes_on(server)}


def _prefixes_on(server: Redis) -> Iterator[str]:
    start, end = Keys("*").journal.split("*")
    for name in server.scan_iter(match=start + "*" + end, count=_SCAN_COUNT, _type="stream"):
        yield name.decode(errors="backslashreplace").removeprefix(start).removesuffix(end)
