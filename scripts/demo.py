"""``make demo``: publish dreams, watch which tasks they cause and which events follow, and check that all did.

Starts a private Redis (or uses ``REDIS_URL``) and ``celery -A bridge worker``; with ``--stay``, Flower too. Exit
status 0 only if everything that should have happened did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
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
from bridge.context import event_id_for  # noqa: E402
from bridge.dead_letters import DeadLetter, DeadLetters  # noqa: E402
from bridge.devserver import running_redis  # noqa: E402
from bridge.handlers import registry  # noqa: E402
from bridge.keys import Keys  # noqa: E402
from bridge.messages import task_id_for  # noqa: E402
from bridge.settings import BridgeSettings  # noqa: E402

TIMEOUT_S = 45
FLOWER_URL = "http://localhost:5555"
DREAMS = [
    "I was flying over a golden garden. Friends waved from the warm grass, and someone sang.",
    "A shadow chased me through dark water. I could not scream, and the monster was never far.",
    "I was late for a train. The station was not sad, it was only full of clocks.",
]
RAW_DREAM = "The sea was calm and bright. I laughed, and the sea laughed too."


class Story:
    """What was published and what came of it, as far as it can be seen from outside."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.group = bus.settings.group
        self.events: dict[str, Event] = {}
        self._lock = threading.Lock()
        bus.subscribe("*", self._heard)

    def _heard(self, event: Event) -> None:
        with self._lock:
            self.events[event.id] = event

    def tasks(self, event: Event) -> list[tuple[str, str]]:
        """Return ``(task name, task id)`` of every task that *event* must become."""
        return [(h.task_name, task_id_for(self.group, event.id, h.task_name)) for h in registry.matching(event.type)]

    def state(self, task_id: str) -> str:
        return str(app.AsyncResult(task_id).state)

    def published_by(self, task_id: str) -> list[Event]:
        """Return the events that this task published: their ids follow from the task's."""
        with self._lock:
            known = list(self.events.values())
        return [event for event in known if event.id == event_id_for(task_id, event.type, 0)]

    def lines(self, event: Event, indent: str = "") -> Iterator[str]:
        tasks = self.tasks(event)
        for task_name, task_id in tasks:
            last = task_name == tasks[-1][0]
            yield f"{indent}{'└─' if last else '├─'} {task_name:<24} {self.state(task_id)}{self._result(task_id)}"
            deeper = indent + ("   " if last else "│  ")
            for child in self.published_by(task_id):
                yield f"{deeper}└─ {child!r}  {summary(child)}"
                yield from self.lines(child, deeper + "   ")

    def _result(self, task_id: str) -> str:
        result = app.AsyncResult(task_id)
        return f"  {result.result}" if result.state == "FAILURE" else ""

    def succeeded(self, event: Event, types: list[str]) -> bool:
        """Whether *event* went through: all its tasks succeeded, and the events of *types* followed, likewise."""
        tasks = self.tasks(event)
        if not tasks or any(self.state(task_id) != "SUCCESS" for _, task_id in tasks):
            return False
        if not types:
            return True
        children = [child for _, task_id in tasks for child in self.published_by(task_id)]
        return [child.type for child in children] == types[:1] and self.succeeded(children[0], types[1:])


def summary(event: Event) -> str:
    payload = dict(event.payload)
    payload.pop("dreamId", None)
    payload |= payload.pop("statistics", {})
    text = ", ".join(f"{name}={value}" for name, value in payload.items())
    return text if len(text) <= 90 else f"{text[:87]}..."


def publish_raw(bus: EventBus, text: str) -> Event:
    """Publish as a program does that knows only the wire format: SETEX, then PUBLISH."""
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


def tell(bus: EventBus, worker: subprocess.Popen[bytes]) -> bool:
    """Publish, wait, print the tree; return whether all went as it should."""
    story = Story(bus)
    good = [
        bus.publish("dream.created", {"dreamId": f"dream-{number}", "text": text}).event
        for number, text in enumerate(DREAMS, 1)
    ]
    raw = publish_raw(bus, RAW_DREAM)
    broken = bus.publish("dream.created", {"dreamId": "no-text"}).event
    letters = DeadLetters(bus.client, bus.settings)

    chain = ["dream.analysed", "dream.ready"]

    def parked() -> list[DeadLetter]:
        return [letter for letter in letters.latest(100) if letter.event_id == broken.id]

    def all_done() -> bool:
        return all(story.succeeded(event, chain) for event in [*good, raw]) and len(parked()) == 1

    complete = wait_for(all_done, worker)
    for event, how in [*((event, "publish()") for event in good), (raw, "SETEX + PUBLISH"), (broken, "publish()")]:
        print(f"\n{event!r}  by {how}  {summary(event)}")
        print("\n".join(story.lines(event)))
    for letter in parked():
        print(f"\ndead letter ({letter.reason}): {letter.handler} cannot take {letter.event_type}: {letter.detail}")
    print(f"\n{'All of it happened.' if complete else 'NOT all of it happened.'}")
    return complete


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def main() -> int:
    stay = sys.argv[1:] == ["--stay"]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bridge-demo-")))
        url = stack.enter_context(running_redis())
        print(f"redis at {url}")
        os.environ.update(REDIS_URL=url, C_FORCE_ROOT="1")
        app.conf.update(broker_url=url, result_backend=url)
        app.loader.import_default_modules()
        bus = stack.enter_context(EventBus(BridgeSettings.load(app)))
        worker = stack.enter_context(celery("worker", "-l", "INFO", log=directory / "worker.log"))
        if stay:
            stack.enter_context(celery("flower", log=directory / "flower.log"))
            wait_for(lambda: answers(f"{FLOWER_URL}/healthcheck"), worker)  # it shows what it has heard itself
        complete = tell(bus, worker)
        if not complete:
            print((directory / "worker.log").read_text(errors="replace"), file=sys.stderr)
        elif stay:
            print(f"\nFlower: {FLOWER_URL}   Publish more, in another terminal:")
            print(f"""  REDIS_URL={url} {sys.executable} -c 'from bridge import publish_event
publish_event("dream.created", {{"dreamId": "mine", "text": "I could fly."}})'""")
            print("Ctrl-C ends it.", flush=True)
            with suppress(KeyboardInterrupt):
                worker.wait()
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
