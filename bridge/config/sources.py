"""The sources of the settings below arguments and environment, and the names in all sources that are no settings."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from celery import Celery
from pydantic import ValidationError

from bridge.config.celery_config import CONF_PREFIX, bridge_names, installed_settings
from bridge.config.environment import ENV_PREFIX, bridge_variables
from bridge.config.redis_broker import url_at_broker
from bridge.errors import SettingsError, did_you_mean

#: The settings that ``redis_url`` takes precedence over, if both come from the same source.
ADDRESS_PARTS = frozenset({"redis_host", "redis_port", "redis_password"})
_ADDRESS = ADDRESS_PARTS | {"redis_url"}
#: Names of Celery applications that no one chose.
_NAMELESS = (None, "default", "__main__")
#: Values for the fields that neither an argument nor the environment sets, while the settings are loaded.
below_environment: ContextVar[Mapping[str, Any]] = ContextVar("below_environment", default=MappingProxyType({}))


def refuse_unknown_names(app: Celery | None, explicit: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`SettingsError` if a source names a setting that is not *known*; propose the right one."""
    refuse_unknown(explicit, known, "", "argument")
    refuse_unknown(bridge_variables(), known, ENV_PREFIX, "environment")
    refuse_unknown(bridge_names(app) if app is not None else (), known, CONF_PREFIX, "Celery configuration")


def values_below_environment(app: Celery | None, explicit: Collection[str]) -> dict[str, Any]:
    """Return the settings that *app* supplies, and the address in ``REDIS_URL``.

    Arguments:
        explicit: Names of the settings that are arguments.

    Raises:
        AddressMissing: Nothing gives the address of the bus, and the broker of *app* is not Redis.
        SettingsError: The broker is Redis, but the bus cannot be there.
    """
    values: dict[str, Any] = {}
    installed: dict[str, Any] = {}
    variables = {name.removeprefix(ENV_PREFIX).lower() for name in bridge_variables()}
    if app is not None:
        if app.main not in _NAMELESS:
            values |= {"group": app.main, "source": app.main}
        values |= {name.removeprefix(CONF_PREFIX): value for name, value in bridge_names(app).items()}
        installed = installed_settings(app) or {}
    if ADDRESS_PARTS & installed.keys():
        values["redis_url"] = None  # a host takes precedence over an address from a source below
    values |= installed
    if ADDRESS_PARTS & variables:
        values["redis_url"] = None
    url = os.environ.get("REDIS_URL")
    if url and not _ADDRESS & installed.keys():  # other programs use this name, too
        values["redis_url"] = url
    if app is not None and not _ADDRESS & (values.keys() | variables | set(explicit)):
        values["redis_url"] = url_at_broker(app)
    return values


def describe(error: ValidationError) -> str:
    """Return what is wrong with which settings, without their values."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        name = ".".join(str(part) for part in problem["loc"])
        problems.append(f"{name}: {problem['msg']}" if name else problem["msg"])
    return "; ".join(problems)


def refuse_unknown(names: Iterable[str], known: Collection[str], prefix: str, where: str) -> None:
    """Raise :class:`SettingsError` if one of *names*, with *prefix*, is not a setting; propose the right one."""

    def spell(key: str) -> str:
        return prefix + (key.upper() if prefix.isupper() else key)

    for name in names:
        short = name.removeprefix(prefix).lower()
        if short not in known:
            hint = did_you_mean(short, known, spell) or f"known are {', '.join(map(spell, sorted(known)))}."
            raise SettingsError(f"{where}: there is no setting {name}; {hint}")
