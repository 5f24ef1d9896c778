"""maillog: what the mail server says of each message, counted.

A server that answers every probe may put off a third of the mail: only its log tells.  Lines are
counted from the first look on, as they are written, over a window of time; rotated and truncated
files are followed.  It reads a file of the machine that hactld runs on, so it is a check for the
agent there.
Source: log lines of OpenSMTPD 6 and 7 (mda.c, mta_session.c, smtp_session.c), Postfix 3 (log_adhoc.c,
smtpd_check.c, cleanup_message.c), SpamAssassin's spamd and filter-spamassassin.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from checks import Probed, Step, Target, Timing
from checks._wire import quote
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration, Size

CHUNK = 64 * 1024  # bytes that are read before others get their turn
LINE = 4096  # bytes of a line; what is longer is no line of a log
PARTS = 30  # of a window
REASONS = 50  # that are told apart in a part
SHOWN = 2  # reasons that are told


class Maillog(Probed, frozen=True, kw_only=True, tag="maillog"):
    """Options.

    *file*: the log.  *window*: how far back is counted.  *least*: results below which shares are
    not worth telling.  *most*: bytes that a look reads; of more it reads the end.
    """

    file: Path = Path("/var/log/maillog")
    window: Duration = Duration(300)
    least: int = 20
    most: Size = Size(8 << 20)

    timing: ClassVar[Timing] = Timing(interval=10.0, timeout=5.0, fast=0.0)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what cannot be counted over."""
        if not 10 <= self.window <= 86400:
            yield "window", f"expected a window from 10s to 1d (got {self.window})"
        if self.least < 1:
            yield "least", f"expected at least 1 (got {self.least})"
        if self.most < CHUNK:
            yield "most", f"expected at least {Size(CHUNK)} (got {self.most})"

    async def probe(self, target: Target, step: Step) -> Result:
        """Read what is new, and say what the window holds."""
        step("read")
        follower = _follower(self)
        await follower.read()
        return follower.judge(time.monotonic())


# Lines


class Said(NamedTuple):
    """What a line counts as; *seconds* is a scan's time."""

    what: str
    why: str = ""
    seconds: float = 0.0


_DELIVERY = re.compile(r"[0-9a-f]{16} m[dt]a delivery evpid=")
_MESSAGE = re.compile(r"[0-9a-f]{16} smtp message ")
_SMTPD = re.compile(
    r' delay=\S+ result="?(Ok|TempFail|PermFail|Loop|Expired)"? stat=(?:"(.*)"|(.*))$'
)
_FAILED = re.compile(r'[0-9a-f]{16} smtp failed-command .*result="([45])\d\d (.*)"$')
_POSTFIX = re.compile(
    r"[0-9A-Za-z]{6,20}: to=<.*, dsn=\d\.\d+\.\d+"
    r", status=(sent|deferred|bounced|expired|undeliverable)\b,? ?(.*)$"
)
_REJECT = re.compile(r"(?:NOQUEUE|[0-9A-Za-z]{6,20}): reject: [A-Z-]+ from \S+: ([45])\d\d ([^;]*)")
_TAKEN = re.compile(r"[0-9A-Za-z]{6,20}: message-id=")
_SCAN = re.compile(r"spamd: (clean message|identified spam) \(.* in (\d{1,6}(?:\.\d+)?) seconds, ")
_FILTER = re.compile(r"^[0-9a-f]{16} result Spam: (True|False) ; ")
# What stands before a message: strangers' words can only come after it.
_PROGRAM = re.compile(
    r"""
    (?:<\d{1,3}>)?
    (?:[A-Z][a-z]{2}\ [\ \d]\d\ |\d{4}-\d\d-\d\dT)
    \d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?\ +
    (?:<[a-z0-9]+\.[a-z0-9]+>\ )?    # facility and level, as FreeBSD's syslogd -v has them
    \S+\ +                           # the host
    (?:[a-z0-9]+\.[a-z]+\ )?         # and as busybox's has them
    (smtpd|spamd|filter-[a-z0-9_-]+|postfix[^\s/[]*/[a-z/]+)\[\d+\]:[ ]
    """,
    re.VERBOSE,
)
_RESULTS = {
    "Ok": "ok", "sent": "ok", "TempFail": "tempfail", "deferred": "tempfail",
}  # fmt: skip
_NOISE = re.compile(r"<[^>]*>|\S+@\S+|\[[0-9A-Fa-f.:]+\](:\d+)?|\b[0-9A-Fa-f]{8,}\b|\b\d{4,}\b")


