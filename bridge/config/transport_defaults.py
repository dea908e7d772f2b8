"""Options of the connections to a broker on Redis that kombu leaves out, for applications that do not set them."""

from __future__ import annotations

from typing import Any

from celery import Celery

#: Without these, a broker that does not answer blocks a worker, or a program that sends a task, indefinitely.
REDIS_TRANSPORT = {"socket_timeout": 10.0, "socket_connect_timeout": 3.0, "socket_keepalive": True}
_REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")


def install_transport_defaults(app: Celery) -> None:
    """Set the options of :data:`REDIS_TRANSPORT` whenever the configuration is read, and now if it has been."""

    def on_configure(sender: Celery, **_: Any) -> None:
        set_transport_defaults(sender)

    app.on_after_configure.connect(on_configure, weak=False, dispatch_uid="bridge.transport_defaults")
    if app.configured:  # type: ignore[attr-defined]  # not in the stubs
        set_transport_defaults(app)


def set_transport_defaults(app: Celery) -> None:
    """Set those options of :data:`REDIS_TRANSPORT` that *app* does not set, if its broker is Redis."""
    conf = app.conf
    if all(_is_redis(conf, url) for url in (conf.broker_read_url, conf.broker_write_url)):
        given = conf.broker_transport_options or {}
        if REDIS_TRANSPORT.keys() - given.keys():
            conf.broker_transport_options = REDIS_TRANSPORT | given


def _is_redis(conf: Any, url: Any) -> bool:
    first = url if isinstance(url, str) else next(iter(url or ()), "")
    scheme = conf.broker_transport or (first.partition("://")[0] if "://" in first else "")
    return scheme in _REDIS_SCHEMES
