"""The environment: settings among variables of Kubernetes, and ``REDIS_URL`` where another address is set."""

from __future__ import annotations

import logging

import pytest
from celery import Celery

from bridge import BridgeSettings, get_bus
from bridge.config.celery_config import bridge_names
from bridge.config.environment import hidden_address, is_service_link
from bridge.errors import SettingsError

SECRET = "s3cret"


def variables_of(service: str) -> dict[str, str]:
    """Return what Kubernetes sets in each container of a namespace that has this Service, as its manual lists it."""
    name = service.upper().replace("-", "_")
    return {
        f"{name}_SERVICE_HOST": "10.0.0.11",
        f"{name}_SERVICE_PORT": "6379",
        f"{name}_SERVICE_PORT_METRICS": "9808",
        f"{name}_PORT": "tcp://10.0.0.11:6379",
        f"{name}_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        f"{name}_PORT_6379_TCP_PROTO": "tcp",
        f"{name}_PORT_6379_TCP_PORT": "6379",
        f"{name}_PORT_6379_TCP_ADDR": "10.0.0.11",
        f"{name}_PORT_53_UDP": "udp://[fd00::1]:53",
    }


@pytest.mark.parametrize("service", ["bridge", "bridge-redis", "bridge-metrics", "bridge-v2-redis-url"])
def test_services_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    """Services with such names change nothing, also where a variable has the name of a setting: BRIDGE_REDIS_PORT."""
    app = Celery("shop", set_as_current=False)
    app.conf.bridge_redis_url = "redis://conf/4"
    plain = BridgeSettings.load(app)
    for name, value in variables_of(service).items():
        monkeypatch.setenv(name, value)
    assert BridgeSettings.load(app) == plain


def test_settings_beside_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is a Service, settings have their effect, and misspelt names are an error, also with such an end."""
    for name, value in variables_of("bridge").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BRIDGE_REDIS_PORT", "7")
    monkeypatch.setenv("BRIDGE_METRICS_PORT", "9808")
    settings = BridgeSettings.load()
    assert (settings.redis_port, settings.metrics_port) == (7, 9808)
    monkeypatch.setenv("BRIDGE_METRIC_PORT", "9808")
    with pytest.raises(SettingsError, match="no setting BRIDGE_METRIC_PORT; did you mean BRIDGE_METRICS_PORT"):
        BridgeSettings.load()


def test_no_setting_looks_like_a_service() -> None:
    """No setting has a name that only Kubernetes uses."""
    assert [name for name in BridgeSettings.model_fields if is_service_link(f"BRIDGE_{name}", "1")] == []


CACHE = {"REDIS_URL": f"redis://:{SECRET}@cache:6379/0"}


@pytest.mark.parametrize(
    ("environment", "conf", "explicit", "hidden"),
    [
        (CACHE, {"redis_url": "redis://bus:6379/0"}, {}, "bridge_redis_url"),
        (CACHE, {"redis_host": "bus"}, {}, "bridge_redis_host"),
        (CACHE | {"BRIDGE_REDIS_HOST": "bus"}, {}, {}, "BRIDGE_REDIS_HOST"),
        (CACHE, {"redis_url": CACHE["REDIS_URL"]}, {}, None),
        (CACHE, {"redis_host": "cache"}, {}, None),
        (CACHE, {}, {}, None),
        ({}, {"redis_url": "redis://bus:6379/0"}, {}, None),
        (CACHE | {"BRIDGE_REDIS_URL": "redis://bus:6379/0"}, {"redis_url": "redis://old:6379/0"}, {}, None),
        (CACHE, {"redis_url": "redis://bus:6379/0"}, {"redis_url": "redis://chosen:6379/0"}, None),
    ],
)
@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_redis_url_hides_another_address(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    conf: dict[str, str],
    explicit: dict[str, str],
    hidden: str | None,
    namespace: str | None,
) -> None:
    """The setting that REDIS_URL hides is reported, unless both name one server or the address is chosen explicitly."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app = Celery("shop", set_as_current=False)
    start = "bridge_" if namespace is None else "CELERY_BRIDGE_"
    app.config_from_object(
        {start + (name.upper() if namespace else name): one for name, one in conf.items()}, namespace=namespace
    )
    assert len(bridge_names(app)) == len(conf)
    settings = BridgeSettings.load(app, **explicit)
    found = hidden_address(app, settings.url, settings.redacted_url)
    assert (found and found.setting) == hidden
    assert SECRET not in str(found)


def test_a_publisher_reports_it_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A program that only publishes logs one warning, with the address that is used and without its password."""
    monkeypatch.setenv("REDIS_URL", CACHE["REDIS_URL"])
    app = Celery("shop", set_as_current=False)
    app.conf.bridge_redis_url = "redis://bus:6379/0"
    monkeypatch.setattr("bridge.bus.publish.app_or_default", lambda: app)
    with caplog.at_level(logging.WARNING, "bridge"):
        assert get_bus() is get_bus()
    (record,) = caplog.records
    assert record.getMessage().startswith("bridge_redis_url: it is not used: REDIS_URL takes precedence")
    assert "redis://cache:6379/0" in record.getMessage()
    assert SECRET not in record.getMessage()
