"""Wrong addresses, certificates and permissions: each error has its cause and a hint, and no secret."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from redis import Redis

from bridge import BridgeSettings, BusUnavailable, EventBus, SettingsError
from bridge.cli import bus as bus_command
from bridge.subscriber.subscriber import Subscriber
from bridge.testing.redis_server import RedisServer
from tests.support.apps import make_app
from tests.support.servers.certificates import Certificates
from tests.support.servers.clusters import ClusterServers
from tests.support.servers.sentinels import Replicated
from tests.support.servers.tls import TlsServer
from tests.support.waiting import eventually

PASSWORD, WRONG = "s3cret-one", "s3cret-two"
#: Commands that connections need, without scripts.
FEW = ["+ping", "+hello", "+client"]


class Places:
    """Servers of every kind, and the addresses at which connections fail."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.tls = TlsServer(certificates)
        self.expired = TlsServer(certificates, certificates.expired)
        self.elsewhere = TlsServer(certificates, certificates.elsewhere)
        self.plain = RedisServer(arguments=["--requirepass", PASSWORD])
        self.replicated = Replicated(password=PASSWORD)
        self.cluster = ClusterServers()

    @contextmanager
    def running(self) -> Iterator[Places]:
        with ExitStack() as stack:
            for one in (self.tls, self.expired, self.elsewhere, self.plain, self.replicated, self.cluster):
                stack.enter_context(one)
            with Redis(port=self.plain.port, password=PASSWORD) as admin:
                admin.acl_setuser("few", enabled=True, passwords=[f"+{PASSWORD}"], commands=FEW, keys="*")
            yield self

    def at(self, login: str) -> str:
        return f"redis://{login}@127.0.0.1:{self.plain.port}/0"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with Places(Certificates(tmp_path_factory.mktemp("certificates"))).running() as running:
        yield running


def other_ca(places: Places) -> str:
    return places.tls.url_with(places.certificates.query(authority=places.certificates.other_authority))


#: By name: the address, the text of Redis or TLS, and the hint.
WRONG_WAYS: dict[str, tuple[Callable[[Places], str], str, str]] = {
    "another authority": (other_ca, "CERTIFICATE_VERIFY_FAILED", "name the file of its CA with ssl_ca_certs=... in"),
    "no authority": (
        lambda at: f"rediss://127.0.0.1:{at.tls.port}/0",
        "CERTIFICATE_VERIFY_FAILED",
        "name the file of its CA with ssl_ca_certs=... in",
    ),
    "expired certificate": (
        lambda at: at.expired.url,
        "certificate has expired",
        "Renew the certificate of the server",
    ),
    "another host name": (
        lambda at: at.elsewhere.url,
        "not valid for '127.0.0.1'",
        "The certificate of the server has other names",
    ),
    "no certificate of the client": (
        lambda at: at.tls.url_with(at.certificates.query(client=False)),
        "",
        "a certificate: add ssl_certfile=... and ssl_keyfile=...",
    ),
    "plain to TLS": (
        lambda at: f"redis://127.0.0.1:{at.tls.port}/0",
        "",
        "If it requires TLS, write rediss instead of redis in",
    ),
    "TLS to plain": (
        lambda at: f"rediss://127.0.0.1:{at.plain.port}/0?{at.certificates.query()}",
        "Timeout",
        "not with TLS: write redis instead of rediss in",
    ),
    "wrong password": (lambda at: at.at(f":{WRONG}"), "invalid username-password pair", "user and password"),
    "wrong user": (lambda at: at.at(f"who:{PASSWORD}"), "invalid username-password pair", "user and password"),
    "no password": (lambda at: at.at(""), "Authentication required", "user and password"),
    "missing right": (
        lambda at: at.at(f"few:{PASSWORD}"),
        "no permissions to",
        "Give this user the permissions that bus acl prints",
    ),
    "no Sentinel": (
        lambda at: f"redis+sentinel://:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/bus",
        "Connection refused",
        "Check that the Sentinels run",
    ),
    "unknown service": (
        lambda at: at.replicated.url.replace("/bus", "/bos"),
        "does not watch the service bos",
        "Check the name of the service",
    ),
    "no password of the Sentinels": (
        lambda at: at.replicated.url.partition("?")[0],
        "Authentication required",
        "Check sentinel_password=...",
    ),
    "wrong password of the Sentinels": (
        lambda at: f"{at.replicated.url.partition('?')[0]}?sentinel_password={WRONG}",
        "invalid username-password pair",
        "Check sentinel_password=...",
    ),
    "servers for Sentinels": (
        lambda at: f"redis+sentinel://127.0.0.1:{at.cluster.servers[0].port}/bus",
        "unknown command 'SENTINEL'",
        "Put the addresses of the Sentinels in",
    ),
    "a Sentinel for the server": (
        lambda at: f"redis://:{PASSWORD}@127.0.0.1:{at.replicated.sentinels[0].port}/0",
        "unknown command",
        "write redis+sentinel://HOSTS/SERVICE in",
    ),
    "cluster to plain": (
        lambda at: at.at(f":{PASSWORD}").replace("redis://", "redis+cluster://").removesuffix("/0"),
        "Cluster mode is not enabled",
        "write redis instead of redis+cluster in",
    ),
    "plain to cluster": (
        lambda at: f"redis://127.0.0.1:{at.cluster.servers[1].port}/0",
        "",
        "write redis+cluster instead of redis in",
    ),
    "wrong password of a cluster": (
        lambda at: at.cluster.url.replace("://", f"://:{WRONG}@"),
        "without any password configured",
        "user and password",
    ),
    "no cluster": (lambda at: "redis+cluster://127.0.0.1:1", "Connection refused", "Check that it is running"),
}


