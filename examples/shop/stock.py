# stock.py
from decimal import Decimal

from bridge import Event, on_event, publish_event
from pydantic import BaseModel, Field


class Line(BaseModel):
    sku: str
    quantity: int = Field(ge=1)


class OrderPlaced(BaseModel):
    order_id: str = Field(examples=["o-1"])
    customer: str
    total: Decimal = Field(ge=0, decimal_places=2)
    lines: list[Line] = Field(min_length=1)


@on_event("order.placed")
def reserve_stock(event: Event[OrderPlaced]) -> None:
    for line in event.payload.lines:
        print(f"reserving {line.quantity} of {line.sku}")
    publish_event("stock.reserved", event.payload)
