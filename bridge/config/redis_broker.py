"""Celery's broker, if that is Redis: what is at its address, and the URL of a bus on the same server.

kombu and redis-py write the same address in different ways. kombu separates Sentinels with semicolons and takes the
name of the service and the options of TLS from the configuration; in redis-py, and so here, everything is in the URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from celery import Celery
from kombu import Connection
from kombu.transport import redis as kombu_redis

from bridge.errors import AddressMissing, SettingsError

_CERT_REQS = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}
_WHAT_TO_SET = "set bridge_redis_url in its configuration, or BRIDGE_REDIS_URL or REDIS_URL in the environment"
_EXAMPLE = "for example to redis://localhost:6379/0"


def is_redis(broker: Connection) -> bool:
    """Whether the queues of *broker* are lists of one Redis server, which Sentinels may watch."""
    return type(broker.transport) in (kombu_redis.Transport, kombu_redis.SentinelTransport)


def service_of(broker: Connection) -> str | None:
    """Return the name of the service that the Sentinels of *broker* watch; None if it has no Sentinels."""
    if not isinstance(broker.transport, kombu_redis.SentinelTransport):
        return None
    return str((broker.transport_options or {}).get("master_name", ""))


def endpoints(broker: Connection) -> list[tuple[str, int]]:
    """Return host and port of each server or Sentinel in the address of *broker*, each once."""
    default_port = int(broker.transport.default_port or 0)
    parts = [urlsplit(url) for url in broker.alt]
    alternatives = [(part.hostname or "127.0.0.1", part.port or default_port) for part in parts]
    return list(dict.fromkeys(alternatives)) or [(broker.hostname or "127.0.0.1", broker.port or default_port)]


def has_broker(app: Celery) -> bool:
    """Whether a broker is configured. Otherwise Celery uses RabbitMQ on this machine."""
    conf = app.conf
    return bool(conf.broker_write_url or conf.broker_transport)


def url_at_broker(app: Celery) -> str:
    """Return the URL of a bus on the Redis that is the broker of *app*, in the same database and with the same login.

    Raises:
        AddressMissing: The broker is not Redis, or none is configured.
        SettingsError: It is not one server, or has an option that the URL of a bus cannot contain.
    """
    if not has_broker(app):
        raise AddressMissing(
            f"the bus has no address, and application {app.main} has no broker: set broker_url to a Redis server, "
            f"{_EXAMPLE}, which is then the bus as well; or {_WHAT_TO_SET}"
        )
    try:
        broker = app.connection_for_write()
        known = is_redis(broker)
    except Exception as error:  # noqa: BLE001  # kombu imports a module for it, and parses its URL
        # The error may show a part of the password.
        raise AddressMissing(
            f"the bus has no address, and the broker of application {app.main} cannot be used ({type(error).__name__}):"
            f" check broker_url, or {_WHAT_TO_SET}"
        ) from None
    if not known:
        text = f"the bus has no address, and the broker of application {app.main} is not a Redis server"
        raise AddressMissing(f"{text}: {_WHAT_TO_SET}, {_EXAMPLE}")
    try:
        return _url_of(broker)
    except ValueError as error:
        raise SettingsError(f"the bus cannot be at the address of the broker, {error}; {_WHAT_TO_SET}") from None


def _url_of(broker: Connection) -> str:
    if getattr(broker, "credential_provider", None) or callable(broker.password):
        raise ValueError("which gets its password from a function")
    if "://" in (broker.hostname or ""):
        return _socket_url(urlsplit(str(broker.hostname)))
    hosts, service = endpoints(broker), service_of(broker)
    places = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)
    login, database = _login(broker.userid, broker.password), _database(broker.virtual_host)
    scheme, options = ("rediss" if broker.ssl else "redis"), _tls(broker.ssl)
    if service is None:
        if len(hosts) > 1:
            raise ValueError("which names several servers: each event is on one")
        return _with_options(f"{scheme}://{login}{places}/{database}", options)
    of_sentinels = (broker.transport_options or {}).get("sentinel_kwargs") or {}
    if not service:
        raise ValueError("whose broker_transport_options have no master_name")
    if bool(broker.ssl) != bool(of_sentinels.get("ssl")):
        raise ValueError("whose Sentinels use TLS and whose Redis does not, or the other way round")
    names = ("username", "password")
    options |= {f"sentinel_{name}": str(of_sentinels[name]) for name in names if of_sentinels.get(name)}
    return _with_options(f"{scheme}+sentinel://{login}{places}/{service}/{database}", options)


def _socket_url(parts: Any) -> str:
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if "credential_provider" in query:
        raise ValueError("which gets its password from a function")
    login = _login(unquote(parts.username or ""), unquote(parts.password or ""))
    return _with_options(f"unix://{login}{parts.path}", {"db": _database(query.get("virtual_host"))})


def _login(user: str | None, password: str | None) -> str:
    return f"{quote(user or '', safe='')}:{quote(password or '', safe='')}@" if user or password else ""


def _database(virtual_host: str | int | None) -> str:
    text = str(virtual_host or "0").strip("/") or "0"
    if not text.isdecimal():
        raise ValueError("which has no number of a database at its end")
    return text


def _tls(given: Any) -> dict[str, str]:
    """Return the options in ``broker_use_ssl``, or in the URL of the broker, as redis-py has them in a URL."""
    options: dict[str, str] = {}
    for name, value in given.items() if isinstance(given, Mapping) else ():
        if name == "ssl_cert_reqs":
            options[name] = _CERT_REQS.get(value) or str(value).lower().removeprefix("cert_")
        elif isinstance(value, str | bool):
            options[name] = str(value)
        elif value is not None:
            raise ValueError(f"whose option {name} is not a text")
    return options


def _with_options(url: str, options: Mapping[str, str]) -> str:
    return f"{url}?{urlencode(options)}" if options else url
