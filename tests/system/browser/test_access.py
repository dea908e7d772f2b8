"""Access to the pages: Flower's own rules, and an XSRF token for every button."""

from __future__ import annotations

import pytest

from tests.support.flower import QUICK, Browser, Flower, Site
from tests.support.waiting import eventually

PAGES = (
    "/events",
    "/events/datatable?length=5",
    "/events/dead",
    "/events/dead/datatable?length=5",
    "/event/x",
    "/event/x/tree",
)


@pytest.fixture(scope="module")
def locked(site: Site) -> Flower:
    """A Flower that requires a login, below a path prefix."""
    return site.flower("locked", "--basic-auth=me:pass", "--url-prefix=ops/flower", path="/ops/flower", login="me:pass")


@pytest.fixture(scope="module")
def watching(site: Site) -> Flower:
    return site.flower("watching", "--read-only")


def test_nothing_without_logging_in(locked: Flower) -> None:
    """With basic authentication, every page and button without a login is 401."""
    stranger = Flower(locked.port, "/ops/flower")
    assert {page: stranger.ask(page).status for page in PAGES} == dict.fromkeys(PAGES, 401)
    token = {"_xsrf": "a", "_": ""}
    for button in ("/events/dead/1-1/retry", "/event/x/replay"):
        assert stranger.ask(button, token, Cookie="_xsrf=a").status == 401
        assert stranger.ask(button, token).status == 403
        assert locked.ask(button, token, Cookie="_xsrf=a").status == 303


def test_nothing_without_a_session(site: Site) -> None:
    """With OAuth, every page, table and tree redirects to the login, and buttons are refused."""
    options = ("--auth=.*@example.com", "--auth_provider=flower.views.auth.GoogleAuth2LoginHandler")
    stranger = site.flower("oauth", *options, "--oauth2_key=k", "--oauth2_secret=s", "--oauth2_redirect_uri=http://x")
    answers = {page: stranger.ask(page) for page in PAGES}
    assert {page: answer.status for page, answer in answers.items()} == dict.fromkeys(PAGES, 302)
    assert all(answer.headers["Location"].startswith("/login?") for answer in answers.values())
    for button in ("/events/dead/1-1/retry", "/event/x/replay"):
        assert stranger.ask(button, {"_xsrf": "a"}, Cookie="_xsrf=a").status == 403


@pytest.mark.parametrize("button", ["/events/dead/1-1/retry", "/event/x/replay"])
def test_a_button_needs_its_token(flower: Flower, button: str) -> None:
    """A POST without a token, or with another token than the cookie, is 403, even without logins; GET only asks."""
    assert flower.ask(button, {}).status == 403
    assert flower.ask(button, {"_xsrf": "a"}).status == 403
    assert flower.ask(button, {"_xsrf": "a"}, Cookie="_xsrf=b").status == 403
    asked = flower.ask(button)
    assert (asked.status, "no longer" in asked.body) == (409, True)
    assert flower.press(button).status == 303


@pytest.mark.parametrize("event", ["//evil.example", "../../evil", "https://evil.example/", "a\r\nLocation: /evil"])
def test_a_button_leads_to_our_own_pages_only(flower: Flower, event: str) -> None:
    """A button redirects only to the page of an event in this Flower, whatever event the form contains."""
    assert flower.press("/events/dead/1-1/retry", event=event).headers["Location"].startswith("/event/")


def test_what_cannot_be_done_is_said(site: Site, flower: Flower, browser: Browser, name: str) -> None:
    """If a dead letter, an event or a handler does not exist, nothing is done, and the page reports this."""
    site.bus.publish("failing.created", id=name)
    letter = site.letter_of(name)
    browser.open(f"{flower.url}/events/dead?search={name}&autorefresh=0")
    browser.shows("#bridge-table", name[:8], "Retry")
    site.letters.drop([letter])
    browser.click("#bridge-table .bridge-retry")
    browser.shows(".alert-danger", "retried, purged or evicted")
    browser.complaints()  # of the page with status 409
    browser.open(f"{flower.url}/event/{name}?{QUICK}")
    browser.run("document.querySelector('.bridge-replay option').value = 'os.system'")
    browser.click("#bridge-replay")
    browser.shows(".alert-danger", "no handler 'os.system' for failing.created")
    browser.complaints()


def test_nothing_is_changed_in_read_only_mode(site: Site, watching: Flower, browser: Browser, name: str) -> None:
    """Flower's read-only mode has no buttons, and their addresses are 403."""
    site.bus.publish("failing.created", id=name)
    dead_letter = site.letter_of(name)
    for page in (f"/event/{name}", f"/events/dead?search={name}"):
        browser.open(watching.url + page)
        browser.shows("main", "failing.created")
        assert not browser.all("main form, main .bridge-retry, #bridge-replay")
    for button in (f"/events/dead/{dead_letter}/retry", f"/event/{name}/replay"):
        assert watching.ask(button, {"_xsrf": "a"}, Cookie="_xsrf=a").status == 403
        assert watching.ask(button).status == 403
    assert site.letter_of(name) == dead_letter


def test_links_keep_the_prefix_of_flower(site: Site, locked: Flower, browser: Browser, name: str) -> None:
    """Below a path prefix, all links, styles, data and buttons keep the prefix."""
    site.bus.publish("failing.created", id=name)
    site.letter_of(name)
    browser.open(f"{locked.url}/tasks")
    browser.click("a.nav-link[href='/ops/flower/events']")
    browser.shows("#bridge-table", name[:8])
    browser.click(f"#bridge-table a[href='/ops/flower/event/{name}']")
    browser.shows("#bridge-tree", "FAILURE")
    browser.click("#bridge-tree .bridge-retry")
    browser.click("#bridge-yes")
    browser.shows(".alert-success", f"event {name} was sent to")
    assert browser.run("location.pathname") == f"/ops/flower/event/{name}"
    assert f"in Flower by me: event {name} to tests.app.failing" in site.processes.log("locked")
    browser.click(".nav-link.active")
    browser.click("a[href='/ops/flower/events/dead']")
    eventually(
        lambda: browser.run("location.pathname") == "/ops/flower/events/dead", "the page of dead letters is open"
    )
    browser.shows("#bridge-table", name[:8])
