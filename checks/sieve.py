"""sieve: the server for filter scripts (ManageSieve) greets, logs in, and lists the scripts.

Source: RFC 5804.  Its strings and literals are those of IMAP.
"""

from __future__ import annotations

import re
from collections.abc import Generator

from checks import NOBODY, Target, _login
from checks._login import Account, Login
from checks._wire import Dialogue, Say, StartTLS, nothing, quote
from checks.imap import Lines, last, lines, quoted
from hactl.core.model import Result, fail, ok

_Turns = Generator[Say | StartTLS, bytes, Result | None]  # part of a dialogue; None: so far so good

_LAST = re.compile(rb"(?:OK|NO|BYE)\b", re.IGNORECASE)
_OTHERS = re.compile(rb'["{]')
_OFFER = re.compile(rb'^"([A-Z]+)"(?: "([^"\r\n]*)")?\r?$', re.IGNORECASE | re.MULTILINE)
_NOT_REFUSED = re.compile(rb"(?:BYE|NO) *\((?:TRYLATER|QUOTA)", re.IGNORECASE)


class Sieve(Account, frozen=True, kw_only=True, tag="sieve"):
    """Options: those of `checks._login.Account`."""

    port: int = 4190

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Look, then take leave, without waiting for the answer."""
        result = yield from self.look(target)
        yield Say(b"LOGOUT\r\n", nothing, "logout")
        return result

    def look(self, target: Target) -> Dialogue:
        """Go from the greeting to the scripts, or to the first step that is refused.

        The greeting has the capabilities, and so has what the server says first under TLS.
        """
        if self.tls == "implicit":
            yield self.secure(target)
        greeting = yield Say(b"", answers(), "greeting")
        if not done(greeting):
            return refused("greeting", greeting)
        offered = offers(greeting)
        if self.tls == "starttls":
            if "STARTTLS" not in offered:
                return fail("offers no STARTTLS")
            answer = yield Say(b"STARTTLS\r\n", answers(), "starttls")
            if not done(answer):
                return refused("STARTTLS", answer)
            yield self.secure(target)
            answer = yield Say(b"", answers(), "greeting_tls")
            if not done(answer):
                return refused("greeting", answer)
            offered = offers(answer)
        if self.login is None:
            return ok(quote(offered.get("IMPLEMENTATION", "").encode(), 60) or "greets")
        login = _login.get(self.login)
        trouble = _login.rest(target) or (yield from log_in(target, login, offered.get("SASL", "")))
        if trouble is not None:
            return trouble
        answer = yield Say(b"LISTSCRIPTS\r\n", answers(), "scripts")
        if not done(answer):
            return refused("LISTSCRIPTS", answer)
        scripts = len(lines(answer)) - 1
        return ok(f"{scripts} scripts", scripts=float(scripts))


def answers() -> Lines:
    """Return what completes at the line with OK, NO or BYE."""
    return Lines(_LAST, _OTHERS)


def done(answer: bytes) -> bool:
    """Tell whether a command was carried out."""
    return last(answer)[:2].upper() == b"OK"


def offers(answer: bytes) -> dict[str, str]:
    """Return the capabilities by their names in capitals."""
    found = (
        (name.decode().upper(), text.decode("latin-1")) for name, text in _OFFER.findall(answer)
    )
    return dict(found)


def refused(command: str, answer: bytes) -> Result:
    """Return the failure of *command* with the server's words."""
    return fail(f"{command} {quote(last(answer))}")


def log_in(target: Target, login: Login, mechanisms: str) -> _Turns:
    """Log in by PLAIN."""
    if "PLAIN" not in mechanisms.upper().split():
        return fail(f"offers no AUTHENTICATE PLAIN ({quote(mechanisms.encode(), 40) or 'none'})")
    said = b'AUTHENTICATE "PLAIN" ' + quoted(login.plain) + b"\r\n"
    answer = yield Say(said, _login.hushed(answers()), "login")
    if done(answer):
        _login.accepted(target)
        return None
    words = last(answer)
    if words[:2].upper() == b"NO" and not _NOT_REFUSED.match(words):
        return _login.refused(target, login, words, b"NO")
    return _login.failed("AUTHENTICATE", login, words, words[:3].strip())
