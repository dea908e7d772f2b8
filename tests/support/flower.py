"""A bus with a worker and Flower servers, and a browser that opens their pages."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

from redis import Redis
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from bridge import BridgeSettings, EventBus
from bridge.storage.dead_letters import DeadLetters
from bridge.storage.storage import Storage
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

#: Query parameter of a page: the interval of its automatic refresh, in seconds.
QUICK = "autorefresh=0.3"


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: Mapping[str, str]


class Flower:
    """A running Flower server."""

    def __init__(self, port: int, path: str = "", login: str = "") -> None:
        self.port = port
        self._path = path
        self._headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        self.url = f"http://{login}{'@' if login else ''}127.0.0.1:{port}{path}"

    def ask(self, path: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
        """Request a page with GET, or POST a form to it."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            body = None if form is None else urlencode(form)
            kind = {} if form is None else {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request(
                "GET" if form is None else "POST", self._path + path, body, self._headers | kind | headers
            )
            reply = connection.getresponse()
            return Answer(reply.status, reply.read().decode(), dict(reply.getheaders()))
        finally:
            connection.close()

    def press(self, path: str, **form: str) -> Answer:
        """POST a form with an XSRF token that belongs to its cookie."""
        return self.ask(path, form | {"_xsrf": "abcd"}, Cookie="_xsrf=abcd")

    def is_up(self) -> bool:
        try:
            return self.ask("/healthcheck").status == 200
        except OSError:
            return False


@dataclass(frozen=True)
class Site:
    """A separate bus on the shared server, with a worker; it can start Flower servers."""

    processes: Processes
    bus: EventBus
    client: Redis
    settings: BridgeSettings

    def flower(self, name: str, *options: str, path: str = "", login: str = "", **environment: str) -> Flower:
        """Start Flower and wait until it responds."""
        started = Flower(free_port(), path, login)
        listen = [f"--port={started.port}", "--address=127.0.0.1"]
        self.processes.celery("flower", *listen, *options, name=name, **environment)
        eventually(started.is_up, f"{name} responds", 30)
        return started

    @property
    def letters(self) -> DeadLetters:
        return Storage(self.client, self.settings).dead_letters

    def letter_of(self, event_id: str) -> str:
        """Wait for the dead letter of an event; return its id."""
        latest = lambda: [one.dead_letter_id for one in self.letters.latest(1000) if one.event_id == event_id]  # noqa: E731
        return str(eventually(latest, f"{event_id} has a dead letter")[0])


def headless_chrome(driver: str, *arguments: str) -> Chrome:
    """Start a browser without a window; *driver* is the path of chromedriver."""
    options = ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return Chrome(options=options, service=Service(driver))


class Browser:
    """A headless Chromium."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        """Return the texts of the elements; empty while the page changes."""
        try:
            return [element.text for element in self.all(css)]
        except StaleElementReferenceException:
            return []

    def text(self, css: str) -> str:
        return "\n".join(self.texts(css))

    def shows(self, css: str, *parts: str) -> str:
        """Wait until the elements contain all of *parts*; return their text."""
        return str(eventually(lambda: self._holds(css, parts), f"{css} contains {parts}: {self.text(css)!r}"))

    def _holds(self, css: str, parts: tuple[str, ...]) -> str:
        text = self.text(css)
        return text if all(part in text for part in parts) else ""

    def click(self, css: str) -> None:
        """Click the first displayed element that matches, as soon as one can be clicked."""

        def clicked() -> bool:
            try:
                found = [element for element in self.all(css) if element.is_displayed()]
                if found:
                    found[0].click()
            except StaleElementReferenceException:
                return False
            return bool(found)

        eventually(clicked, f"{css} can be clicked")

    def type(self, css: str, text: str) -> None:
        """Replace the text of a field; unlike ``clear()``, this never removes the focus."""
        (field,) = self.all(css)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def emulate(self, width: int, *, dark: bool = False) -> None:
        """Display pages with this width in px and this colour scheme."""
        metrics: dict[str, Any] = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str) -> Any:
        return self.driver.execute_script(f"return {script}")

    def complaints(self) -> list[str]:
        """Return the errors in the browser's console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
