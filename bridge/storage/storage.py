"""Everything that the bridge keeps in Redis for one group, as one argument."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from redis import Redis

from bridge.config import BridgeSettings
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.event_keys import EventKeys
from bridge.storage.event_lookup import EventLookup
from bridge.storage.group_settings import GroupSettingsStore
from bridge.storage.id_scan import ids_starting_with
from bridge.storage.journal import Journal
from bridge.storage.journal_consumer import JournalConsumer
from bridge.storage.journal_repair import JournalRepair
from bridge.storage.keys import Keys
from bridge.storage.ledger import Ledger
from bridge.storage.presence import PresenceStore
from bridge.storage.queue_sample import QueueSamples
from bridge.storage.workers import Workers


class Storage:
    """The bus as one group sees it. Each store is created when it is first used; none of them opens a connection.

    Arguments:
        client: Connected to the bus.
        settings: Prefix, group, lifetimes and limits.
    """

    def __init__(self, client: Redis, settings: BridgeSettings) -> None:
        self.client = client
        self.settings = settings
        #: The name of every key and channel of this bus.
        self.keys = Keys(settings.channel_prefix)

    def of_group(self, name: str) -> Storage:
        """Return the same bus as another group sees it, over the same client."""
        return Storage(self.client, self.settings.model_copy(update={"group": name}))

    @cached_property
    def event_keys(self) -> EventKeys:
        """The event keys, which are shared with all other programs of the bus."""
        return EventKeys(self.client, self.settings, self.keys)

    @cached_property
    def journal(self) -> Journal:
        """The stream of every event."""
        return Journal(self.client, self.settings, self.keys, self.event_keys)

    @cached_property
    def event_lookup(self) -> EventLookup:
        """The events by their ids."""
        return EventLookup(self.client, self.keys, self.event_keys, self.journal)

    @cached_property
    def journal_repair(self) -> JournalRepair:
        """What makes the ids of the journal times again."""
        return JournalRepair(self.client, self.keys)

    def ids_starting_with(self, start: str) -> Iterator[tuple[int, set[str]]]:
        """Yield the ids of events and chains that begin with *start*; see :func:`id_scan.ids_starting_with`."""
        return ids_starting_with(self.client, self.keys, start)

    def consumer(self, name: str) -> JournalConsumer:
        """Return the journal as the consumer of this name reads it for the group."""
        return JournalConsumer(self.client, self.keys, self.settings.group, name)

    @cached_property
    def ledger(self) -> Ledger:
        """The tasks of the group that were sent and have not ended, and the marks of all its tasks."""
        return Ledger(self.client, self.settings, self.keys)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """The dead letters of the group."""
        return DeadLetters(self.client, self.settings, self.keys)

    @cached_property
    def presence(self) -> PresenceStore:
        """The subscribers of the group that are running."""
        return PresenceStore(self.client, self.settings, self.keys)

    @cached_property
    def group_settings(self) -> GroupSettingsStore:
        """The settings of all groups."""
        return GroupSettingsStore(self.client, self.keys)

    @cached_property
    def workers(self) -> Workers:
        """The queues that the workers of the group take tasks from."""
        return Workers(self.client, self.settings.group, self.keys)

    @cached_property
    def queue_samples(self) -> QueueSamples:
        """The queues of the group as they were measured last."""
        return QueueSamples(self.client, self.settings.group, self.keys)
