"""The name of every key and channel that the bridge uses in Redis. No other module spells them out.

The event keys and the channels are part of the wire format and belong to every program on the bus. The bridge's own
keys carry the prefix as a hash tag, ``{prefix}``, so that in a Redis Cluster all of them share one slot, and scripts
that use several of them stay atomic.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from bridge.events import escape_glob


@dataclass(frozen=True)
class Keys:
    """The names under one channel prefix.

    Arguments:
        prefix: The channel prefix, e.g. ``dreamnet:events:``; not empty, without braces.
    """

    prefix: str

    # Wire format: shared with programs in other languages.

    def channel(self, event_type: str) -> str:
        """Channel on which events of *event_type* are broadcast."""
        return self.prefix + event_type

    def event(self, event_id: str) -> str:
        """String: one event as JSON, with a TTL."""
        return f"{self.prefix}event:{event_id}"

    def event_id(self, event_key: bytes) -> str:
        """Return the event id in the name of an event key."""
        return event_key.decode(errors="backslashreplace").removeprefix(self.event(""))

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
        """Stream: every event, appended once per id; consumer groups read it."""
        return self._own("journal")

    @property
    def group_settings(self) -> str:
        """Hash: group to the settings that other groups need to know, see ``group_settings.py``."""
        return self._own("group-settings")

    @property
    def journal_start(self) -> str:
        """String: the first entry of the journal after the last trim, see ``trim.lua``."""
        return self._own("journal-start")

    @property
    def set_aside(self) -> str:
        """List: names of the streams :meth:`aside`, the oldest first."""
        return self._own("set-aside")

    def aside(self, name: str) -> str:
        """Stream: entries that are on their way back to the journal, see ``set_aside.lua``."""
        return self._own(f"aside:{name}")

    @property
    def heartbeat(self) -> str:
        """Channel on which a subscriber receives its own messages, to notice a connection that died silently."""
        return self._own("heartbeat")

    def seen(self, event_id: str) -> str:
        """String: this event id is in the journal. Value: ``<digest>:<fingerprint><attempt>:<entry id>``.

        It ends with ``limited`` instead of an entry id when the event was refused because of its source's rate;
        with ``signed:limited`` if it was signed.
        """
        return self._own(f"seen:{event_id}")

    def rate(self, source: str, signer: str = "") -> str:
        """Counter with a TTL: new events of a source, or of the key that has signed them, since the window began.

        A source may be any text, so no source must have the counter of a key.
        """
        person = b"signer" if signer else b""
        name = (signer or source).encode(errors="backslashreplace")
        return self._own(f"rate:{blake2b(name, digest_size=12, person=person).hexdigest()}")

    def consequences(self, cause: str) -> str:
        """Sorted set: ids of the events that an event caused, or that begin the chain of this id, by time, ms."""
        return self._own(f"caused:{cause}")

    def done(self, task_id: str) -> str:
        """String: this task has ended. Value: see :class:`~bridge.storage.Ended`."""
        return self._own(f"done:{task_id}")

    def lease(self, task_id: str) -> str:
        """Hash: this task runs, is retried, or a worker died while it ran. Fields: see ``start_run.lua``."""
        return self._own(f"lease:{task_id}")

    def inflight(self, group: str) -> str:
        """Sorted set: the tasks of one group that were sent and have not ended, by the time they are overdue, ms."""
        return self._own(f"inflight:{group}")

    def inflight_tasks(self, group: str) -> str:
        """Hash next to ``inflight``: task id to what is needed to send the task again."""
        return self._own(f"inflight-pairs:{group}")

    def queue_watermarks(self, group: str) -> str:
        """Hash next to ``inflight``: how far the tasks of each queue have started. Fields: see ``start_run.lua``."""
        return self._own(f"inflight-lanes:{group}")

    def fencing_token(self, group: str) -> str:
        """Counter: it advances whenever journal entries pass from one consumer or connection of a group to another."""
        return self._own(f"fence:{group}")

    def handed_over(self, group: str) -> str:
        """Hash: journal entry that was handed over to the names of the handlers that it was dispatched to, as JSON."""
        return self._own(f"handed-over:{group}")

    def leader(self, group: str) -> str:
        """String with a TTL: the consumer that does the maintenance of this group."""
        return self._own(f"upkeep:{group}")

    def dead(self, group: str) -> str:
        """Stream: the dead letters of one group."""
        return self._own(f"dead:{group}")

    def dead_size(self, group: str) -> str:
        """Hash next to ``dead``: how many bytes it holds, and counts. Fields: see ``write_dead_letter.lua``."""
        return self._own(f"dead-size:{group}")

    def dead_letter_dedup(self, group: str, failure_hash: str) -> str:
        """String with a TTL: the dead letter of this failure was written recently."""
        return self._own(f"parked:{group}:{failure_hash}")

    def skipped(self, group: str, event_id: str) -> str:
        """String with a TTL: scans of the group need not read this event key again while it has this length, in bytes.

        Each group has its own: whether an event is valid, and how old it may be, depends on its settings.
        """
        return self._own(f"skipped:{group}:{event_id}")

    def replay(self, group: str, name: str) -> str:
        """Hash: the progress of the replay of this name."""
        return self._own(f"replay:{group}:{name}")

    def replays(self, group: str, event_id: str) -> str:
        """Sorted set: names of the replays that gave an event to this group again, by time, ms."""
        return self._own(f"replays:{group}:{event_id}")

    def starts(self, group: str) -> str:
        """Hash: how long after their events the first runs of tasks started. Fields: see ``start_run.lua``."""
        return self._own(f"starts:{group}")

    def subscribers(self, group: str) -> str:
        """Hash: name of a live subscriber to its last report, see :class:`~bridge.storage.Presence`."""
        return self._own(f"subscribers:{group}")

    def workers(self, group: str) -> str:
        """Hash: name of a live worker to the queues that it takes tasks from, see ``workers.py``."""
        return self._own(f"workers:{group}")

    def queue_leader(self, group: str) -> str:
        """String with a TTL: the consumer that measures the queues of this group."""
        return self._own(f"queue-leader:{group}")

    def queue_sample(self, group: str) -> str:
        """String with a TTL: the queues of this group as they were measured last, see ``queue_sample.py``."""
        return self._own(f"queue-sample:{group}")
