"""What the buttons of the Events pages do: they show what would happen, ask, and act."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable
from typing import Any

from tornado import web

from bridge.errors import BridgeError
from bridge.flower import actions
from bridge.flower.actions import Preview
from bridge.flower.base import EventsHandler, Unavailable
from bridge.flower.data import EventData


class ActionView(EventsHandler):
    """The action of a button: GET shows what it would do, and asks; POST does it, and redirects to a page.

    That is the page of the event whose page has the button, or else the list of dead letters. It shows the result.
    """

    @property
    def who(self) -> str:
        """The user: the name with which they logged in to Flower, or without a login the IP address."""
        if isinstance(self.current_user, str):
            return self.current_user
        if self.application.options.basic_auth:
            _, _, login = self.request.headers["Authorization"].partition(" ")
            return b64decode(login).decode().partition(":")[0]
        return str(self.request.remote_ip)

    @property
    def replay_name(self) -> str:
        """Name of the replay, from the form that asked."""
        return self.text_argument("name") or actions.new_name()

    async def ask(self, verb: str, what: str, preview: Callable[[EventData], Preview], event_id: str = "") -> None:
        """Show what the action would do, with a button to do it.

        Arguments:
            verb, what: The action, for the user.
            event_id: The event whose page has the button.
        """
        self._refuse_if_read_only()
        values: dict[str, Any] = {"verb": verb, "what": what, "back": self._page(event_id), "fields": self._fields()}
        try:
            self.show("bridge_confirm.html", preview=await self.run_in_thread(preview), problem="", **values)
        except (Unavailable, BridgeError) as error:
            status = 503 if isinstance(error, Unavailable) else 409
            self.show("bridge_confirm.html", status, preview=None, problem=str(error), **values)

    async def act(self, do: Callable[[EventData], str], event_id: str = "") -> None:
        """Run the action, then redirect."""
        self._refuse_if_read_only()
        try:
            kind, text = "success", await self.run_in_thread(do)
        except Unavailable as error:
            kind, text = "danger", f"It is unknown whether this was done; check before you try again: {error}"
        except BridgeError as error:
            kind, text = "danger", f"Nothing was done: {error}"
        self.leave_message(kind, text)
        self.redirect(self._page(event_id), status=303)

    def text_argument(self, name: str) -> str:
        """Return an argument of the request as it was sent; empty if it was not sent."""
        return str(self.get_argument(name, "", escape=False))

    def _fields(self) -> dict[str, str]:
        """Return the fields of the form. With the name of the replay, a button that is pressed twice acts once."""
        passed_on = {name: value for name in ("event", "handler") if (value := self.text_argument(name))}
        return passed_on | {"name": actions.new_name()}

    def _page(self, event_id: str) -> str:
        return str(self.reverse_url("bridge-event", event_id) if event_id else self.reverse_url("bridge-dead"))

    def _refuse_if_read_only(self) -> None:
        if self.read_only:
            raise web.HTTPError(403, "Flower runs in read-only mode")


class RetryView(ActionView):
    """Retries a dead letter."""

    @web.authenticated
    async def get(self, dead_letter_id: str) -> None:
        event_id = self.text_argument("event")
        await self.ask("Retry", "a dead letter", lambda data: actions.preview_retry(data, dead_letter_id), event_id)

    @web.authenticated
    async def post(self, dead_letter_id: str) -> None:
        who, name = self.who, self.replay_name
        await self.act(lambda data: actions.retry(data, dead_letter_id, who, name), self.text_argument("event"))


class ReplayView(ActionView):
    """Replays an event."""

    @web.authenticated
    async def get(self, event_id: str) -> None:
        handler = self.text_argument("handler")
        await self.ask("Replay", "an event", lambda data: actions.preview_replay(data, event_id, handler), event_id)

    @web.authenticated
    async def post(self, event_id: str) -> None:
        handler, who, name = self.text_argument("handler"), self.who, self.replay_name
        await self.act(lambda data: actions.replay(data, event_id, handler, who, name), event_id)
