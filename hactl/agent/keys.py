"""keys: a key of one's own, and the certificates of those who are trusted.

As with ssh's host keys nobody vouches for anybody.  In the directory of keys, `key.pem` and
`cert.pem` are ours, made by openssl(1), and `trusted/NAME.pem` are the certificates of others:
of the node NAME on a balancer, of a balancer on a node.  TLS asks both sides for theirs and takes
none but these, whatever their dates; a node's is taken from that node alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import subprocess
import tempfile
from pathlib import Path

from checks._tls import NO_CHECK_TIME, dates
from hactl.config import is_name

OPENSSL = "openssl"
LONGEST = 64 * 1024  # bytes of a certificate's file
DAYS = "36500"
_CONFIG = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = own
[name]
CN = {name}
[own]
basicConstraints = critical, CA:FALSE
"""


class KeysError(Exception):
    """Says what is wrong with a key or certificate, and what to do."""


# What is on disk


def own(directory: Path) -> tuple[Path, Path]:
    """Return the files of our certificate and key."""
    return directory / "cert.pem", directory / "key.pem"


def has_own(directory: Path) -> bool:
    """Tell whether there is a key of ours, readable or not; where none may look, there may be."""
    try:
        return own(directory)[1].exists()
    except OSError:
        return True


def trusted(directory: Path) -> dict[str, Path]:
    """Return the certificates that are trusted, by name.  Raise KeysError."""
    place = directory / "trusted"
    try:
        files = [path for path in sorted(place.iterdir()) if path.suffix == ".pem"]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KeysError(f"{place}: {error.strerror or error}") from None
    return {path.stem: path for path in files}


def fingerprint(path: Path) -> bytes:
    """Return the SHA-256 of the certificate in the file at *path*.  Raise KeysError."""
    return hashlib.sha256(_certificate(path)).digest()


def ends(path: Path) -> float:
    """Return when the certificate in the file at *path* ends, in Unix seconds.  Raise KeysError."""
    try:
        return dates(_certificate(path))[1]
    except ValueError:
        raise KeysError(f"{path}: not a certificate in PEM") from None


def shown(digest: bytes) -> str:
    """Write a fingerprint for people to compare."""
    return "SHA256:" + ":".join(f"{byte:02x}" for byte in digest)


def _certificate(path: Path) -> bytes:
    """Return the only certificate in a file, in DER."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST).decode("ascii", "replace")
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror or error}") from None
    if "PRIVATE KEY" in text:
        raise KeysError(f"{path}: holds a private key, which stays where it was made; use cert.pem")
    found = re.findall("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    if len(found) != 1:
        raise KeysError(f"{path}: expected one certificate in PEM (got {len(found) or 'none'})")
    try:
        return ssl.PEM_cert_to_DER_cert(found[0])
    except ValueError:
        raise KeysError(f"{path}: not a certificate in PEM") from None


# What hactl agent does


def keygen(directory: Path, name: str, group: int | None = None) -> bytes:
    """Make a key and a certificate for *name*; return its fingerprint.

    Members of *group* may read the key.  Raise KeysError; what is there is never replaced.
    """
    if not is_name(name):
        raise KeysError(f"{name!r} is no name that a node could have; say --name")
    cert, key = own(directory)
    try:
        for path in (key, cert):
            if path.exists():
                raise KeysError(f"{path}: is there already; whoever trusts it would be locked out")
        _make(directory / "trusted")
        with tempfile.TemporaryDirectory(dir=directory, prefix=".new.") as work:
            config = Path(work) / "config"
            config.write_text(_CONFIG.format(name=name))
            new = own(Path(work))
            _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", new[1])
            _openssl(
                "req", "-new", "-x509", "-sha256", "-days", DAYS, "-config", config,
                "-key", new[1], "-out", new[0],
            )  # fmt: skip
            digest = fingerprint(new[0])
            new[0].chmod(0o644)
            if group is not None:
                os.chown(new[1], -1, group)
                new[1].chmod(0o640)
            new[1].rename(key)
            new[0].rename(cert)
    except OSError as error:
        raise KeysError(f"{error.filename or directory}: {error.strerror or error}") from None
    return digest


def trust(directory: Path, file: Path, name: str | None = None) -> tuple[str, bytes]:
    """Trust the certificate in *file* as *name*, else as whom it names; return that and its fingerprint.

    Raise KeysError: above all if another one is trusted by that name.
    """
    der = _certificate(file)
    digest = hashlib.sha256(der).digest()
    name = name or _name(file)
    if not is_name(name):
        raise KeysError(f"{name!r} is no name that a node could have; say --name")
    for known, path in trusted(directory).items():
        same = fingerprint(path) == digest
        if same and known == name:
            return name, digest
        if same:
            raise KeysError(f"{file}: is the certificate of {known} already; a key has one owner")
        if known == name:
            raise KeysError(
                f"{name} has another certificate, {shown(fingerprint(path))};"
                f" if it was made anew, remove {path} and try again"
            )
    own_cert = own(directory)[0]
    if own_cert.exists() and fingerprint(own_cert) == digest:
        raise KeysError(f"{file}: is our own certificate; trust the other side's")
    place = directory / "trusted" / f"{name}.pem"
    try:
        _make(place.parent)
        new = place.with_suffix(".new")
        new.write_text(ssl.DER_cert_to_PEM_cert(der))
        new.chmod(0o644)
        new.rename(place)
    except OSError as error:
        raise KeysError(f"{error.filename or place}: {error.strerror or error}") from None
    return name, digest


def _make(directory: Path) -> None:
    """Make a directory and those above it, open to hactld's user whatever the umask is."""
    for missing in [step for step in (directory, *directory.parents) if not step.exists()][::-1]:
        missing.mkdir()
        missing.chmod(0o755)


