"""pop3: the server greets, logs in, and counts the mailbox.

Nothing is fetched and nothing deleted; the mailbox is locked until we leave.
Source: RFC 1939, 2449 (CAPA), 2595 (STLS), 5034 (AUTH), 3206 (response codes).
"""

from __future__ import annotations

import re
from collections.abc import Generator

from checks import NOBODY, Target, _login
from checks._login import Account, Login
from checks._wire import Dialogue, Say, StartTLS, nothing, quote
from hactl.core.model import Result, fail, ok

_Turns = Generator[Say | StartTLS, bytes, Result | None]  # part of a dialogue; None: so far so good

_STATUS = re.compile(rb"(?:\+OK|-ERR)(?: |\r?\n)", re.IGNORECASE)
_TEXT = re.compile(rb"\+OK ?([^\r\n<]*)", re.IGNORECASE)  # in angle brackets stands a time stamp
_SIZE = re.compile(rb"\+OK ([0-9]{1,15}) ([0-9]{1,15})", re.IGNORECASE)
# Not the password's fault.
_TEMPORARY = re.compile(rb"-ERR \[(?:SYS|IN-USE|LOGIN-DELAY)", re.IGNORECASE)


class Pop3(Account, frozen=True, kw_only=True, tag="pop3"):
    """Options: those of `checks._login.Account`."""

    port: int = 110

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Look, then take leave, without waiting for the answer."""
        result = yield from self.look(target)
        yield Say(b"QUIT\r\n", nothing, "quit")
        return result

    def look(self, target: Target) -> Dialogue:
        """Go from the greeting to the size of the mailbox, or to the first step that is refused."""
        if self.tls == "implicit":
            yield self.secure(target)
        greeting = yield Say(b"", status, "greeting")
        if not done(greeting):
            return refused("greeting", greeting)
        offers = yield Say(b"CAPA\r\n", Lines(), "capability")  # a refusal is an answer: it lives
        if self.tls == "starttls":
            if b"STLS" not in words(offers):
                return fail("offers no STLS")
            answer = yield Say(b"STLS\r\n", status, "starttls")
            if not done(answer):
                return refused("STLS", answer)
            yield self.secure(target)
            offers = yield Say(b"CAPA\r\n", Lines(), "capability_tls")
        if self.login is None:
            text = _TEXT.match(greeting)
            return ok(quote(text[1].strip(), 60) if text is not None and text[1] else "greets")
        login = _login.get(self.login)
        trouble = _login.rest(target) or (yield from log_in(target, login, words(offers)))
        if trouble is not None:
            return trouble
        answer = yield Say(b"STAT\r\n", status, "stat")
        size = _SIZE.match(answer)
        if size is None:
            return refused("STAT", answer)
        messages, octets = float(size[1]), float(size[2])
        return ok(f"{messages:g} messages", messages=messages, mailbox_bytes=octets)


def status(buffer: bytes) -> int:
    """Complete at the first line.  Raise ValueError if that is no answer of POP3."""
    end = buffer.find(b"\n") + 1
    if end and not _STATUS.match(buffer):
        raise ValueError(f"not a POP3 answer: {quote(buffer[:end])}")
    return end


def go_on(buffer: bytes) -> int:
    """Complete at the first line, which may be a request to go on."""
    return (buffer.find(b"\n") + 1) if buffer.startswith(b"+ ") else status(buffer)


class Lines:
    """Complete at the first line if it is a refusal, else at the line with a dot alone."""

    def __init__(self) -> None:
        self.start = 0  # of what has not been looked at

    def __call__(self, buffer: bytes) -> int:
        if not self.start:
            self.start = status(buffer)
            if not done(buffer):
                return self.start
        while end := buffer.find(b"\n", self.start) + 1:
            if buffer[self.start : end].rstrip(b"\r\n") == b".":
                return end
            self.start = end
        return 0


def done(answer: bytes) -> bool:
    """Tell whether a command was carried out."""
    return answer[:3].upper() == b"+OK"


def words(answer: bytes) -> list[bytes]:
    """Return what the answer to CAPA offers, in capitals; parameters are words of their own."""
    return answer.upper().split()


def refused(command: str, answer: bytes) -> Result:
    """Return the failure of *command* with the first line of *answer*."""
    return fail(f"{command} {quote(first(answer))}")


def first(answer: bytes) -> bytes:
    """Return the first line of *answer*."""
    return answer.split(b"\n", 1)[0]


def log_in(target: Target, login: Login, offers: list[bytes]) -> _Turns:
    """Log in by USER and PASS, or by AUTH PLAIN where CAPA offers that and no USER."""
    if b"PLAIN" in offers and b"USER" not in offers:
        answer = yield Say(b"AUTH PLAIN\r\n", go_on, "auth")
        if answer.startswith(b"+ "):
            answer = yield Say(login.plain + b"\r\n", _login.hushed(status), "auth_plain")
    else:
        answer = yield Say(b"USER " + login.user + b"\r\n", status, "user")
        if done(answer):
            said = b"PASS " + login.password + b"\r\n"
            answer = yield Say(said, _login.hushed(status), "pass")
    if done(answer):
        _login.accepted(target)
        return None
    if _TEMPORARY.match(answer):
        return _login.failed("LOGIN", login, first(answer), b"-ERR")
    return _login.refused(target, login, first(answer), b"-ERR")
