"""Leader election: of the subscribers of a group, one does its maintenance."""

from __future__ import annotations

from bridge.storage import Storage, script

#: Rounds of maintenance that a leader may miss before another subscriber is elected.
_TERM_ROUNDS = 3


class Leader:
    """One candidate for the leadership of a group. The first one is elected, until it resigns or its term expires.

    Maintenance is safe to repeat. Two leaders at a time, as after a long freeze of one process, only do needless work.

    Arguments:
        storage: The key with the name of the leader; the settings have the ``maintenance_interval_s``.
        consumer: Name of the candidate.
    """

    def __init__(self, storage: Storage, consumer: str) -> None:
        self._elect = script(storage.client, "elect")
        self._key = storage.keys.leader(storage.settings.group)
        self._term_ms = int(_TERM_ROUNDS * storage.settings.maintenance_interval_s * 1000)
        self._consumer = consumer

    def elected(self) -> bool:
        """Return whether this candidate is the leader; if so, its term starts again."""
        return bool(self._elect(keys=[self._key], args=[self._consumer, self._term_ms]))

    def resign(self) -> None:
        """End the term of this candidate, so that another is elected at once."""
        self._elect(keys=[self._key], args=[self._consumer, 0])
