"""Logins, the TLS that they go over, and how long none is tried after one was refused.

A login is read from its file when the configuration is loaded, and nobody else sees what it holds.

A server that refuses a password slows down whoever comes next from the same address: Dovecot delays
the answers to it, first by seconds, later by a quarter of a minute.  With a relay that address is
every user's.  So a refused login is a fail once; the looks after it end before the login, and are
unknown, for a span that doubles with each refusal.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from checks import LOGIN, Spoken, Target, Timing, _tls, keep
from checks._tls import Policy
from checks._wire import StartTLS, quote
from hactl.core.model import Result, fail, unknown
from hactl.core.units import Secret, span

FIRST, LONGEST = 30.0, 900.0  # seconds without a login after a first refusal, and at most


class Login(NamedTuple):
    """User and password as the file has them; bytes, so that no codec's error can quote them."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Login(...)"

    @property
    def plain(self) -> bytes:
        """Return both as the SASL mechanism PLAIN sends them (RFC 4616), in base64."""
        return b64encode(b"\0" + self.user + b"\0" + self.password)

    def shows(self, answer: bytes) -> bool:
        """Tell whether *answer* repeats the password; some do with what they did not like."""
        secrets = (self.password, b64encode(self.password), self.plain)
        return any(secret in answer for secret in secrets)


_read: dict[Secret, Login] = keep({})


def load(secret: Secret) -> Login:
    """Read *secret* anew.  Raise OSError, or ValueError if it is not two lines."""
    lines = Path(secret.path).read_bytes().splitlines()
    if len(lines) != 2 or not all(lines) or any(b"\0" in line for line in lines):
        raise ValueError("expected two lines, a user and a password")
    login = _read[secret] = Login(*lines)
    return login


def get(secret: Secret) -> Login:
    """Return what was read at load."""
    return _read.get(secret) or load(secret)


def problems(secret: Secret) -> Iterable[tuple[str, str]]:
    """Load *secret*; yield what is wrong with it (see `checks.Option.problems`)."""
    try:
        load(secret)
    except OSError as error:
        yield "login", f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        yield "login", str(error)


class Account(Spoken, frozen=True, kw_only=True):
    """The options of a protocol with TLS and a login.

    *tls*: by command, or from the first byte.  *verify*: believe only a certificate for *name*, by
    default the node's, of the authorities in *ca*, by default the system's.  *login*: a file with
    user and password on two lines.
    """

    tls: Literal["off", "starttls", "implicit"] = "off"
    verify: bool = True
    name: str = ""
    ca: Path | None = None
    login: Secret | None = None

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(verify=self.verify, ca=self.ca)

    def times(self) -> Timing:
        """Give a login more time: servers that know of guessing answer late."""
        return self.timing if self.login is None else LOGIN

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is wrong with TLS, and with a login."""
        if self.tls != "off":
            yield from _tls.problems(self.policy, self.name)
        if self.login is not None:
            if self.tls == "off":
                yield "login", "a password needs TLS: say tls: starttls or tls: implicit"
            yield from problems(self.login)

    def secure(self, target: Target) -> StartTLS:
        """Return the turn from which on we speak under TLS."""
        name = self.name or (target.node if self.verify else None)
        return StartTLS(_tls.get(self.policy), name, lambda: self.talk(target))


# After a refusal


def rest(target: Target) -> Result | None:
    """Return the result of a look that must not log in yet, None if it may."""
    length = min(FIRST * 2 ** ((target.noted("refusals") or 1) - 1), LONGEST)
    passed = target.since("refused")
    if passed >= length:
        return None
    return unknown(
        f"not logged in: refused {span(passed)} ago, tried again in {span(length - passed)}"
    )


def refused(target: Target, login: Login, answer: bytes, short: bytes) -> Result:
    """Return the failure that *answer* to a login is, and note it; *short* is it without its text."""
    target.note(refusals=(target.noted("refusals") or 0) + 1, refused=target.at)
    return fail(f"login refused ({quote(short if login.shows(answer) else answer)})")


def failed(command: str, login: Login, answer: bytes, short: bytes) -> Result:
    """Return the failure of a login that the password is not to blame for."""
    return fail(f"{command} {quote(short if login.shows(answer) else answer)}")


def accepted(target: Target) -> None:
    """Forget refusals."""
    target.note(refusals=0, refused=float("-inf"))


def hushed(complete: Callable[[bytes], int]) -> Callable[[bytes], int]:
    """Return *complete* for the answer to a secret: what is no answer may well repeat it."""

    def size(buffer: bytes) -> int:
        try:
            return complete(buffer)
        except ValueError:
            raise ValueError("not an answer to a login") from None

    return size
