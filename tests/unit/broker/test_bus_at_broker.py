"""The bus at the address of Celery's broker: the forms that kombu has for an address of Redis, and other brokers."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from celery import Celery

from bridge.broker.connection import is_redis_at
from bridge.config import BridgeSettings
from bridge.errors import AddressMissing, SettingsError

SECRET = "s3cret"
CA = "/etc/ssl/certs/ca-certificates.crt"
SENTINELS = "sentinel://:p@a:1/3;sentinel://b/3"


def transport(**options: Any) -> dict[str, Any]:
    return {"broker_transport_options": options}


ADDRESSES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": ("redis://", {}, "redis://127.0.0.1:6379/0"),
    "login": ("redis://u:p%40%2F@h:1/2", {}, "redis://u:p%40%2F@h:1/2"),
    "password": ("redis://:p@h", {}, "redis://:p@h:6379/0"),
    "two slashes": ("redis://h//2", {}, "redis://h:6379/2"),
    "IPv6": ("redis://[::1]:7/0", {}, "redis://[::1]:7/0"),
    "parts": (
        "h",
        {"broker_transport": "redis", "broker_vhost": "2", "broker_user": "u", "broker_password": "p"},
        "redis://u:p@h:6379/2",
    ),
    "one server, twice": ("redis://h/1;redis://h/1", {}, "redis://h:6379/1"),
    "unchecked TLS": ("rediss://h/1", {}, "rediss://h:6379/1?ssl_cert_reqs=none"),
    "TLS in the URL": ("rediss://h?ssl_cert_reqs=CERT_OPTIONAL", {}, "rediss://h:6379/0?ssl_cert_reqs=optional"),
    "TLS": (
        "redis://h",
        {"broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": False}},
        "rediss://h:6379/0?ssl_cert_reqs=required&ssl_check_hostname=False",
    ),
    "one Sentinel": ("sentinel://a:1/4", transport(master_name="m"), "redis+sentinel://a:1/m/4"),
    "Sentinels with a login": (
        SENTINELS,
        transport(master_name="m", sentinel_kwargs={"username": "s", "password": "q@"}),
        "redis+sentinel://:p@a:1,b:26379/m/3?sentinel_username=s&sentinel_password=q%40",
    ),
    "Sentinels with TLS": (
        SENTINELS,
        transport(master_name="m", sentinel_kwargs={"ssl": True}) | {"broker_use_ssl": {"ssl_cert_reqs": "none"}},
        "rediss+sentinel://:p@a:1,b:26379/m/3?ssl_cert_reqs=none",
    ),
}
SOCKETS = {
    "redis+socket:///tmp/r.sock": "unix:///tmp/r.sock?db=0",
    "redis+socket://u:p%40@/tmp/r.sock?virtual_host=3": "unix://u:p%40@/tmp/r.sock?db=3",
}
REFUSED: dict[str, tuple[Any, dict[str, Any], type[SettingsError], str]] = {
    "no broker": (None, {}, AddressMissing, "application shop has no broker: set broker_url"),
    "RabbitMQ": ("amqp://h", {}, AddressMissing, "is not a Redis server: set bridge_redis_url"),
    "memory": ("memory://", {}, AddressMissing, "is not a Redis server"),
    "unknown": (f"nope://{SECRET}@h", {}, AddressMissing, r"cannot be used \(KeyError\)"),
    "no port": (f"redis://h:{SECRET}@x:y/", {}, AddressMissing, r"cannot be used \(ValueError\)"),
    "several servers": ("redis://a;redis://b", {}, SettingsError, "names several servers"),
    "list": (["redis://a/1", "redis://b/1"], {}, SettingsError, "names several servers"),
    "no service": (SENTINELS, {}, SettingsError, "no master_name"),
    "Sentinels without TLS": (
        SENTINELS,
        transport(master_name="m") | {"broker_use_ssl": {"ssl_cert_reqs": "none"}},
        SettingsError,
        "Sentinels use TLS",
    ),
    "no database": (f"redis://:{SECRET}@h/x", {}, SettingsError, "no number of a database"),
    "TLS object": ("rediss://h", {"broker_use_ssl": {"ssl_min_version": 1}}, SettingsError, "ssl_min_version"),
    "function": ("redis://h", {"broker_password": lambda: SECRET}, SettingsError, "password from a function"),
}


@pytest.fixture(autouse=True)
def _no_address_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def app_at(broker: Any, conf: dict[str, Any]) -> Celery:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize(("broker", "conf", "url"), ADDRESSES.values(), ids=list(ADDRESSES))
def test_the_bus_is_at_the_broker(broker: Any, conf: dict[str, Any], url: str) -> None:
    """Without another address, the bus is at the broker, which is recognised as the same Redis."""
    app = app_at(broker, conf)
    settings = BridgeSettings.load(app)
    assert settings.url == url
    assert settings.address
    assert is_redis_at(app.connection_for_write(), settings.url)


@pytest.mark.parametrize(("broker", "url"), SOCKETS.items())
def test_a_bus_at_the_socket_of_the_broker(broker: str, url: str) -> None:
    """A Unix socket has another form in kombu."""
    settings = BridgeSettings.load(app_at(broker, {}))
    assert settings.url == url
    assert settings.address.options["path"] == "/tmp/r.sock"


@pytest.mark.parametrize(("broker", "conf", "kind", "text"), REFUSED.values(), ids=list(REFUSED))
def test_no_bus_at_the_broker(broker: Any, conf: dict[str, Any], kind: type[SettingsError], text: str) -> None:
    """The error says why the bus is not there and what to set, without a password. An address is used."""
    app = app_at(broker, conf)
    with pytest.raises(SettingsError, match=text) as caught:
        BridgeSettings.load(app)
    assert type(caught.value) is kind
    assert "BRIDGE_REDIS_URL" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert BridgeSettings.load(app, redis_url="redis://bus/1").url == "redis://bus/1"
