"""What the Celery configuration holds for the bridge, and what it must not hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import Celery
from kombu.serialization import registry  # type: ignore[attr-defined]  # not in the stubs

from bridge.errors import SettingsError

CONF_PREFIX = "bridge_"
#: Where :func:`remember_installed` keeps the settings: Celery passes its configuration on to processes that it does not
#: fork, and shows no name with an underscore in front.
_INSTALLED = "_bridge_installed"


def bridge_names(app: Celery) -> dict[str, Any]:
    """Return the ``bridge_*`` settings of the configuration.

    With a namespace, as in the settings of Django, ``CELERY_BRIDGE_*`` takes precedence over ``BRIDGE_*``.
    """
    namespace = f"{app.namespace}_".lower() if app.namespace else ""  # type: ignore[attr-defined]  # not in the stubs
    keys = sorted(app.conf, key=lambda key: str(key).lower().startswith(namespace))  # the last one wins
    spelt = {key: str(key).lower().removeprefix(namespace) for key in keys}
    return {name: app.conf[key] for key, name in spelt.items() if name.startswith(CONF_PREFIX)}


def remember_installed(app: Celery, settings: Mapping[str, Any]) -> None:
    """Remember the arguments of ``install()``, also if the configuration is read later, or read again."""

    def remember(source: Any, **_: Any) -> None:
        source[_INSTALLED] = dict(settings)

    remember(app.conf)
    app.on_after_configure.connect(remember, weak=False, dispatch_uid=_INSTALLED)


def installed_settings(app: Celery) -> dict[str, Any] | None:
    """Return the arguments of ``install()``; None if the bridge is not installed in *app*."""
    if _INSTALLED not in app.conf:  # get() would load the configuration, which may not be complete yet
        return None
    found: dict[str, Any] = app.conf[_INSTALLED]
    return found


def is_fallback(app: Celery) -> bool:
    """Whether *app* is the application that Celery makes for a process that has none."""
    return app.main == "default" and not app.set_as_current  # type: ignore[attr-defined]  # not in the stubs


#: How the names of Celery's channels begin, after the ``global_keyprefix`` in the setting: those of broadcasts to
#: workers, and of results.
_CHANNELS = {"broker_transport_options": "/", "result_backend_transport_options": "celery-task-meta-"}


def refuse_shared_prefix(channel_prefix: str, app: Celery) -> None:
    """Raise :class:`SettingsError` if the messages of *app* would be received as events."""
    for name, own in _CHANNELS.items():
        shared = str((app.conf[name] or {}).get("global_keyprefix") or "")
        if f"{shared}{own}".startswith(channel_prefix):
            where = f", or another {name}['global_keyprefix']" if shared else ""
            raise SettingsError(
                f"Celery's own channels {shared}{own}... begin with the channel prefix {channel_prefix!r}: Celery's "
                f"own messages would be received as events; choose another channel_prefix{where}"
            )


#: The content type that kombu reads with pickle. It reads YAML safely, and MessagePack cannot hold code.
_PICKLE = "application/x-python-serialize"
#: Celery settings that hold the name of one serializer, and those that hold several.
_ONE = ("task_serializer", "result_serializer", "event_serializer")
_SEVERAL = ("accept_content", "result_accept_content")


def is_pickle(name: Any) -> bool:
    """Whether a serializer, given by its name or its content type, is pickle, possibly under another name."""
    content_type = name if "/" in str(name) else registry.name_to_type.get(name)
    return str(content_type).lower() == _PICKLE or str(name).lower() == "pickle"


def refuse_pickle(conf: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` if this configuration of Celery writes or accepts pickle."""
    for name in (*_ONE, *_SEVERAL):
        value = conf[name] or ()
        if any(is_pickle(one) for one in ([value] if isinstance(value, str) else value)):
            wanted = "'json'" if name in _ONE else "['json']"
            raise SettingsError(
                f"{name} allows pickle: anyone who can write to the broker or the result backend could run any code in "
                f"the workers. Set {name} = {wanted}; events and their tasks are JSON"
            )


def refuse_pickled_tasks(tasks: Mapping[str, Any]) -> None:
    """Raise :class:`SettingsError` if a task sets pickle as its serializer: the workers would have to accept it."""
    for name, task in tasks.items():
        if is_pickle(task.serializer):
            raise SettingsError(
                f"task {name} has the serializer {task.serializer!r}, which is pickle; set it to 'json'"
            )
