"""The Events pages in Flower, the Celery monitor. This module is all that knows how they get there.

Flower has no hook for pages of others. But when ``celery -A APP flower`` loads the application, Flower has made its
table of pages and its settings, and has not used them yet: so they can be added to. That holds for the versions it was
tested with. In any other, or when something is not as expected, Flower starts as if there were no bridge.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge.telemetry import Action, log_fields

if TYPE_CHECKING:
    from tornado.template import BaseLoader

log = logging.getLogger(__name__)

#: First two numbers of the Flower versions this was tested with; ``pyproject.toml`` asks for the same.
TESTED = (2, 2)

_TEMPLATES = Path(__file__).parent / "templates"
#: What Flower's navigation bar has for the tab that ours comes after.
_LAST_TAB = "reverse_url('broker')"
_TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'events' %} active{% end %}"
            href="{{ reverse_url('bridge-events') }}"
            {% if active_tab == 'events' %}aria-current="page"{% end %}>Events</a>
        </li>"""


class _Misfit(Exception):
    """This Flower is not as the pages need it."""


def add_pages() -> bool:
    """Give the Flower that this process is about to start the Events pages; False, with a warning, if it does not fit.

    Doing it twice is the same as once.
    """
    try:
        return _add_pages()
    except Exception as error:  # noqa: BLE001  # whatever is wrong, it must not cost anyone their monitor
        extra = log_fields(Action.FLOWER_PAGES_UNAVAILABLE, reason=type(error).__name__)
        log.warning("Flower starts without the Events pages of the bridge: %s", error, extra=extra)
        return False


def _add_pages() -> bool:
    import flower  # noqa: PLC0415  # only the process that is Flower needs it, and tornado with it
    from flower import app, command, urls  # noqa: PLC0415  # likewise

    if flower.VERSION[:2] != TESTED or not flower.__version__.startswith("{}.{}.".format(*TESTED)):
        raise _Misfit(f"they were tested with {'.'.join(map(str, TESTED))}.x, this is {flower.__version__}")
    pages, settings = urls.handlers, urls.settings
    _expect(app.default_handlers is pages and command.settings is settings, "pages and settings are elsewhere")
    if any(getattr(page, "name", None) == "bridge-events" for page in pages):
        return True
    last = pages[-1]
    _expect(isinstance(last, tuple) and last[0] == ".*", "its table of pages does not end with the one for all others")
    _expect("template_loader" not in settings, "it has a template loader of its own")
    _expect(settings.get("xsrf_cookies") is True, "it does not ask for XSRF tokens")

    from bridge.flower.views import PAGES  # noqa: PLC0415  # needs what was checked above

    loader = _loader(Path(settings["template_path"]))
    for name in ("base.html", "navbar.html", *(path.name for path in sorted(_TEMPLATES.glob("*.html")))):
        loader.load(name)  # what does not compile is to be found now
    settings["template_loader"] = loader
    pages[-1:-1] = PAGES
    return True


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Misfit(otherwise)


def _loader(flowers: Path) -> BaseLoader:
    """Return a loader of our templates and of Flower's, with our tab in its navigation bar."""
    from tornado.template import BaseLoader, Template  # noqa: PLC0415  # only Flower has tornado

    class Loader(BaseLoader):
        def resolve_path(self, name: str, parent_path: str | None = None) -> str:
            return name  # neither has folders

        def _create_template(self, name: str) -> Any:
            ours = _TEMPLATES / name
            text = (ours if ours.is_file() else flowers / name).read_text("utf-8")
            return Template(_with_tab(text) if name == "navbar.html" else text, name=name, loader=self)

    return Loader()


def _with_tab(navbar: str) -> str:
    at = navbar.find("</li>", navbar.find(_LAST_TAB)) + len("</li>")
    if _LAST_TAB not in navbar or at < len("</li>"):
        text = "Flower's navigation bar is not as expected: no tab leads to the Events pages, at /events"
        log.warning(text, extra=log_fields(Action.FLOWER_PAGES_UNAVAILABLE))
        return navbar
    return navbar[:at] + _TAB + navbar[at:]
