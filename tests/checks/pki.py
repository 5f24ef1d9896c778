"""An authority with good and bad certificates, and servers that show them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

NAME = "mx0.example.org"
DAY = timedelta(days=1)


class Pki:
    """Certificates of an authority whose own is in the file *ca*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.other = trustme.CA()
        self.ca = self.file("ca", self.authority)

    def file(self, name: str, authority: trustme.CA) -> Path:
        """Write the certificate of *authority* to a file."""
        path = self.directory / f"{name}.pem"
        authority.cert_pem.write_to_path(str(path))
        return path

    def server(
        self,
        *names: str,
        begins: float = -9,
        ends: float = 42.5,
        by: trustme.CA | None = None,
    ) -> ssl.SSLContext:
        """Return the context of a server; its certificate *begins* and *ends* days from now."""
        now = datetime.now(UTC)
        leaf = (by or self.authority).issue_cert(
            *(names or (NAME,)), not_before=now + begins * DAY, not_after=now + ends * DAY
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context

    def self_signed(self) -> ssl.SSLContext:
        """Return the context of a server whose certificate is its own authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = self.directory / "own.pem"
        path.write_bytes(self.other.private_key_pem.bytes() + self.other.cert_pem.bytes())
        context.load_cert_chain(path)
        return context
