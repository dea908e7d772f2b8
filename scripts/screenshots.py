"""``make screenshots``: takes the pictures in docs/images/ of Flower's pages, with the shop of the tutorial.

Needs Chromium with its driver, and a redis-server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tests/

from bridge import BridgeSettings, EventBus  # noqa: E402
from bridge.storage.status import read_status  # noqa: E402
from bridge.testing import RedisServer  # noqa: E402
from tests.support.flower import Flower, headless_chrome  # noqa: E402
from tests.support.ports import free_port  # noqa: E402
from tests.support.requirements import program  # noqa: E402
from tests.support.waiting import eventually  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHOP = ROOT / "examples" / "shop"
WIDTH = 1280
_PATIENCE_S = 60
CUSTOMERS = ("Ada", "Grace", "Edsger", "Barbara", "Tony", "Niklaus")
ORDER = {"customer": "Ada", "total": "12.50", "lines": [{"sku": "book", "quantity": 1}]}


@contextmanager
def running(directory: Path, url: str, *command: str) -> Iterator[None]:
    """Run ``celery -A shop ...`` in *directory*."""
    environment = os.environ | {"REDIS_URL": url, "CELERY_BROKER_URL": url, "C_FORCE_ROOT": "1"}
    line = [sys.executable, "-m", "celery", "-A", "shop", *command]
    with (directory / f"{command[0]}.log").open("w") as log:
        process = subprocess.Popen(line, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def publish(bus: EventBus) -> str:
    """Publish orders, one of them invalid; return the id of the last valid one."""
    for number, customer in enumerate(CUSTOMERS):
        payload = ORDER | {"order_id": f"o-{number + 1}", "customer": customer}
        last = bus.publish("order.placed", payload, source="web").event.id
    bus.publish("order.placed", {"order_id": "o-7", "customer": "Alan"}, source="import-2019")
    return last


def finished(bus: EventBus) -> bool:
    """Whether all events are dispatched and all tasks have ended: three events for each order, and one invalid."""
    group = read_status(bus.storage).group("shop")
    published = int(bus.client.xlen(bus.storage.keys.journal)) if group else 0
    return published == 3 * len(CUSTOMERS) + 1 and group is not None and not group.backlog and not group.in_flight


def shoot(browser: Chrome, url: str, name: str, height: int) -> None:
    browser.set_window_size(WIDTH, height)
    browser.get(url)
    eventually(lambda: browser.execute_script("return document.readyState") == "complete", f"{url} is loaded")
    time.sleep(1)  # the page fetches its rows
    browser.save_screenshot(str(IMAGES / name))


def main() -> None:
    """Start everything, publish, take the pictures."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, RedisServer(arguments=["--appendonly", "yes"]) as redis:
        directory = Path(shutil.copytree(SHOP, Path(folder) / "shop"))
        settings = BridgeSettings.load(redis_url=redis.url, group="shop")
        with (
            running(directory, redis.url, "worker", "-c", "2", "-E"),
            running(directory, redis.url, "flower", "--address=127.0.0.1", f"--port={port}"),
            EventBus(settings=settings) as bus,
        ):
            eventually(Flower(port).is_up, "Flower answers", _PATIENCE_S)
            last = publish(bus)
            eventually(lambda: finished(bus), "all tasks have ended", _PATIENCE_S)
            with headless_chrome(program("chromedriver"), "--hide-scrollbars") as browser:
                shoot(browser, f"http://127.0.0.1:{port}/events", "flower-events.png", 760)
                shoot(browser, f"http://127.0.0.1:{port}/event/{last}", "flower-event.png", 680)
                shoot(browser, f"http://127.0.0.1:{port}/events/dead", "flower-dead.png", 620)


if __name__ == "__main__":
    main()
