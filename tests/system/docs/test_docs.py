"""docs/ matches the code: generated parts, links, and the names of commands, settings, metrics, alerts and files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bridge.cli import bus
from bridge.config.settings import BridgeSettings
from bridge.telemetry.logs import Action
from scripts import reference
from tests.support import ROOT, sources
from tests.support.walkthrough import texts_of

DOCS = ROOT / "docs"
TESTS = sources.names_of_tests()
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
#: Texts for users, including those outside the site.
TEXTS = PAGES | {name: (ROOT / name).read_text() for name in ("README.md", "CHANGELOG.md")}
#: Pages that are not generated as a whole.
WRITTEN = {name: text for name, text in PAGES.items() if not name.endswith(("/commands.md", "/settings.md"))}
FOLDERS = "bridge|deploy|docs|tests|scripts|tasks|benchmarks"
#: Files in the root of the repository that are mentioned without a folder.
TOP = r"(?:README|CHANGELOG)\.md|docker-compose\.yml|celeryconfig\.py|Makefile|Dockerfile"

#: Files that exist after a command has created them.
MADE = set((ROOT / ".gitignore").read_text().splitlines())


def code_of(text: str) -> Iterator[str]:
    """Yield the code on a page: spans, and lines of shell blocks."""
    for block in texts_of(text, "sh"):
        yield from block.splitlines()
    others = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    yield from (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", others))


def bus_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each ``bus`` command on a page."""
    for code in code_of(text):
        for found in re.finditer(r"(?:celery -A \w+ |^)bus ([a-z].*)", code):
            words = list(shlex.shlex(found[1].replace("...", ""), posix=True, punctuation_chars="|&;<>"))
            end = next((at for at, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
            yield shlex.split(found[1].replace("...", ""), comments=True)[:end] if end == len(words) else words[:end]


def problem_of(words: list[str]) -> str:
    """Return click's error for a command, without running it; empty if the command is valid."""
    command: click.Command = bus
    ctx = click.Context(bus, info_name="bus")
    while isinstance(command, click.Group) and words:
        if words[0] == "--help":
            return ""
        inner = command.get_command(ctx, words[0])
        if inner is None:
            return f"there is no command {words[0]}"
        command, ctx, words = inner, click.Context(inner, info_name=words[0], parent=ctx), words[1:]
    try:
        command.make_parser(ctx).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    return ""


@pytest.mark.parametrize("name", reference.files())
def test_generated_parts_follow_the_code(name: str) -> None:
    """The reference matches the code."""
    assert (DOCS / name).read_text() == reference.files()[name], "run make docs"


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    """No link is broken, every page is in the navigation, and fonts, scripts and styles are local."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        check=False,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bstylesheet[^>]*//")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert [str(page) for page in pages if loaded.search(page.read_text())] == []
    styles = "".join(path.read_text() for path in tmp_path.rglob("*.css"))
    assert not re.search(r"url\(\"?'?(?:https?:)?//|@import", styles)


@pytest.mark.parametrize("name", TEXTS)
def test_named_files_exist(name: str) -> None:
    """Each file, folder and test that a page mentions exists, and so does each target of a link."""
    text = TEXTS[name]
    spans = re.findall(r"`([^`\s]+)`", text)
    for span in spans:
        if re.fullmatch(rf"(?:{FOLDERS})/[\w./-]*|{TOP}", span) and span not in MADE:
            assert (ROOT / span).exists(), span
        if re.fullmatch(r"test_\w+", span):
            assert TESTS[span] == 1, span
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", TEXTS)
def test_commands_can_be_typed(name: str) -> None:
    """Each ``bus`` command on a page exists, with its options."""
    assert [(words, problem) for words in bus_commands(TEXTS[name]) if (problem := problem_of(words))] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`celery -A APP bus status`", ""),
        ("`bus dead list --since 1h | wc -l`", ""),
        ("```sh\nx | celery -A shop bus publish a.b - # as typed\n```", ""),
        ("`celery -A APP bus sttus`", "there is no command sttus"),
        ("`bus dead retry --hanlder NAME && echo done`", "No such option"),
        ("    ```sh\n    celery -A APP bus dead drop\n    ```", "there is no command drop"),
    ],
)
def test_wrong_commands_are_found(text: str, problem: str) -> None:
    """The check finds commands in every place."""
    (words,) = bus_commands(text)
    assert problem in problem_of(words)
    assert bool(problem) == bool(problem_of(words))


def test_the_readme_is_short() -> None:
    """README.md has at most 150 lines, and no section twice."""
    text = (ROOT / "README.md").read_text()
    headings = re.findall(r"^#+ .*", text, re.M)
    assert len(text.splitlines()) <= 150
    assert len(headings) == len(set(headings)) > 5


def test_named_settings_exist() -> None:
    """Each ``BRIDGE_*`` and ``bridge_*`` name on a page is a setting or, as these have the same prefix, a metric."""
    settings = set(BridgeSettings.model_fields)
    samples = {reference.sample_name(metric) for metric in reference.metrics()}
    for name, text in TEXTS.items():
        upper = {word.lower() for word in re.findall(r"\bBRIDGE_([A-Z_]+)\b", text)}
        lower = set(re.findall(r"\bbridge_[a-z_]+[a-z]\b", text)) - samples
        unknown = (upper | {word.removeprefix("bridge_") for word in lower}) - settings
        assert unknown == set(), name


def test_every_metric_has_a_line_on_when_to_act() -> None:
    """The table mentions each metric and each outcome."""
    table = PAGES["docs/reference/metrics.md"].partition("## When to act")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", table))
    assert {reference.sample_name(metric) for metric in reference.metrics()} <= named
    assert reference.OUTCOMES.keys() <= named


def test_the_runbook_has_the_alerts_and_no_others() -> None:
    """The runbook has a section for each alert, in the order of the rules, that first says whether anything is lost."""
    groups: Any = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    sections = re.findall(r"^## (\w+)\n\n(.*)", PAGES["docs/operate/runbook.md"], re.M)
    assert [name for name, _ in sections] == alerts
    says = re.compile(r"\*Is anything lost\?\* (?:No|Yes)\b")
    assert [name for name, begin in sections if not says.match(begin)] == []


def test_named_actions_exist() -> None:
    """Log actions in the texts are written by the code."""
    for name, text in WRITTEN.items():
        named = re.findall(r"`action` `(\w+)`|\.action == \"(\w+)\"", text)
        assert {one or other for one, other in named} <= set(Action), name


def test_each_reason_of_a_dead_letter_has_a_row() -> None:
    """The reference has the reasons that the code writes, each once, and no others."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGES["docs/reference/reasons.md"], re.M)
    reasons = [reason for row in rows for reason in re.findall(r"\w+", row)]
    assert len(reasons) == len(set(reasons))
    code = "".join(path.read_text() for path in (ROOT / "bridge").rglob("*.py"))
    assert [reason for reason in reasons if f'"{reason}"' not in code] == []
    written = re.findall(r'\b(?:InvalidEvent|_Unrecoverable|Refused|\w*dead_letter|of_event)\(\s*"(\w+)"', code)
    assert len(written) > 30
    # "redacted" is why a retry is refused, not why there is a dead letter.
    assert set(written) - set(reasons) == {"redacted"}


def test_snippets_are_yaml() -> None:
    """Each YAML block on a page is valid."""
    for text in PAGES.values():
        for block in texts_of(text, "yaml"):
            assert yaml.safe_load(block)


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_no_machine(name: str) -> None:
    """No page contains a path, a user or a name of the machine on which it was written."""
    found = re.findall(r"(?:/work|/tmp|/root|/home|site-packages)\b\S*", PAGES[name])
    assert found == []
