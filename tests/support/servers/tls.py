"""A Redis that takes nothing but TLS; and what all kinds of servers here share."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from bridge.testing.redis_server import RedisServer
from tests.support.requirements import redis_binary_with_tls
from tests.support.servers.certificates import Certificates, InFlightTask

#: After so long without an answer a server counts as down, ms.
DOWN_MS = 1000


class TlsServer(RedisServer):
    """A redis-server that takes nothing but TLS.

    Arguments:
        certificates: Whose authority it trusts, and what its clients here present.
        own: What it presents; the certificate of 127.0.0.1 when missing.
        clients_too: Whether a client needs a certificate as well.
    """

    def __init__(
        self,
        certificates: Certificates,
        own: InFlightTask | None = None,
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
        """Its address with other options, or with a user and a password."""
        return f"rediss://{login}127.0.0.1:{self.port}/0?{query}"

    def options(self) -> list[str]:
        plain = super().options()
        plain[plain.index("--port") + 1] = "0"
        tls = ["--tls-port", str(self.port), "--tls-ca-cert-file", str(self.certificates.authority)]
        tls += ["--tls-cert-file", str(self._own.certificate), "--tls-key-file", str(self._own.key)]
        return [*plain, *tls, "--tls-auth-clients", "yes" if self._clients_too else "no"]

    def client(self) -> Redis:
        # Whatever certificate it presents, here it is known.
        anything = self.certificates.query() + "&ssl_cert_reqs=none&ssl_check_hostname=false"
        return Redis.from_url(self.url_with(anything), retry=Retry(NoBackoff(), 0))
