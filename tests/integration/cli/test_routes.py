"""``bus routes`` in a terminal."""

from __future__ import annotations

from bridge import BridgeSettings
from tests.support.terminal import OpenTerminal


def test_a_terminal_shows_each_handler_once(terminal: OpenTerminal, settings: BridgeSettings) -> None:
    """A handler with several patterns is shown once, with its further patterns below it."""
    shown = terminal("bus", "routes", NO_COLOR="1")
    assert shown.wait() == 0
    assert shown.text.count("tests.app.routed ") == 1
    assert "own.created" in shown.text
