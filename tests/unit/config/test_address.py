"""The address of a bus: the kind of deployment that it names, and its hosts."""

from __future__ import annotations

import pytest
from redis.connection import SSLConnection, UnixDomainSocketConnection

from bridge.config.address import Address


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service"),
    [
        ("redis://", "server", (("localhost", 6379),), ""),
        ("redis://bus:7000/2", "server", (("bus", 7000),), ""),
        ("rediss://u:p@[::1]:7000", "server", (("::1", 7000),), ""),
        ("unix:///run/redis.sock?db=3", "server", (), ""),
        ("redis+sentinel://a,b:26380,[::1]/bus", "sentinel", (("a", 26379), ("b", 26380), ("::1", 26379)), "bus"),
        ("rediss+sentinel://u:p@a/bus/4", "sentinel", (("a", 26379),), "bus"),
        ("redis+sentinel://a/7", "sentinel", (("a", 26379),), "7"),
        ("redis+cluster://a,b:7001,c", "cluster", (("a", 6379), ("b", 7001), ("c", 6379)), ""),
        ("rediss+cluster://:p@a/", "cluster", (("a", 6379),), ""),
        ("redis+cluster://a/0", "cluster", (("a", 6379),), ""),
    ],
)
def test_kind_and_hosts(url: str, kind: str, hosts: tuple[tuple[str, int], ...], service: str) -> None:
    """The scheme determines the kind of deployment, and each host without a port gets the default port of that kind."""
    address = Address.parse(url)
    assert (address.kind, address.hosts, address.service) == (kind, hosts, service)


def test_options_of_connections() -> None:
    """Login, database and certificates are passed to redis-py in the same way for every kind of address."""
    query = "ssl_ca_certs=/ca.pem&ssl_certfile=/own.pem&ssl_keyfile=/own.key"
    tls = {"ssl_ca_certs": "/ca.pem", "ssl_certfile": "/own.pem", "ssl_keyfile": "/own.key"}
    tls["connection_class"] = SSLConnection
    login = {"username": "u", "password": "p@:,/"}
    quoted = "u:p%40%3A%2C%2F"
    one = Address.parse(f"rediss://{quoted}@bus:7000/2?{query}")
    assert one.options == {"host": "bus", "port": 7000, "db": 2, **login, **tls}
    watched = Address.parse(f"rediss+sentinel://{quoted}@a,b/bus/2?{query}&sentinel_username=s&sentinel_password=t%20t")
    assert Address.parse("redis+sentinel://a/7").options == {"db": 0}
    assert watched.options == {"db": 2, **login, **tls}
    assert watched.sentinel_options == {"username": "s", "password": "t t", **tls}
    spread = Address.parse(f"rediss+cluster://{quoted}@a,b?{query}")
    assert spread.options == {**login, **tls}
    assert one.secure
    assert watched.secure
    assert spread.secure


def test_sentinels_are_not_sent_the_login_of_redis() -> None:
    """Sentinels have separate logins: a Sentinel without a password would refuse the login of the server."""
    address = Address.parse("redis+sentinel://u:p@a/bus")
    assert address.sentinel_options == {}
    assert not address.secure


def test_sockets() -> None:
    """A socket has a path and no host."""
    address = Address.parse("unix://u:p@/run/redis.sock?db=3")
    login = {"username": "u", "password": "p"}
    connection = {"path": "/run/redis.sock", "connection_class": UnixDomainSocketConnection}
    assert address.options == {**login, **connection, "db": 3}


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("amqp://s3cret", "must start with one of redis://, .*redis\\+cluster://"),
        ("localhost:6379", "must start with"),
        ("redis+sentinel://:s3cret@a,b", "names no service"),
        ("redis+sentinel://:s3cret@a/bus/x", "'x' in the place of the database number"),
        ("redis+cluster://:s3cret@a/1", "only database 0"),
        ("redis+cluster://:s3cret@a?db=1", "only database 0"),
        ("redis://:s3cret@a,b:7000", r"several hosts; write redis\+cluster:// or redis\+sentinel://"),
        ("redis://:s3cret@a:7000,b:7001", "several hosts"),
        ("redis://:s3cret\u2100@a", "write special characters of the password as %XX"),
        ("redis://:s3cret#@a:x", "write special characters of the password as %XX"),
        ("redis+cluster://:s3cret@a:b:c", "write special characters of the password as %XX"),
        ("redis+sentinel://:s3cret@a/bus?protocol=3", "must not set protocol"),
        ("redis://:s3cret@a?socket_timeout=1", "must not set socket_timeout"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str, problem: str) -> None:
    """An address that cannot work is refused at start-up, and the error shows no password."""
    with pytest.raises(ValueError, match=problem) as caught:
        Address.parse(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
