"""smtp: the mail server greets, and answers up to RCPT.

A hung part of a mail server shows at a step of its own: no greeting when lookups or the listener
hang, no answer to MAIL when the queue does, 451 to RCPT when a table's database is dead.  So
*depth* says how far to go.  DATA is never sent, and a session that ends before it leaves nothing
in the queue.
Source: RFC 5321; the steps at which OpenSMTPD's processes hang were observed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from checks import Option
from checks._wire import Dialogue, Say, nothing, quote, reply
from hactl.core.model import Result, fail, ok

# What would end a command or an argument early and let an option say more than it should.
_UNSAFE = re.compile(r"[^!-~]|[<>]")


class Smtp(Option, frozen=True, kw_only=True, tag="smtp"):
    """Options.

    *depth*: the last step.  *greeting*: the reply codes of the greeting that count as alive.
    *helo*: our name.  *mail_from*: the sender, by default the empty one.  *mail_to*: a recipient
    that the server accepts.
    """

    port: int = 25
    depth: Literal["greeting", "ehlo", "mail", "rcpt"] = "ehlo"
    greeting: tuple[int, ...] = (220,)
    helo: str = "hactl.invalid"
    mail_from: str = ""
    mail_to: str = ""

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

    def talk(self) -> Dialogue:
        """Look, then take leave.

        The verdict stands before QUIT, so nobody waits for its answer: the server has what it needs
        to end the session in order, and we save a wake-up in each conversation.
        """
        result = yield from self.look()
        yield Say(b"QUIT\r\n", nothing, "quit")
        return result

    def look(self) -> Dialogue:
        """Go from the greeting to *depth*, or to the first step that is refused."""
        greeting = yield Say(b"", reply, "greeting")
        result = self.judge_greeting(greeting)
        if result.verdict != "ok" or self.depth == "greeting" or greeting[:1] != b"2":
            return result
        hello = yield Say(f"EHLO {self.helo}\r\n".encode(), reply, "ehlo")
        if hello[:1] == b"5":  # RFC 5321, 3.2: a server may know HELO only
            hello = yield Say(f"HELO {self.helo}\r\n".encode(), reply, "helo")
        if hello[:1] != b"2":
            return refused("EHLO", hello)
        if self.depth == "ehlo":
            return result
        answer = yield Say(f"MAIL FROM:<{self.mail_from}>\r\n".encode(), reply, "mail")
        if answer[:1] != b"2":
            return refused("MAIL", answer)
        if self.depth == "mail":
            return result
        answer = yield Say(f"RCPT TO:<{self.mail_to}>\r\n".encode(), reply, "rcpt")
        return result if answer[:1] == b"2" else refused("RCPT", answer)

    def judge_greeting(self, greeting: bytes) -> Result:
        """Judge the code; 5yz means that this server does not want us, sick or not."""
        if int(greeting[:3]) in self.greeting:
            return ok(quote(greeting.split(b"\n", 1)[0][4:], 60) or "greets")
        if greeting[:1] == b"5":
            return fail(f"refuses us ({shown(greeting)})")
        return refused("greeting", greeting)


def refused(step: str, answer: bytes) -> Result:
    """Return the failure of *step* with the code and text of *answer*."""
    return fail(f"{step} {shown(answer)}")


def shown(answer: bytes) -> str:
    """Return code and text of the first line of *answer*."""
    first = answer.split(b"\n", 1)[0]
    return quote(first[:3] + b" " + first[4:]).rstrip()
