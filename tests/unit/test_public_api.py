"""The public API of the package, and its errors."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator

import pytest

import bridge
from bridge.errors import BridgeError, BusUnavailable, HopLimitExceeded, InvalidEvent, NotReplicated
from tests.support import ROOT

#: Arguments of the errors whose constructors take more than a text.
ARGUMENTS: dict[type[BridgeError], tuple[object, ...]] = {
    InvalidEvent: ("non_finite", "payload.items[3].price", "nan is not JSON"),
    HopLimitExceeded: ("dream.again", 17, 16),
    NotReplicated: (0, 1),
}


def family(root: type[BridgeError]) -> Iterator[type[BridgeError]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


#: Those of commands and pages are defined where they are raised, and are not part of the public API.
ERRORS = [error for error in dict.fromkeys(family(BridgeError)) if error.__module__ == BridgeError.__module__]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_can_be_pickled(error: type[BridgeError], protocol: int) -> None:
    """Errors can be pickled, as Celery requires, with type, text, arguments and attributes."""
    original = error(*ARGUMENTS.get(error, ("what to do next",)))
    copy = pickle.loads(pickle.dumps(original, protocol))
    assert type(copy) is error
    assert (str(copy), copy.args, vars(copy)) == (str(original), original.args, vars(original))
    assert traceback.format_exception_only(copy)[-1].strip().endswith(str(original))


def test_errors_are_documented() -> None:
    """The tree in the docstring of the module contains every error."""
    assert bridge.errors.__doc__ is not None
    assert {error.__name__ for error in ERRORS} <= set(bridge.errors.__doc__.split())


def test_error_texts_name_the_place_and_the_way_out() -> None:
    """An invalid event names field, problem and reason; an exceeded hop limit names type, limit and setting."""
    assert str(InvalidEvent("json", "payload.a", "bad")) == "payload.a: bad [json]"
    assert str(InvalidEvent("empty", "", "no content")) == "event: no content [empty]"
    for part in ("'dream.again'", "17", "16", "bridge_max_hops"):
        assert part in str(HopLimitExceeded("dream.again", 17, 16))


@pytest.mark.parametrize(("error", "builtin"), [(BusUnavailable, ConnectionError), (bridge.InvalidHandler, TypeError)])
def test_errors_fit_the_built_in_ones(error: type[BridgeError], builtin: type[Exception]) -> None:
    """Handlers of built-in exceptions also catch these errors."""
    with pytest.raises(builtin, match="text"):
        raise error("text")


def test_public_names() -> None:
    """``bridge`` exports exactly these names, so that a change of them is deliberate."""
    assert sorted(bridge.__all__) == [
        "BridgeError",
        "BridgeSettings",
        "BusUnavailable",
        "Event",
        "EventBus",
        "EventTask",
        "HopLimitExceeded",
        "InvalidEvent",
        "InvalidHandler",
        "JournalLost",
        "LocalBus",
        "Publication",
        "SettingsError",
        "current_event",
        "effect_transaction",
        "get_bus",
        "install",
        "on_event",
        "publish_event",
    ]
    for name in bridge.__all__:
        assert getattr(bridge, name).__module__.startswith("bridge."), name


def test_version() -> None:
    """``bridge.__version__`` is the version of the installed package, which pyproject.toml states."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert bridge.__version__ == project["version"]
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        _ = bridge.version  # type: ignore[attr-defined]


OBSERVED_IMPORT = """
import sys, threading, warnings
warnings.simplefilter("error")
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event in ("socket.__new__", "socket.connect") else None)
import {module}
from celery import _state
print(len(list(_state._get_active_apps())), _state.default_app is None, opened, threading.active_count())
"""


@pytest.mark.parametrize(("module", "apps"), [("bridge", 0), ("bridge.celery", 1)], ids=["bridge", "bridge.celery"])
def test_import_has_no_side_effects(module: str, apps: int) -> None:
    """Importing opens no socket, starts no thread, and creates no Celery application except that of ``-A bridge``.

    That application becomes the default of the process, for threads without a current application.
    """
    code = OBSERVED_IMPORT.format(module=module)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == (f"{apps} {apps == 0} [] 1", "")
