"""``celery -A APP bus ...``: commands for any Celery application that has the bridge installed."""

import click

from bridge.cli.subscribe import subscribe


@click.group(name="bus")
def bus() -> None:
    """Work with the Redis event bus."""


bus.add_command(subscribe)
