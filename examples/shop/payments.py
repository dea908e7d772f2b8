# payments.py
import sqlite3

from bridge import Event, on_event, publish_event
from stock import OrderPlaced


def database() -> sqlite3.Connection:
    connection = sqlite3.connect("payments.sqlite3")
    connection.execute("CREATE TABLE IF NOT EXISTS paid (task_id TEXT PRIMARY KEY, order_id TEXT, amount TEXT)")
    return connection


@on_event("stock.reserved", queue="payments", bind=True, autoretry_for=(sqlite3.OperationalError,), retry_backoff=True)
def charge(self, event: Event[OrderPlaced]) -> None:
    row = (self.request.id, event.payload.order_id, str(event.payload.total))
    with database() as connection:
        connection.execute("INSERT INTO paid VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
    publish_event("order.paid", {"order_id": event.payload.order_id, "customer": event.payload.customer})
