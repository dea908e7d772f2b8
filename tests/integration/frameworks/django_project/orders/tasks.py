from bridge import Event, on_event

from .models import Order


@on_event("order.created")
def confirm(event: Event) -> None:
    order = Order.objects.get(pk=event.payload["order_id"])
    order.confirmed_by = event.source
    order.save(update_fields=["confirmed_by"])


@on_event("order.placed")
def reserve(event: Event) -> None:
    Order.objects.filter(pk=event.payload["order_id"]).update(reserved=True)
