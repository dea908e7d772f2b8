"""All settings of the bridge. Nothing else reads them from the environment or from Celery's configuration.

Precedence: explicit argument, then ``BRIDGE_*`` in the environment, then an argument of ``install()``, then
``REDIS_URL``, then ``bridge_*`` names in the Celery configuration, then the default. The default of the address is
the broker of the application, if that is Redis; a program without an application has a default address. A misspelt name
is an error. Variables that Kubernetes sets for a Service whose name begins with ``bridge`` are ignored.
"""

from __future__ import annotations

import os
import re
import socket
from typing import Any, Literal, Self

from celery import Celery
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvUnreadable

from bridge.config.address import Address, redacted, url_of
from bridge.config.celery_config import refuse_pickle, refuse_shared_prefix
from bridge.config.environment import ENV_PREFIX, environment_source
from bridge.config.names import ChannelPrefix, GroupName, SourceName
from bridge.config.sources import (
    ADDRESS_PARTS,
    below_environment,
    describe,
    refuse_unknown_names,
    values_below_environment,
)
from bridge.errors import SettingsError
from bridge.events import CLOCK_SKEW_S, MAX_DEPTH, Patterns, Redaction, SigningKeys, redaction_of

#: The limit in bytes that belongs to ``batch_size``. One event may exceed it, and so may one read of the journal where
#: large events follow small ones: up to 500 MB with the defaults, since Redis does not report sizes before a read.
BATCH_BYTES = 4 * 1024 * 1024