@pytest.fixture(params=list(WRONG_WAYS))
def wrong(request: pytest.FixtureRequest, places: Places) -> tuple[str, str, str]:
    """The address, the text of the error, and the hint."""
    make, says, advice = WRONG_WAYS[request.param]
    return make(places), says, advice


def check(text: str, says: str, advice: str) -> None:
    """Assert that the text is one line with both parts and without a secret."""
    assert says in text
    assert advice in text
    assert len(text.splitlines()) == 1
    assert PASSWORD not in text
    assert WRONG not in text
    assert not re.search(r"(?<![.=])[.]{2}(?![.])", text), "two full stops in succession"


def test_publishing_says_what_is_wrong(wrong: tuple[str, str, str], prefix: str) -> None:
    """BusUnavailable contains the error of Redis and a hint."""
    url, says, advice = wrong
    bus = EventBus(redis_url=url, channel_prefix=prefix, publish_timeout_s=2)
    with pytest.raises(BusUnavailable) as caught:
        bus.publish("a.b")
    bus.close()
    check(str(caught.value), says, advice)


def test_commands_say_what_is_wrong(wrong: tuple[str, str, str], prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``bus publish`` exits with status 3 and one line."""
    url, says, advice = wrong
    monkeypatch.setenv("BRIDGE_REDIS_URL", url)
    monkeypatch.setenv("BRIDGE_CHANNEL_PREFIX", prefix)
    with make_app("memory://", prefix) as app:
        result = CliRunner().invoke(bus_command, ["publish", "a.b"], obj=SimpleNamespace(app=app))
    assert result.exit_code == 3, result.output
    check(result.output, says, advice)


def test_subscribers_say_what_is_wrong(
    wrong: tuple[str, str, str], prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker keeps retrying, its log contains the cause, and it can be stopped."""
    url, says, advice = wrong
    settings = BridgeSettings.load(redis_url=url, channel_prefix=prefix, group="tests", socket_timeout_s=5)
    alone = ("user and password", "Grant", "Check that it is running")  # the error itself is sufficient
    wanted = "" if advice.startswith(alone) else advice.removesuffix(" in")

    def line() -> str | None:
        found = (record.getMessage() for record in caplog.records if record.name.startswith("bridge."))
        return next((text for text in found if says in text and wanted in text), None)

    with make_app("memory://", prefix) as app:
        subscriber = Subscriber(app, settings, "one")
        subscriber.start()
        try:
            check(eventually(line, f"there is a line with {says!r} and {wanted!r}"), "", wanted)
        finally:
            subscriber.stop()


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
def test_files_that_are_not_there_are_told_at_the_start(option: str) -> None:
    """Missing files are reported with their names when settings are loaded, not by a later connection."""
    with pytest.raises(SettingsError, match=rf"redis_url: {option}: cannot read /nowhere/file.pem: No such file"):
        BridgeSettings.load(redis_url=f"rediss://:{PASSWORD}@127.0.0.1:1/0?{option}=/nowhere/file.pem")
