"""The Events pages in Flower, the Celery monitor. Only this module knows how they are added.

Flower has no hook for additional pages. But when ``celery -A APP flower`` loads the application, Flower has created its
table of pages and its settings and has not used them yet, so pages can be added. This was tested with the versions
below. With any other version, or if something is not as expected, Flower starts without the pages.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.telemetry import Action, log_fields

if TYPE_CHECKING:
    from tornado.template import BaseLoader

log = logging.getLogger(__name__)

#: First two numbers of the Flower versions with which this was tested; ``pyproject.toml`` requires the same.
TESTED = (2, 2)

_TEMPLATES = Path(__file__).parent / "templates"
#: Text in Flower's navigation bar that belongs to the tab before ours.
_LAST_TAB = "reverse_url('broker')"
_TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'events' %} active{% end %}"
            href="{{ reverse_url('bridge-events') }}"
            {% if active_tab == 'events' %}aria-current="page"{% end %}>Events</a>
        </li>"""


class _Misfit(Exception):
    """This Flower differs from what the pages need."""


def add_pages() -> bool:
    """Add the Events pages to the Flower that this process is about to start. A second call has no effect.

    Returns:
        Whether they were added; if not, a warning is logged.
    """
    try:
        return _add_pages()
    except Exception as error:  # noqa: BLE001  # no error may prevent Flower from starting
        extra = log_fields(Action.FLOWER_PAGES_UNAVAILABLE, reason=type(error).__name__)
        log.warning("Flower starts without the Events pages of the bridge: %s", error, extra=extra)
        return False


def _add_pages() -> bool:
    import flower  # noqa: PLC0415  # only the process of Flower needs it, and with it tornado
    from flower import app, command, urls  # noqa: PLC0415  # the same

    if flower.VERSION[:2] != TESTED or not flower.__version__.startswith("{}.{}.".format(*TESTED)):
        raise _Misfit(f"they were tested with Flower {'.'.join(map(str, TESTED))}.x, this is {flower.__version__}")
    pages, settings = urls.handlers, urls.settings
    _expect(
        app.default_handlers is pages and command.settings is settings, "its pages and settings are in another place"
    )
    if any(getattr(page, "name", None) == "bridge-events" for page in pages):
        return True
    last = pages[-1]
    _expect(
        isinstance(last, tuple) and last[0] == ".*",
        "its table of pages does not end with a page for all other addresses",
    )
    _expect("template_loader" not in settings, "it already has a template loader")
    _expect(settings.get("xsrf_cookies") is True, "it does not check XSRF tokens")

    from bridge.flower.views import PAGES  # noqa: PLC0415  # needs what was checked above

    loader = _loader(Path(settings["template_path"]))
    for name in ("base.html", "navbar.html", *(path.name for path in sorted(_TEMPLATES.glob("*.html")))):
        loader.load(name)  # finds templates that do not compile
    settings["template_loader"] = loader
    pages[-1:-1] = PAGES
    return True


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Misfit(otherwise)


def _loader(flowers: Path) -> BaseLoader:
    """Return a loader for our templates and those of Flower, with our tab in the navigation bar."""
    from tornado.template import BaseLoader, Template  # noqa: PLC0415  # only Flower has tornado

    class Loader(BaseLoader):
        def resolve_path(self, name: str, parent_path: str | None = None) -> str:
            return name  # neither set has folders

        def _create_template(self, name: str) -> Any:
            ours = _TEMPLATES / name
            text = (ours if ours.is_file() else flowers / name).read_text("utf-8")
            return Template(_with_tab(text) if name == "navbar.html" else text, name=name, loader=self)

    return Loader()


def _with_tab(navbar: str) -> str:
    at = navbar.find("</li>", navbar.find(_LAST_TAB)) + len("</li>")
    if _LAST_TAB not in navbar or at < len("</li>"):
        text = "Flower's navigation bar is not as expected: the Events pages have no tab; open them at /events"
        log.warning(text, extra=log_fields(Action.FLOWER_PAGES_UNAVAILABLE))
        return navbar
    return navbar[:at] + _TAB + navbar[at:]