def _name(file: Path) -> str:
    """Return whom a certificate names."""
    said = _openssl("x509", "-in", file, "-noout", "-subject")
    match = re.search(r'CN ?= ?"?([^\s"]+)"?\s*$', said)
    return "" if match is None else match[1]


def _openssl(*words: str | Path) -> str:
    """Run openssl(1); return what it prints."""
    try:
        ended = subprocess.run(
            [OPENSSL, *map(str, words)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=60, check=False, umask=0o077,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeysError(f"{OPENSSL}: {error}") from None
    if ended.returncode:
        why = next(iter(ended.stderr.strip().splitlines()), f"exit {ended.returncode}")
        raise KeysError(f"{OPENSSL} {words[0]}: {why}")
    return ended.stdout


# TLS


def asking(directory: Path, node: str) -> tuple[ssl.SSLContext, bytes]:
    """Return the context for asking the agent of *node*, and its fingerprint.  Raise KeysError."""
    path = trusted(directory).get(node)
    if path is None:
        raise KeysError(
            f"no certificate of {node} in {directory / 'trusted'}: fetch its cert.pem and use"
            " hactl agent trust"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is the certificate that is known, wherever it is
    _equip(context, directory)
    return context, _believe(context, path)


def answering(directory: Path) -> tuple[ssl.SSLContext, frozenset[bytes], list[str]]:
    """Return the context for answering, the fingerprints of those who may ask, and what is left out.

    Raise KeysError.
    """
    known = trusted(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _equip(context, directory)
    may, unusable = set(), []
    for path in known.values():
        try:
            may.add(_believe(context, path))
        except KeysError as error:
            unusable.append(str(error))
    return context, frozenset(may), unusable


def _equip(context: ssl.SSLContext, directory: Path) -> None:
    """Load our own key and certificate.  Raise KeysError, also for a key that everybody may read."""
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= NO_CHECK_TIME
    cert, key = own(directory)
    try:
        mode = key.stat().st_mode & 0o777
        context.load_cert_chain(cert, key)
    except FileNotFoundError:
        raise KeysError(f"no key in {directory}: make one with hactl agent keygen") from None
    except OSError as error:
        raise KeysError(f"{key}: {error.strerror or error}") from None
    if mode & 0o007:
        raise KeysError(f"{key}: others can read or change it (mode {mode:04o}); chmod o= {key}")


def _believe(context: ssl.SSLContext, path: Path) -> bytes:
    """Trust a certificate; return its fingerprint.  Raise KeysError."""
    der = _certificate(path)
    try:
        context.load_verify_locations(cadata=der)
    except ssl.SSLError as error:
        raise KeysError(f"{path}: {error.reason or error}") from None
    return hashlib.sha256(der).digest()
