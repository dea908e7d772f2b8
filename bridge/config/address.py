"""The address of the bus, from its URL: one server, a server behind Sentinels, or a Redis Cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import SecretStr
from redis.connection import SSLConnection, parse_url

Kind = Literal["server", "sentinel", "cluster"]

#: By scheme: what is at the address, and the scheme of each single server there.
_SCHEMES: dict[str, tuple[Kind, str]] = {
    "redis": ("server", "redis"),
    "rediss": ("server", "rediss"),
    "unix": ("server", "unix"),
    "redis+sentinel": ("sentinel", "redis"),
    "rediss+sentinel": ("sentinel", "rediss"),
    "redis+cluster": ("cluster", "redis"),
    "rediss+cluster": ("cluster", "rediss"),
}
_DEFAULT_PORTS: dict[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
#: Options of a URL that would override what the bridge relies on: the format of replies, and who retries a command.
_REFUSED = {"protocol", "decode_responses", "legacy_responses", "retry_on_timeout", "retry_on_error"}
_REFUSED |= {"socket_timeout", "client_name"}
_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True)
class Address:
    """A parsed URL; make it with :meth:`parse`.

    Arguments:
        kind: What is at the address.
        hosts: Host and port of each server, Sentinel or cluster node in the URL; empty for a socket.
        service: Name that the Sentinels have for the server; empty otherwise.
        options: Options of redis-py for a connection to Redis: login, database, certificates.
        sentinel_options: The same for a connection to a Sentinel.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...]
    service: str
    options: dict[str, Any]
    sentinel_options: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read the address of a bus.

        Raises:
            ValueError: The URL cannot be used. The text does not quote it, because it may hold a password.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES:
            raise ValueError(f"must start with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
        kind, plain_scheme = _SCHEMES[scheme]
        try:
            parts = urlsplit(f"{plain_scheme}://{rest}")
            login, _, places = parts.netloc.rpartition("@")
            hosts = () if plain_scheme == "unix" else tuple(_hosts(places, _DEFAULT_PORTS[kind]))
            too_many = kind == "server" and len(hosts) > 1
            one_server = f"{login}@host?{parts.query}" if too_many or kind != "server" else rest
            options: dict[str, Any] = parse_url(f"{plain_scheme}://{one_server}")
        except ValueError:
            # The original error would show a part of the password.
            raise ValueError("cannot be parsed; write special characters of the password as %XX") from None
        if too_many:
            raise ValueError(f"names several hosts; write {scheme}+cluster:// or {scheme}+sentinel://.../service")
        if refused := _REFUSED & options.keys():
            raise ValueError(f"must not set {', '.join(sorted(refused))}; the bridge sets that itself")
        if kind == "server":
            return cls(kind, hosts, "", options, {})
        return _of_many(kind, hosts, parts.path, options)

    def refuse_missing_files(self) -> None:
        """Check that the certificate files in the URL can be read.

        Raises:
            ValueError: One cannot be read. The error of a connection would not name the file.
        """
        for option in _FILES & self.options.keys():
            try:
                Path(self.options[option]).open("rb").close()
            except OSError as error:
                raise ValueError(f"{option}: cannot read {self.options[option]}: {error.strerror}") from None

    @property
    def secure(self) -> bool:
        """Whether connections use TLS."""
        return self.options.get("connection_class") is SSLConnection


def url_of(host: str, port: int, password: SecretStr | None) -> str:
    """Return the URL of a single server, with its password."""
    login = f":{quote(password.get_secret_value(), safe='')}@" if password else ""
    return f"redis://{login}{f'[{host}]' if ':' in host else host}:{port}/0"


def redacted(url: str) -> str:
    """Return the URL of a bus for logs and errors: no user, no password, no query."""
    scheme, _, rest = url.partition("://")
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(place) :]:  # it may belong to the password or to the query
        return f"{scheme}://..."
    return f"{scheme}://{place.rpartition('@')[2]}"


def _hosts(places: str, default_port: int) -> Iterator[tuple[str, int]]:
    for place in places.split(","):
        parts = urlsplit(f"//{place}")
        yield parts.hostname or "localhost", parts.port or default_port


def _of_many(kind: Kind, hosts: tuple[tuple[str, int], ...], path: str, options: dict[str, Any]) -> Address:
    place = path.strip("/")
    service, _, database = place.partition("/") if kind == "sentinel" else ("", "", place)
    if kind == "sentinel" and not service:
        raise ValueError("names no service; write redis+sentinel://host1,host2,host3/service")
    try:
        db = int(database or options.pop("db", 0))
    except ValueError:
        raise ValueError(f"has {database!r} in the place of the database number") from None
    if kind == "sentinel":
        options["db"] = db
    elif db:
        raise ValueError("names a database; a Redis Cluster has only database 0")
    sentinel = {name: options.pop(given) for given, name in _SENTINEL_LOGIN.items() if given in options}
    del options["host"]
    sentinel |= {name: value for name, value in options.items() if name.startswith(("ssl_", "connection_class"))}
    return Address(kind, hosts, service, options, sentinel)
