"""tls: the handshake works, and the certificate is one that clients accept.

Chain, name and dates are verified as a client would; how long the certificate is good for is the
measure `left_days`, which is negative once it has expired.  A certificate that is refused is looked
at once more, so that it is known of that one too.
Source: RFC 3207 (SMTP), 9051 (IMAP), 2595 (POP3), 5804 (ManageSieve).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from checks import HANDSHAKE, NOBODY, Spoken, Target, Timing, _tls
from checks._tls import Policy, Protocol
from checks._wire import Dialogue, Say, StartTLS, nothing
from checks.banner import Until
from hactl.core.model import ok


class Turn(NamedTuple):
    """What is said at a step before TLS, and the line that answers it, after some to skip."""

    step: str
    say: bytes
    expect: str
    skip: str = ""


class Way(NamedTuple):
    """How a protocol gets to TLS, and how a session ends."""

    turns: tuple[Turn, ...]
    leave: bytes


def _smtp(hello: bytes) -> Way:
    turns = (
        Turn("greeting", b"", "/^220( |$)/", "220-"),
        Turn("ehlo", hello + b" hactl.invalid\r\n", "/^250( |$)/", "250-"),
        Turn("starttls", b"STARTTLS\r\n", "220"),
    )
    return Way(turns, b"QUIT\r\n")


WAYS: Mapping[str, Way] = {
    "smtp": _smtp(b"EHLO"),
    "lmtp": _smtp(b"LHLO"),
    "imap": Way(
        (Turn("greeting", b"", "* OK"), Turn("starttls", b"a STARTTLS\r\n", "a OK", "* ")),
        b"b LOGOUT\r\n",
    ),
    "pop3": Way((Turn("greeting", b"", "+OK"), Turn("starttls", b"STLS\r\n", "+OK")), b"QUIT\r\n"),
    "sieve": Way(
        (Turn("greeting", b"", "OK", '"'), Turn("starttls", b"STARTTLS\r\n", "OK")), b"LOGOUT\r\n"
    ),
}


class Tls(Spoken, frozen=True, kw_only=True, tag="tls"):
    """Options.

    *starttls*: the protocol in which TLS is asked for, by default it is spoken from the first byte.
    *verify*: believe only a certificate for *name*, by default the node's, of the authorities in
    *ca*, by default the system's.  *min_version*: the oldest protocol that will do.
    """

    starttls: Literal["smtp", "lmtp", "imap", "pop3", "sieve"] | None = None
    verify: bool = True
    name: str = ""
    ca: Path | None = None
    min_version: Protocol = "TLSv1.2"

    timing: ClassVar[Timing] = HANDSHAKE

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(verify=self.verify, minimum=self.min_version, ca=self.ca)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is wrong with name and authorities."""
        yield from _tls.problems(self.policy, self.name)

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Go as far as TLS, shake hands, and take leave."""
        way = WAYS[self.starttls] if self.starttls else None
        for step, say, expect, skip in way.turns if way else ():
            yield Say(say, Until(expect, skip), step)
        name = self.name or (target.node if self.verify else None)
        agreed = yield StartTLS(_tls.get(self.policy), name, lambda: self.talk(target))
        if way:
            yield Say(way.leave, nothing, "quit")
        return ok(agreed.decode())
