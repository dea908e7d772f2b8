"""Opens the bus of an application for a command, and turns errors into messages for the user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
from celery import Celery
from redis.exceptions import AuthenticationError, AuthorizationError, InvalidResponse, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bridge.config import BridgeSettings, bridge_variables
from bridge.errors import BridgeError, BusUnavailable, SettingsError
from bridge.redis import connect, describe_error, hint_for
from bridge.storage import Storage

#: Where the address of the bus may be set, if not in the environment.
_OTHERS = "bridge_redis_url, bridge.install() or broker_url"
#: Longest wait for a server to accept a connection, and then for its first reply.
_TIMEOUT_S = 1.5


class Unreachable(click.ClickException):
    """Redis or the broker is unreachable or refused the request."""

    exit_code = 3


class WrongSettings(click.ClickException):
    """The settings of the application are invalid; the exit code is that of invalid usage."""

    exit_code = 2


def load(app: Celery) -> BridgeSettings:
    """Import the handlers of *app* and return its settings.

    Raises:
        click.ClickException: A handler or a setting is invalid.
    """
    with errors_as_cli_messages():
        import_handlers(app)
        return BridgeSettings.load(app)


def import_handlers(app: Celery) -> None:
    """Import the modules of *app*, as its workers do.

    Raises:
        BridgeError: A handler is invalid.
    """
    app.loader.import_default_modules()
    app.finalize()


@contextmanager
def open_bus(app: Celery) -> Iterator[Storage]:
    """Import the handlers of *app* and yield the storage of its bus, as :func:`open_storage` does."""
    with open_storage(load(app)) as storage:
        yield storage


@contextmanager
def open_storage(settings: BridgeSettings) -> Iterator[Storage]:
    """Yield the storage of a bus after its Redis has replied once.

    Within the block, errors of Redis and of the bridge become messages for the user, with their exit codes.
    """
    with errors_as_cli_messages(settings):
        _reach(settings)
        with connect(settings) as client:
            yield Storage(client, settings)


@contextmanager
def errors_as_cli_messages(settings: BridgeSettings | None = None) -> Iterator[None]:
    """Turn errors of the bridge, and of the Redis in *settings*, into messages for the user."""
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
        raise Unreachable(f"Redis at {where} {_problem(error)}") from error


def _reach(settings: BridgeSettings) -> None:
    """Ping the server once, without the retries and the long timeout that workers have.

    Raises:
        RedisError: It cannot be used.
    """
    # NoPermissionError: the server replies, and a user without PING may have all other permissions.
    with connect(settings, _TIMEOUT_S) as probe, suppress(NoPermissionError):
        probe.ping()


def _problem(error: RedisError) -> str:
    text, advice = describe_error(error), hint_for(error, _source())
    if isinstance(error, NoPermissionError):
        return f"refused the command: {text}. {advice}"
    if isinstance(error, AuthenticationError | AuthorizationError):
        return f"refused the login: {text}. Check user and password in {_source()}: redis://USER:PASSWORD@HOST:PORT/0."
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return f"does not answer: {text}. {advice or f'Check that it is running, and the address in {_source()}.'}"
    if isinstance(error, InvalidResponse):
        return f"is not a Redis server, it replied: {text}. Check the address in {_source()}."
    return f"returned an error: {text}. {advice}".rstrip()


def _source() -> str:
    """Return the name of the variable or setting that the address of the bus comes from."""
    names = ("BRIDGE_REDIS_URL", "REDIS_URL", "BRIDGE_REDIS_HOST", "BRIDGE_REDIS_PORT", "BRIDGE_REDIS_PASSWORD")
    given = bridge_variables() | {"REDIS_URL"}
    return next((name for name in names if name in given and os.environ.get(name)), _OTHERS)
