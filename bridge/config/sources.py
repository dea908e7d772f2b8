"""The sources of the settings below arguments and environment, and the names in all sources that are no settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from celery import Celery
from pydantic import ValidationError

from bridge.config.celery_config import CONF_PREFIX, bridge_names
from bridge.config.environment import ENV_PREFIX, bridge_variables
from bridge.errors import SettingsError, did_you_mean

#: The settings that ``redis_url`` takes precedence over, if both come from the same source.
ADDRESS_PARTS = frozenset({"redis_host", "redis_port", "redis_password"})
#: Names of Celery applications that no one chose.
_NAMELESS = (None, "default", "__main__")
#: Values for the fields that neither an argument nor the environment sets, while the settings are loaded.
below_environment: ContextVar[Mapping[str, Any]] = ContextVar("below_environment", default=MappingProxyType({}))


def refuse_unknown_names(app: Celery | None, explicit: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`SettingsError` if a source names a setting that is not *known*; propose the right one."""
    _refuse_unknown(explicit, known, "", "argument")
    _refuse_unknown(bridge_variables(), known, ENV_PREFIX, "environment")
    _refuse_unknown(bridge_names(app) if app is not None else (), known, CONF_PREFIX, "Celery configuration")


def values_below_environment(app: Celery | None) -> dict[str, Any]:
    """Return the settings that *app* supplies by its configuration and its name, and the address in ``REDIS_URL``."""
    values: dict[str, Any] = {}
    if app is not None:
        if app.main not in _NAMELESS:
            values |= {"group": app.main, "source": app.main}
        values |= {name.removeprefix(CONF_PREFIX): value for name, value in bridge_names(app).items()}
    if any(f"{ENV_PREFIX}{part.upper()}" in bridge_variables() for part in ADDRESS_PARTS):
        values["redis_url"] = None  # a host in the environment takes precedence over an address in the configuration
    if url := os.environ.get("REDIS_URL"):
        values["redis_url"] = url
    return values


def describe(error: ValidationError) -> str:
    """Return what is wrong with which settings, without their values."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        problems.append(f"{name}: {problem['msg']}" if name else problem["msg"])
    return "; ".join(problems)


def _refuse_unknown(names: Iterable[str], known: Collection[str], prefix: str, where: str) -> None:
    def spell(key: str) -> str:
        return prefix + (key.upper() if prefix.isupper() else key)

    for name in names:
        short = name.removeprefix(prefix).lower()
        if short not in known:
            hint = did_you_mean(short, known, spell) or f"known are {', '.join(map(spell, sorted(known)))}."
            raise SettingsError(f"{where}: there is no setting {name}; {hint}")