class BridgeSettings(BaseSettings):
    """The settings of one process. Build them with :meth:`load`; the name of a duration ends with its unit."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    #: The bus, e.g. ``rediss://user:secret@redis.internal:6380/0``, ``redis+sentinel://host1,host2,host3/service`` or
    #: ``redis+cluster://host1,host2,host3``. Takes precedence over the three parts below. If no address is set, it is
    #: that of the broker of the Celery application, if the broker is Redis, and otherwise an error; a program without
    #: an application then uses ``redis://localhost:6379/0`` for ``EventBus()``.
    redis_url: SecretStr | None = None
    redis_host: str = "localhost"
    redis_port: int = Field(default=6379, ge=1, le=65535)
    redis_password: SecretStr | None = None
    #: How long a command may take before the connection is considered dead. Blocking reads use up to 2 s of it.
    socket_timeout_s: float = Field(default=10.0, ge=5)
    #: How long publishing or looking up an event may take, retries included, before :class:`BusUnavailable` is raised.
    #: :meth:`EventBus.publish_many` may take as long for each of its round trips.
    publish_timeout_s: float = Field(default=5.0, gt=0)
    #: The same inside a task. It is longer, because a task fails if it cannot publish, and a restart or failover of
    #: Redis may take that long.
    task_publish_timeout_s: float = Field(default=60.0, gt=0)

    #: Prefix of the channels, ``{prefix}{type}``, and of the keys, for example ``{prefix}event:{id}``. On one Redis, no
    #: prefix may begin with another one: the bus ``shop:`` would receive the events of ``shop:eu:``.
    channel_prefix: ChannelPrefix = "dreamnet:events:"
    #: Write the event key and the journal entry when publishing.
    enable_persistence: bool = True
    #: Replicas that must confirm a publication (in a cluster: replicas of the journal). 0: do not wait.
    wait_replicas: int = Field(default=0, ge=0)
    #: Longest wait for their confirmation, before :class:`NotReplicated` is raised.
    wait_replicas_ms: int = Field(default=1000, ge=1)
    #: Broadcast when publishing, listen when subscribing.
    enable_pubsub: bool = True
    #: Name of the publisher, in each event; the name of the Celery application unless set.
    source: SourceName = "bridge"
    #: Lifetime of an event key and of a journal entry; of all groups of a bus, the longest one counts for the journal.
    #: Must not be shorter than other programs keep their event keys.
    event_ttl_s: int = Field(default=24 * 3600, ge=1)
    #: Lifetime of the marks by which a repeated event or task is recognised. One hour longer than ``event_ttl_s``
    #: unless set, so that a catch-up scan never mistakes an old event for a new one.
    dedup_ttl_s: int = Field(default=0, ge=0)
    #: Size of the largest event, as JSON, that is published or accepted.
    max_event_bytes: int = Field(default=1024 * 1024, ge=1)
    #: How deeply objects and arrays may be nested in an event; the event is the first level.
    max_event_depth: int = Field(default=MAX_DEPTH, ge=2, le=MAX_DEPTH)
    #: Length of the longest chain of events that cause each other. The next event becomes a dead letter.
    max_hops: int = Field(default=16, ge=1)
    #: Rate limit for external publishers: most new events per second, averaged over 10 s, of one source or, if they are
    #: signed, of one key; None: no limit. Further ones become dead letters. Events that a catch-up scan finds do not
    #: count. Any publisher can claim any source, so for unsigned events this stops accidents, not attackers.
    max_events_per_s_per_source: float | None = Field(default=None, gt=0)
    #: Event types that are accepted and published, as Redis globs; empty: all. Others become dead letters.
    accepted_types: Patterns = Field(default_factory=list)
    #: Event types that are rejected even if ``accepted_types`` matches them.
    rejected_types: Patterns = Field(default_factory=list)
    #: Secrets of at least 32 bytes by key id. The first one signs what this program publishes; all of them verify.
    signing_keys: SigningKeys = Field(default_factory=dict)
    #: Event types, as Redis globs, that are accepted only if signed. Must be the same for all subscribers of a bus.
    require_signature: Patterns = Field(default_factory=list)
    #: How long after its timestamp a signed event is accepted; ``event_ttl_s`` unless set. Must be at least 5 minutes
    #: less than ``dedup_ttl_s``: once its mark has expired, the event could be accepted a second time.
    signature_max_age_s: int = Field(default=0, ge=0)
    #: How many events a process keeps in memory for ``get_event``, which uses them if Redis does not have the event.
    local_event_cache_size: int = Field(default=1000, ge=0)

    #: Consumer group, one per Celery application; its name unless set. Each group receives every event once. If the
    #: application has no name, its subscribers do not start unless this is set.
    group: GroupName = "bridge"
    #: Event types, as Redis globs, whose broadcasts a subscriber listens to. If there are too many for one subscriber,
    #: the subscribers of a group can divide them by type; together they must listen to all types. Dispatch is shared
    #: in any case.
    listen_types: Patterns = Field(default=["*"], min_length=1)
    #: Where a new group starts: at the oldest retained event, or with the first event after its creation.
    group_start: Literal["earliest", "latest"] = "earliest"
    #: Most events that are read, dispatched or written to the journal in one step.
    batch_size: int = Field(default=500, ge=1, le=5000)
    #: How long a read of the journal blocks at most. A subscriber notices a stop request after this time at the latest.
    block_ms: int = Field(default=1000, ge=1, le=2000)
    #: Entries that have been pending for this long are claimed by another consumer. Must exceed the longest dispatch.
    claim_idle_s: float = Field(default=60.0, gt=0)
    #: Pause between two rounds of maintenance, which claims from dead consumers and trims the journal by age.
    maintenance_interval_s: float = Field(default=15.0, gt=0)
    #: Pause between two heartbeats on the bridge's own channel. After three missed ones the connection is considered
    #: dead.
    heartbeat_interval_s: float = Field(default=5.0, gt=0)
    #: Most dead letters kept per group, by count and by size. The oldest are evicted.
    max_dead_letters: int = Field(default=10_000, ge=1)
    max_dead_letter_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    #: A task that has not ended this long after it was sent (plus its countdown), and neither runs nor seems to wait,
    #: is sent again. Each copy is waited for twice as long as the message before.
    redispatch_after_s: float = Field(default=3600.0, gt=0)
    #: How often a task is sent again after its message was lost or its worker crashed. Then it gets a dead letter.
    max_redispatches: int = Field(default=5, ge=1)
    #: How long a task is considered running after its worker last renewed its lease; a duplicate of its message waits
    #: for that long. The lease is renewed while the task runs, so a task may take longer.
    lease_s: float = Field(default=30.0, gt=0)
    #: Dispatch pauses while a queue is longer than this; the events stay in the journal. None: never.
    max_queue_length: int | None = Field(default=None, ge=1)
    #: Port for ``/metrics``, ``/healthz`` and ``/readyz``, a different one for each subscriber of a host. None: off.
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    #: Interface on which they are served. They need no password: serve them to this host or a private network only.
    metrics_host: str = "127.0.0.1"
    #: ``auto``: where OpenTelemetry is in use, publishing and handlers have spans and events carry the trace context;
    #: task messages always pass it on. ``off``: neither.
    tracing: Literal["auto", "off"] = "auto"
    #: Format of the log lines of workers and of ``bus subscribe``: text, or one JSON object per line.
    log_format: Literal["text", "json"] = "text"
    #: Paths of the values that logs, Flower, commands and dead letters show as ``[redacted]``:
    #: ``payload.user.email``, ``payload.*.password``, ``metadata.token``. A ``*`` stands for one level; a path applies
    #: to each item of a list. A dead letter is retried with the complete event, as long as that is retained.
    redact_paths: list[str] = Field(default_factory=list)
    #: Options for sending tasks, by event type; the first match wins: ``{"billing.*": {"queue": "billing"}}``.
    routes: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def load(cls, app: Celery | None = None, **explicit: Any) -> BridgeSettings:
        """Read the settings for *app*, or for a program without Celery.

        Arguments:
            app: Supplies the arguments of ``install()`` and ``bridge_*`` names, the default of ``group`` and ``source``
                by its name, and that of the address by its broker.
            explicit: Settings that take precedence over all others, by their names here.

        Raises:
            SettingsError: A name is unknown (the text proposes the right one), a value is invalid, or *app* does not
                tell where the bus is: then it is :class:`AddressMissing`.
        """
        refuse_unknown_names(app, explicit, cls.model_fields)
        if ADDRESS_PARTS & explicit.keys():
            explicit.setdefault("redis_url", None)  # an explicit host takes precedence over REDIS_URL
        token = below_environment.set(values_below_environment(app, explicit))
        try:
            settings = cls(**explicit)
        except EnvUnreadable as error:
            raise SettingsError(str(error)) from None
        except ValidationError as error:
            raise SettingsError(describe(error)) from None  # the original would print values, secrets among them
        finally:
            below_environment.reset(token)
        if app is not None:
            refuse_shared_prefix(settings.channel_prefix, app)
            refuse_pickle(app.conf)
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[Any, ...]:
        """Return the sources in order of precedence: arguments, the environment, what is below it."""
        return init_settings, environment_source(settings_cls), below_environment.get

    @field_validator("redact_paths")
    @classmethod
    def _usable_paths(cls, paths: list[str]) -> list[str]:
        Redaction(paths)
        return paths

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.address.refuse_missing_files()
        except ValueError as error:
            raise ValueError(f"redis_url: {error}") from None
        if self.dedup_ttl_s and self.dedup_ttl_s <= self.event_ttl_s:
            raise ValueError("dedup_ttl_s must exceed event_ttl_s, or a catch-up scan would dispatch old events again")
        if self.require_signature and not self.signing_keys:
            raise ValueError("require_signature needs signing_keys to verify with")
        if self.require_signature and self.signature_max_age_ms + CLOCK_SKEW_S * 1000 > self.dedup_ttl_ms:
            raise ValueError(
                "signature_max_age_s must be at least 300 s below dedup_ttl_s, or old events could be accepted again"
            )
        limits = ("socket_timeout_s", "publish_timeout_s", "task_publish_timeout_s")
        shortest = min(limits, key=lambda name: float(getattr(self, name)))
        if self.wait_replicas and self.wait_replicas_ms >= getattr(self, shortest) * 1000:
            raise ValueError(f"wait_replicas_ms must be shorter than {shortest}, after which the connection is closed")
        return self

    @property
    def url(self) -> str:
        """Address of the bus, with its password: never log it, see :attr:`redacted_url`."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        return url_of(self.redis_host, self.redis_port, self.redis_password)

    @property
    def address(self) -> Address:
        """Address of the bus, parsed."""
        return Address.parse(self.url)

    @property
    def redacted_url(self) -> str:
        """Address of the bus for logs and errors: no user, no password, no query."""
        return redacted(self.url)

    @property
    def redaction(self) -> Redaction:
        """What is replaced in everything that people see."""
        return redaction_of(tuple(self.redact_paths))

    @property
    def event_ttl_ms(self) -> int:
        """Lifetime of an event key and of a journal entry, in ms."""
        return self.event_ttl_s * 1000

    @property
    def dedup_ttl_ms(self) -> int:
        """Lifetime of the seen and done marks, in ms."""
        return (self.dedup_ttl_s or self.event_ttl_s + 3600) * 1000

    @property
    def signature_max_age_ms(self) -> int:
        """How long after its timestamp a signed event is accepted, in ms."""
        return (self.signature_max_age_s or self.event_ttl_s) * 1000

    @property
    def client_name(self) -> str:
        """Name of our connections in CLIENT LIST."""
        return f"bridge:{self.group}:{re.sub(r'[^A-Za-z0-9._-]', '-', socket.gethostname())}:{os.getpid()}"
