"""``bus subscribe``: how it stops."""

from __future__ import annotations

import subprocess
import sys

from tests.support import ROOT

#: A signal that another thread receives does not interrupt the main thread; nor does one that comes just before it
#: blocks.
SIGNALLED = """
import signal, threading
from bridge.cli.commands.subscribe import signals_noted

def send():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

wait = signals_noted()
threading.Timer(0.5, send).start()
wait()
"""


def test_a_signal_ends_the_wait_that_it_does_not_interrupt() -> None:
    """SIGTERM ends a subscriber even if Python would run the signal handler only after the wait."""
    subprocess.run([sys.executable, "-c", SIGNALLED], cwd=ROOT, timeout=30, check=True)
