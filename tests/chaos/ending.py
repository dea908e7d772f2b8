"""The end of a run: wait until a site has finished its work, and collect the evidence."""

from __future__ import annotations

import sys
import time
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from bridge import BridgeSettings
from bridge.storage.keys import Keys
from bridge.storage.storage import Storage
from tests.chaos.app import broker_prefix, effects_key, of_group
from tests.chaos.oracle import Evidence, Verdict, judge, together
from tests.chaos.site import PREFIX, Site

_PAGE = 10_000


def come_to_rest(site: Site, timeout_s: float) -> tuple[str, Verdict]:
    """Wait until no work is left and no event is missing, and return the verdict.

    Arguments:
        timeout_s: The maximum time without progress, that is, without a new minimum of the remaining work. After the
            loss of a journal, all retained events are queued again, which takes the workers as long as it takes.

    Returns:
        The work that was left in spite of that, and the verdict.
    """
    least, deadline = sys.maxsize, time.monotonic() + timeout_s
    while True:
        site.tend()
        count, left = _left(site)
        if count < least:
            least, deadline = count, time.monotonic() + timeout_s
        late = time.monotonic() > deadline
        if late or not left:
            verdict = together({group: judge(gather(site, group)) for group in site.groups})
            # The catch-up scan may not have found an external publisher's event yet; until then, no list contains it.
            if late or not verdict.lost:
                return left, verdict
        time.sleep(0.5)


def _left(site: Site) -> tuple[int, str]:
    """Return how much work all applications have left, and a description of it, or the reason why it is unknown."""
    found = [_left_of(site, group) for group in site.groups]
    return sum(count for count, _ in found), ", ".join(left for _, left in found if left)


def _left_of(site: Site, name: str) -> tuple[int, str]:
    keys = Keys(PREFIX)
    try:
        with Redis.from_url(site.bus.url) as bus, Redis.from_url(site.broker.url) as broker:
            groups: Any = bus.xinfo_groups(keys.journal)
            group = next((row for row in groups if row["name"] == name.encode()), None)
            if group is None:
                return sys.maxsize, "no group"
            counts = {
                "pending": group["pending"],
                "not read": 0 if group["last-delivered-id"] == _last_id(bus, keys.journal) else 1,
                "in the ledger": bus.zcard(keys.inflight(name)),
                "in the queue": broker.llen(f"{broker_prefix(name)}celery"),
                # The index from which Celery restores messages; messages without an entry in it are never restored.
                "not acknowledged": broker.zcard(f"{broker_prefix(name)}unacked_index"),
            }
    except (RedisError, OSError) as error:
        return sys.maxsize, str(error)
    return sum(counts.values()), ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _last_id(bus: Redis, journal: str) -> bytes:
    rows: Any = bus.xrevrange(journal, count=1)
    return bytes(rows[0][0]) if rows else b"0-0"


def gather(site: Site, group: str) -> Evidence:
    """Read the evidence about one application from the publishers' logs, from the oracle and from the bus."""
    settings = BridgeSettings.load(redis_url=site.bus.url, channel_prefix=PREFIX, group=group)
    with Redis.from_url(site.bus.url) as bus, Redis.from_url(site.oracle.url) as oracle:
        letters = Storage(bus, settings).dead_letters.latest(1_000_000)
        return Evidence(
            accepted=site.accepted(),
            journalled=_journalled(bus),
            effects=_texts(oracle, of_group("runs", group)) + _texts(bus, effects_key(group)),
            deliveries=_texts(oracle, of_group("deliveries", group)),
            dead_letters=[(letter.handler, letter.event_id, letter.reason) for letter in letters],
            losses=site.losses,
        )


def _texts(client: Redis, key: str) -> list[str]:
    return [value.decode() for value in client.lrange(key, 0, -1)]


def _journalled(bus: Redis) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    start = "-"
    while rows := _rows(bus, start):
        found += [(fields[b"type"].decode(), fields[b"id"].decode()) for _, fields in rows]
        start = f"({rows[-1][0].decode()}"
    return found


def _rows(bus: Redis, start: str) -> Any:
    return bus.xrange(Keys(PREFIX).journal, min=start, count=_PAGE)
