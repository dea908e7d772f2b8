"""The Events pages: handlers of Flower's web server."""

from __future__ import annotations

from typing import Any

from tornado import web

from bridge.errors import BridgeError
from bridge.flower.base import STATIC, EventsHandler, Unavailable
from bridge.flower.buttons import ReplayView, RetryView
from bridge.flower.data import BY_STATE, EventData, SearchTooLong
from bridge.flower.listing import Listing
from bridge.flower.tree import lines
from bridge.operations import AmbiguousId


class ListView(EventsHandler):
    """A page with a list; :class:`ListData` provides its rows."""

    def initialize(self, template: str) -> None:
        self._template = template

    @web.authenticated
    def get(self) -> None:
        kind, message = self.take_message()
        self.show(self._template, kind=kind, message=message, states=BY_STATE)


class ListData(EventsHandler):
    """The rows of a list, which the browser requests as Flower's task table does."""

    def read(self, data: EventData, search: str, state: str, start: int, length: int) -> Listing:
        """Read the rows; called in a thread."""
        raise NotImplementedError

    @web.authenticated
    async def get(self) -> None:
        draw, start, length = self._number("draw"), self._number("start"), self._number("length")
        search = self.get_argument("search", "", escape=False)
        state = self.get_argument("state", "", escape=False)
        if state and state not in BY_STATE:
            raise web.HTTPError(400, "Unknown state")
        try:
            found, down = await self.run_in_thread(lambda data: self.read(data, search, state, start, length)), ""
        except (Unavailable, BridgeError) as error:
            found, down = Listing(), str(error)
        for row in found.rows:
            for task in row.get("tasks", ()):
                task["known"] = self.task_known(task["id"])
            if "task" in row:
                row["known"] = self.task_known(row["task"])
        self.set_header("Cache-Control", "no-store")
        self.write(
            {
                "draw": draw,
                "data": found.rows,
                "recordsTotal": found.total,
                "recordsFiltered": found.matching,
                "dead_letters": found.dead_letters,
                "searchError": found.problem,
                "down": down,
            }
        )

    def _number(self, name: str) -> int:
        return max(0, int(self.get_argument(name, 0, type=int)))


class EventRows(ListData):
    """Rows of the list of events."""

    def read(self, data: EventData, search: str, state: str, start: int, length: int) -> Listing:
        return data.events(search, state, start, length)


class DeadRows(ListData):
    """Rows of the list of dead letters."""

    def read(self, data: EventData, search: str, state: str, start: int, length: int) -> Listing:
        return data.dead_letters.page(search, start, length)


class EventView(EventsHandler):
    """The page of an event."""

    @web.authenticated
    async def get(self, event_id: str) -> None:
        kind, message = self.take_message()
        values: dict[str, Any] = {"event_id": event_id, "kind": kind, "message": message, "page": None, "lines": ()}
        values |= {"problem": "", "unknown": "", "candidates": {}}
        try:
            page = await self.run_in_thread(lambda data: data.page(event_id))
            if page is None:
                await self._find(event_id, values)
                return
        except (Unavailable, BridgeError) as error:
            self.show("bridge_event.html", 503, **values | {"problem": str(error)})
            return
        self.show("bridge_event.html", **values | {"page": page, "lines": lines(page.trace)})

    async def _find(self, start: str, values: dict[str, Any]) -> None:
        """Redirect to the page of the only event whose id begins with *start*, or show why there is no such event."""
        try:
            full_id = await self.run_in_thread(lambda data: data.full_id(start))
        except AmbiguousId as error:
            unknown = f"Several ids begin with {start}{', for example' if error.more else ''}:"
            self.show("bridge_event.html", 300, **values | {"unknown": unknown, "candidates": error.candidates})
        except SearchTooLong as error:
            self.show("bridge_event.html", 503, **values | {"unknown": str(error)})
        else:
            if full_id is None:
                raise web.HTTPError(404, f"Unknown event '{start}'")
            self.redirect(self.reverse_url("bridge-event", full_id))


class TreeView(EventsHandler):
    """The chain of an event as HTML, with which its page refreshes itself."""

    @web.authenticated
    async def get(self, event_id: str) -> None:
        try:
            trace, problem = await self.run_in_thread(lambda data: data.trace(event_id)), ""
        except (Unavailable, BridgeError) as error:
            trace, problem = None, str(error)
            self.set_header("Bridge-Down", "1")
        self.show("bridge_tree.html", lines=lines(trace), problem=problem)


#: The pages to add to Flower. url() keeps names and arguments when Flower adds its --url-prefix.
PAGES = (
    web.url(r"/events", ListView, {"template": "bridge_events.html"}, name="bridge-events"),
    web.url(r"/events/datatable", EventRows, name="bridge-events-data"),
    web.url(r"/events/dead", ListView, {"template": "bridge_dead.html"}, name="bridge-dead"),
    web.url(r"/events/dead/datatable", DeadRows, name="bridge-dead-data"),
    web.url(r"/events/dead/(\d{1,20}-\d{1,20})/retry", RetryView, name="bridge-retry"),
    web.url(r"/events/static/(.+)", web.StaticFileHandler, {"path": str(STATIC)}, name="bridge-static"),
    web.url(r"/event/(.+)/tree", TreeView, name="bridge-tree"),
    web.url(r"/event/(.+)/replay", ReplayView, name="bridge-replay"),
    web.url(r"/event/(.+)", EventView, name="bridge-event"),
)
