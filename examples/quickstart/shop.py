# shop.py
import bridge
from bridge import Event, on_event, publish_event
from celery import Celery
from pydantic import BaseModel

app = Celery("shop", broker="redis://localhost:6379/0")
bridge.install(app)


class OrderPlaced(BaseModel):
    order_id: str
    total: float


@on_event("order.placed")
def charge(event: Event[OrderPlaced]) -> None:
    print(f"charging {event.payload.total} for {event.payload.order_id}")
    publish_event("order.paid", {"order_id": event.payload.order_id})


@on_event("order.paid")
def ship(event: Event) -> None:
    print(f"shipping {event.payload['order_id']}")
