"""The bus of an application, for a command; and what to tell a person when it cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
from celery import Celery
from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bridge.config import BridgeSettings
from bridge.errors import BridgeError, BusUnavailable, SettingsError
from bridge.redis import connect, describe_error, hint_for
from bridge.storage import Storage

#: Longest wait for a server that takes no connection, and then for its first answer, each.
_PATIENCE_S = 1.5


class Unreachable(click.ClickException):
    """Redis or the broker cannot be reached, or refuses."""

    exit_code = 3


class WrongSettings(click.ClickException):
    """The settings of the application are wrong, like the usage of a command."""

    exit_code = 2


def load(app: Celery) -> BridgeSettings:
    """Import the handlers of *app* and return its settings.

    Raises:
        click.ClickException: Either is wrong.
    """
    with errors_as_cli_messages():
        app.loader.import_default_modules()
        app.finalize()
        return BridgeSettings.load(app)


@contextmanager
def open_bus(app: Celery) -> Iterator[Storage]:
    """Lend the storage of *app*, whose Redis answers now, its handlers imported; see :func:`open_storage`."""
    with open_storage(load(app)) as storage:
        yield storage


@contextmanager
def open_storage(settings: BridgeSettings) -> Iterator[Storage]:
    """Lend the storage of a bus whose Redis answers now.

    Within the block, errors of Redis and of the bridge become lines for a person, with their exit codes.
    """
    with errors_as_cli_messages(settings):
        _reach(settings)
        with connect(settings) as client:
            yield Storage(client, settings)


@contextmanager
def errors_as_cli_messages(settings: BridgeSettings | None = None) -> Iterator[None]:
    """Turn the errors of the bridge, and of the Redis of *settings*, into lines for a person."""
    try:
        yield
    except SettingsError as error:
        raise WrongSettings(str(error)) from error
    except BusUnavailable as error:
        raise Unreachable(str(error)) from error
    except BridgeError as error:
        raise click.ClickException(str(error)) from error
    except RedisError as error:
        where = settings.redacted_url if settings else "its address"
        raise Unreachable(f"Redis at {where} {_says(error)}") from error


def _reach(settings: BridgeSettings) -> None:
    """Ask the server once, without the patience that workers have.

    Raises:
        RedisError: It cannot be used.
    """
    # NoPermissionError: it answers, and a user who may not PING may have all other rights.
    with connect(settings, _PATIENCE_S) as probe, suppress(NoPermissionError):
        probe.ping()


def _says(error: RedisError) -> str:
    text, advice = describe_error(error), hint_for(error, _source())
    if isinstance(error, NoPermissionError):
        return f"refuses: {text}. {advice}"
    if isinstance(error, AuthenticationError | AuthorizationError):
        return f"refuses: {text}. Check user and password in {_source()}: redis://USER:PASSWORD@HOST:PORT/0."
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return f"does not answer: {text}. {advice or f'Check that it runs, and the address in {_source()}.'}"
    if isinstance(error, InvalidResponse):
        return f"is no Redis, for it says: {text}. Check the address in {_source()}."
    return f"says: {text}. {advice}".rstrip()


def _source() -> str:
    """Return where the address of the bus was set, see :mod:`bridge.settings`."""
    names = ("BRIDGE_REDIS_URL", "BRIDGE_REDIS_HOST", "BRIDGE_REDIS_PORT", "BRIDGE_REDIS_PASSWORD", "REDIS_URL")
    return next((name for name in names if os.environ.get(name)), "REDIS_URL or bridge_redis_url")
