"""The queues that handlers are sent to, as far as they are known before the first event."""

from __future__ import annotations

from typing import Any

from celery import Celery

from bridge import BridgeSettings
from bridge.broker.outbox import Outbox
from bridge.handlers.handler import Handler


def test_queues_of_handlers(app: Celery, settings: BridgeSettings) -> None:
    """The queues are those of each pattern and of each rule of the bridge; what cannot be routed is left out."""

    def router(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any) -> Any:
        if args[0]["type"] == "broken":
            raise ValueError("no route")

    app.conf.task_routes = (router, {"t.all": {"queue": "by-celery"}})
    app.finalize()
    routes = {"order.placed": {"queue": "orders"}, "other.*": {"queue": "unused"}}
    outbox = Outbox(app, settings.model_copy(update={"routes": routes}))
    handlers = [
        Handler("t.exact", ("order.*", "broken")),
        Handler("t.glob", ("user.created",), send_options={"queue": "users"}),
        Handler("t.all", ("a.b",)),
    ]
    assert outbox.queues(handlers) == {"celery", "orders", "users", "by-celery"}
