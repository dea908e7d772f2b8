"""Settings: their sources, the values they refuse, and the secrets they hide."""

from __future__ import annotations

import os
import traceback
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from pydantic import ValidationError

from bridge.config.settings import BridgeSettings
from bridge.errors import SettingsError
from bridge.worker import SubscriberStep

SECRET = "s3cret"
load = BridgeSettings.load


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("BRIDGE_", "REDIS_")):
            monkeypatch.delenv(name)


def app_with(name: str | None = "shop", **conf: Any) -> Celery:
    app = Celery(name, broker="redis://broker/5", set_as_current=False)
    app.conf.update(conf)
    return app


@pytest.mark.parametrize(
    ("explicit", "environment", "conf", "expected"),
    [
        (1, "2", 3, 1),
        (None, "2", 3, 2),
        (None, None, 3, 3),
        (None, None, None, 500),
        (1, None, 3, 1),
        (1, "2", None, 1),
    ],
)
def test_precedence(
    monkeypatch: pytest.MonkeyPatch, explicit: int | None, environment: str | None, conf: int | None, expected: int
) -> None:
    """Explicit arguments take precedence over the environment, then the Celery configuration, then the default."""
    if environment is not None:
        monkeypatch.setenv("BRIDGE_BATCH_SIZE", environment)
    app = app_with() if conf is None else app_with(bridge_batch_size=conf)
    assert load(app, **({} if explicit is None else {"batch_size": explicit})).batch_size == expected


HOST, URL = {"redis_host": "arg"}, {"redis_url": "redis://arg/1"}
ENV, OWN_ENV = {"REDIS_URL": "redis://env/2"}, {"BRIDGE_REDIS_URL": "redis://own/3"}
CONF = {"bridge_redis_url": "redis://conf/4"}
ADDRESSES: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, Any], str]] = {
    "broker": ({}, {}, {}, "redis://broker:6379/5"),
    "REDIS_URL": ({}, ENV, {}, "redis://env/2"),
    "BRIDGE_REDIS_URL wins over REDIS_URL": ({}, ENV | OWN_ENV, {}, "redis://own/3"),
    "configuration": ({}, {}, CONF, "redis://conf/4"),
    "REDIS_URL wins over configuration": ({}, ENV, CONF, "redis://env/2"),
    "BRIDGE_REDIS_URL wins over configuration": ({}, OWN_ENV, CONF, "redis://own/3"),
    "argument wins over all": (URL, ENV | OWN_ENV, CONF, "redis://arg/1"),
    "host argument wins over environment": (HOST, ENV | OWN_ENV, {}, "redis://arg:6379/0"),
    "host argument wins over configuration": (HOST, {}, CONF, "redis://arg:6379/0"),
    "host argument wins over both": (HOST, OWN_ENV, CONF, "redis://arg:6379/0"),
    "url argument wins over host argument": (URL | HOST, {}, {}, "redis://arg/1"),
    "parts": ({}, {"BRIDGE_REDIS_HOST": "h", "BRIDGE_REDIS_PORT": "7"}, {}, "redis://h:7/0"),
    "parts of configuration": ({}, {}, {"bridge_redis_host": "h", "bridge_redis_password": "p"}, "redis://:p@h:6379/0"),
    "url wins over parts": ({}, OWN_ENV | {"BRIDGE_REDIS_HOST": "h"}, {"bridge_redis_port": 7}, "redis://own/3"),
    "password with marks of urls": ({"redis_password": "a/b@c:d?#"}, {}, {}, "redis://:a%2Fb%40c%3Ad%3F%23@localhost:6379/0"),
    "IPv6": ({"redis_host": "::1"}, {}, {}, "redis://[::1]:6379/0"),
    "TLS": ({"redis_url": "rediss://u:p@h:1/0"}, {}, {}, "rediss://u:p@h:1/0"),
    "socket": ({"redis_url": "unix:///tmp/redis.sock"}, {}, {}, "unix:///tmp/redis.sock"),
}  # fmt: skip


