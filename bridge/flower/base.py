"""The base of the Events pages. They use Redis in separate threads, never in the event loop of Flower's web server."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from flower.views import BaseHandler
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from tornado import web

from bridge.flower import formatting as shown
from bridge.flower.data import EventData

T = TypeVar("T")

#: Longest time that a page waits for its data.
_TIMEOUT_S = 8.0
#: Seconds between two refreshes of a page, unless ``?autorefresh=`` says otherwise.
_REFRESH_S = 3
STATIC = Path(__file__).parent / "static"
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
        version = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
        return f"{self.reverse_url('bridge-static', name)}?v={version}"

    def task_known(self, task_id: str) -> bool:
        """Whether Flower has a page for this task: it knows those whose events it has received since its start."""
        return task_id in self.application.events.state.tasks

    def leave_message(self, kind: str, text: str) -> None:
        """Have the next page show the result of an action; *kind* is ``success`` or ``danger``."""
        self.set_secure_cookie(_FLASH, f"{kind} {text[:_FLASH_CHARS]}", expires_days=None)

    def take_message(self) -> tuple[str, str]:
        """Return and forget the result of the last action: ``success`` or ``danger``, and a message."""
        cookie = self.get_secure_cookie(_FLASH)
        if not cookie:
            return "", ""
        self.clear_cookie(_FLASH)
        kind, _, text = cookie.decode(errors="replace").partition(" ")
        return kind, text