def said(line: str) -> Said | None:
    """Say what a line counts as, None if it is of no interest.

    Addresses and the words of other servers are strangers': a line with two readings is unclear.
    """
    program = _PROGRAM.match(line)
    if program is None:
        return None
    name, text = program[1], line[program.end() :]
    if name == "smtpd":
        return _smtpd(text)
    if name == "spamd":
        scan = _SCAN.match(text)
        return Said("scan", seconds=float(scan[2])) if scan is not None else None
    if name.startswith("filter-"):
        found = _FILTER.match(text)
        return None if found is None else Said("spam" if found[1] == "True" else "ham")
    return _postfix(name, text)


def _smtpd(text: str) -> Said | None:
    if _DELIVERY.match(text):
        found = _SMTPD.search(text)
        if found is None:
            return None
        if text.count(" result=") > 1:
            return Said("unclear")
        return _result(found[1], found[2] or found[3] or "")
    if _MESSAGE.match(text):
        return Said("accepted")
    failed = _FAILED.match(text)
    if failed is None:
        return None
    return Said("put_off" if failed[1] == "4" else "refused", _plain(failed[2]))


def _postfix(name: str, text: str) -> Said | None:
    if name.endswith("/smtpd"):
        reject = _REJECT.match(text)
        if reject is not None:
            return Said("put_off" if reject[1] == "4" else "refused", _plain(reject[2]))
        return None  # `client=` comes with a recipient, as our own looks have one, not a message
    if name.endswith("/cleanup"):
        return Said("accepted") if _TAKEN.match(text) else None
    found = _POSTFIX.match(text)
    if found is None:
        return None
    if text.count(", status=") > 1:
        return Said("unclear")
    return _result(found[1], found[2])


def _result(word: str, why: str) -> Said:
    what = _RESULTS.get(word, "permfail")
    return Said(what, _plain(why) if what != "ok" else "")


def _plain(why: str) -> str:
    """Return a reason without what differs from message to message."""
    return quote(_NOISE.sub("...", why[:200]).encode(), 60)


# Counting


