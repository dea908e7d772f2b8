"""The files for Prometheus and Grafana in deploy/, compared with the metrics that a subscriber exports."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.support import ROOT
from tests.support.apps import StartSubscriber
from tests.support.requirements import program
from tests.support.waiting import eventually

DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
SITE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
DASHBOARD = json.loads((DEPLOY / "grafana" / "bridge.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
CASES = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
#: Labels that Prometheus adds when it scrapes, and that histograms add to their buckets.
LABELS_OF_OTHERS = {"job", "instance", "le"}
#: Metrics with the same value at every subscriber of a bus. Each one counts its own lost dead letters.
OF_GROUPS = re.compile(r"bridge_(backlog|pending|tasks?|queue|dead_letters(?!_lost)|subscribers)\w*")
#: Words before a parenthesis that contains labels and not an expression.
_LABEL_LISTS = re.compile(r"\b(?:by|on|group_left|without|ignoring) \(([^)]*)\)")


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *arguments], check=False, cwd=cwd, capture_output=True, text=True, timeout=40
    )


def panels() -> list[dict[str, Any]]:
    return [panel for row in DASHBOARD["panels"] for panel in (row, *row.get("panels", ()))]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every query to Prometheus, with the panel, variable or alert that has it."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield f"panel {panel['title']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
            yield f"variable {variable['name']}", f"{found[1]}{{{found[2]}=''}}"
    for rule in RULES:
        yield f"alert {rule['alert']}", rule["expr"]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bbridge_\w+", expression))


def labels_in(expression: str) -> set[str]:
    listed = [name for names in _LABEL_LISTS.findall(expression) for name in re.findall(r"\w+", names)]
    chosen = re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*[\"']", expression)
    return {*listed, *chosen}


@pytest.fixture
def exported(start_subscriber: StartSubscriber, register_handlers: Callable[..., None]) -> dict[str, set[str]]:
    """Every sample that a subscriber exports, with its labels."""
    register_handlers("t.all")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    subscriber = start_subscriber(metrics_port=port)
    subscriber.counters.add("dispatched", event_type="dream.created")  # without a count, there is no sample

    def scraped() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    eventually(lambda: "bridge_queue_messages{" in scraped(), "the queues are measured", 10)
    lines = scraped().splitlines()
    found: dict[str, set[str]] = {}
    for line in lines:
        if sample := re.match(r"(\w+)(?:\{(.*)\})? ", line):
            found.setdefault(sample[1], set()).update(re.findall(r"(\w+)=\"", sample[2] or ""))
    return found


def test_dashboard_and_alerts_ask_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    """Each metric and each label in the dashboard and in the rules is exported by a subscriber."""
    for who, expression in expressions():
        names = names_in(expression)
        assert names <= exported.keys(), f"{who}: there is no {sorted(names - exported.keys())}"
        known = LABELS_OF_OTHERS.union(*(exported[name] for name in names))
        assert labels_in(expression) <= known, f"{who}: there is no label {sorted(labels_in(expression) - known)}"


def test_every_metric_is_shown(exported: dict[str, set[str]]) -> None:
    """The dashboard shows every metric; of a histogram, the buckets."""
    shown = set().union(*(names_in(expression) for _, expression in expressions()))
    own = {name for name in exported if name.startswith("bridge_") and not name.endswith(("_sum", "_count"))}
    assert own - shown == set()


def test_figures_of_a_group_are_never_added_up() -> None:
    """Metrics of a group are never summed: every subscriber reports the same value."""
    for who, expression in expressions():
        for summed in re.findall(r"\bsum\b(?: by \([^)]*\))? \((.*)", expression):
            assert not OF_GROUPS.search(summed.split(" or ")[0]), who


def test_the_test_of_expressions() -> None:
    """Names and labels are found wherever an expression contains them."""
    expression = 'sum by (group, le) (rate(bridge_x_bucket{type="a", outcome!~"b"}[5m])) * on (job) group_left (z) b_y'
    assert names_in(expression) == {"bridge_x_bucket"}
    assert labels_in(expression) == {"group", "le", "type", "outcome", "job", "z"}


def test_the_dashboard_is_whole() -> None:
    """Panels have unique ids, do not overlap, and query the selected datasource for the selected group."""
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert 'group=~"$group"' in target["expr"], panel["title"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "group"]
    assert DASHBOARD["schemaVersion"] >= 38  # Grafana 10


def test_panels_name_alerts_that_exist() -> None:
    """For each section of the runbook that a panel mentions, there is an alert with this name."""
    named = {name for panel in panels() for name in re.findall(r"\bBridge[A-Z]\w+", panel.get("description", ""))}
    assert named
    assert named <= {rule["alert"] for rule in RULES}


def test_promtool_takes_rules_and_configuration() -> None:
    """Prometheus can load the rules and the configuration."""
    for arguments in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should() -> None:
    """The tests of the rules by promtool pass."""
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("broken", ["vector(1) > 2", "vector(1)"], ids=["never", "always"])
def test_a_wrong_alert_fails_its_test(tmp_path: Path, broken: str) -> None:
    """These tests fail for each alert that fires never or always."""
    shutil.copy(PROMETHEUS / "alerts_test.yml", tmp_path)
    rules = [{**rule, "expr": broken, "for": "0m"} for rule in RULES]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "bridge", "rules": rules}]}))
    done = promtool("test", "rules", "alerts_test.yml", cwd=tmp_path)
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", done.stderr + done.stdout)) == {rule["alert"] for rule in RULES}


def test_each_alert_is_tested_both_ways() -> None:
    """For each alert, there is a case in which it fires and one in which it does not."""
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in CASES for case in test["alert_rule_test"]]
    assert sorted({*cases}) == sorted((rule["alert"], fires) for rule in RULES for fires in (True, False))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_leads_to_its_section_of_the_runbook(rule: dict[str, Any]) -> None:
    """Each alert has a severity, a summary, and a section in the runbook."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook"] == f"{SITE}operate/runbook.html#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n" in (ROOT / "docs" / "operate" / "runbook.md").read_text()
