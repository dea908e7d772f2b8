"""``celery -A APP bus ...``: commands for any Celery application that has the bridge installed."""

import click

from bridge.cli.dead import dead
from bridge.cli.replay import replay
from bridge.cli.subscribe import subscribe


@click.group(name="bus")
def bus() -> None:
    """Work with the Redis event bus."""


bus.add_command(subscribe)
bus.add_command(replay)
bus.add_command(dead)