class Part:
    """What was read in a part of the window."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seconds = self.longest = 0.0

    def add(self, said: Said) -> None:
        """Count a line."""
        self.counts[said.what] += 1
        if said.what == "scan":
            self.seconds += said.seconds
            self.longest = max(self.longest, said.seconds)
        if said.why and said.what in ("tempfail", "put_off"):
            known = said.why in self.reasons or len(self.reasons) < REASONS
            self.reasons[said.why if known else "other reasons"] += 1


class Follower:
    """Reads a log as it grows, under whatever name it stands by then."""

    def __init__(self, option: Maillog) -> None:
        self._option = option
        self._began = self._newest = time.monotonic()
        self._parts: deque[Part] = deque()
        self._fd: int | None = None
        self._closer: weakref.finalize[..., Follower] | None = None
        self._offset = 0
        self._rest = b""  # a line without its end; "\n": one whose begin we do not have
        self._missed = 0  # bytes that were too many
        self.used = self._began

    async def read(self) -> None:
        """Read what is new: of the file that we know, and of one that took its name.

        Raise OSError if the file cannot be opened, or is none.
        """
        self.used = time.monotonic()
        if self._fd is None:
            self._open()
            self._offset = os.fstat(self._known()).st_size  # what was written before is no news
            whole = self._offset == 0 or os.pread(self._known(), 1, self._offset - 1) == b"\n"
            self._rest = b"" if whole else b"\n"
        await self._drain()
        known, found = os.fstat(self._known()), self._option.file.stat()
        if (known.st_dev, known.st_ino) != (found.st_dev, found.st_ino):
            self._open()
            await self._drain()

    def _known(self) -> int:
        assert self._fd is not None
        return self._fd

    def _open(self) -> None:
        fd = os.open(self._option.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError("not a regular file")
        if self._closer is not None:
            self._closer()
        self._fd, self._offset, self._rest = fd, 0, b""
        self._closer = weakref.finalize(self, os.close, fd)

    async def _drain(self) -> None:
        size = os.fstat(self._known()).st_size
        if size < self._offset:  # truncated, and written anew
            self._offset, self._rest = 0, b""
        if size - self._offset > self._option.most:
            self._missed += size - self._offset - self._option.most
            self._offset, self._rest = size - self._option.most, b"\n"
        while self._offset < size:
            data = os.pread(self._known(), min(CHUNK, size - self._offset), self._offset)
            if not data:
                break
            self._offset += len(data)
            self._take(data)
            await asyncio.sleep(0)

    def _take(self, data: bytes) -> None:
        """Count the lines that are whole."""
        now = time.monotonic()
        part = self._part(now)
        if self._rest == b"\n":  # in the middle of a line that we do not have
            _, found, data = data.partition(b"\n")
            if not found:
                return
            self._rest = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE:
            self._rest = b"\n"
        if lines:
            self._newest = now
        for line in lines:
            if len(line) <= LINE and (what := said(line.decode("utf-8", "replace"))) is not None:
                part.add(what)

    def _part(self, now: float) -> Part:
        number = int(now * PARTS / self._option.window)
        if not self._parts or self._parts[-1].number != number:
            self._parts.append(Part(number))
        self._forget(now)
        return self._parts[-1]

    def _forget(self, now: float) -> None:
        oldest = int(now * PARTS / self._option.window) - PARTS
        while self._parts and self._parts[0].number <= oldest:
            self._parts.popleft()

    def judge(self, now: float) -> Result:
        """Return what the window holds at *now*."""
        self._forget(now)
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for part in self._parts:
            counts.update(part.counts)
            reasons.update(part.reasons)
        measures: dict[str, float] = {
            f"{what}_count": counts[what]
            for what in ("ok", "tempfail", "permfail", "accepted", "put_off", "refused",
                         "scan", "spam", "ham", "unclear")
        }  # fmt: skip
        results = counts["ok"] + counts["tempfail"] + counts["permfail"]
        measures["tempfail_percent"] = self._share(counts["tempfail"], results)
        measures["permfail_percent"] = self._share(counts["permfail"], results)
        asked = counts["accepted"] + counts["put_off"]
        measures["put_off_percent"] = self._share(counts["put_off"], asked)
        if counts["scan"]:
            measures["scan_seconds"] = sum(p.seconds for p in self._parts) / counts["scan"]
            measures["longest_scan_seconds"] = max(p.longest for p in self._parts)
        measures["quiet_seconds"] = now - self._newest
        measures["missed_bytes"] = self._missed
        words = ", ".join(self._words(counts, reasons, min(now - self._began, self._option.window)))
        return Result(Verdict.OK, words, measures=measures)

    def _share(self, part: int, whole: int) -> float:
        """Return a share in percent; of too few it is 0, so that who gets no mail looks well."""
        return 100 * part / whole if whole >= self._option.least else 0.0

    def _words(self, counts: Counter[str], reasons: Counter[str], span: float) -> Iterator[str]:
        kinds = (
            ("ok", "delivered"), ("tempfail", "tempfail"), ("permfail", "permfail"),
            ("put_off", "put off"), ("scan", "scans"),
        )  # fmt: skip
        shown = [f"{counts[kind]} {word}" for kind, word in kinds if counts[kind]]
        yield ", ".join(shown or ["no results"]) + f" in {Duration(round(span))}"
        if reasons:
            common = reasons.most_common(SHOWN)
            yield "; ".join(f"{times}: {why}" for why, times in common)


_followers: dict[Maillog, Follower] = {}


def _follower(option: Maillog) -> Follower:
    """Return who follows the log as *option* says; one that nobody uses any more is let go."""
    if option not in _followers:
        now = time.monotonic()
        for other, follower in list(_followers.items()):
            if now - follower.used > other.window:
                del _followers[other]
        _followers[option] = Follower(option)
    return _followers[option]
