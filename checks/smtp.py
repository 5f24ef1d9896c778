"""smtp: the mail server greets, and answers up to RCPT; under TLS and logged in, if told so.

A hung part of a mail server shows at a step of its own: no greeting when lookups or the listener
hang, no answer to MAIL when the queue does, 451 to RCPT when a table's database is dead.  So
*depth* says how far to go.  DATA is never sent, and a session that ends before it leaves nothing
in the queue.
Source: RFC 5321, 3207 (STARTTLS), 4954 (AUTH); the steps at which OpenSMTPD's processes hang were
observed.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator, Iterable
from typing import ClassVar, Literal

from checks import NOBODY, Target, _login
from checks._login import Account, Login
from checks._wire import Dialogue, Say, StartTLS, nothing, quote, reply
from hactl.core.model import Result, fail, ok

# What would end a command or an argument early and let an option say more than it should.
_UNSAFE = re.compile(r"[^!-~]|[<>]")

_Turns = Generator[Say | StartTLS, bytes, Result | None]  # part of a dialogue; None: so far so good


class Envelope(Account, frozen=True, kw_only=True):
    """What SMTP and LMTP have in common.

    *depth*: the last step.  *greeting*: the reply codes of the greeting that count as alive.
    *helo*: our name.  *mail_from*: the sender, by default the empty one.  *mail_to*: a recipient
    that the server accepts.
    """

    depth: str
    greeting: tuple[int, ...] = (220,)
    helo: str = "hactl.invalid"
    mail_from: str = ""
    mail_to: str = ""

    hello: ClassVar[str]  # how the server is addressed

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what would break a command, and depth rcpt without a recipient."""
        if self.depth == "rcpt" and not self.mail_to:
            yield "mail_to", "depth rcpt needs a recipient, such as probe@example.org"
        if not self.helo:
            yield "helo", "expected a host name"
        for field in ("helo", "mail_from", "mail_to"):
            if _UNSAFE.search(getattr(self, field)):
                yield field, "expected ASCII without spaces, control characters, < and >"
        if not self.greeting:
            yield "greeting", "expected at least one reply code, such as 220"
        for code in self.greeting:
            if not 200 <= code <= 599:
                yield "greeting", f"expected reply codes from 200 to 599 (got {code})"
        if self.depth == "greeting" and (self.tls == "starttls" or self.login is not None):
            yield "depth", "depth greeting ends before STARTTLS and login"
        yield from super().problems()

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Look, then take leave.

        The verdict stands before QUIT, so nobody waits for its answer: the server has what it needs
        to end the session in order, and we save a wake-up in each conversation.
        """
        result = yield from self.look(target)
        yield Say(b"QUIT\r\n", nothing, "quit")
        return result

    def look(self, target: Target) -> Dialogue:
        """Go from the greeting to *depth*, or to the first step that is refused."""
        if self.tls == "implicit":
            yield self.secure(target)
        greeting = yield Say(b"", reply, "greeting")
        result = self.judge_greeting(greeting)
        if result.verdict != "ok" or self.depth == "greeting" or greeting[:1] != b"2":
            return result
        trouble = yield from self.introduce(target)
        if trouble is not None:
            return trouble
        if self.depth == self.hello.lower():
            return result
        answer = yield Say(f"MAIL FROM:<{self.mail_from}>\r\n".encode(), reply, "mail")
        if answer[:1] != b"2":
            return refused("MAIL", answer)
        if self.depth == "mail":
            return result
        answer = yield Say(f"RCPT TO:<{self.mail_to}>\r\n".encode(), reply, "rcpt")
        return result if answer[:1] == b"2" else refused("RCPT", answer)

    def introduce(self, target: Target) -> _Turns:
        """Say who we are, under TLS once more (RFC 3207, 4.2), and log in."""
        verb, step = self.hello, self.hello.lower()
        hello = yield Say(f"{verb} {self.helo}\r\n".encode(), reply, step)
        if hello[:1] == b"5" and verb == "EHLO":  # RFC 5321, 3.2: a server may know HELO only
            hello = yield Say(f"HELO {self.helo}\r\n".encode(), reply, "helo")
        if hello[:1] != b"2":
            return refused(verb, hello)
        if self.tls == "starttls":
            if "STARTTLS" not in offers(hello):
                return fail("offers no STARTTLS")
            answer = yield Say(b"STARTTLS\r\n", reply, "starttls")
            if answer[:3] != b"220":
                return refused("STARTTLS", answer)
            yield self.secure(target)
            hello = yield Say(f"{verb} {self.helo}\r\n".encode(), reply, f"{step}_tls")
            if hello[:1] != b"2":
                return refused(verb, hello)
        if self.login is None:
            return None
        login, mechanisms = _login.get(self.login), offers(hello).get("AUTH", "")
        return _login.rest(target) or (yield from log_in(target, login, mechanisms))

    def judge_greeting(self, greeting: bytes) -> Result:
        """Judge the code; 5yz means that this server does not want us, sick or not."""
        if int(greeting[:3]) in self.greeting:
            return ok(quote(greeting.split(b"\n", 1)[0][4:], 60) or "greets")
        if greeting[:1] == b"5":
            return fail(f"refuses us ({quote(shown(greeting))})")
        return refused("greeting", greeting)


class Smtp(Envelope, frozen=True, kw_only=True, tag="smtp"):
    """Options: those of `Envelope` and `checks._login.Account`."""

    port: int = 25
    depth: Literal["greeting", "ehlo", "mail", "rcpt"] = "ehlo"

    hello: ClassVar[str] = "EHLO"


def refused(step: str, answer: bytes) -> Result:
    """Return the failure of *step* with the code and text of *answer*."""
    return fail(f"{step} {quote(shown(answer))}")


def shown(answer: bytes) -> bytes:
    """Return code and text of the first line of *answer*."""
    first = answer.split(b"\n", 1)[0]
    return (first[:3] + b" " + first[4:]).rstrip()


def offers(hello: bytes) -> dict[str, str]:
    """Return what the answer to EHLO offers: keywords in capitals, with what stands behind them."""
    lines = hello.decode("latin-1").upper().splitlines()[1:]
    pairs = (line[4:].replace("=", " ", 1).partition(" ") for line in lines)  # AUTH=LOGIN is old
    return {keyword: rest for keyword, _, rest in pairs}


def log_in(target: Target, login: Login, mechanisms: str) -> _Turns:
    """Log in by PLAIN (RFC 4616) or LOGIN, whichever is among *mechanisms*."""
    answers = _login.hushed(reply)
    if "PLAIN" in mechanisms.split():
        answer = yield Say(b"AUTH PLAIN " + login.plain + b"\r\n", answers, "auth")
    elif "LOGIN" in mechanisms.split():
        answer = yield Say(b"AUTH LOGIN\r\n", reply, "auth")
        if answer[:3] == b"334":
            answer = yield Say(b64encode(login.user) + b"\r\n", answers, "auth_user")
        if answer[:3] == b"334":
            answer = yield Say(b64encode(login.password) + b"\r\n", answers, "auth_password")
    else:
        return fail(f"offers no AUTH PLAIN or LOGIN ({quote(mechanisms.encode(), 40) or 'none'})")
    if answer[:3] == b"235":
        _login.accepted(target)
        return None
    if answer[:1] == b"5":
        return _login.refused(target, login, shown(answer), answer[:3])
    return _login.failed("AUTH", login, shown(answer), answer[:3])
