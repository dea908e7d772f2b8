"""Flask's own recipe, https://flask.palletsprojects.com/patterns/celery/, with one line for the bridge."""

from typing import Any

from celery import Celery, Task
from flask import Flask

import bridge


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        CELERY={"broker_url": "redis://localhost", "result_backend": "redis://localhost", "task_ignore_result": True},
        DATABASE="shop.sqlite3",
        SHOP="Corner shop",
    )
    app.config.from_prefixed_env()
    celery_init_app(app)

    from . import db, views

    db.init_app(app)
    app.register_blueprint(views.bp)
    return app


def celery_init_app(app: Flask) -> Celery:
    class FlaskTask(Task):  # type: ignore[type-arg]
        def __call__(self, *args: object, **kwargs: object) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    bridge.install(celery_app)
    return celery_app
