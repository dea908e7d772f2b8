"""``bridge.install()``: its settings and their precedence, what it sets for the broker, and a second call."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from celery import Celery

import bridge
from bridge import BridgeSettings, SettingsError
from bridge.config import REDIS_TRANSPORT

SECRET = "s3cret"
ARGUMENT = {"redis_url": "redis://argument/1"}


@pytest.fixture(autouse=True)
def _no_address_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def installed(*, broker: str = "redis://broker/5", conf: dict[str, Any] | None = None, **settings: Any) -> Celery:
    app = Celery("shop", broker=broker, set_as_current=False)
    app.conf.update(conf or {})
    bridge.install(app, **settings)
    return app


@pytest.mark.parametrize(
    ("environment", "conf", "settings", "url"),
    [
        ({}, {}, {}, "redis://broker:6379/5"),
        ({}, {"bridge_redis_url": "redis://conf/2"}, {}, "redis://conf/2"),
        ({}, {"bridge_redis_url": "redis://conf/2"}, ARGUMENT, "redis://argument/1"),
        ({}, {"bridge_redis_url": "redis://conf/2"}, {"redis_host": "argument"}, "redis://argument:6379/0"),
        ({"REDIS_URL": "redis://cache"}, {}, ARGUMENT, "redis://argument/1"),
        ({"REDIS_URL": "redis://cache"}, {}, {"batch_size": 1}, "redis://cache"),
        ({"BRIDGE_REDIS_URL": "redis://own"}, {}, ARGUMENT, "redis://own"),
        ({"BRIDGE_REDIS_HOST": "own"}, {}, ARGUMENT, "redis://own:6379/0"),
        ({"BRIDGE_REDIS_HOST": "own", "REDIS_URL": "redis://cache"}, {}, ARGUMENT, "redis://own:6379/0"),
    ],
)
def test_precedence_of_addresses(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], conf: dict[str, Any], settings: Any, url: str
) -> None:
    """BRIDGE_* variables take precedence over arguments, and these over REDIS_URL, configuration and broker."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = installed(conf=conf, **settings)
    assert BridgeSettings.load(app).url == url
    assert BridgeSettings.load(app, redis_url="redis://load").url == "redis://load"


def test_another_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same precedence holds for settings that are not the address."""
    app = installed(conf={"bridge_batch_size": 3}, batch_size=2)
    assert BridgeSettings.load(app).batch_size == 2
    monkeypatch.setenv("BRIDGE_BATCH_SIZE", "1")
    assert BridgeSettings.load(app).batch_size == 1


def test_an_unknown_name_is_refused() -> None:
    """A misspelt name is refused at once, with the right one; an invalid value when the settings are read."""
    with pytest.raises(SettingsError, match=r"install\(\): there is no setting redis_ulr; did you mean redis_url"):
        installed(redis_ulr="redis://")
    with pytest.raises(SettingsError, match="batch_size"):
        BridgeSettings.load(installed(batch_size=0))


def test_a_second_call() -> None:
    """A second call changes nothing; with other settings it is an error that names them and not their values."""
    app = installed(redis_url=f"redis://:{SECRET}@h/1", batch_size=2)
    bridge.install(app)
    bridge.install(app, batch_size=2, redis_url=f"redis://:{SECRET}@h/1")
    with pytest.raises(
        SettingsError, match=r"already installed.*another value of redis_url; install it once"
    ) as caught:
        bridge.install(app, batch_size=2, redis_url=f"redis://:{SECRET}{SECRET}@h/1")
    assert SECRET not in str(caught.value)
    assert BridgeSettings.load(app).url == f"redis://:{SECRET}@h/1"


def test_the_settings_stay_with_the_application() -> None:
    """Processes that get a copy of the application know its settings, and so it does when it is configured again."""
    app = installed(redis_url=f"redis://:{SECRET}@h/1")
    before = pickle.loads(pickle.dumps(app))
    assert not app.configured
    assert app.conf.task_acks_late is False  # which reads the configuration
    after = pickle.loads(pickle.dumps(app))
    app.config_from_object({"bridge_batch_size": 4}, force=True)
    for one in (before, after, app):
        assert BridgeSettings.load(one).url == f"redis://:{SECRET}@h/1"
    assert BridgeSettings.load(app).batch_size == 4
    assert SECRET not in str(app.conf.table(with_defaults=True)) + app.conf.humanize()


@pytest.mark.parametrize(
    ("broker", "conf", "options"),
    [
        ("redis://", {}, REDIS_TRANSPORT),
        ("redis+socket:///tmp/r.sock", {}, REDIS_TRANSPORT),
        ("sentinel://a;sentinel://b", {"master_name": "m"}, REDIS_TRANSPORT | {"master_name": "m"}),
        ("rediss://", {"socket_timeout": None}, REDIS_TRANSPORT | {"socket_timeout": None}),
        ("redis://", {"socket_timeout": 1.0, "socket_keepalive": False, "socket_connect_timeout": 2.0}, None),
        ("amqp://", {"confirm_publish": True}, None),
        ("memory://", {}, None),
    ],
)
def test_transport_options(broker: str, conf: dict[str, Any], options: dict[str, Any] | None) -> None:
    """Only for Redis, options that kombu leaves out are set, unless the application sets them."""
    app = installed(broker=broker, conf={"broker_transport_options": conf})
    assert app.conf.broker_transport_options == (conf if options is None else options)
    app.config_from_object({"broker_transport_options": {"visibility_timeout": 7}}, force=True)
    assert app.conf.broker_transport_options.get("visibility_timeout", 7) == 7
    assert ("socket_timeout" in app.conf.broker_transport_options) is ("redis" in broker or "sentinel" in broker)


def test_transport_options_of_an_application_that_is_configured() -> None:
    """The options are also set if the configuration was read before the bridge was installed."""
    app = Celery("shop", broker="redis://", set_as_current=False)
    assert app.conf.broker_transport_options == {}
    bridge.install(app)
    assert app.conf.broker_transport_options == REDIS_TRANSPORT
