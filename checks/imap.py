"""imap: the server greets, logs in, and opens a mailbox.

A hung part of Dovecot shows at a step of its own: no greeting when auth hangs, no answer to the
login when anvil does.  A login may work while the mailbox cannot be opened, for want of a mount or
of rights; so *mailbox* is asked for its size and selected.
Source: RFC 3501, 2595 (STARTTLS), 4959 (SASL-IR); the steps at which Dovecot's processes hang were
observed.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable

from checks import NOBODY, Target, _login
from checks._login import Account, Login
from checks._wire import Dialogue, Say, StartTLS, line, nothing, quote
from hactl.core.model import Result, fail, ok

_Turns = Generator[Say | StartTLS, bytes, Result | None]  # part of a dialogue; None: so far so good

_GREETING = re.compile(rb"\* (OK|PREAUTH) ?(?:\[[^]\r\n]*\] ?)?([^\r\n]*)\r?\n", re.IGNORECASE)
_LITERAL = re.compile(rb"\{([0-9]{1,9})\+?\}\r?\n")  # that so many bytes follow, and then the line
_STATUS = re.compile(
    rb"\((MESSAGES|UNSEEN) ([0-9]{1,15}) (MESSAGES|UNSEEN) ([0-9]{1,15})\)", re.IGNORECASE
)
# Not the password's fault (RFC 5530, and Dovecot's own).
_TEMPORARY = re.compile(rb"\[(UNAVAILABLE|INUSE|LIMIT|SERVERBUG)", re.IGNORECASE)
_NO_TEXT = re.compile(r"[^ -~]")


class Imap(Account, frozen=True, kw_only=True, tag="imap"):
    """Options.  *mailbox*: what to open after the login; empty: nothing."""

    port: int = 143
    mailbox: str = "INBOX"

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield a name that IMAP cannot spell, and what is wrong with TLS and login."""
        if _NO_TEXT.search(self.mailbox):
            yield (
                "mailbox",
                "expected ASCII; other letters in IMAP's own spelling, &AOQ- for \u00e4",
            )
        yield from super().problems()

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Look, then take leave, without waiting for the answer."""
        result = yield from self.look(target)
        yield Say(b"logout LOGOUT\r\n", nothing, "logout")
        return result

    def look(self, target: Target) -> Dialogue:
        """Go from the greeting to the mailbox, or to the first step that is refused."""
        if self.tls == "implicit":
            yield self.secure(target)
        greeting = yield Say(b"", line, "greeting")
        kind = _GREETING.fullmatch(greeting)
        if kind is None:
            bye = greeting[:5].upper() == b"* BYE"
            return fail(
                ("greeting " if bye else "not an IMAP greeting: ") + quote(greeting[2 * bye :])
            )
        offers = yield ask("capability", b"CAPABILITY")
        if not done(offers):
            return refused("CAPABILITY", offers)
        if self.tls == "starttls":
            if b"STARTTLS" not in words(offers):
                return fail("offers no STARTTLS")
            answer = yield ask("starttls", b"STARTTLS")
            if not done(answer):
                return refused("STARTTLS", answer)
            yield self.secure(target)
            offers = yield ask("capability_tls", b"CAPABILITY")
            if not done(offers):
                return refused("CAPABILITY", offers)
        if self.login is None:
            return ok(quote(kind[2], 60) or "greets")
        if kind[1].upper() == b"OK":  # PREAUTH: we are logged in already
            login = _login.get(self.login)
            trouble = _login.rest(target) or (yield from log_in(target, login, words(offers)))
            if trouble is not None:
                return trouble
        return (yield from self.open()) if self.mailbox else ok("logged in")

    def open(self) -> Dialogue:
        """Ask for the mailbox's size, then open it; RFC 3501 wants it in this order."""
        mailbox = quoted(self.mailbox.encode())
        answer = yield ask("status", b"STATUS " + mailbox + b" (MESSAGES UNSEEN)")
        if not done(answer):
            return refused("STATUS", answer)
        found = _STATUS.search(answer)
        if found is None:
            return fail(f"STATUS says nothing of the mailbox: {quote(answer)}")
        size = {found[1].upper(): float(found[2]), found[3].upper(): float(found[4])}
        messages, unseen = size.get(b"MESSAGES", 0.0), size.get(b"UNSEEN", 0.0)
        answer = yield ask("select", b"SELECT " + mailbox)
        if not done(answer):
            return refused("SELECT", answer)
        return ok(f"{self.mailbox}: {messages:g} messages", messages=messages, unseen=unseen)


