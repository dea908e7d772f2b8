"""All settings of the bridge, and the only reader of the environment and of ``celeryconfig.py``.

Precedence: explicit argument, then environment (``BRIDGE_REDIS_URL``, ...; ``REDIS_URL`` too), then ``bridge_*``
names of the Celery configuration, then the default. A misspelt ``BRIDGE_*`` or ``bridge_*`` name is an error.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Literal, Self
from urllib.parse import quote

from celery import Celery
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as EnvUnreadable

from bridge.config.address import Address
from bridge.config.celery_config import (
    CONF_PREFIX,
    bridge_names,
    describe,
    refuse_pickle,
    refuse_shared_prefix,
    refuse_unknown,
)
from bridge.errors import SettingsError
from bridge.events import CLOCK_SKEW_S, MAX_DEPTH, UNHEARD_SOURCE, Patterns, Redaction, SigningKeys, redaction_of

_ENV_PREFIX = "BRIDGE_"
_ADDRESS_PARTS = frozenset({"redis_host", "redis_port", "redis_password"})
#: Goes with ``batch_size``: a step stops at this size too, since 500 events may have 500 megabytes. It may be exceeded
#: by one event, and by the first batch of a backlog.
BATCH_BYTES = 4 * 1024 * 1024
#: Names of Celery applications that nobody chose.
_NAMELESS = (None, "default", "__main__")
#: Values for the fields that neither an argument nor the environment sets, while :meth:`BridgeSettings.load` runs.
_below_env: ContextVar[Mapping[str, Any]] = ContextVar("_below_env", default=MappingProxyType({}))


class BridgeSettings(BaseSettings):
    """What one process needs to know. Build it with :meth:`load`; durations carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix=_ENV_PREFIX, extra="forbid", frozen=True)

    #: The bus, e.g. ``rediss://user:secret@redis.internal:6380/0``, ``redis+sentinel://host1,host2,host3/service`` or
    #: ``redis+cluster://host1,host2,host3``. Wins over the three parts below.
    redis_url: SecretStr | None = None
    redis_host: str = "localhost"
    redis_port: int = Field(default=6379, ge=1, le=65535)
    redis_password: SecretStr | None = None
    #: How long one command may take before the connection counts as dead. Blocking reads take up to 2 s of it.
    socket_timeout_s: float = Field(default=10.0, ge=5)
    #: Tries of one publication or look-up, the first included, before :class:`BusUnavailable`.
    publish_attempts: int = Field(default=4, ge=1)

    #: Channel ``{prefix}{type}`` and key ``{prefix}event:{id}``.
    channel_prefix: str = "dreamnet:events:"
    #: Write the event key and the journal entry when publishing.
    enable_persistence: bool = True
    #: Replicas that must have a publication before it counts; the journal's, in a cluster. 0: none is waited for.
    wait_replicas: int = Field(default=0, ge=0)
    #: Longest wait for them, before :class:`NotReplicated`.
    wait_replicas_ms: int = Field(default=1000, ge=1)
    #: Broadcast when publishing, listen when subscribing.
    enable_pubsub: bool = True
    #: Who publishes; the name of the Celery application unless set.
    source: str = ""
    #: Lifetime of an event key and of a journal entry; no shorter than other programs keep their event keys.
    event_ttl_s: int = Field(default=24 * 3600, ge=1)
    #: Lifetime of the marks that recognise a repeated event or task; one hour over the event unless set, so that
    #: catch-up never takes an old event for a new one.
    dedup_ttl_s: int = Field(default=0, ge=0)
    #: Largest event, encoded, that is published or accepted.
    max_event_bytes: int = Field(default=1024 * 1024, ge=1)
    #: Levels of objects and arrays that an event may have, itself the first.
    max_event_depth: int = Field(default=MAX_DEPTH, ge=2, le=MAX_DEPTH)
    #: Longest chain of events that cause each other.
    max_hops: int = Field(default=16, ge=1)
    #: Most new events per second, over 10 s, that are taken from one source of foreign broadcasts; those without a
    #: source count as one. The rest become dead letters. What catch-up finds is not limited. Unless it is signed, a
    #: source is what the publisher says it is: this stops accidents, not attackers. None: no limit.
    max_events_per_s_per_source: float | None = Field(default=None, gt=0)
    #: Event types that are let in and published, as Redis globs; empty: all. Others become dead letters.
    accepted_types: Patterns = Field(default_factory=list)
    #: Event types that are not let in, whatever ``accepted_types`` says.
    rejected_types: Patterns = Field(default_factory=list)
    #: Secrets of 32 bytes or more by key id: the first signs what this program publishes, all of them verify.
    signing_keys: SigningKeys = Field(default_factory=dict)
    #: Event types, as Redis globs, that count only when they are signed. The same for all subscribers of a bus.
    require_signature: Patterns = Field(default_factory=list)
    #: How long after its timestamp a signed event is let in; ``event_ttl_s`` unless set. Must leave 5 minutes below
    #: ``dedup_ttl_s``: later its mark would not stop it from coming again.
    signature_max_age_s: int = Field(default=0, ge=0)
    #: Events an in-process bus keeps for ``get_event`` when Redis has none.
    local_event_cache_size: int = Field(default=1000, ge=0)

    #: Consumer group: names one Celery application. Each group gets every event once.
    group: str = ""
    #: Globs of the event types whose broadcasts a subscriber listens to. Where they are more than one can take in,
    #: the subscribers of a group may share them by type; together they must listen to all. Dispatch is shared anyway.
    listen_types: Patterns = Field(default=["*"], min_length=1)
    #: Where a new group begins: the oldest retained event, or only what comes after its creation.
    group_start: Literal["earliest", "latest"] = "earliest"
    #: Most events read, dispatched or written to the journal in one step.
    batch_size: int = Field(default=500, ge=1, le=5000)
    #: Longest wait of one read of the journal. Bounds how fast a stop is noticed.
    block_ms: int = Field(default=1000, ge=1, le=2000)
    #: Entries that a consumer has held for this long are taken over by another. Must exceed the longest dispatch.
    claim_idle_s: float = Field(default=60.0, gt=0)
    #: Pause between two rounds of upkeep: claim from dead consumers, trim by age.
    maintenance_interval_s: float = Field(default=15.0, gt=0)
    #: Pause between two heartbeats on the bridge's own channel; three missed ones mean a dead connection.
    heartbeat_interval_s: float = Field(default=5.0, gt=0)
    #: Dead letters kept per group, by count and by size; older ones make room.
    max_dead_letters: int = Field(default=10_000, ge=1)
    max_dead_letter_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    #: A task that has not ended this long after it was sent (plus its countdown) and is not known to wait or to run
    #: is sent again.
    redispatch_after_s: float = Field(default=3600.0, gt=0)
    #: How often a task is begun again whose message was lost or whose worker died; then it is a dead letter.
    max_redispatches: int = Field(default=5, ge=1)
    #: How long a task counts as running after its worker's last sign of life; a second copy of its message waits for
    #: that. Renewed while the task runs, so a task may take longer.
    lease_s: float = Field(default=30.0, gt=0)
    #: Dispatch waits while a queue is longer; the journal keeps the events. None: never.
    max_queue_length: int | None = Field(default=None, ge=1)
    #: Port of metrics and health checks, at ``/metrics``, ``/healthz`` and ``/readyz``. None: off. One subscriber each.
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    #: Interface that they are served on. They need no password: leave them to this host or to a network of your own.
    metrics_host: str = "127.0.0.1"
    #: Log lines of workers and of ``bus subscribe``: for people, or one JSON object a line.
    log_format: Literal["text", "json"] = "text"
    #: Parts of events that logs, Flower, commands and dead letters show as ``[redacted]``, by path:
    #: ``payload.user.email``, ``payload.*.password``, ``metadata.token``. A ``*`` is any one level; lists are walked
    #: through. Dead letters are retried with the event itself, while that is kept.
    redact_paths: list[str] = Field(default_factory=list)
    #: Options for sending tasks by event type, first match wins: ``{"billing.*": {"queue": "billing"}}``.
    routes: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def load(cls, app: Celery | None = None, **explicit: Any) -> BridgeSettings:
        """Read the settings for *app*, or for a program without Celery.

        Arguments:
            app: Its configuration supplies ``bridge_*`` names, its name the default of ``group`` and ``source``.
            explicit: Settings that win over everything else, by their names here.

        Raises:
            SettingsError: A name is unknown (the text proposes the right one) or a value does not fit.
        """
        known = cls.model_fields
        conf = bridge_names(app) if app is not None else {}
        refuse_unknown(explicit, known, "", "argument")
        ours = [name for name in os.environ if name.startswith(_ENV_PREFIX)]
        refuse_unknown(ours, known, _ENV_PREFIX, "environment")
        refuse_unknown(conf, known, CONF_PREFIX, "Celery configuration")
        if _ADDRESS_PARTS & explicit.keys():
            explicit.setdefault("redis_url", None)  # an explicit host wins over REDIS_URL of the environment
        name = app.main if app is not None and app.main not in _NAMELESS else "bridge"
        below_env = {"group": name, "source": name} | {key.removeprefix(CONF_PREFIX): conf[key] for key in conf}
        if any(f"{_ENV_PREFIX}{part.upper()}" in os.environ for part in _ADDRESS_PARTS):
            below_env["redis_url"] = None  # likewise a host of the environment over an address of the configuration
        if url := os.environ.get("REDIS_URL"):
            below_env["redis_url"] = url
        token = _below_env.set(below_env)
        try:
            settings = cls(**explicit)
        except EnvUnreadable as error:
            raise SettingsError(str(error)) from None
        except ValidationError as error:
            raise SettingsError(describe(error)) from None  # the original would print values, secrets among them
        finally:
            _below_env.reset(token)
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
        """Return the sources in order of precedence: arguments, the environment, what :meth:`load` found below it."""
        return init_settings, env_settings, _below_env.get

    @field_validator("channel_prefix")
    @classmethod
    def _usable_prefix(cls, prefix: str) -> str:
        if not prefix:
            raise ValueError("must not be empty: the subscription would hear every channel of the server")
        if re.search(r"[{}\s]", prefix):
            raise ValueError("must hold no braces (they choose the Redis Cluster slot) and no white space")
        return prefix

    @field_validator("source")
    @classmethod
    def _heard_source(cls, source: str) -> str:
        if source == UNHEARD_SOURCE:
            raise ValueError(f"{UNHEARD_SOURCE!r} is what the TypeScript bus drops; no one would hear our events")
        return source

    @field_validator("redact_paths")
    @classmethod
    def _usable_paths(cls, paths: list[str]) -> list[str]:
        Redaction(paths)
        return paths

    @field_validator("group")
    @classmethod
    def _usable_group(cls, group: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._@-]{1,100}", group):
            raise ValueError("is 1 to 100 of A-Z a-z 0-9 . _ @ -; it becomes part of key names")
        return group

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            self.address.refuse_missing_files()
        except ValueError as error:
            raise ValueError(f"redis_url: {error}") from None
        if self.dedup_ttl_s and self.dedup_ttl_s <= self.event_ttl_s:
            raise ValueError("dedup_ttl_s must exceed event_ttl_s, or catch-up would dispatch old events again")
        if self.require_signature and not self.signing_keys:
            raise ValueError("require_signature needs signing_keys to verify with")
        if self.require_signature and self.signature_max_age_ms + CLOCK_SKEW_S * 1000 > self.dedup_ttl_ms:
            raise ValueError("signature_max_age_s must be 300 s below dedup_ttl_s, or old events could come again")
        if self.wait_replicas_ms >= self.socket_timeout_s * 1000:
            raise ValueError(
                "wait_replicas_ms must be shorter than socket_timeout_s, after which the connection is given up"
            )
        return self

    @property
    def url(self) -> str:
        """Address of the bus, with its password: never log it, see :attr:`redacted_url`."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        password = self.redis_password.get_secret_value() if self.redis_password else ""
        login = f":{quote(password, safe='')}@" if password else ""
        host = f"[{self.redis_host}]" if ":" in self.redis_host else self.redis_host
        return f"redis://{login}{host}:{self.redis_port}/0"

    @property
    def address(self) -> Address:
        """Address of the bus, read."""
        return Address.parse(self.url)

    @property
    def redacted_url(self) -> str:
        """Address of the bus for logs and errors: no user, no password, no query."""
        scheme, _, rest = self.url.partition("://")
        place = re.split(r"[?#]", rest, maxsplit=1)[0]
        if "@" in rest[len(place) :]:  # of the password or of the query: not to be told apart
            return f"{scheme}://..."
        return f"{scheme}://{place.rpartition('@')[2]}"

    @property
    def redaction(self) -> Redaction:
        """What is to be left out of what people see."""
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
        """How long after its timestamp a signed event is let in, in ms."""
        return (self.signature_max_age_s or self.event_ttl_s) * 1000

    @property
    def client_name(self) -> str:
        """How our connections appear in CLIENT LIST."""
        return f"bridge:{self.group}:{re.sub(r'[^A-Za-z0-9._-]', '-', socket.gethostname())}:{os.getpid()}"
