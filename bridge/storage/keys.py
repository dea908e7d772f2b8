"""The name of every key and channel the bridge uses in Redis. Nothing else spells them out.

The event key and the channels are part of the wire format and belong to every program on the bus. The
bridge's own keys carry the prefix as a hash tag, ``{prefix}``, so that in a Redis Cluster all of them share
one slot and scripts that touch several stay atomic.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from bridge.events import escape_glob


@dataclass(frozen=True)
class Keys:
    """Names below one channel prefix.

    Arguments:
        prefix: The channel prefix, e.g. ``dreamnet:events:``; not empty, without braces.
    """

    prefix: str

    # Wire format: shared with programs in other languages.

    def channel(self, event_type: str) -> str:
        """Channel on which events of *event_type* are broadcast."""
        return self.prefix + event_type

    def event(self, event_id: str) -> str:
        """String key that holds one event as JSON, with a TTL."""
        return f"{self.prefix}event:{event_id}"

    @property
    def all_channels(self) -> str:
        """PSUBSCRIBE pattern for every event of this bus."""
        return self.channels("*")

    def channels(self, type_pattern: str) -> str:
        """PSUBSCRIBE pattern for the events whose types match a glob."""
        return escape_glob(self.prefix) + type_pattern

    @property
    def all_events(self) -> str:
        """SCAN pattern for every event key of this bus."""
        return escape_glob(self.prefix) + "event:*"

    # The bridge's own.

    def _own(self, name: str) -> str:
        return "{" + self.prefix + "}" + name

    @property
    def journal(self) -> str:
        """Stream of every event, appended once per id; consumer groups read it."""
        return self._own("journal")

    @property
    def heartbeat(self) -> str:
        """Channel on which a subscriber hears itself, to notice a connection that died in silence."""
        return self._own("heartbeat")

    def seen(self, event_id: str) -> str:
        """String key: this event id is in the journal. Value ``<digest>:<fingerprint><attempt>:<entry id>``.

        It ends with ``limited`` instead of an entry id when the event was refused because its source sent too many.
        """
        return self._own(f"seen:{event_id}")

    def rate(self, source: str) -> str:
        """Counter with a TTL: new events of a source, which may be any text, since the window began."""
        return self._own(f"rate:{blake2b(source.encode(errors='backslashreplace'), digest_size=12).hexdigest()}")

    def consequences(self, cause: str) -> str:
        """Sorted set: ids of the events that an event caused, or that a chain of this id begins with, by time, ms."""
        return self._own(f"caused:{cause}")

    def done(self, task_id: str) -> str:
        """String key: this task has ended. Value: see ``ledger.Ended``."""
        return self._own(f"done:{task_id}")

    def lease(self, task_id: str) -> str:
        """Hash: this task runs, or a worker died while it ran. Fields: see ``start_run.lua``."""
        return self._own(f"lease:{task_id}")

    def inflight(self, group: str) -> str:
        """Sorted set of the tasks of one group that were sent and have not ended, by the time they are overdue."""
        return self._own(f"inflight:{group}")

    def inflight_pairs(self, group: str) -> str:
        """Hash beside ``inflight``: task id to what is needed to send it again."""
        return self._own(f"inflight-pairs:{group}")

    def queue_watermarks(self, group: str) -> str:
        """Hash beside ``inflight``: queue to the time at which the newest of its tasks that has begun was sent."""
        return self._own(f"inflight-lanes:{group}")

    def fencing_token(self, group: str) -> str:
        """Counter: raised whenever journal entries go from one consumer or connection of a group to another."""
        return self._own(f"fence:{group}")

    def upkeep(self, group: str) -> str:
        """String key with a TTL: the consumer that does the upkeep of this group now."""
        return self._own(f"upkeep:{group}")

    def dead(self, group: str) -> str:
        """Stream of the dead letters of one consumer group."""
        return self._own(f"dead:{group}")

    def dead_size(self, group: str) -> str:
        """Hash beside ``dead``: ``bytes`` it holds, letters ``dropped`` to make room."""
        return self._own(f"dead-size:{group}")

    def replay(self, group: str, name: str) -> str:
        """Hash: how far the replay of this name has come."""
        return self._own(f"replay:{group}:{name}")

    def replays(self, group: str, event_id: str) -> str:
        """Sorted set: names of the replays that gave an event to this group once more, by time, ms."""
        return self._own(f"replays:{group}:{event_id}")

    def starts(self, group: str) -> str:
        """Hash: how long after their events first runs of tasks began. Fields: see ``start_run.lua``."""
        return self._own(f"starts:{group}")

    def subscribers(self, group: str) -> str:
        """Hash: name of a live subscriber to what it last said of itself, see presence.py."""
        return self._own(f"subscribers:{group}")

    def dead_letter_dedup(self, group: str, mark: str) -> str:
        """String key: the dead letter identified by *mark* was written a moment ago."""
        return self._own(f"parked:{group}:{mark}")
