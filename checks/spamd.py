"""spamd: SpamAssassin scans a small message, and scans it in time.

PONG only says that a child is alive and free; whether rules, and the lookups behind them, still end
in time shows in a scan.  Its time is the measure `scan_seconds` (the driver makes one of each step).
A spamd without rules scans as well, and lets everything pass: now and then the message is GTUBE,
which every set of rules knows.
Source: spamd's protocol 1.5; the answer to PING is one line without a blank line after it.
https://spamassassin.apache.org/gtube/
"""

from __future__ import annotations

import re
from typing import ClassVar

from checks import NOBODY, SCAN, Local, Target, Timing
from checks._wire import Dialogue, Say, line, quote, until_eof
from hactl.core.model import Result, fail, ok
from hactl.core.units import Duration

# With headers enough not to score as spam, which would fill the node's log; without a date, as a
# fixed one soon lies in the past.
HAM = b"""\
From: hactl@example.org\r
To: hactl@example.org\r
Message-ID: <probe.hactl@example.org>\r
Subject: hactl\r
\r
A short and harmless message.\r
"""
# In two parts, lest this file is taken for spam.
GTUBE = HAM + b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n"

# Those of sysexits.h, and spamd's own 79.
CODES = {
    64: "EX_USAGE", 65: "EX_DATAERR", 66: "EX_NOINPUT", 67: "EX_NOUSER", 68: "EX_NOHOST",
    69: "EX_UNAVAILABLE", 70: "EX_SOFTWARE", 71: "EX_OSERR", 72: "EX_OSFILE", 73: "EX_CANTCREAT",
    74: "EX_IOERR", 75: "EX_TEMPFAIL", 76: "EX_PROTOCOL", 77: "EX_NOPERM", 78: "EX_CONFIG",
    79: "EX_TIMEOUT",
}  # fmt: skip

_STATUS = re.compile(rb"SPAMD/[0-9]+\.[0-9]+ ([0-9]{1,3}) (.*?)\r?\n", re.DOTALL)
_SPAM = re.compile(
    rb"^Spam: *(True|False|Yes|No) *; *(-?[0-9]{1,9}(?:\.[0-9]{1,9})?) */ *(-?[0-9]{1,9}(?:\.[0-9]{1,9})?) *\r?$",
    re.MULTILINE,
)


class Spamd(Local, frozen=True, kw_only=True, tag="spamd"):
    """Options.

    *scan*: scan a message; without it only PING is asked.  *gtube*: how often that message is GTUBE;
    0: never.
    """

    port: int = 783
    scan: bool = True
    gtube: Duration = Duration(600)

    timing: ClassVar[Timing] = SCAN

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Ask for PONG, or scan one message."""
        if not self.scan:
            pong = yield Say(b"PING SPAMC/1.5\r\n\r\n", line, "ping")
            return judge_pong(pong)
        if not target.due("gtube", self.gtube):
            return judge_scan((yield scan(HAM, "scan")))
        result = judge_gtube((yield scan(GTUBE, "gtube")))
        if result.verdict == "ok":  # else the next look asks again
            target.note(gtube=target.at)
        return result


def scan(message: bytes, step: str) -> Say:
    """Return the turn that has *message* scanned."""
    head = f"CHECK SPAMC/1.5\r\nContent-length: {len(message)}\r\n\r\n".encode()
    return Say(head + message, until_eof, step, close=True)


def judge_pong(pong: bytes) -> Result:
    """Judge the answer to PING."""
    status = _STATUS.fullmatch(pong)
    if status is None or (status[1] == b"0" and status[2] != b"PONG"):
        return fail(f"not a PONG: {quote(pong)}")
    return ok("PONG") if status[1] == b"0" else refused("PING", status)


def judge_scan(answer: bytes) -> Result:
    """Judge the answer to CHECK: a status line, then `Spam: False ; score / threshold`."""
    status = _STATUS.match(answer)
    if status is None:
        return fail(f"not an answer of spamd: {quote(answer)}")
    if status[1] != b"0":
        return refused("scan", status)
    spam = _SPAM.search(answer, status.end())
    if spam is None:
        return fail("scanned, but no verdict in the answer")
    score, bound = float(spam[2]), float(spam[3])
    return ok(f"scanned, score {score:.1f} / {bound:.1f}", score=score)


def judge_gtube(answer: bytes) -> Result:
    """Judge the answer to GTUBE: it must be spam.  Its score is no measure, as nothing else has it."""
    result = judge_scan(answer)
    if result.verdict != "ok":
        return result
    spam = _SPAM.search(answer)
    if spam is None or spam[1] not in (b"True", b"Yes"):
        return fail(f"GTUBE is no spam ({result.reason}): are rules loaded?")
    return ok("GTUBE is spam")


def refused(step: str, status: re.Match[bytes]) -> Result:
    """Return the failure that *status*, a status line, tells, with the name of its code."""
    code = int(status[1])
    name, text = CODES.get(code, "unnamed"), quote(status[2])
    return fail(
        f"{step} {code} {text}" if text.startswith("EX_") else f"{step} {code} {name} {text}"
    )
