from bridge import Event, on_event, publish_event

from .orders import Order, execute


@on_event("order.created")
def confirm(event: Event[Order]) -> None:
    publish_event("order.confirmed", event.payload.model_copy(update={"confirmed_by": event.source}))


@on_event("order.confirmed")
def note(event: Event[Order]) -> None:
    execute("UPDATE orders SET confirmed_by = ? WHERE id = ?", event.payload.confirmed_by, event.payload.id)
