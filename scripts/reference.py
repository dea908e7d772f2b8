"""``make docs``: writes the parts of docs/ that follow from the code: settings, commands, metrics, log actions.

Whole files in docs/reference/, and the tables between ``<!-- generated: NAME -->`` and ``<!-- end -->`` in pages that
people write. Needs no Redis, and reads nothing of the environment, so that it writes the same everywhere.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
from prometheus_client.metrics_core import Metric
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bridge.cli import COMMANDS, bus
from bridge.config import settings
from bridge.config.settings import BridgeSettings
from bridge.storage import Storage
from bridge.subscriber.monitoring import metrics_server as exporter
from bridge.subscriber.monitoring.metrics_server import OUTCOMES
from bridge.telemetry.counters import Counters
from bridge.telemetry.logs import Action, Fields

DOCS = Path(__file__).resolve().parent.parent / "docs"
#: Defaults that follow from something else; the class holds a stand-in.
COMPUTED = {
    "group": "name of the Celery application",
    "source": "name of the Celery application",
    "dedup_ttl_s": "`event_ttl_s` + 3600",
    "signature_max_age_s": "`event_ttl_s`",
}
#: Headings of the settings, by the first setting below each. In the code an empty line stands for them.
SECTIONS = {
    "redis_url": "Address of the bus",
    "channel_prefix": "Events",
    "group": "Subscribers",
}
#: Also read from this variable, which other programs use too.
ALSO = {"redis_url": "REDIS_URL"}
_NOTE = "<!-- Written by scripts/reference.py: change the code, then `make docs`. -->\n"
#: Characters that Markdown would take for its own; within a word it leaves ``_`` alone.
_TAKEN = re.compile(r"[*<>\[\]]|(?<!\w)_|_(?!\w)")
_BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.S)


def files() -> dict[str, str]:
    """Return every file that this writes, by its path below docs/, as it should be now."""
    made = {"reference/settings.md": settings_page(), "reference/commands.md": commands_page()}
    return made | {name: filled((DOCS / name).read_text("utf-8")) for name in ("metrics.md", "logs.md")}


def filled(page: str) -> str:
    """Return a page that people wrote, its generated parts as they should be now."""
    return _BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n{found[3]}", page)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)


def prose(text: str) -> str:
    """Return text of a comment or a help as Markdown: without marks of another markup, and without new ones."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _TAKEN.sub(r"\\\g<0>", part) for part in parts)


# Settings


def settings_page() -> str:
    """Return the reference of the settings."""
    text = (
        "# Settings\n\n"
        "Of several values the first of these counts: an argument of `BridgeSettings.load()`, the environment, the "
        "Celery configuration (`celeryconfig.py` or `app.conf`), the default. Below each setting stand its type, its "
        "default, its name in the environment, and its name in the configuration. An unknown `BRIDGE_*` or `bridge_*` "
        "name is an error that proposes the right one. In the environment, objects and arrays are JSON.\n\n"
    )
    comments = _comments()
    schema = BridgeSettings.model_json_schema()["properties"]
    rows = [[f"[`{name}`](#{name})", _default(name, about)] for name, about in schema.items()]
    text += table(["name", "default"], rows)
    for name, about in schema.items():
        if name in SECTIONS:
            text += f"\n## {SECTIONS[name]}\n"
        env = f"`BRIDGE_{name.upper()}`" + (f" or `{ALSO[name]}`" if name in ALSO else "")
        facts = f"{_kind(about)} · default {_default(name, about)} · {env} · `bridge_{name}`"
        meaning = prose(comments[name])
        if comments[name] in comments:
            meaning = f"Goes with [`{meaning}`](#{meaning})."
        text += f"\n### `{name}` {{ #{name} }}\n\n{meaning}\n\n{facts}\n"
    return f"{_NOTE}\n{text}"


def _comments() -> dict[str, str]:
    """Return the ``#:`` comment of each setting; of one that has none, the name of the setting it goes with."""
    source = inspect.getsource(settings)
    (made,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == BridgeSettings.__name__)
    lines = source.splitlines()
    found: dict[str, str] = {}
    before = ""
    for node in made.body:  # type: ignore[attr-defined]  # a class has one
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        first = at = node.lineno - 1
        while lines[first - 1].lstrip().startswith("#:"):
            first -= 1
        name = node.target.id
        if first < at:
            found[name] = " ".join(line.strip()[2:].strip() for line in lines[first:at])
            before = name
        else:
            found[name] = before
    return found


def _kind(about: dict[str, Any]) -> str:
    kinds = [one for one in about.get("anyOf", [about]) if one.get("type") != "null"]
    (kind,) = kinds
    if choice := kind.get("enum"):
        return " or ".join(f"`{one}`" for one in choice)
    name: str = {
        "object": "object of objects",
        "array": "array of texts",
        "string": "text",
        "boolean": "true or false",
    }.get(kind["type"], kind["type"])
    if kind.get("additionalProperties", {}).get("format") == "password":
        name = "object of texts, shown nowhere"
    if kind.get("format") == "password":
        name = "text, shown nowhere"
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most"}
    return name + "".join(f", {word} {kind[key]:g}" for key, word in words.items() if key in kind)