class Lines:
    """Complete at the line that *last* matches; each before it must match *others*.

    Raise ValueError at a line that is neither.  Literals, which may hold anything, are skipped; a
    line goes on behind them.
    """

    def __init__(self, last: re.Pattern[bytes], others: re.Pattern[bytes]) -> None:
        self.last = last
        self.others = others
        self.start = 0  # of what has not been looked at
        self.within = False  # a line that began before a literal
        self.ending = False  # the last line has begun

    def __call__(self, buffer: bytes) -> int:
        while end := buffer.find(b"\n", self.start) + 1:
            literal = _LITERAL.search(buffer, max(self.start, end - 16), end)
            if not self.within:
                self.ending = self.last.match(buffer, self.start, end) is not None
                if not self.ending and not self.others.match(buffer, self.start, end):
                    raise ValueError(f"unexpected: {quote(buffer[self.start : end])}")
            if literal is None and self.ending:
                return end
            self.start = end + (int(literal[1]) if literal else 0)
            self.within = literal is not None
        return 0


def lines(answer: bytes) -> list[bytes]:
    """Split *answer* into lines as `Lines` does."""
    found, begin, start = [], 0, 0
    while end := answer.find(b"\n", start) + 1:
        literal = _LITERAL.search(answer, max(start, end - 16), end)
        start = end + (int(literal[1]) if literal else 0)
        if literal is None:
            found.append(answer[begin:end])
            begin = end
    return found


_UNTAGGED = re.compile(rb"\* (?!BYE)", re.IGNORECASE)


def ask(step: str, command: bytes) -> Say:
    """Return the turn that sends *command*; its tag is the step, so the server's log tells it."""
    return Say(step.encode() + b" " + command + b"\r\n", answer_to(step), step)


def answer_to(step: str) -> Lines:
    """Return what completes at the tagged line, or at a request to go on."""
    return Lines(re.compile(re.escape(step.encode()) + rb" |\+"), _UNTAGGED)


def last(answer: bytes) -> bytes:
    """Return the last line of *answer*."""
    return lines(answer)[-1]


def status(answer: bytes) -> bytes:
    """Return the last line of *answer* without its tag."""
    return last(answer).partition(b" ")[2]


def done(answer: bytes) -> bool:
    """Tell whether a command was carried out."""
    return re.match(rb"OK\b", status(answer), re.IGNORECASE) is not None


def words(answer: bytes) -> list[bytes]:
    """Return what the answer to CAPABILITY offers, in capitals."""
    return answer.upper().split()


def refused(command: str, answer: bytes) -> Result:
    """Return the failure of *command* with the server's words."""
    return fail(f"{command} {quote(status(answer))}")


def quoted(text: bytes) -> bytes:
    """Write *text* as a quoted string."""
    return b'"' + re.sub(rb'(["\\])', rb"\\\1", text) + b'"'


def log_in(target: Target, login: Login, offers: list[bytes]) -> _Turns:
    """Log in by AUTHENTICATE PLAIN, or by LOGIN where it is not offered."""
    answers = _login.hushed(answer_to("login"))
    if b"AUTH=PLAIN" in offers:
        initial = b" " + login.plain if b"SASL-IR" in offers else b""
        answer = yield Say(b"login AUTHENTICATE PLAIN" + initial + b"\r\n", answers, "login")
        if not initial and last(answer).startswith(b"+"):
            answers = _login.hushed(answer_to("login"))
            answer = yield Say(login.plain + b"\r\n", answers, "login_plain")
    elif b"LOGINDISABLED" in offers:
        return fail("offers no login (LOGINDISABLED)")
    else:
        both = quoted(login.user) + b" " + quoted(login.password)
        answer = yield Say(b"login LOGIN " + both + b"\r\n", answers, "login")
    if done(answer):
        _login.accepted(target)
        return None
    said = status(answer)
    kind = said.split(b" ", 1)[0]
    if kind.upper() == b"NO" and not _TEMPORARY.search(said):
        return _login.refused(target, login, said, kind)
    return _login.failed("LOGIN", login, said, kind)
