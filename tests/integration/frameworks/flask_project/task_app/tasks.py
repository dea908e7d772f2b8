from flask import current_app

from bridge import Event, on_event, publish_event

from .db import get_db


@on_event("order.created")
def confirm(event: Event) -> None:
    publish_event("order.confirmed", {"order_id": event.payload["order_id"], "by": current_app.config["SHOP"]})


@on_event("order.confirmed", bind=True)
def note(self, event: Event) -> None:
    assert self.app is current_app.extensions["celery"]
    with get_db() as db:
        db.execute("UPDATE orders SET confirmed_by = ? WHERE id = ?", (event.payload["by"], event.payload["order_id"]))
