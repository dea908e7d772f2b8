"""The page of an event in the browser: its contents, its links and its buttons."""

from __future__ import annotations

import json
import re

from redis import Redis

from bridge.storage.keys import Keys
from tests.support.flower import QUICK, Browser, Flower, Site
from tests.support.spans import TRACE_ID, TRACEPARENT
from tests.support.waiting import eventually

TREE = "#bridge-tree"
#: Changes the title of a page that does not treat it as text.
SCRIPT = "</code><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def test_an_event_with_what_it_caused(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """Fields and payload are shown; the tree links to the events it caused and to Flower's pages of its tasks."""
    traced = {"traceparent": TRACEPARENT}
    site.bus.publish("bound.created", {"text": "Träume", "n": [1, 2]}, id=name, source="front-end", metadata=traced)
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    tree = browser.shows(TREE, "bound.created", "this event", "tests.app.bound", "bound.step", "tests.app.step")
    browser.shows(TREE, "SUCCESS\ntests.app.step")
    assert "queue celery" in tree
    assert json.loads(browser.text("#bridge-payload")) == {"text": "Träume", "n": [1, 2]}
    assert "front-end" in browser.text(".detail-list")
    assert browser.text("#bridge-trace") == TRACE_ID
    browser.click(f"{TREE} a[href^='/event/']:not([href$='{name}'])")
    browser.shows(".detail-list", "bound.step", "Caused by", name)
    assert "tests.app.bound" in browser.text(TREE), "the whole chain is shown for each of its events"
    eventually(lambda: browser.all(f"{TREE} a[href^='/task/']"), "Flower knows the tasks")
    browser.click(f"{TREE} a[href^='/task/']")
    browser.shows("#task-page", "tests.app.bound", "<Event bound.created")


