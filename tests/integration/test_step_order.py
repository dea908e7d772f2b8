"""The order of Celery's bootsteps."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support import ROOT


def test_the_bridge_starts_after_the_pool_whatever_the_hash_seed() -> None:
    """Celery orders its steps with sets; the subscriber's threads never start before the pool has forked."""
    program = (
        "import bridge; from celery import Celery; app = Celery('seeds', broker='redis://'); bridge.install(app);"
        "worker = app.WorkController(hostname='w@h', pool_cls='prefork');"
        "print([step.label or step.name for step in worker.steps])"
    )
    for seeds in (range(4), range(4, 8)):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", program],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONHASHSEED": str(seed)},
            )
            for seed in seeds
        ]
        for process in running:
            output, _ = process.communicate(timeout=50)
            assert process.returncode == 0
            assert output.index(b"Pool") < min(output.index(b"'Bridge'"), output.index(b"'Bridge queue report'"))
