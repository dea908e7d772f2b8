"""Leader election: of the subscribers of a group, one does its maintenance, and one measures its queues."""

from __future__ import annotations

from redis import Redis

from bridge.storage import script

#: Rounds that a leader may miss before another subscriber is elected.
_TERM_ROUNDS = 3


class Leader:
    """One candidate for the leadership of a group. The first one is elected, until it resigns or its term expires.

    What a leader does is safe to repeat. Two leaders at a time, as after a long freeze of one process, only do needless
    work.

    Arguments:
        client: Connected to the bus.
        key: The key with the name of the leader.
        consumer: Name of the candidate.
        interval_s: How often the leader does its work.
    """

    def __init__(self, client: Redis, key: str, consumer: str, interval_s: float) -> None:
        self._elect = script(client, "elect")
        self._key = key
        self._term_ms = int(_TERM_ROUNDS * interval_s * 1000)
        self._consumer = consumer

    def elected(self) -> bool:
        """Return whether this candidate is the leader; if so, its term starts again."""
        return bool(self._elect(keys=[self._key], args=[self._consumer, self._term_ms]))

    def resign(self) -> None:
        """End the term of this candidate, so that another is elected at once."""
        self._elect(keys=[self._key], args=[self._consumer, 0])