def test_the_page_keeps_up(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """The end of a running task is shown without a reload."""
    site.bus.publish("slow.created", 5.1, id=name)
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    browser.shows(TREE, "STARTED")
    browser.shows(TREE, "SUCCESS", "5.1")


def test_a_failed_task_is_retried(site: Site, flower: Flower, browser: Browser, name: str, client: Redis) -> None:
    """The button runs the handler again; the page reports this and shows the result next to the failure."""
    cause = f"{site.settings.channel_prefix}cause-gone"
    client.delete(cause)
    site.bus.publish("fixable.created", id=name)
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    browser.shows(TREE, "FAILURE", "failure: RuntimeError: as intended", "Retry")
    client.set(cause, 1)
    browser.click(f"{TREE} .bridge-retry")
    browser.shows("#bridge-confirm", "1 task would run: tests.app.fixable 1", "not succeeded")
    browser.click("#bridge-yes")
    browser.shows(".alert-success", f"Retried: event {name} was sent to tests.app.fixable again")
    browser.shows(TREE, "SUCCESS", "replay flower-")
    assert not browser.all(f"{TREE} .bridge-retry")
    assert [one for one in site.letters.latest(1000) if one.event_id == name] == []
    browser.open(f"{flower.url}/event/{name}")
    assert not browser.all(".alert"), "the message is shown once"
    browser.open(f"{flower.url}/events?search={name}&{QUICK}")
    browser.shows("#bridge-table", "SUCCESS\ntests.app.fixable")


def test_an_event_is_replayed(site: Site, flower: Flower, browser: Browser, name: str, client: Redis) -> None:
    """The button replays the event for one handler or for all; the list of events still has the event once."""
    effects = f"{site.settings.channel_prefix}effects"
    ran = lambda handler: client.lrange(effects, 0, -1).count(f"{handler} {name}".encode())  # noqa: E731
    site.bus.publish("dream.created", id=name)
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    browser.shows(TREE, "SUCCESS\ntests.app.plain", "SUCCESS\ntests.app.glob")
    browser.click(".bridge-replay option[value='']")
    (option,) = [one for one in browser.all(".bridge-replay option") if one.text == "tests.app.glob"]
    option.click()
    browser.click("#bridge-replay")
    browser.shows("#bridge-confirm", "1 had succeeded before and would run again", "tests.app.glob succeeded")
    browser.click("#bridge-no")
    browser.shows(TREE, "SUCCESS\ntests.app.plain")
    assert ran("glob") == 1
    browser.run("history.back()")
    browser.click("#bridge-yes")
    browser.shows(".alert-success", f"Replayed: event {name} was sent to tests.app.glob again")
    eventually(lambda: ran("glob") == 2, "the chosen handler runs again")
    browser.click("#bridge-replay")
    browser.click("#bridge-yes")
    browser.shows(".alert-success", f"Replayed: event {name} was sent to all handlers again")
    eventually(lambda: (ran("plain"), ran("glob")) == (2, 3), "both handlers run again")
    browser.shows(TREE, "replay flower-")
    browser.open(f"{flower.url}/events?search={name}&{QUICK}")
    browser.shows("#bridge-table", "SUCCESS")
    eventually(lambda: len(browser.texts("#bridge-table tbody tr")) == 1, "there is one row")


def test_a_button_that_is_pressed_twice_acts_once(site: Site, flower: Flower, name: str) -> None:
    """The form that asks has the name of its replay, which is run once."""
    site.bus.publish("dream.created", id=name)
    question = eventually(lambda: flower.ask(f"/event/{name}/replay"), "the page that asks")
    (replay,) = re.findall(r'name="name" value="(flower-[^"]+)"', question.body)
    for _ in range(2):
        assert flower.press(f"/event/{name}/replay", name=replay).status == 303
    entries = site.client.xrange(Keys(site.settings.channel_prefix).journal)
    assert sum(name.encode() in b"".join(fields.values()) for _, fields in entries) == 2  # the event and its replay


def test_a_dead_letter_is_retried_from_the_list(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """The button in the list retries, and returns to the list; a second failure is a new dead letter."""
    site.bus.publish("failing.created", id=name)
    first = site.letter_of(name)
    browser.open(f"{flower.url}/events/dead?search={name}&{QUICK}")
    browser.click("#bridge-table .bridge-retry")
    browser.click("#bridge-yes")
    browser.shows(".alert-success", f"Retried: event {name} was sent to tests.app.failing again")
    assert browser.run("location.pathname") == "/events/dead"
    assert f"in Flower by 127.0.0.1: event {name} to tests.app.failing" in site.processes.log("flower")
    again = eventually(
        lambda: [one for one in site.letters.latest(1000) if one.event_id == name and one.dead_letter_id != first],
        "it fails again",
    )
    site.letters.drop([again[0].dead_letter_id])
    answer = flower.press(f"/events/dead/{again[0].dead_letter_id}/retry")
    assert (answer.status, answer.headers["Location"]) == (303, "/events/dead")


def test_what_is_hostile_stays_text(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """Payload, metadata, source, channel and unknown fields are shown as text and never executed."""
    site.bus.publish(
        "typed.created", {"dreamId": SCRIPT, SCRIPT: 1}, id=name, source=SCRIPT, metadata={"m": SCRIPT}, extra=SCRIPT
    )
    site.client.publish(f"{site.settings.channel_prefix}{name}{SCRIPT}", SCRIPT.encode())
    site.letter_of(name)
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    browser.shows(TREE, "FAILURE", SCRIPT)
    assert browser.text("main").count("document.title='owned'") >= 6
    assert "owned" not in browser.driver.title
    for page in ("/events", "/events/dead"):
        browser.open(f"{flower.url}{page}?search={name}")
        browser.shows("#bridge-table", SCRIPT)
        assert "owned" not in browser.driver.title
    browser.open(f"{flower.url}/event/%3Cscript%3Edocument.title='owned'%3C%2Fscript%3E")
    assert "owned" not in browser.driver.title
    browser.complaints()  # of a page with status 404


def test_an_event_that_is_gone(site: Site, flower: Flower, name: str) -> None:
    """An unknown id is 404; for an expired event, the chain is still shown, and it cannot be replayed."""
    assert flower.ask(f"/event/{name}").status == 404
    site.bus.publish("bound.created", id=name)
    eventually(lambda: "tests.app.step" in flower.ask(f"/event/{name}/tree").body, "the chain is shown")
    keys = Keys(site.settings.channel_prefix)
    place = (site.client.get(keys.seen(name)) or b"").rpartition(b":")[2]
    site.client.delete(keys.event(name))
    site.client.xdel(keys.journal, place)
    page = flower.ask(f"/event/{name}")
    assert page.status == 200
    assert "No event has this id" in page.body
    assert "tests.app.step" in page.body
    assert "bridge-replay" not in page.body
