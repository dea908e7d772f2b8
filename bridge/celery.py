"""The example application of ``celery -A bridge``; wiring only. Your own application needs ``bridge.install(app)``.

It is configured by the celeryconfig.py of the current folder.
"""

from __future__ import annotations

from importlib.util import find_spec

import click
from celery import Celery
from celery.utils.imports import cwd_in_path

from bridge.worker import install

_CONFIG = "celeryconfig"
_MISSING = (
    "celery -A bridge runs the example application, which needs a celeryconfig.py in the current folder, and there is "
    "none. For your own application, shop.py with app = Celery('shop', broker='redis://localhost:6379/0') and "
    "bridge.install(app), run celery -A shop"
)

with cwd_in_path():
    if find_spec(_CONFIG) is None:
        if click.get_current_context(silent=True) is None:
            raise ModuleNotFoundError(_MISSING, name=_CONFIG)
        raise SystemExit(_MISSING)  # of any other error, the command would print a traceback or hide it

app = Celery("bridge")
app.config_from_object(_CONFIG)
install(app)
