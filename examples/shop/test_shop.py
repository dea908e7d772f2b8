# test_shop.py
import pytest
import stock
from bridge import Event, InvalidEvent

ORDER = {"order_id": "o-1", "customer": "Ada", "total": "12.50", "lines": [{"sku": "book", "quantity": 2}]}


@pytest.fixture
def published(monkeypatch):
    """What the handlers publish, as pairs of type and payload."""
    events = []
    monkeypatch.setattr(stock, "publish_event", lambda name, payload=None: events.append((name, payload)))
    return events


def test_stock_is_reserved(published, capsys):
    stock.reserve_stock(Event(type="order.placed", payload=ORDER))
    assert "reserving 2 of book" in capsys.readouterr().out
    assert [name for name, _ in published] == ["stock.reserved"]


def test_an_order_without_lines_is_refused(published):
    with pytest.raises(InvalidEvent, match="lines"):
        stock.reserve_stock(Event(type="order.placed", payload=ORDER | {"lines": []}))
    assert published == []
