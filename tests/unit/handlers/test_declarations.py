"""Handlers from one line of code: a module imported twice is one declaration, a loop or a factory makes several."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery, _state

from bridge import Event, InvalidHandler, on_event
from bridge.handlers import registry

#: A module whose declaration has everything that is made again when it is imported again.
MODULE = """
from functools import partial
from bridge import Event, on_event

class Busy(Exception): ...

def larger(limit, event): return event.payload > limit

def picky(event, limit=3): return event.payload > limit

@on_event("a", "b.*", where=lambda event: larger(2, event), autoretry_for=(Busy,), queue="q")
def handle(event: Event) -> None: ...

@on_event("c", where=partial(larger, 2), bind=True)
def bound(self, event: Event) -> None: ...

@on_event("d", where=picky)
def defaults(event: Event) -> None: ...
"""


#: Celery reports tasks that are registered again, with a new function, under their old name.
pytestmark = pytest.mark.filterwarnings("ignore:Task name:UserWarning")


@pytest.fixture(autouse=True)
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An application, and a registry without the handlers of other modules; later applications get no task of these."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))
    before = list(registry)
    registry.clear()
    with Celery("t", set_as_current=False, broker="memory://") as app:
        yield app
    registry.clear()
    for handler in before:
        registry.add(handler)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``shoptasks`` and ``shop.shoptasks`` are one file."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "shoptasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "shop")
    yield
    for name in ("shop", "shoptasks", "shop.shoptasks"):
        sys.modules.pop(name, None)


def made(event_type: str, **options: Any) -> Any:
    @on_event(event_type, **options)
    def handler(event: Event) -> str:
        return event_type

    return handler


def made_with_default(number: int) -> Any:
    @on_event("a")
    def handler(event: Event, extra: int = number) -> int:
        return extra

    return handler


DIFFERENT = {
    "patterns": lambda: [made("a"), made("b")],
    "predicate": lambda: [made("a", where=lambda event: True), made("a", where=lambda event: False)],
    "predicate's argument": lambda: [made("a", where=partial(max, limit)) for limit in (1, 2)],
    "queue": lambda: [made("a", queue=queue) for queue in ("fast", "slow")],
    "option of the task": lambda: [made("a", max_retries=number) for number in (1, 2)],
    "default": lambda: [made_with_default(number) for number in (1, 2)],
}


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=list(DIFFERENT))
def test_a_factory_must_name_its_handlers(make: Any) -> None:
    """Two handlers from one line that differ in anything are refused: the second would replace the first."""
    with pytest.raises(InvalidHandler, match=r"both made at .*test_declarations.py:\d+, .* each a different name="):
        make()
    assert len(list(registry)) == 1


def test_a_loop_must_name_its_handlers() -> None:
    """A loop that makes handlers is refused like a factory."""

    def loop() -> None:
        for wanted in ("a.created", "b.created"):

            @on_event(wanted)
            def handler(event: Event) -> None: ...

    with pytest.raises(InvalidHandler, match="both made at"):
        loop()


def test_a_factory_with_names() -> None:
    """With a different name each, all handlers of a factory are registered."""
    for wanted in ("a", "b"):
        made(wanted, name=f"made.{wanted}")
    assert registry.patterns == {"made.a": ("a",), "made.b": ("b",)}


@pytest.mark.usefixtures("package")
def test_a_module_that_is_imported_again() -> None:
    """A reload registers the same handlers, although functions, predicates and classes are new objects."""
    module = importlib.import_module("shoptasks")
    before, functions = registry.patterns, [handler.declared[0] for handler in registry]
    importlib.reload(module)
    assert registry.patterns == before
    assert len(before) == 3
    assert not any(handler.declared[0] in functions for handler in registry)


@pytest.mark.usefixtures("package")
def test_a_module_with_two_names() -> None:
    """A file that is imported under two names is refused: each event would run its handlers twice."""
    importlib.import_module("shoptasks")
    with pytest.raises(InvalidHandler, match=r"imported as 'shoptasks' and as 'shop.shoptasks', .* under one name$"):
        importlib.import_module("shop.shoptasks")
    assert {name.partition(".")[0] for name in registry.names} == {"shoptasks"}


@pytest.mark.usefixtures("package")
def test_a_program_that_is_imported_too(tmp_path: Path) -> None:
    """A file with handlers that is started as a program, and imported, is refused: its module is ``__main__``."""
    importlib.import_module("shoptasks")
    program = ModuleType("__main__")
    program.__file__ = str(tmp_path / "shop" / "shoptasks.py")
    code = compile(MODULE, program.__file__, "exec")
    with pytest.raises(InvalidHandler, match="keep handlers out of the program that is started"):
        exec(code, vars(program))


@pytest.mark.usefixtures("package")
def test_named_handlers_may_be_imported_under_two_names(tmp_path: Path) -> None:
    """With an explicit name there is one task, whatever the module is called."""
    text = MODULE.replace('queue="q"', 'name="shop.one"').partition('@on_event("c"')[0]
    (tmp_path / "shop" / "shoptasks.py").write_text(text)
    importlib.import_module("shoptasks")
    importlib.import_module("shop.shoptasks")
    assert registry.names == ["shop.one"]
