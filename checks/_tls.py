"""Make TLS contexts, one for each policy and at configuration load, and say what TLS complains of.

A default context costs 20 ms of CPU, as much as ten handshakes, so this is the only place that makes
one; `load` is for the configuration, `get` for the looks.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from checks import keep
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
    """The contexts of a policy; the other two are for a second look at what *strict* refused.

    *relaxed* ignores name and dates, *blind* believes everybody.
    """

    strict: ssl.SSLContext
    relaxed: ssl.SSLContext | None = None
    blind: ssl.SSLContext | None = None

    def again(self, code: int) -> ssl.SSLContext:
        """Return the context that gets to see a certificate that was refused with *code*."""
        context = self.relaxed if code in AGAIN else self.blind
        assert context is not None
        return context


# The contexts of a policy, with what identified its file of authorities.
_made: dict[Policy, tuple[object, Trust]] = keep({})


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
            trust = _trust(policy)
        except ssl.SSLError as error:
            raise ValueError(_words(error.reason) or str(error)) from None
        known = _made[policy] = mark, trust
    return known[1]


def get(policy: Policy) -> Trust:
    """Return the contexts that were made at load."""
    known = _made.get(policy)
    return load(policy) if known is None else known[1]


def _trust(policy: Policy) -> Trust:
    if not policy.verify:
        return Trust(_context(policy))
    relaxed = _context(policy)
    relaxed.check_hostname = False
    relaxed.verify_flags |= NO_CHECK_TIME
    return Trust(_context(policy), relaxed, _context(policy._replace(verify=False)))


def _context(policy: Policy) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # so what is written never waits for what is read; not every LibreSSL has it
    context.options |= getattr(ssl, "OP_NO_RENEGOTIATION", 0)
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
    """What matters of a certificate; seconds since the epoch.  Names are known of a verified one."""

    begins: float
    ends: float
    names: tuple[str, ...] = ()

    def left_days(self, now: float) -> float:
        """Return the days until it expires; they are negative afterwards."""
        return (self.ends - now) / DAY

    def dated(self, now: float) -> str:
        """Say what is wrong with its dates, "" if nothing is."""
        if now > self.ends:
            return f"expired {_span(now - self.ends)} ago"
        return f"begins in {_span(self.begins - now)}" if now < self.begins else ""


def certificate(tls: ssl.SSLObject) -> Certificate | None:
    """Return the certificate of the other end, None if there is nothing to be read in it."""
    found: Mapping[str, object] = tls.getpeercert() or {}
    begins, ends = found.get("notBefore"), found.get("notAfter")
    if isinstance(begins, str) and isinstance(ends, str):
        entries = found.get("subjectAltName", ())
        assert isinstance(entries, tuple)
        names = tuple(str(name) for kind, name in entries if kind in {"DNS", "IP Address"})
        return Certificate(ssl.cert_time_to_seconds(begins), ssl.cert_time_to_seconds(ends), names)
    try:  # Python shows no more than the bytes of one that it did not verify
        return Certificate(*dates(tls.getpeercert(binary_form=True) or b""))
    except ValueError:
        return None


def dates(der: bytes) -> tuple[float, float]:
    """Return when a certificate begins and ends (RFC 5280, 4.1).  Raise ValueError if it is none."""
    _, whole, _ = _element(der, 0)
    _, body, _ = _element(whole, 0)
    tag, _, start = _element(body, 0)
    for _ in range(3 if tag == 0xA0 else 2):  # an explicit version; serial, algorithm, issuer
        _, _, start = _element(body, start)
    _, validity, _ = _element(body, start)
    kind, begins, start = _element(validity, 0)
    return _moment(kind, begins), _moment(*_element(validity, start)[:2])


def _element(der: bytes, start: int) -> tuple[int, bytes, int]:
    """Return tag and content of the element at *start*, and where the next one begins."""
    if len(der) < start + 2:
        raise ValueError("cut")
    tag, size, start = der[start], der[start + 1], start + 2
    if size & 0x80:  # the length has a length
        more = size & 0x7F
        size, start = int.from_bytes(der[start : start + more], "big"), start + more
    end = start + size
    if end > len(der):
        raise ValueError("cut")
    return tag, der[start:end], end


def _moment(tag: int, text: bytes) -> float:
    digits = text.decode("ascii")
    if tag == 0x17:  # UTCTime, of the years 1950 to 2049
        digits = ("19" if digits >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def distrust(error: ssl.SSLCertVerificationError, name: str | None) -> str:
    """Say why a certificate is not believed, without a look at it."""
    code: int = error.verify_code
    if code in DATES:
        return f"certificate {DATES[code]}"
    if code in NAMES:
        return f"certificate is not for {name}"
    return WORDS.get(code) or f"certificate refused ({error.verify_message})"


def details(code: int, why: str, found: Certificate, name: str, now: float) -> str:
    """Say what is wrong with a certificate that was refused with *code*, and what is not.

    *why* is what was said without a look at it.
    """
    dated = found.dated(now)
    if code not in AGAIN:
        return f"{why}; the certificate {dated}" if dated else why
    faults = []
    if code in NAMES and any(_covers(each, name) for each in found.names):
        return f"{why}, but the one seen next is: another server's"
    if code in NAMES or not any(_covers(each, name) for each in found.names):
        shown = ", ".join(found.names[:3]) + (" ..." if len(found.names) > 3 else "")
        faults.append(f"is for {shown or 'no name'}, not {name}")
    if dated:
        faults.append(dated)
    elif code in DATES:
        return f"{why}: not the one seen next, but one above it, or another server's"
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
