"""banner: any protocol of text lines says what is expected, and answers what is sent.

IMAP, POP3, ManageSieve, LMTP, clamd: a greeting, then as many commands as tell that it lives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from msgspec import Struct

from checks import NOBODY, Spoken, Target, _tls
from checks._tls import Policy
from checks._wire import Dialogue, Say, StartTLS, nothing, quote
from hactl.core.model import ok

SEEN = 1000  # bytes of a line that are compared; no pattern gets to see more


class Step(Struct, frozen=True, kw_only=True):
    """A line to send, and the line to expect for it; without that the answer does not matter.

    *skip*: lines that may come before it.
    """

    send: str
    expect: str = ""
    skip: str = ""


class Banner(Spoken, frozen=True, kw_only=True, tag="banner"):
    """Options.

    *expect*: the greeting; a text is how the line begins, a regular expression between slashes is
    found in it.  Without it we speak first.  *skip*: lines that may come before it.  *then*: what
    follows.  *tls*, *verify*, *name*, *ca*: as in smtp.
    """

    expect: str = ""
    skip: str = ""
    then: tuple[Step, ...] = ()
    tls: Literal["off", "implicit"] = "off"
    verify: bool = True
    name: str = ""
    ca: Path | None = None

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(verify=self.verify, ca=self.ca)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield patterns that are none, texts that are no line, and what is wrong with TLS."""
        if not self.expect and not any(step.expect for step in self.then):
            yield "expect", "expects nothing; to be connected is all that type tcp asks for"
        yield from (("expect", why) for why in _faults(self.expect))
        yield from (("skip", why) for why in _faults(self.skip))
        if self.skip and not self.expect:
            yield "skip", "there is no greeting to skip to; expect one"
        for step in self.then:
            for text in (step.expect, step.skip):
                yield from (("then", why) for why in _faults(text))
        if self.tls != "off":
            yield from _tls.problems(self.policy, self.name)

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Take the greeting, then go step by step."""
        if self.tls == "implicit":
            name = self.name or (target.node if self.verify else None)
            yield StartTLS(_tls.get(self.policy), name, lambda: self.talk(target))
        answer = b""
        if self.expect:
            answer = yield Say(b"", Until(self.expect, self.skip), "greeting")
        for number, step in enumerate(self.then, 1):
            until = Until(step.expect, step.skip) if step.expect else nothing
            said = yield Say(f"{step.send}\r\n".encode(), until, f"step{number}")
            answer = said or answer
        last = answer.rstrip(b"\r\n").rpartition(b"\n")[2]
        return ok(quote(last, 60) or "answers")


class Until:
    """Complete at the line that is expected.  Raise ValueError at one that is not."""

    def __init__(self, expect: str, skip: str) -> None:
        self.expect = _pattern(expect)
        self.skip = _pattern(skip) if skip else None
        self.start = 0  # of what has not been looked at

    def __call__(self, buffer: bytes) -> int:
        while end := buffer.find(b"\n", self.start) + 1:
            line = buffer[self.start : end].rstrip(b"\r\n")[:SEEN]
            self.start = end
            if self.expect.search(line):
                return end
            if self.skip is None or not self.skip.search(line):
                raise ValueError(f"unexpected: {quote(line)}")
        return 0


@lru_cache
def _pattern(text: str) -> re.Pattern[bytes]:
    """Return what finds *text*: a regular expression between slashes, else how a line begins."""
    if len(text) > 1 and text.startswith("/") and text.endswith("/"):
        return re.compile(text[1:-1].encode())
    return re.compile(b"^" + re.escape(text.encode()))


def _faults(text: str) -> Iterable[str]:
    try:
        _pattern(text)
    except re.error as error:
        yield f"not a regular expression ({error})"
