"""No pickle: whoever may write to a queue or to the result backend could run any code where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.serialization import registry  # type: ignore[attr-defined]  # not in the stubs

from bridge.errors import SettingsError

#: What kombu reads with pickle. Its YAML is the safe kind, and MessagePack has no code in it.
_PICKLE = "application/x-python-serialize"
#: Settings of Celery that hold one name of a serializer, and those that hold several.
_ONE = ("task_serializer", "result_serializer", "event_serializer")
_SEVERAL = ("accept_content", "result_accept_content")


def is_pickle(name: Any) -> bool:
    """Whether a serializer, given by its name or its content type, is pickle, under whatever name."""
    content_type = name if "/" in str(name) else registry.name_to_type.get(name)
    return str(content_type).lower() == _PICKLE or str(name).lower() == "pickle"


def refuse_pickle(conf: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` when this configuration of Celery writes or accepts pickle."""
    for name in (*_ONE, *_SEVERAL):
        value = conf[name] or ()
        if any(is_pickle(one) for one in ([value] if isinstance(value, str) else value)):
            wanted = "'json'" if name in _ONE else "['json']"
            raise SettingsError(
                f"{name} has pickle: whoever may write to the broker or to the result backend could run any code in "
                f"the workers; set {name} = {wanted}. Events and their tasks are JSON"
            )


def refuse_pickled_tasks(tasks: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` when a task, by its own choice, is sent with pickle: the workers would need it."""
    for name, task in tasks.items():
        if is_pickle(task.serializer):
            raise SettingsError(f"task {name} has serializer {task.serializer!r}, which is pickle; set it to 'json'")
