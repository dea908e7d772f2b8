"""Certificates of one test run: a CA, certificates that it issued, and invalid ones."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass(frozen=True)
class KeyPair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


class Certificates:
    """A CA, certificates for servers and clients, and another CA that is not trusted.

    Arguments:
        folder: The folder to which the files are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        #: The CA that issues all certificates here, and another one.
        self.authority = self._write(self._authority, "authority")
        self.other_authority = self._write(trustme.CA(), "other-authority")
        #: A server at 127.0.0.1, and a server with another name.
        self.server = self._issue("server", "127.0.0.1", "localhost")
        self.elsewhere = self._issue("elsewhere", "elsewhere.example")
        #: A server whose certificate expired yesterday.
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.expired = self._issue(
            "expired", "127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday
        )
        self.client = self._issue("client", "client.example")

    def query(self, *, authority: Path | None = None, client: bool = True) -> str:
        """Return the TLS options of a URL.

        Arguments:
            authority: The CA to trust instead of the default one.
            client: Whether the client presents a certificate.
        """
        options = f"ssl_ca_certs={authority or self.authority}"
        if client:
            options += f"&ssl_certfile={self.client.certificate}&ssl_keyfile={self.client.key}"
        return options

    def _write(self, authority: trustme.CA, name: str) -> Path:
        path = self._folder / f"{name}.pem"
        authority.cert_pem.write_to_path(path)
        return path

    def _issue(
        self, name: str, *identities: str, not_before: datetime | None = None, not_after: datetime | None = None
    ) -> KeyPair:
        issued = self._authority.issue_cert(*identities, not_before=not_before, not_after=not_after)
        pair = KeyPair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.private_key_pem.write_to_path(pair.key)
        issued.cert_chain_pems[0].write_to_path(pair.certificate)
        return pair