@pytest.mark.parametrize(("explicit", "environment", "conf", "expected"), ADDRESSES.values(), ids=list(ADDRESSES))
def test_address(
    monkeypatch: pytest.MonkeyPatch,
    explicit: dict[str, Any],
    environment: dict[str, str],
    conf: dict[str, Any],
    expected: str,
) -> None:
    """The address of the bus comes from the source with the highest precedence that names one."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load(app_with(**conf), **explicit).url == expected


@pytest.mark.parametrize(
    ("app", "expected"),
    [(app_with("shop"), "shop"), (app_with(None), "bridge"), (app_with("__main__"), "bridge"), (None, "bridge")],
    ids=["named", "nameless", "main", "no app"],
)
def test_group_and_source_default_to_the_application(app: Celery | None, expected: str) -> None:
    """Group and source default to the name of the application, if it has one."""
    settings = load(app)
    assert (settings.group, settings.source) == (expected, expected)
    assert load(app, group="g").source == expected


def test_values_of_the_environment_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, switches and the JSON of routes are parsed from text."""
    for name, value in {"ENABLE_PUBSUB": "false", "BLOCK_MS": "50", "ROUTES": '{"a.*": {"queue": "q"}}'}.items():
        monkeypatch.setenv(f"BRIDGE_{name}", value)
    settings = load()
    assert (settings.enable_pubsub, settings.block_ms) == (False, 50)
    assert settings.routes == {"a.*": {"queue": "q"}}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("redis_ulr", "redis_url"),
        ("batchsize", "batch_size"),
        ("chanel_prefix", "channel_prefix"),
        ("event_ttl", "event_ttl_s"),
        ("groups", "group"),
    ],
)
def test_misspelt_names_propose_the_right_one(monkeypatch: pytest.MonkeyPatch, wrong: str, right: str) -> None:
    """An unknown setting is an error in every source, and the error suggests the right name as spelled there."""
    with pytest.raises(SettingsError, match=rf"argument: .*{wrong}; did you mean {right}\?"):
        load(**{wrong: "x"})
    with pytest.raises(SettingsError, match=rf"Celery configuration: .*bridge_{wrong}; did you mean bridge_{right}\?"):
        load(app_with(**{f"bridge_{wrong}": "x"}))
    monkeypatch.setenv(f"BRIDGE_{wrong.upper()}", "x")
    with pytest.raises(SettingsError, match=rf"environment: .*did you mean BRIDGE_{right.upper()}\?"):
        load()


def test_unlike_names_list_all() -> None:
    """If no name is similar, the error lists the known ones; names without our prefix are ignored."""
    with pytest.raises(SettingsError, match=r"known are .*batch_size, .*, wait_replicas_ms\."):
        load(qqqqqq=1)
    assert load(app_with(broker_url="redis://", bridges="x")).group == "shop"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("batch_size", value) for value in (0, 5001, "many", None)],
        *[("block_ms", value) for value in (0, 2001)],
        *[("redis_port", value) for value in (0, 65536)],
        *[("group_start", value) for value in ("now", "")],
        *[("socket_timeout_s", 1), ("publish_timeout_s", 0), ("claim_idle_s", 0), ("event_ttl_s", 0)],
        *[("max_hops", 0), ("max_event_bytes", 0), ("local_event_cache_size", -1), ("dedup_ttl_s", -1)],
        *[("channel_prefix", value) for value in ("", "a{b}", "a b", "a\n", None)],
        *[("group", value) for value in ("", "a:b", "a b", "{a}", "a\n", "ä", "a" * 101)],
        *[("source", value) for value in ("RedisEventBus", None)],
        *[("redis_url", value) for value in ("http://host", "host:6379", "", 5, "redis://h:a", "redis://h?db=x")],
        *[
            ("redis_url", f"redis://h/0?{option}")
            for option in ("protocol=3", "decode_responses=1", "socket_timeout=1")
        ],
        *[("routes", value) for value in ("x", {"a": "queue"})],
    ],
)
def test_invalid_values_are_named(name: str, value: object) -> None:
    """An invalid value is refused, and the error names its setting."""
    with pytest.raises(SettingsError, match=name):
        load(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("BATCH_SIZE", "many"), ("ROUTES", "{'a': 1}"), ("REDIS_URL", "http://h")])
