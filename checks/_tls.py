"""Make TLS contexts, one for each policy and at configuration load, and say what TLS complains of.

A default context costs 20 ms of CPU, as much as ten handshakes, so this is the only place that makes
one; `load` is for the configuration, `get` for the looks.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hactl.core.model import Verdict

Protocol = Literal["TLSv1.2", "TLSv1.3"]

DAY = 86400.0
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which Python has no name for

# Codes of X509_verify_cert(3).
DATES = {9: "is not valid yet", 10: "has expired"}
NAMES = {62, 64}  # host name, IP address
AGAIN = DATES.keys() | NAMES  # a look that ignores these can say more
WORDS = {
    18: "self-signed certificate",
    19: "unknown authority (the chain ends in its own root)",
    20: "unknown authority, or an intermediate certificate is missing",
    21: "unknown authority, or an intermediate certificate is missing",
    23: "certificate is revoked",
}

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


class Policy(NamedTuple):
    """Whom to believe: *ca* is a file of authorities, by default the system's."""

    verify: bool = True
    minimum: Protocol = "TLSv1.2"
    ca: Path | None = None


class Trust(NamedTuple):
    """The contexts of a policy.  *relaxed* ignores name and dates: what they are it can tell."""

    strict: ssl.SSLContext
    relaxed: ssl.SSLContext | None = None


_made: dict[Policy, tuple[object, Trust]] = {}  # with what identified the file of authorities


def load(policy: Policy) -> Trust:
    """Make the contexts of *policy*, anew if its file has changed.

    Raise OSError if the file cannot be read, ValueError if it is none of authorities.
    """
    file = policy.ca or ssl.get_default_verify_paths().cafile
    mark = None
    if policy.verify and file is not None:
        found = Path(file).stat()
        mark = found.st_ino, found.st_size, found.st_mtime_ns
    known = _made.get(policy)
    if known is None or known[0] != mark:
        try:
            relaxed = _context(policy) if policy.verify else None
            known = _made[policy] = mark, Trust(_context(policy), relaxed)
        except ssl.SSLError as error:
            raise ValueError(_words(error.reason) or str(error)) from None
        if relaxed is not None:
            relaxed.check_hostname = False
            relaxed.verify_flags |= NO_CHECK_TIME
    return known[1]


def get(policy: Policy) -> Trust:
    """Return the contexts that were made at load."""
    known = _made.get(policy)
    return load(policy) if known is None else known[1]


def _context(policy: Policy) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not policy.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif policy.ca is not None:
        context.load_verify_locations(policy.ca)
    else:
        context.load_default_certs()
    context.minimum_version = ssl.TLSVersion[policy.minimum.replace(".", "_")]
    return context


def problems(policy: Policy, name: str) -> Iterable[tuple[str, str]]:
    """Load *policy*; yield what is wrong with it or with *name* (see `checks.Option.problems`)."""
    if name and not _is_name(name):
        yield "name", "expected a host name or an IP address, as in the certificate"
    try:
        load(policy)
    except OSError as error:
        yield "ca", f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        yield "ca", f"expected certificates in PEM format ({error})"


def _is_name(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.split(".")
        return _NAME.fullmatch(name) is not None and all(0 < len(each) < 64 for each in labels)
    return True


# What a certificate says, and what is wrong


class Certificate(NamedTuple):
    """What matters of a verified certificate; seconds since the epoch."""

    begins: float
    ends: float
    names: tuple[str, ...]

    def left_days(self, now: float) -> float:
        """Return the days until it expires; they are negative afterwards."""
        return (self.ends - now) / DAY


def certificate(sock: ssl.SSLSocket) -> Certificate | None:
    """Return the certificate of the other end, None if it was not verified."""
    found: Mapping[str, object] = sock.getpeercert() or {}
    begins, ends = found.get("notBefore"), found.get("notAfter")
    if not isinstance(begins, str) or not isinstance(ends, str):
        return None
    entries = found.get("subjectAltName", ())
    assert isinstance(entries, tuple)
    names = tuple(str(name) for kind, name in entries if kind in {"DNS", "IP Address"})
    return Certificate(ssl.cert_time_to_seconds(begins), ssl.cert_time_to_seconds(ends), names)


def distrust(error: ssl.SSLCertVerificationError, name: str | None) -> str:
    """Say why a certificate is not believed, without a look at it."""
    code: int = error.verify_code
    if code in DATES:
        return f"certificate {DATES[code]}"
    if code in NAMES:
        return f"certificate is not for {name}"
    return WORDS.get(code) or f"certificate refused ({error.verify_message})"


def details(code: int, found: Certificate, name: str, now: float) -> str:
    """Say what is wrong with a certificate that was refused with *code*, and what is not."""
    faults = []
    if code in NAMES or not any(_covers(each, name) for each in found.names):
        shown = ", ".join(found.names[:3]) + (" ..." if len(found.names) > 3 else "")
        faults.append(f"is for {shown or 'no name'}, not {name}")
    if now > found.ends:
        faults.append(f"expired {_span(now - found.ends)} ago")
    elif now < found.begins:
        faults.append(f"begins in {_span(found.begins - now)}")
    elif code in DATES:
        return f"a certificate above this one in the chain {DATES[code]}"
    text = "certificate " + " and ".join(faults)
    return f"{text}, fine but for the date" if code in DATES and len(faults) == 1 else text


def _covers(pattern: str, name: str) -> bool:
    """Tell whether a name of a certificate is *name*; `*` is one label (RFC 9525, 6.3)."""
    try:
        return ipaddress.ip_address(pattern) == ipaddress.ip_address(name)
    except ValueError:
        rest = name.partition(".")[2] if pattern.startswith("*.") else ""
        return (f"*.{rest}" if rest else name).lower() == pattern.lower()


def _span(seconds: float) -> str:
    for unit, size in (("day", DAY), ("hour", 3600.0)):
        if seconds >= size:
            count = int(seconds / size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than an hour"


# Python's names for what ends a handshake; what they mean to an operator.
_PLAIN = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
_OLD = {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}


def trouble(error: ssl.SSLError) -> tuple[Verdict, str]:
    """Say whose fault an error of TLS is, and what it is."""
    reason: str = getattr(error, "reason", None) or ""  # those that Python code makes have none
    if "MALLOC" in reason:
        return Verdict.UNKNOWN, "out of memory"
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return Verdict.FAIL, "closed in the middle of TLS"
    if reason in _PLAIN:
        return Verdict.FAIL, "not TLS"
    if reason in _OLD:
        return Verdict.FAIL, "no protocol in common"
    _, alert, text = reason.partition("_ALERT_")
    if alert:
        return Verdict.FAIL, f"the node sent an alert: {_words(text)}"
    return Verdict.FAIL, f"TLS failed: {_words(reason) or 'no reason given'}"


def _words(reason: str | None) -> str:
    return (reason or "").lower().replace("_", " ")
