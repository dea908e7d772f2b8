"""``bus`` as a separate process: the cost of its imports, and a closed pipe."""

from __future__ import annotations

import json
import subprocess
import sys

from bridge import Event, EventBus
from tests.support import ROOT


def test_importing_the_commands_is_cheap() -> None:
    """Celery imports the group for each ``celery`` command; this imports no command of the bridge and no rich."""
    code = (
        "import bridge, sys; before = set(sys.modules); import bridge.cli; bridge.cli.bus.main(['--help'], "
        "standalone_mode=False); new = set(sys.modules) - before; print(sorted(n for n in new if n[:6] == 'bridge' or "
        "n[:4] == 'rich'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.splitlines()[-1] == "['bridge.cli']"


# In a pipe


def test_a_reader_that_goes_away_ends_a_command_quietly(shell, bus: EventBus) -> None:
    """If a reader such as ``| head`` closes the pipe, the command exits without an error."""
    bus.publish_many([Event(type="dream.created", payload=number) for number in range(5000)])
    run = shell("bus replay --all --dry-run --json | head -n 2")
    rows = [json.loads(row) for row in run.stdout.splitlines()]
    assert [row["type"] for row in rows] == ["dream.created", "dream.created"]
    assert run.stderr == "searching; nothing is changed\n"
