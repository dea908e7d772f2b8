"""Subscribers of a group whose steps the test takes."""

from __future__ import annotations

from celery import Celery

from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from bridge.handlers import Registry
from bridge.redis.client import connect
from bridge.storage.presence import Presence
from bridge.storage.storage import Storage
from bridge.subscriber.dead_letter_writer import DeadLetterWriter
from bridge.subscriber.dispatch.dispatcher import Dispatcher
from bridge.subscriber.members import Members
from bridge.telemetry.counters import Counters
from tests.handlers import HANDLERS


class Member:
    """A subscriber whose steps the test takes."""

    def __init__(self, settings: BridgeSettings, app: Celery, name: str, *handlers: str) -> None:
        self.name, self.handlers, self.registry = name, handlers, Registry()
        for handler in handlers:
            self.registry.add(HANDLERS[handler])
        self.client = connect(settings)
        self.storage = Storage(self.client, settings)
        self.counters = Counters()
        self.consumer = self.storage.consumer(name)
        members = Members(self.storage, self.registry, name)
        outbox = Outbox(app, settings)
        dead_letters = DeadLetterWriter(self.storage, self.counters)
        self.dispatcher = Dispatcher(
            self.storage, outbox, self.registry, dead_letters, self.counters, self.consumer, members
        )

    @property
    def presence(self) -> Presence:
        patterns = {name: list(handler) for name, handler in self.registry.patterns.items()}
        return Presence(self.name, handlers=patterns)

    def report(self) -> None:
        self.storage.presence.report(self.presence)

    def leave(self, *, differs: bool = True) -> None:
        self.storage.presence.leave(self.presence, differs=differs)

    def steps(self, count: int = 4) -> None:
        for _ in range(count):
            self.dispatcher.step()

    def close(self) -> None:
        self.dispatcher.close()
        self.dispatcher.reconnect()
        self.client.close()
