import os
import sqlite3
from contextlib import closing
from typing import Any

from pydantic import BaseModel


class Order(BaseModel):
    total: int
    id: int | None = None
    confirmed_by: str | None = None


def execute(statement: str, *values: Any) -> tuple[Any, Any]:
    """Execute a statement; return the last id and the first row."""
    with closing(sqlite3.connect(os.environ["DATABASE"], timeout=20)) as db, db:
        cursor = db.execute(statement, values)
        return cursor.lastrowid, cursor.fetchone()
