# mail.py
from bridge import Event, on_event


@on_event("order.paid")
def send_receipt(event: Event) -> None:
    print(f"receipt for {event.payload['customer']}")


@on_event("order.*", where=lambda event: event.source != "import")
def audit(event: Event) -> None:
    print(f"audit: {event.type} of chain {event.chain_id}")
