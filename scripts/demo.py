"""``make demo``: publish events, show the tasks and events that they cause, and check that none is missing.

Starts a private Redis (or uses ``REDIS_URL``) and ``celery -A bridge worker``; with ``--stay``, Flower too, and keeps
running. The exit status is 0 only if all checks passed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # celeryconfig.py and tasks/

from bridge import Event, EventBus  # noqa: E402
from bridge.celery import app  # noqa: E402
from bridge.config.settings import BridgeSettings  # noqa: E402
from bridge.operations.task_states import EventNode  # noqa: E402
from bridge.operations.trace import Tracer  # noqa: E402
from bridge.storage.keys import Keys  # noqa: E402
from bridge.testing.redis_server import RedisServer  # noqa: E402

TIMEOUT_S = 45
FLOWER_URL = "http://localhost:5555"
DREAMS = [
    "I was flying over a golden garden. Friends waved from the warm grass, and someone sang.",
    "A shadow chased me through dark water. I could not scream, and the monster was never far.",
    "I was late for a train. The station was not sad, it was only full of clocks.",
]
RAW_DREAM = "The sea was calm and bright. I laughed, and the sea laughed too."


def went_through(tracer: Tracer, event: Event) -> bool:
    """Return whether every task of *event* succeeded, and so did those of the events that followed."""
    found = tracer.trace(event.id)
    return found is not None and succeeded(found.roots[0], ["dream.analysed", "dream.ready"])


def succeeded(node: EventNode, types: list[str]) -> bool:
    if not node.tasks or any(task.state != "SUCCESS" for task in node.tasks):
        return False
    children = [child for task in node.tasks for child in task.events]
    return [child.event_type for child in children] == types[:1] and all(succeeded(one, types[1:]) for one in children)


def publish_raw(bus: EventBus, text: str) -> Event:
    """Publish like a program that knows only the wire format: SETEX, then PUBLISH."""
    event = {
        "id": str(uuid.uuid4()),
        "type": "dream.created",
        "payload": {"dreamId": "raw", "text": text},
        "timestamp": int(time.time() * 1000),
        "source": "dream-service",
    }
    keys = Keys(bus.settings.channel_prefix)
    bus.client.execute_command("SETEX", keys.event(event["id"]), 24 * 3600, json.dumps(event))
    bus.client.execute_command("PUBLISH", keys.channel(event["type"]), json.dumps(event | {"source": "RedisEventBus"}))
    return Event.from_dict(event)


@contextmanager
def celery(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "bridge", *arguments]
    print("$ " + " ".join(["celery", *command[3:]]), flush=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(check: Callable[[], bool], worker: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline and worker.poll() is None:
        if check():
            return True
        time.sleep(0.1)
    return check()


def run(*arguments: str) -> None:
    """Run a ``bus`` command and show its output."""
    print(f"\n$ celery -A bridge bus {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "celery", "-A", "bridge", "bus", *arguments], cwd=ROOT, check=False)


def show(bus: EventBus, worker: subprocess.Popen[bytes]) -> bool:
    """Publish, wait, and show the results; return whether all checks passed."""
    good = [
        bus.publish("dream.created", {"dreamId": f"dream-{number}", "text": text}).event
        for number, text in enumerate(DREAMS, 1)
    ]
    raw = publish_raw(bus, RAW_DREAM)
    broken = bus.publish("dream.created", {"dreamId": "no-text"}).event
    tracer, dead_letters = Tracer(app, bus.storage), bus.storage.dead_letters

    def all_done() -> bool:
        found = [one for one in dead_letters.latest(100) if one.event_id == broken.id]
        return all(went_through(tracer, event) for event in [*good, raw]) and len(found) == 1

    complete = wait_for(all_done, worker)
    print(f"Published {len(good)} valid events with publish(), one with SETEX and PUBLISH, and one invalid event.")
    run("trace", good[0].id)
    run("trace", raw.id)
    run("trace", broken.id)
    run("status")
    print(f"\n{'Done: all checks passed.' if complete else 'FAILED: tasks or events are missing.'}")
    return complete


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def main() -> int:
    stay = sys.argv[1:] == ["--stay"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes it started end with it
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-demo-")))
        url = os.environ.get("REDIS_URL") or stack.enter_context(RedisServer()).url
        print(f"Redis: {url}")
        os.environ.update(REDIS_URL=url, C_FORCE_ROOT="1")
        app.conf.update(broker_url=url, result_backend=url)
        app.loader.import_default_modules()
        bus = stack.enter_context(EventBus(BridgeSettings.load(app)))
        worker = stack.enter_context(celery("worker", "-l", "INFO", log=directory / "worker.log"))
        if stay:
            stack.enter_context(celery("flower", log=directory / "flower.log"))
            wait_for(
                lambda: answers(f"{FLOWER_URL}/healthcheck"), worker
            )  # it shows only what it receives while it runs
        complete = show(bus, worker)
        if not complete:
            print((directory / "worker.log").read_text(errors="replace"), file=sys.stderr)
        elif stay:
            print(f"\nFlower: {FLOWER_URL}/events   To publish more events, run in another terminal:")
            celery_bus = f"REDIS_URL={url} {sys.executable} -m celery -A bridge bus"
            print(f"""  {celery_bus} publish dream.created '{{"dreamId": "mine", "text": "I could fly."}}'""")
            print("Press Ctrl-C to stop.", flush=True)
            with suppress(KeyboardInterrupt):
                worker.wait()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
