"""The shape of the code: imports point one way, and nothing grows without end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge
from tests.conftest import ROOT

#: From top to bottom; a module imports only from lower layers.
LAYERS = (
    ("cli", "celery"),
    ("worker",),
    ("flower",),
    ("subscriber", "json_logs"),
    ("monitoring",),
    ("exporter",),
    ("health",),
    ("intake", "upkeep"),
    ("recovery",),
    ("dispatcher",),
    ("handover", "batch", "trace", "refusals"),
    ("outcomes",),
    ("messages",),
    ("rendering",),
    ("link",),
    ("handlers",),
    ("task",),
    ("execution", "log_fields"),
    ("publishing",),
    ("bus", "context"),
    ("feed", "local_bus"),
    ("replay", "checks", "rights", "stores", "status", "groups"),
    ("presence",),
    ("sources",),
    ("history",),
    ("journal", "dead_letters"),
    ("ledger", "event_keys", "admission"),
    ("records",),
    ("connection",),
    ("metrics", "pulse", "primary"),
    ("acl_celery",),
    ("acl",),
    ("settings", "concealment"),
    ("stored", "signing", "redaction"),
    ("event",),
    ("fields",),
    ("selection", "grants"),
    ("wire", "keys", "patterns", "devserver", "logs", "broker", "serializers", "conf", "letter_fields", "advice"),
    ("errors", "address", "confirms"),
)
HEIGHT = {module: -depth for depth, layer in enumerate(LAYERS) for module in layer}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_ARGUMENTS = 8


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the dotted name of everything that *tree*, a module of *package*, imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            start = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def wrong_imports(code: str, module: str, package: str = "bridge") -> list[str]:
    """Return what *code*, as the module of that name in a layer, must not import."""
    wrong = []
    for name in imported(ast.parse(code), package):
        top, _, rest = name.partition(".")
        if top != "bridge":
            continue
        target = rest.partition(".")[0]
        within = target == module and package != "bridge"  # modules of one subpackage, e.g. bridge.cli
        if not within and HEIGHT.get(target, 1) >= HEIGHT[module]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", sources("bridge"), ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    """A module imports from strictly lower layers only; the names of the package itself are for its users."""
    parts = path.relative_to(ROOT / "bridge").with_suffix("").parts
    if parts == ("__init__",):
        return
    assert parts[0] in HEIGHT, f"{name_of(path)} has no layer yet; give it one in LAYERS"
    package = ".".join(("bridge", *parts[:-1]))
    assert wrong_imports(path.read_text(), parts[0], package) == []


@pytest.mark.parametrize(
    ("code", "module", "wrong"),
    [
        ("from bridge.errors import BridgeError", "devserver", []),
        ("from bridge.config.settings import BridgeSettings", "devserver", ["bridge.config.settings.BridgeSettings"]),
        ("from bridge import wire", "event", []),
        ("from bridge import event", "wire", ["bridge.events.event"]),
        ("from . import bus", "feed", ["bridge.bus.bus"]),
        ("from .bus import EventBus", "feed", ["bridge.bus.bus.EventBus"]),
        ("import bridge.context", "bus", ["bridge.bus.causation"]),
        ("def f():\n    import bridge.worker", "task", ["bridge.worker"]),
        ("if TYPE_CHECKING:\n    from bridge.bus.bus import EventBus", "journal", ["bridge.bus.bus.EventBus"]),
        ("from bridge import Event", "subscriber", ["bridge.Event"]),
        ("import bridge", "subscriber", ["bridge"]),
        ("import redis, bridgehead", "errors", []),
    ],
)
def test_the_check_itself(code: str, module: str, wrong: list[str]) -> None:
    """Every way to write an import is seen, lazy ones and those for type checkers as well."""
    assert wrong_imports(code, module) == wrong


@pytest.mark.parametrize("path", sources("tasks"), ids=name_of)
def test_examples_use_public_names_only(path: Path) -> None:
    """The example handlers show what users may do: names of ``bridge.__all__``, nothing behind them."""
    public = {f"bridge.{name}" for name in bridge.__all__}
    names = {name for name in imported(ast.parse(path.read_text()), "tasks") if name.split(".")[0] == "bridge"}
    assert names <= public


@pytest.mark.parametrize("path", sources("bridge", "tests"), ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file, a function or a list of arguments that outgrows the limit is to be split."""
    code = path.read_text()
    assert len(code.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= MAX_FUNCTION_LINES, f"length of {node.name}"
            taken = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            assert len(taken) <= MAX_ARGUMENTS, f"arguments of {node.name}"
