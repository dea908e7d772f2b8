"""A Redis that accepts only TLS, and a constant that all kinds of test servers share."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bridge.testing.redis_server import RedisServer
from tests.support.requirements import redis_binary_with_tls
from tests.support.servers.certificates import Certificates, KeyPair

#: A server counts as down after this time without a reply, in ms.
DOWN_MS = 1000


class TlsServer(RedisServer):
    """A redis-server that accepts only TLS.

    Arguments:
        certificates: Contains the CA that it trusts and the certificate that clients present here.
        own: The certificate that it presents; by default, the one for 127.0.0.1.
        clients_too: Whether clients must present a certificate.
    """

    def __init__(
        self,
        certificates: Certificates,
        own: KeyPair | None = None,
        *,
        clients_too: bool = True,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(redis_binary_with_tls(), arguments)
        self.certificates = certificates
        self._own = own or certificates.server
        self._clients_too = clients_too

    @property
    def url(self) -> str:
        return self.url_with(self.certificates.query())

    def url_with(self, query: str, login: str = "") -> str:
        """Return its address with other options, or with a user and a password."""
        return f"rediss://{login}127.0.0.1:{self.port}/0?{query}"

    def options(self) -> list[str]:
        plain = super().options()
        plain[plain.index("--port") + 1] = "0"
        tls = ["--tls-port", str(self.port), "--tls-ca-cert-file", str(self.certificates.authority)]
        tls += ["--tls-cert-file", str(self._own.certificate), "--tls-key-file", str(self._own.key)]
        return [*plain, *tls, "--tls-auth-clients", "yes" if self._clients_too else "no"]

    def client(self) -> Redis:
        # This client accepts any certificate of the server.
        anything = self.certificates.query() + "&ssl_cert_reqs=none&ssl_check_hostname=false"
        return Redis.from_url(self.url_with(anything), retry=Retry(NoBackoff(), 0))
