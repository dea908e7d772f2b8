"""Dreams are analysed and indexed: ``dream.created`` -> ``dream.analysed`` -> ``dream.ready``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from bridge import Event, get_bus, on_event, publish_event
from tasks import text
from tasks.names import key

#: Number of dreams that are kept in the index, the newest ones.
INDEX_SIZE = 1000


class DreamCreated(BaseModel):
    """Payload of ``dream.created``."""

    dream_id: str = Field(alias="dreamId", min_length=1)
    text: str


@on_event("dream.created")
def analyse(event: Event[DreamCreated]) -> dict[str, Any]:
    """Compute statistics of the dream's text and publish them."""
    statistics = asdict(text.analyse(event.payload.text))
    publish_event("dream.analysed", {"dreamId": event.payload.dream_id, "statistics": statistics})
    return statistics


@on_event("dream.analysed", queue="index")
def index(event: Event) -> int:
    """Add the dream to the index of the newest dreams by time and by word, and publish its position."""
    dream_id, statistics = event.payload["dreamId"], event.payload["statistics"]
    with get_bus().client.pipeline() as pipe:
        for name in ("index", *(f"words:{word}" for word in statistics["top_words"])):
            pipe.zadd(key(name), {dream_id: event.timestamp})
            pipe.zremrangebyrank(key(name), 0, -INDEX_SIZE - 1)
        pipe.zrevrank(key("index"), dream_id)
        rank = pipe.execute()[-1]
    position = -1 if rank is None else int(rank)  # an old dream may be dropped at once
    mood = statistics["sentiment"]
    publish_event(
        "dream.ready",
        {"dreamId": dream_id, "position": position, "mood": "bright" if mood > 0 else "dark" if mood < 0 else "even"},
    )
    return position
