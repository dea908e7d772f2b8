"""Pickle is refused, wherever it is set and under whatever name, before anything runs."""

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
    """The text names the setting and what to set it to; no subscriber, command or publication goes on."""
    app = Celery("pickled", set_as_current=False)
    app.conf.update(conf)
    (name,) = conf
    with pytest.raises(SettingsError, match=rf"{name} allows pickle.*Set {name} = \[?'json'"):
        BridgeSettings.load(app)


def test_other_serializers_are_accepted() -> None:
    """What is no code when it is read is left to the user; so are settings that are not set."""
    app = Celery("plain", set_as_current=False)
    app.conf.update(accept_content=["json", "yaml", "msgpack"], result_accept_content=None, task_serializer="yaml")
    assert BridgeSettings.load(app).group == "plain"


def test_pickle_under_another_name() -> None:
    """A serializer that was registered again for pickle's content type is pickle."""
    registry.register("harmless", lambda value: value, unpickle, "application/x-python-serialize", "binary")
    try:
        assert is_pickle("harmless")
    finally:
        del registry._encoders["harmless"], registry.name_to_type["harmless"]


def test_a_handler_that_asks_for_pickle_is_refused(app: Celery, register_handlers, settings: BridgeSettings) -> None:
    """By the decorator; and when a base class or an annotation asks for it, before a subscriber starts."""
    with pytest.raises(InvalidHandler, match="serializer='pickle'"):

        @on_event("a.b", serializer="pickle")
        def never(event: Any) -> None: ...

    register_handlers("t.all")
    app.conf.task_annotations = {"t.all": {"serializer": "pickle"}}
    with pytest.raises(SettingsError, match=r"task t\.all has the serializer 'pickle'"):
        Subscriber(app, settings, "one")


def test_a_task_with_pickle_is_named() -> None:
    """An ordinary task counts as well: the workers of the application would have to accept it."""

    class Pickled(EventTask):
        serializer = "application/x-python-serialize"

    with pytest.raises(SettingsError, match="task bad has the serializer"):
        refuse_pickled_tasks({"bad": Pickled()})
