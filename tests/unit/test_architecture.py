"""The architecture: the order of the parts, their faces, and the size of files, functions and argument lists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import bridge
from tests.support import ROOT

#: From bottom to top. A part imports only from the rows above its own in this list, and not from its own row.
ORDER = [
    ["errors"],
    ["events"],
    ["config", "telemetry", "testing"],
    ["redis"],
    ["storage"],
    ["bus"],
    ["handlers"],
    ["broker"],
    ["subscriber", "operations"],
    ["cli", "flower"],
    ["worker"],
    ["celery"],
]
HEIGHT = {part: height for height, row in enumerate(ORDER) for part in row}
#: Modules that a part offers in addition to its face, each with the reason.
MODULES_OFFERED = {
    "bridge.telemetry.json_logs",  # loads Celery's log set-up, which only programs that log need
    "bridge.operations.acl",  # a separate face, because it loads Celery's result backends
}

#: A module in a string, with or without a name in it: ``"bridge.handlers.task:EventRequest"``.
_DOTTED_NAME = re.compile(r"(bridge(?:\.\w+)+)(?::(\w+))?")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 8


@cache
def parsed(code: str) -> ast.Module:
    return ast.parse(code)


@cache
def modules() -> dict[str, Path]:
    """Return all modules of the package by their dotted names."""
    paths = sorted((ROOT / "bridge").rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that *tree*, a module of *package*, imports: at its top, lazily, for type
    checkers, or by a dotted name in a string.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((start, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and (found := _DOTTED_NAME.fullmatch(str(node.value))):
            yield found[1], found[2] or ""


def references(code: str, module: str, is_package: bool = False) -> list[tuple[str, str]]:
    """Return the modules of the bridge that *code* refers to, each with the name that it takes from there."""
    package = module if is_package else module.rpartition(".")[0]
    known = modules()
    found = []
    for source, name in imported(parsed(code), package):
        full = f"{source}.{name}"
        if full in known:
            found.append((full, ""))
        elif source in known:
            found.append((source, name))
    return found


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def wrong_imports(code: str, module: str) -> list[str]:
    """Return the imports of *code*, as that module, that violate the order of the parts or bypass a face."""
    wrong = []
    own = part_of(module)
    for source, name in references(code, module):
        target = part_of(source)
        text = f"{module} -> {source}" + (f" ({name})" if name else "")
        if target == own:
            continue
        if HEIGHT.get(target, len(ORDER)) >= HEIGHT[own]:
            wrong.append(f"{text}: {target or 'bridge'} is not below {own}")
        elif source.count(".") > 1 and not _is_offered(source):
            wrong.append(f"{text}: not the face of {target}")
        elif name and name not in offered(source):
            wrong.append(f"{text}: not in __all__ of {source}")
    return wrong


def _is_offered(module: str) -> bool:
    """Return whether other parts may import *module* itself, not only its face."""
    face, _, name = module.rpartition(".")
    return module in MODULES_OFFERED or name in offered(face)


@cache
def offered(module: str) -> set[str]:
    """Return ``__all__`` of a face, or the public names of a module without one."""
    tree = parsed(modules()[module].read_text())
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets
        ):
            return set(ast.literal_eval(node.value))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return {name for name in names if not name.startswith("_")}


def test_imports_follow_the_order_of_the_parts() -> None:
    """A part imports only from parts below it, and only what their faces offer."""
    found = modules()
    unplaced = {part_of(module) for module in found} - HEIGHT.keys() - {""}
    assert unplaced == set(), "give each part a row in ORDER"
    assert [
        wrong
        for module, path in found.items()
        if module != "bridge"
        for wrong in wrong_imports(path.read_text(), module)
    ] == []


def test_no_circles() -> None:
    """No two modules import each other, directly or indirectly, in any way."""
    arrows = {
        module: {source for source, _ in references(path.read_text(), module, path.name == "__init__.py")}
        for module, path in modules().items()
        if module != "bridge"
    }
    while leaves := {module for module, targets in arrows.items() if not targets & arrows.keys() - {module}}:
        arrows = {module: targets for module, targets in arrows.items() if module not in leaves}
    assert {module: sorted(targets & arrows.keys()) for module, targets in arrows.items()} == {}


def test_faces_offer_what_is_used() -> None:
    """A face offers only names that another part, or a user of the package, imports from it."""
    taken = {
        (source, name) if name else source.rpartition(".")[::2]
        for folder in ("bridge", "tests", "scripts", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for source, name in references(path.read_text(), ".".join(path.relative_to(ROOT).with_suffix("").parts))
    }
    faces = [f"bridge.{part}" for part in HEIGHT if (ROOT / "bridge" / part).is_dir() and part not in ("cli", "flower")]
    assert [f"{face}.{name}" for face in faces for name in sorted(offered(face)) if (face, name) not in taken] == []


@pytest.mark.parametrize(
    ("code", "module", "wrong"),
    [
        ("from bridge.errors import BridgeError", "bridge.testing.redis_server", 0),
        ("from bridge.config import BridgeSettings", "bridge.testing.redis_server", 1),
        ("from bridge.events import wire", "bridge.bus.admission", 0),
        ("from bridge.events.event import Event", "bridge.bus.admission", 1),
        ("from bridge.events import Event, _private", "bridge.bus.admission", 1),
        ("from . import bus", "bridge.bus.listener", 0),
        ("from ..handlers import registry", "bridge.bus.listener", 1),
        ("import bridge.worker", "bridge.handlers.task", 1),
        ("def f():\n    from bridge.worker import install", "bridge.handlers.task", 1),
        ("if TYPE_CHECKING:\n    from bridge.bus import EventBus", "bridge.storage.journal", 1),
        ("import_module('bridge.cli.terminal')", "bridge.operations.trace", 1),
        ("from bridge import Event", "bridge.subscriber.subscriber", 1),
        ("import redis, bridgehead", "bridge.errors", 0),
    ],
)
def test_the_check_itself(code: str, module: str, wrong: int) -> None:
    """The check finds every kind of import: relative, lazy, for type checkers, by a string, past a face."""
    assert len(wrong_imports(code, module)) == wrong


def test_tests_import_no_test() -> None:
    """Test files import only shared code from tests/support, and no other test file."""
    imported_tests = re.compile(r"tests\.(?:\w+\.)*(?:test_\w+|conftest)(?:\.|$)")
    assert [
        f"{path.relative_to(ROOT)}: {source}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for source, _ in imported(parsed(path.read_text()), "tests")
        if imported_tests.match(source)
    ] == []


def test_examples_use_public_names_only() -> None:
    """The example handlers import only names of ``bridge.__all__``, as users should."""
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        taken = references(path.read_text(), f"tasks.{path.stem}")
        assert [name for source, name in taken if source != "bridge" or name not in bridge.__all__] == [], path.name


def sizes(path: Path) -> Iterable[str]:
    code = path.read_text()
    if len(code.splitlines()) > MAX_FILE_LINES:
        yield f"{path.relative_to(ROOT)}: {len(code.splitlines())} lines"
    for node in ast.walk(parsed(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            taken = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            if lines > MAX_FUNCTION_LINES or taken > MAX_ARGUMENTS:
                yield f"{path.relative_to(ROOT)}: {node.name} has {lines} lines and {taken} arguments"


def test_files_and_functions_stay_small() -> None:
    """Files, functions and argument lists are within their limits; larger ones have to be split."""
    paths = [path for folder in ("bridge", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert [row for path in paths for row in sizes(path)] == []