def _default(name: str, about: dict[str, Any]) -> str:
    default = about.get("default", [] if about.get("type") == "array" else {})
    if name in COMPUTED:
        return COMPUTED[name]
    if default is None:
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# Commands


def commands_page() -> str:
    """Return the reference of the commands."""
    root = click.Context(bus, info_name="celery -A APP bus")
    text = (
        "# Commands\n\n"
        "`celery -A APP bus COMMAND`, with your application for `APP`; `-A bridge` is the example application. Every "
        "command has `--help`. What is asked for goes to standard output, messages for people to standard error. On a "
        "terminal there are tables, colours and bars, in a pipe plain lines; `--json` gives one JSON object a line.\n"
    )
    text += "\n" + _help_text(inspect.cleandoc(bus.epilog or "").replace("bus COMMAND --help has examples.", ""))
    for heading, commands in COMMANDS.items():
        text += f"\n## {heading}\n\n"
        text += table(["command", ""], [[f"[`{name}`](#{name})", prose(short)] for name, short in commands])
        for name, _ in commands:
            command = bus.get_command(root, name)
            assert command is not None, name
            text += "".join(_command(command, root, name, 3))
    return f"{_NOTE}\n{text}"


def _command(command: click.Command, parent: click.Context, name: str, level: int) -> Iterator[str]:
    ctx = click.Context(command, info_name=name, parent=parent)
    path = ctx.command_path.removeprefix("celery -A APP bus ")
    yield f"\n{'#' * level} `{path}` {{ #{path.replace(' ', '-')} }}\n\n"
    if isinstance(command, click.Group):
        yield _help_text(inspect.cleandoc(command.help or ""))
        for inner_name in command.list_commands(ctx):
            inner = command.get_command(ctx, inner_name)
            assert inner is not None, inner_name
            yield from _command(inner, ctx, inner_name, level + 1)
        return
    yield f"```\n{ctx.command_path} {' '.join(command.collect_usage_pieces(ctx))}\n```\n\n"
    yield _help_text(inspect.cleandoc(command.help or ""))
    records = [record for param in command.get_params(ctx) if (record := param.get_help_record(ctx))]
    rows = [[f"`{option}`", prose(text)] for option, text in records if text and option != "--help"]
    if rows:
        yield "\n" + table(["option", ""], rows)


def _help_text(text: str) -> str:
    r"""Return a help as Markdown. What stands behind a ``\b`` keeps its lines: examples, or a list."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if not paragraph.startswith("\b"):
            parts.append(prose(" ".join(paragraph.split())))
            continue
        title, *lines = paragraph.removeprefix("\b").strip("\n").splitlines()
        language = "sh" if title.startswith("Example") else "text"
        parts.append(f"{title}\n\n```{language}\n{inspect.cleandoc(chr(10).join(lines))}\n```")
    return "\n\n".join(parts) + "\n"


# Metrics

_SETTINGS = BridgeSettings.model_construct(group="docs")


class _NoHealth:
    """Stands in for the health of a subscriber: names and texts of the metrics do not depend on it."""

    #: No server answers there: the metrics of groups are added below.
    storage = Storage(Redis(port=1, retry=Retry(NoBackoff(), 0)), _SETTINGS)

    def bus(self) -> str:
        return ""

    broker = bus

    @property
    def dispatch(self) -> _NoHealth:
        return self

    @property
    def waiting_for(self) -> str:
        return ""

    def problems(self) -> list[str]:
        return []


def metrics() -> list[Metric]:
    """Return all metrics of a subscriber, without figures."""
    health: Any = _NoHealth()
    own = exporter._SubscriberCollector(_SETTINGS, Counters(), health, "docs")
    return list(chain(own.collect(), exporter._of_groups([])))


def sample_name(metric: Metric) -> str:
    """Return the name that is asked for: of a histogram, the one that its samples begin with."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _metrics_table() -> str:
    rows = []
    for metric in metrics():
        text = metric.documentation.split(" received: ")[0]  # of the outcomes, which have a table of their own
        labels = ", ".join(f"`{name}`" for name in metric._labelnames)  # type: ignore[attr-defined]
        rows.append([f"`{sample_name(metric)}`", metric.type, labels, prose(text)])
    return table(["metric", "kind", "labels", "meaning"], rows)


def _outcomes_table() -> str:
    return table(["outcome", "events"], [[f"`{name}`", prose(text)] for name, text in OUTCOMES.items()])


# Logs


def _actions_table() -> str:
    return table(["action", "meaning"], [[f"`{action}`", prose(action.meaning)] for action in sorted(Action)])


def _fields_table() -> str:
    hints = get_type_hints(Fields, include_extras=True)
    return table(["field", "meaning"], [[f"`{name}`", prose(get_args(hint)[1])] for name, hint in hints.items()])


BLOCKS = {
    "metrics": _metrics_table,
    "outcomes": _outcomes_table,
    "actions": _actions_table,
    "fields": _fields_table,
}


def main() -> None:
    """Write what is not as it should be, and say so."""
    for name, text in files().items():
        path = DOCS / name
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"written: docs/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
