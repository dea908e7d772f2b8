"""The Events pages: handlers of Flower's web server. They use Redis in separate threads, never in the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from flower.views import BaseHandler
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from tornado import web

from bridge.errors import BridgeError
from bridge.flower import actions
from bridge.flower import formatting as shown
from bridge.flower.data import BY_STATE, EventData, SearchTooLong
from bridge.flower.listing import Listing
from bridge.flower.tree import lines
from bridge.operations import AmbiguousId

T = TypeVar("T")

#: Longest time that a page waits for its data.
_TIMEOUT_S = 8.0
#: Seconds between two refreshes of a page, unless ``?autorefresh=`` says otherwise.
_REFRESH_S = 3
_STATIC = Path(__file__).parent / "static"
_FLASH = "bridge_message"
#: Longest message that is passed to the next page in a cookie, which can hold 4 kB.
_FLASH_CHARS = 500

#: Separate from Flower's own threads, so that a hung Redis does not block the other pages of Flower.
_threads = ThreadPoolExecutor(4, thread_name_prefix="bridge-pages")


class Unavailable(Exception):
    """The data of a page is unavailable; the text says why, for the user."""


class _Data:
    """The data of one Flower, created for the first page that needs it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._made: EventData | None = None

    def get(self) -> EventData:
        with self._lock:
            if self._made is None:
                self._made = EventData(self._app)
            return self._made


class EventsHandler(BaseHandler):  # type: ignore[misc]  # flower has no types
    """Base of all pages."""

    def check_xsrf_cookie(self) -> None:
        """Run Flower's checks, and check the token in any case: Flower does not while it has no login."""
        super().check_xsrf_cookie()
        web.RequestHandler.check_xsrf_cookie(self)

    @property
    def read_only(self) -> bool:
        """Whether Flower runs in read-only mode."""
        return bool(self.application.options.read_only)

    async def run_in_thread(self, do: Callable[[EventData], T]) -> T:
        """Run *do* in a thread, and return its result.

        Raises:
            BridgeError: As *do*.
            Unavailable: Redis or the result backend does not answer in time.
        """
        source: _Data = self.settings.setdefault("bridge_data", _Data(self.capp))
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(_threads, lambda: do(source.get())), _TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(f"No answer from Redis within {_TIMEOUT_S:.0f} s.") from None
        except (RedisError, OperationalError, OSError) as error:  # BusUnavailable is an OSError too
            raise Unavailable(str(error) or type(error).__name__) from error

    def show(self, template: str, status: int = 200, **values: Any) -> None:
        """Render a page."""
        self.set_status(status)
        self.set_header("Cache-Control", "no-store")
        time = "natural-time" if self.application.options.natural_time else "time"
        zone = self.capp.conf.timezone
        self.render(
            template,
            time=f"{time}-{zone}" if zone else time,
            refresh_s=_REFRESH_S if self.application.options.auto_refresh else 0,
            read_only=self.read_only,
            shown=shown,
            asset=self.asset,
            task_known=self.task_known,
            **values,
        )

    def asset(self, name: str) -> str:
        """Return the address of one of our static files, which differs for each version of the file."""
        version = hashlib.sha256((_STATIC / name).read_bytes()).hexdigest()[:12]
        return f"{self.reverse_url('bridge-static', name)}?v={version}"

    def task_known(self, task_id: str) -> bool:
        """Whether Flower has a page for this task: it knows those whose events it has received since its start."""
        return task_id in self.application.events.state.tasks

    def take_message(self) -> tuple[str, str]:
        """Return and forget the result of the last action: ``success`` or ``danger``, and a message."""
        cookie = self.get_secure_cookie(_FLASH)
        if not cookie:
            return "", ""
        self.clear_cookie(_FLASH)
        kind, _, text = cookie.decode(errors="replace").partition(" ")
        return kind, text


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


class ActionView(EventsHandler):
    """The action of a button. It redirects to the page of the button, which shows the result."""

    @property
    def who(self) -> str:
        """The user: the name with which they logged in to Flower, or without a login the IP address."""
        if isinstance(self.current_user, str):
            return self.current_user
        if self.application.options.basic_auth:
            _, _, login = self.request.headers["Authorization"].partition(" ")
            return b64decode(login).decode().partition(":")[0]
        return str(self.request.remote_ip)

    async def act(self, do: Callable[[EventData], str], event_id: str = "") -> None:
        """Run the action, then redirect to the page of an event or, without one, to the dead letters."""
        if self.read_only:
            raise web.HTTPError(403, "Flower runs in read-only mode")
        try:
            kind, text = "success", await self.run_in_thread(do)
        except Unavailable as error:
            kind, text = "danger", f"It is unknown whether this was done; check before you try again: {error}"
        except BridgeError as error:
            kind, text = "danger", f"Nothing was done: {error}"
        self.set_secure_cookie(_FLASH, f"{kind} {text[:_FLASH_CHARS]}", expires_days=None)
        page = ("bridge-event", event_id) if event_id else ("bridge-dead",)
        self.redirect(self.reverse_url(*page), status=303)


class RetryView(ActionView):
    """Retries a dead letter."""

    @web.authenticated
    async def post(self, dead_letter_id: str) -> None:
        who = self.who
        await self.act(
            lambda data: actions.retry(data, dead_letter_id, who), self.get_argument("event", "", escape=False)
        )


class ReplayView(ActionView):
    """Replays an event."""

    @web.authenticated
    async def post(self, event_id: str) -> None:
        handler, who = self.get_argument("handler", "", escape=False), self.who
        await self.act(lambda data: actions.replay(data, event_id, handler, who), event_id)


#: The pages to add to Flower. url() keeps names and arguments when Flower adds its --url-prefix.
PAGES = (
    web.url(r"/events", ListView, {"template": "bridge_events.html"}, name="bridge-events"),
    web.url(r"/events/datatable", EventRows, name="bridge-events-data"),
    web.url(r"/events/dead", ListView, {"template": "bridge_dead.html"}, name="bridge-dead"),
    web.url(r"/events/dead/datatable", DeadRows, name="bridge-dead-data"),
    web.url(r"/events/dead/(\d{1,20}-\d{1,20})/retry", RetryView, name="bridge-retry"),
    web.url(r"/events/static/(.+)", web.StaticFileHandler, {"path": str(_STATIC)}, name="bridge-static"),
    web.url(r"/event/(.+)/tree", TreeView, name="bridge-tree"),
    web.url(r"/event/(.+)/replay", ReplayView, name="bridge-replay"),
    web.url(r"/event/(.+)", EventView, name="bridge-event"),
)
