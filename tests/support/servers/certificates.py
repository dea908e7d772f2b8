"""Certificates of one run: an authority, what it issued, and what does not hold."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


@dataclass(frozen=True)
class InFlightTask:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Certificates:
    """An authority, certificates for servers and clients, and another authority that nobody trusts.

    Arguments:
        folder: Where the files are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        #: The authority of all that is issued here, and another.
        self.authority = self._write(self._authority, "authority")
        self.other_authority = self._write(trustme.CA(), "other-authority")
        #: A server at 127.0.0.1, and one that has another name.
        self.server = self._issue("server", "127.0.0.1", "localhost")
        self.elsewhere = self._issue("elsewhere", "elsewhere.example")
        #: A server whose certificate ended yesterday.
        yesterday = datetime.now(UTC) - timedelta(days=1)
        self.expired = self._issue(
            "expired", "127.0.0.1", not_before=yesterday - timedelta(days=1), not_after=yesterday
        )
        self.client = self._issue("client", "client.example")

    def query(self, *, authority: Path | None = None, client: bool = True) -> str:
        """The TLS options of a URL.

        Arguments:
            authority: Who is trusted instead.
            client: Whether the client has a certificate.
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
    ) -> InFlightTask:
        issued = self._authority.issue_cert(*identities, not_before=not_before, not_after=not_after)
        pair = InFlightTask(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        issued.private_key_pem.write_to_path(pair.key)
        issued.cert_chain_pems[0].write_to_path(pair.certificate)
        return pair
