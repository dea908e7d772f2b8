"""Where the bus is, as its URL says: one server, one that Sentinels watch over, or a Redis Cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from redis.connection import SSLConnection, parse_url

Kind = Literal["server", "sentinel", "cluster"]

#: Scheme to what it leads to, and the scheme of each single server there.
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
#: Options of a URL that would win over what the bridge relies on: the shape of replies, and who repeats a command.
_REFUSED = {"protocol", "decode_responses", "legacy_responses", "retry_on_timeout", "retry_on_error"}
_REFUSED |= {"socket_timeout", "client_name"}
_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_LOGIN = {"sentinel_username": "username", "sentinel_password": "password"}


@dataclass(frozen=True)
class Address:
    """A parsed URL; make it with :meth:`parse`.

    Arguments:
        kind: What is there.
        hosts: Host and port of each server, Sentinel or cluster node that the URL names; none for a socket.
        service: What the Sentinels call the server; empty elsewhere.
        options: Of a connection to Redis, as redis-py takes them: login, database, certificates.
        sentinel_options: Of a connection to a Sentinel, likewise.
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
            ValueError: It cannot be used; the text shows nothing of it, for it may hold a password.
        """
        scheme, _, rest = url.partition("://")
        if scheme not in _SCHEMES:
            raise ValueError(f"must begin with one of {', '.join(f'{name}://' for name in _SCHEMES)}")
        kind, plain_scheme = _SCHEMES[scheme]
        try:
            parts = urlsplit(f"{plain_scheme}://{rest}")
            login, _, places = parts.netloc.rpartition("@")
            hosts = () if plain_scheme == "unix" else tuple(_hosts(places, _DEFAULT_PORTS[kind]))
            too_many = kind == "server" and len(hosts) > 1
            one_server = f"{login}@host?{parts.query}" if too_many or kind != "server" else rest
            options: dict[str, Any] = parse_url(f"{plain_scheme}://{one_server}")
        except ValueError:
            # The original would show a part of the password.
            raise ValueError("cannot be read; write special characters of the password as %XX") from None
        if too_many:
            raise ValueError(f"names several hosts; write {scheme}+cluster:// or {scheme}+sentinel://.../service")
        if refused := _REFUSED & options.keys():
            raise ValueError(f"takes no {', '.join(sorted(refused))}; the bridge chooses that itself")
        if kind == "server":
            return cls(kind, hosts, "", options, {})
        return _of_many(kind, hosts, parts.path, options)

    def refuse_missing_files(self) -> None:
        """Look for the files with certificates that it names.

        Raises:
            ValueError: One cannot be read. A connection would say no more than that something is not there.
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
        raise ValueError(f"has {database!r} where the number of a database belongs") from None
    if kind == "sentinel":
        options["db"] = db
    elif db:
        raise ValueError("names a database; a Redis Cluster has only number 0")
    sentinel = {name: options.pop(given) for given, name in _SENTINEL_LOGIN.items() if given in options}
    del options["host"]
    sentinel |= {name: value for name, value in options.items() if name.startswith(("ssl_", "connection_class"))}
    return Address(kind, hosts, service, options, sentinel)
