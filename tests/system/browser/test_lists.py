"""The lists of events and dead letters in the browser: contents, filters and updates."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from bridge import Event
from bridge.flower.data import NEWEST
from tests.support.flower import QUICK, Browser, Flower, Site
from tests.support.waiting import eventually

ROWS = "#bridge-table tbody tr"


def listed(browser: Browser, flower: Flower, query: str, page: str = "/events") -> None:
    browser.open(f"{flower.url}{page}?{QUICK}&{query}")


def rows(browser: Browser, count: int) -> list[str]:
    """Wait until there are *count* rows; return their texts."""
    return list(eventually(lambda: len(found := browser.texts(ROWS)) == count and found, f"there are {count} rows"))


def test_the_tab_is_on_every_page_of_flower(flower: Flower, browser: Browser) -> None:
    """Flower's own pages have the tab after the broker's; it opens the events, where it is the active tab."""
    for page in ("/", "/workers", "/tasks", "/broker"):
        browser.open(flower.url + page)
        assert browser.texts(".app-nav .nav-link")[:4] == ["Workers", "Tasks", "Broker", "Events"]
    browser.click("a.nav-link[href='/events']")
    eventually(lambda: browser.texts(".nav-link.active") == ["Events"], "the tab is active")
    browser.shows("#bridge-status", "Updated")


def test_events_are_listed_with_their_handlers(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """A row has time, type, id, source and the state of each handler; the newest is first; no payload is shown."""
    site.bus.publish("dream.created", {"secret": "s3cret"}, id=f"{name}.a", source="front-end")
    site.bus.publish("nobody.listens", None, id=f"{name}.b")
    listed(browser, flower, f"search={name}")
    shown = browser.shows(ROWS, "SUCCESS\ntests.app.plain", "SUCCESS\ntests.app.glob", "no handlers")
    second, first = rows(browser, 2)
    assert f"{name}.a"[:8] in first
    assert "dream.created" in first
    assert "front-end" in first
    assert "a few seconds ago" in first
    assert "nobody.listens" in second
    assert "s3cret" not in shown
    assert "s3cret" not in flower.ask(f"/events/datatable?length=15&search={name}").body


def test_the_list_keeps_up(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """New events and the time of the last update are shown without a reload."""
    listed(browser, flower, f"search={name}")
    browser.shows(ROWS, "No events match your search.")
    site.bus.publish("dream.created", id=f"{name}.late")
    browser.shows(ROWS, f"{name}.late", "SUCCESS")
    assert browser.text("#bridge-status").startswith("Updated")


def test_enter_opens_an_event_that_the_list_does_not_have(
    site: Site, flower: Flower, browser: Browser, name: str
) -> None:
    """Enter opens the page of the only event whose id begins like the search, and lists several."""
    for event_id in (f"{name}-one", f"{name}-other"):
        site.bus.publish("nobody.listens", id=event_id)
    site.bus.publish_many([Event(type="nobody.listens") for _ in range(NEWEST)])
    listed(browser, flower, "search=")
    browser.type("#bridge-table_filter input", f"{name}-on" + Keys.ENTER)
    eventually(lambda: browser.run("location.pathname") == f"/event/{name}-one", "the page of the event is open")
    browser.open(f"{flower.url}/event/{name}-o")
    browser.shows(".alert-warning", "Several ids begin with", f"{name}-one", f"{name}-other", "nobody.listens")
    assert flower.ask(f"/event/{name}-x").status == 404


def test_search(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """The search finds parts of id, type and source in any case, and globs of the type; an invalid glob is reported."""
    site.bus.publish(f"{name}.one", id=f"{name}-1", source=f"Source-{name}")
    site.bus.publish(f"{name}.other", id=f"{name}-2")
    listed(browser, flower, f"search=SOURCE-{name.upper()}")
    browser.shows(ROWS, f"{name}-1")
    rows(browser, 1)
    browser.type("#bridge-table_filter input", f"{name}.o*e")
    eventually(lambda: f"search={name}.o*e" in browser.run("location.search"), "the address contains the search")
    assert f"{name}.one" in rows(browser, 1)[0]
    browser.type("#bridge-table_filter input", f"{name}.[")
    browser.shows("#bridge-search-error", "not closed")
    browser.type("#bridge-table_filter input", f"{name[1:]}.o")
    rows(browser, 2)
    assert browser.text("#bridge-search-error") == ""


def test_events_are_chosen_by_state(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """The buttons filter by failed, running, waiting or succeeded; the filter is in the address."""
    site.bus.publish("dream.created", id=f"{name}.done")
    site.bus.publish("failing.created", id=f"{name}.dead")
    site.bus.publish("slow.created", 20, id=f"{name}.slow")  # it must run until all states were checked
    site.bus.publish("routed.elsewhere", id=f"{name}.waits")
    listed(browser, flower, f"search={name}")
    browser.shows(ROWS, "SUCCESS", "FAILURE", "SENT")
    for state, event in (("running", "slow"), ("succeeded", "done"), ("failed", "dead"), ("waiting", "waits")):
        browser.click(f"[data-state={state}]")
        one = lambda event=event: [f"{name}.{event}" in text for text in browser.texts(ROWS)] == [True]  # noqa: E731
        eventually(one, f"only the event that is {state} is shown")
        eventually(
            lambda state=state: f"state={state}" in browser.run("location.search"), "the address contains the state"
        )
        assert browser.texts(".task-state-filter.active") == [state.capitalize()]
    browser.open(browser.run("location.href"))
    assert browser.texts(".task-state-filter.active") == ["Waiting"]


def test_dead_letters_are_listed(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """A row has time, reason, type, event, handler and detail; an invalid message cannot be retried."""
    site.bus.publish("typed.created", {"dreamId": name}, id=f"{name}.misfit")
    site.client.publish(f"{site.settings.channel_prefix}{name}", b"{")
    listed(browser, flower, "", "/events/dead")
    browser.shows(ROWS, "payload", "typed.created", "tests.app.typed", "valid integer", "json", name)
    browser.type("#bridge-table_filter input", name)
    no_event, misfit = sorted(rows(browser, 2), key=lambda text: "typed" in text)
    assert "cannot be retried" in no_event
    assert misfit.endswith("Retry…")
    browser.click("a[href='/events']")
    browser.shows("#bridge-dead-letters", "")
    browser.click("a[href='/events/dead']")
    eventually(lambda: browser.run("location.pathname") == "/events/dead", "the page of dead letters is open again")


@pytest.mark.parametrize("dark", [False, True])
def test_no_page_scrolls_sideways_on_a_phone(
    site: Site, flower: Flower, browser: Browser, name: str, dark: bool
) -> None:
    """At 375 px, each page is as wide as the screen, in both colour schemes; tables scroll within their card."""
    site.bus.publish("loop.again", id=f"{name}.deep")
    eventually(
        lambda: flower.ask(f"/event/{name}.deep/tree").body.count("tests.app.loop") == 17, "there is a deep chain"
    )
    site.bus.publish("failing.created", {"long": "x" * 500}, id=f"{name}{'y' * 150}", source="s" * 150)
    site.letter_of(f"{name}{'y' * 150}")
    browser.emulate(375, dark=dark)
    for page in ("/events", "/events/dead", f"/event/{name}{'y' * 150}", f"/event/{name}.deep"):
        browser.open(flower.url + page)
        browser.shows("main", name[:8] if "/event/" in page else "FAIL" if page == "/events" else "failure")
        assert browser.run("document.documentElement.scrollWidth") == 375
        assert browser.run("document.documentElement.dataset.bsTheme") == ("dark" if dark else "light")
    deepest = "document.querySelector('.bridge-line:last-child')"
    browser.run(f"{deepest}.scrollIntoView({{inline: 'end'}})")
    assert browser.run("document.querySelector('#bridge-tree').scrollLeft") > 0, "a deep chain scrolls within its card"
    assert browser.run(f"{deepest}.querySelector('.bridge-line-head').clientWidth") > 200, (
        "the deepest line stays readable"
    )
