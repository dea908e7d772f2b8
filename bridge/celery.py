"""The Celery application of ``celery -A bridge``; wiring only. Your own application needs ``bridge.install(app)``."""

from __future__ import annotations

from celery import Celery

from bridge.worker import install

app = Celery("bridge")
app.config_from_object("celeryconfig")
install(app)
