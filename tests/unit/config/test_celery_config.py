"""Pickle is refused before anything runs, in every setting and under every name."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery
from kombu.serialization import registry, unpickle

from bridge import EventTask, InvalidHandler, SettingsError, on_event
from bridge.config.celery_config import is_pickle, refuse_pickled_tasks
from bridge.config.settings import BridgeSettings
from bridge.subscriber.subscriber import Subscriber

SETTINGS: list[dict[str, Any]] = [
    {"task_serializer": "pickle"},
    {"result_serializer": "pickle"},
    {"event_serializer": "pickle"},
    {"accept_content": ["json", "pickle"]},
    {"accept_content": ["application/x-python-serialize"]},
    {"result_accept_content": ["application/X-Python-Serialize", "json"]},
    {"accept_content": {"pickle"}},
]


@pytest.mark.parametrize("conf", SETTINGS, ids=lambda conf: " ".join(f"{key}={conf[key]}" for key in conf))
def test_settings_with_pickle_are_refused(conf: dict[str, Any]) -> None:
    """The error names the setting and a safe value, and no settings are loaded."""
    app = Celery("pickled", broker="redis://", set_as_current=False)
    app.conf.update(conf)
    (name,) = conf
    with pytest.raises(SettingsError, match=rf"{name} allows pickle.*Set {name} = \[?'json'"):
        BridgeSettings.load(app)


def test_other_serializers_are_accepted() -> None:
    """Serializers that cannot execute code are accepted, and so are settings without a value."""
    app = Celery("plain", broker="redis://", set_as_current=False)
    app.conf.update(accept_content=["json", "yaml", "msgpack"], result_accept_content=None, task_serializer="yaml")
    assert BridgeSettings.load(app).group == "plain"


def test_pickle_under_another_name() -> None:
    """A serializer that is registered under another name for pickle's content type counts as pickle."""
    registry.register("harmless", lambda value: value, unpickle, "application/x-python-serialize", "binary")
    try:
        assert is_pickle("harmless")
    finally:
        del registry._encoders["harmless"], registry.name_to_type["harmless"]


def test_a_handler_that_asks_for_pickle_is_refused(app: Celery, register_handlers, settings: BridgeSettings) -> None:
    """The decorator refuses pickle; if a base class or an annotation sets it, the subscriber does not start."""
    with pytest.raises(InvalidHandler, match="serializer='pickle'"):

        @on_event("a.b", serializer="pickle")
        def never(event: Any) -> None: ...

    register_handlers("t.all")
    app.conf.task_annotations = {"t.all": {"serializer": "pickle"}}
    with pytest.raises(SettingsError, match=r"task t\.all has the serializer 'pickle'"):
        Subscriber(app, settings, "one")


def test_a_task_with_pickle_is_named() -> None:
    """An ordinary task with pickle is refused too, because the workers of the application would have to accept it."""

    class Pickled(EventTask):
        serializer = "application/x-python-serialize"

    with pytest.raises(SettingsError, match="task bad has the serializer"):
        refuse_pickled_tasks({"bad": Pickled()})
