from flask import Blueprint, request

from bridge import publish_event

from . import tasks  # noqa: F401  # registers the handlers
from .db import get_db

bp = Blueprint("orders", __name__, url_prefix="/orders")


@bp.post("/")
def create() -> tuple[dict[str, object], int]:
    with get_db() as db:
        order_id = db.execute("INSERT INTO orders (total) VALUES (?)", (request.get_json()["total"],)).lastrowid
    publish_event("order.created", {"order_id": order_id})
    return {"id": order_id}, 202


@bp.get("/<int:order_id>/")
def show(order_id: int) -> dict[str, object]:
    return dict(get_db().execute("SELECT * FROM orders WHERE id = ?", (order_id,)).fetchone())