def test_invalid_values_of_the_environment(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A variable that cannot be parsed raises a SettingsError, as other invalid values do."""
    monkeypatch.setenv(f"BRIDGE_{name}", value)
    with pytest.raises(SettingsError, match=name.lower()):
        load()


@pytest.mark.parametrize("prefix", ["a:", "a*?[b]^\\:", "ä:", "RedisEventBus"])
def test_unusual_prefixes_pass(prefix: str) -> None:
    """A prefix may contain glob characters, because they are quoted when it is used."""
    assert load(channel_prefix=prefix).channel_prefix == prefix


SECRETIVE: dict[str, dict[str, Any]] = {
    "url": {"redis_url": f"redis://:{SECRET}@host:6379/0"},
    "url with user": {"redis_url": f"rediss://user:{SECRET}@host/0"},
    "password with @": {"redis_url": f"redis://:a@{SECRET}@host/0"},
    "password with ?": {"redis_url": f"redis://:{SECRET}?b@host/0"},
    "password with #": {"redis_url": f"redis://:{SECRET}#b@host/0"},
    "password with a newline": {"redis_url": f"redis://:{SECRET}\nb@host/0"},
    "query": {"redis_url": f"redis://host/0?password={SECRET}&db=1"},
    "query with @": {"redis_url": f"redis://host/0?password=a@{SECRET}"},
    "password alone": {"redis_password": SECRET},
    "no scheme": {"redis_url": f"user:{SECRET}@host:6379/0"},
    "wrong scheme": {"redis_url": f"http://user:{SECRET}@host:6379/0"},
    "wrong type": {"redis_url": [SECRET], "redis_password": {SECRET: SECRET}},
    "with another mistake": {"redis_url": f"redis://:{SECRET}@h", "redis_password": SECRET, "batch_size": 0},
    "with a contradiction": {"redis_password": SECRET, "dedup_ttl_s": 1},
    "misspelt name": {"redis_pasword": SECRET},
}


@pytest.mark.parametrize("explicit", SECRETIVE.values(), ids=list(SECRETIVE))
def test_passwords_are_not_shown(explicit: dict[str, Any]) -> None:
    """The settings as text, the address for logs, and errors with their tracebacks show no password."""
    shown = ""
    try:
        settings = load(**explicit)
        shown = f"{settings!r} {settings} {settings.redacted_url} {settings.client_name} {settings.model_dump()}"
        assert settings.redacted_url.startswith(("redis://", "rediss://"))
    except SettingsError as error:
        shown = "".join(traceback.format_exception(error))
    assert shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "redacted"),
    [
        ("rediss://user:pw@host:6380/2?ssl_cert_reqs=none", "rediss://host:6380/2"),
        ("redis://host", "redis://host"),
        ("unix://user:pw@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_redacted_url_keeps_the_place(url: str, redacted: str) -> None:
    """Host, port and database stay readable."""
    assert load(redis_url=url).redacted_url == redacted


def test_dedup_lasts_longer_than_events() -> None:
    """By default marks outlive events by an hour, and a value below the lifetime of events is refused."""
    assert (load(event_ttl_s=10).event_ttl_ms, load(event_ttl_s=10).dedup_ttl_ms) == (10_000, 3_610_000)
    assert load(event_ttl_s=10, dedup_ttl_s=11).dedup_ttl_ms == 11_000
    for too_short in (10, 9):
        with pytest.raises(SettingsError, match="dedup_ttl_s must exceed event_ttl_s"):
            load(event_ttl_s=10, dedup_ttl_s=too_short)


def test_settings_do_not_change() -> None:
    """Settings are immutable."""
    with pytest.raises(ValidationError, match="frozen"):
        load().batch_size = 1


def test_client_name_suits_redis() -> None:
    """The client name is valid for CLIENT SETNAME, which accepts no spaces, and shows the group and the process."""
    name = load(group="tests").client_name
    assert name.startswith("bridge:tests:")
    assert name.endswith(f":{os.getpid()}")
    assert not set(name) & set(" \n")


def test_a_namespaced_configuration_is_read_and_checked() -> None:
    """With a namespace, as in Django projects, names are read as CELERY_BRIDGE_*, rather than as BRIDGE_*."""
    app = Celery("shop", broker="redis://", set_as_current=False)
    app.config_from_object({"CELERY_BRIDGE_GROUP": "mine", "CELERY_TASK_ACKS_LATE": True}, namespace="CELERY")
    assert load(app).group == "mine"
    for both in (
        {"CELERY_BRIDGE_GROUP": "mine", "bridge_group": "no"},
        {"BRIDGE_GROUP": "no", "celery_bridge_group": "mine"},
    ):
        app = Celery("shop", broker="redis://", set_as_current=False)
        app.config_from_object(both, namespace="CELERY")
        assert load(app).group == "mine"
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"CELERY_BRIDGE_GRUOP": "mine"}, namespace="CELERY")
    with pytest.raises(SettingsError, match="did you mean bridge_group"):
        load(app)


@pytest.mark.parametrize(
    ("prefix", "conf"),
    [
        ("dreamnet:events:", {"broker_transport_options": {"global_keyprefix": "dreamnet:events:celery:"}}),
        ("shop:", {"result_backend_transport_options": {"global_keyprefix": "shop:"}}),
        ("celery", {}),
        ("/", {}),
    ],
)
def test_a_prefix_shared_with_celery_is_refused(prefix: str, conf: dict[str, Any]) -> None:
    """A channel prefix that includes Celery's own channels is refused, because they would be received as events."""
    with pytest.raises(SettingsError, match="would be received as events"):
        load(app_with(**conf), channel_prefix=prefix)
    assert load(app_with(**conf), channel_prefix="celery:events:").channel_prefix == "celery:events:"


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_monitors_see_no_password(namespace: str | None) -> None:
    """The configuration that ``inspect conf`` and Flower show hides the address of the bus."""
    name = "bridge_redis_url" if namespace is None else "CELERY_BRIDGE_REDIS_URL"
    app = Celery("shop", set_as_current=False)
    app.config_from_object({name: f"redis://:{SECRET}@h/0"}, namespace=namespace)
    SubscriberStep(SimpleNamespace(app=app))
    assert "redis_url" in str(app.conf.table()).lower()
    assert SECRET not in str(app.conf.table()) + app.conf.humanize()
    assert BridgeSettings.load(app).url == f"redis://:{SECRET}@h/0"
