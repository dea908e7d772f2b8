"""The environment: which variables are settings, and where ``REDIS_URL`` takes precedence over another address."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from celery import Celery
from pydantic import SecretStr
from pydantic_settings import BaseSettings, EnvSettingsSource

from bridge.config.celery_config import bridge_names

ENV_PREFIX = "BRIDGE_"
#: Variables by which Kubernetes describes a Service to each container of a namespace; they begin with the name of the
#: Service. For a Service ``bridge-redis``, one of them has the name of a setting: BRIDGE_REDIS_PORT.
_SERVICE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)", re.I)
_SERVICE_PORT = re.compile(r"\w+_PORT", re.I)
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.+", re.I)


def is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes sets a variable of this name and value for a Service; then it is not a setting."""
    is_url = _SERVICE_PORT.fullmatch(name) and _SERVICE_URL.fullmatch(value or "")
    return bool(is_url or _SERVICE.fullmatch(name))


def bridge_variables() -> set[str]:
    """Return the names of all variables with our prefix, misspelt ones too, except those of Kubernetes."""
    ours = (item for item in os.environ.items() if item[0].startswith(ENV_PREFIX))
    return {name for name, value in ours if not is_service_link(name, value)}


def environment_source(settings: type[BaseSettings]) -> EnvSettingsSource:
    """Return what pydantic reads the environment with, without the variables of Kubernetes."""
    source = EnvSettingsSource(settings)
    source.env_vars = {name: one for name, one in source.env_vars.items() if not is_service_link(name, one)}
    return source


class HiddenAddress(NamedTuple):
    """A setting with another address of the bus than the one that is used: ``REDIS_URL`` takes precedence over it."""

    setting: str
    problem: str
    advice: str


def hidden_address(app: Celery, url: str, redacted_url: str) -> HiddenAddress | None:
    """Return the setting of the bridge that ``REDIS_URL`` hides, if it names another server than *url*.

    Hosting services and other programs use ``REDIS_URL`` too, for example for a cache.

    Arguments:
        url: The address that is used.
        redacted_url: The same for people.
    """
    if url != os.environ.get("REDIS_URL"):
        return None
    conf = {name: _text(value) for name, value in bridge_names(app).items()}
    names = ("bridge_redis_url", "bridge_redis_host")
    found = {name: conf[name] for name in names if name in conf}
    found |= {name: os.environ[name] for name in [f"{ENV_PREFIX}REDIS_HOST"] if name in os.environ}
    for setting, value in found.items():
        if value not in (url, urlsplit(url).hostname):
            problem = f"it is not used: REDIS_URL takes precedence, so the bus is at {redacted_url}"
            return HiddenAddress(
                setting, problem, "set BRIDGE_REDIS_URL to the address of the bus, or remove one of them"
            )
    return None


def _text(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)
