"""An authority with good and bad certificates, and servers that show them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

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

    def odd(self, name: str) -> ssl.SSLContext:
        """Return the context of a server whose certificate is for a name that cannot be."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.load_pem_x509_certificate(self.authority.cert_pem.bytes())
        signer = load_pem_private_key(self.authority.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        now = datetime.now(UTC)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
            .sign(signer, hashes.SHA256())
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.directory / "odd.pem"
        path.write_bytes(secret + leaf.public_bytes(Encoding.PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def self_signed(self) -> ssl.SSLContext:
        """Return the context of a server whose certificate is its own authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        path = self.directory / "own.pem"
        path.write_bytes(self.other.private_key_pem.bytes() + self.other.cert_pem.bytes())
        context.load_cert_chain(path)
        return context


def certified(begins: float, ends: float) -> bytes:
    """Return a certificate from one second since the epoch to another, in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.fromtimestamp(begins, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
