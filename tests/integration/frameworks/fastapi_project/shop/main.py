from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from bridge import publish_event

from . import worker  # noqa: F401  # the application that publish_event() takes its settings from
from .orders import Order, execute


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, total INTEGER, confirmed_by TEXT)")
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders/", status_code=202)
def create(order: Order) -> dict[str, int]:
    order_id, _ = execute("INSERT INTO orders (total) VALUES (?)", order.total)
    publish_event("order.created", order.model_copy(update={"id": order_id}))
    return {"id": order_id}


@app.get("/orders/{order_id}/")
async def show(order_id: int) -> Order:
    _, (order_id, total, confirmed_by) = execute("SELECT * FROM orders WHERE id = ?", order_id)
    return Order(id=order_id, total=total, confirmed_by=confirmed_by)
