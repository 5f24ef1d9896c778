"""queue: mail leaves the queue as it comes in.

A mail server whose scheduler hangs, whose relay is paused or whose route is gone goes on to accept
mail; only the queue tells.  It is asked through the server's own program on its own machine, so this
is a check for the agent there, or for the node that hactld itself runs on.
smtpctl is never killed: OpenSMTPD's control process, and with it all of smtpd, ends when somebody
who asks goes away in the middle of an answer.
Source: smtpctl(8) and smtpctl.c of OpenSMTPD 7, where a statistic that was never counted is not
shown; postqueue(1) of Postfix 3.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Literal

import msgspec
from msgspec import Struct

from checks import Probed, Step, Target, Timing, _process
from checks._process import Ended
from checks._wire import quote
from hactl.core.model import Result, Verdict, fail, ok, unknown
from hactl.core.units import Duration, span

PROGRAMS = {"opensmtpd": "/usr/sbin/smtpctl", "postfix": "/usr/sbin/postqueue"}
LINE = 16 << 20  # bytes of one entry; Postfix writes all recipients of a message into one
LISTING = 1 << 30  # bytes of a listing
REASONS = 1000  # that are told apart
SHOWN = 3  # reasons that are told


class Queue(Probed, frozen=True, kw_only=True, tag="queue"):
    """Options.

    *server*: whose queue it is.  *command*: its program, with a path and what comes before it, such
    as doas.  *stuck_after*: the age from which a message counts as stuck.  *most*: messages that a
    look reads.
    """

    server: Literal["opensmtpd", "postfix"] = "opensmtpd"
    command: tuple[str, ...] = ()
    stuck_after: Duration = Duration(3600)
    most: int = 20_000  # which smtpctl tells in seconds; 100,000 took it a minute

    timing: ClassVar[Timing] = Timing(interval=10.0, timeout=10.0, fast=0.0)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is no command, and no number of messages."""
        if self.command and not self.command[0].startswith("/"):
            yield "command", "expected an absolute path and its arguments"
        if self.most < 1:
            yield "most", f"expected at least 1 (got {self.most})"

    async def probe(self, target: Target, step: Step) -> Result:
        """Ask for figures, for what is paused, and for each message."""
        ask = self.postfix if self.server == "postfix" else self.opensmtpd
        try:
            return await ask(step)
        except ValueError as error:
            return unknown(f"queue: {error}")

    async def opensmtpd(self, step: Step) -> Result:
        """Ask smtpctl; its parts hang with different parts of smtpd."""
        step("stats")
        answer = await self.run("show", "stats")
        if answer.code:
            return self.refused(answer)
        if not answer.out.strip():  # it always has at least its uptime to tell
            return unknown("stats: said nothing")
        envelopes = stats(answer.out).get("scheduler.envelope", 0)
        if envelopes > self.most:
            return ok(f"{envelopes} messages, too many to read", messages=envelopes)
        step("status")
        answer = await self.run("show", "status")
        if answer.code:
            return self.refused(answer)
        held_up = paused(answer.out)
        step("queue")
        seen = Seen(time.time(), self.stuck_after, self.most)
        lines = Lines(lambda line: seen.add(*envelope(line)))
        answer = await self.run("show", "queue", take=lines.take)
        return self.refused(answer) if answer.code else seen.judge(held_up)

    async def postfix(self, step: Step) -> Result:
        """Ask postqueue, which reads the queue itself if Postfix does not run."""
        step("queue")
        seen = Seen(time.time(), self.stuck_after, self.most)
        lines = Lines(lambda line: seen.add(*message(line)))
        answer = await self.run("-j", take=lines.take)
        if (answer.code and not seen.full) or b"mail system is down" in answer.err.lower():
            return self.refused(answer)
        return seen.judge(())

    async def run(self, *words: str, take: Callable[[bytes], bool] | None = None) -> Ended:
        """Run the program with *words*."""
        command = [*(self.command or (PROGRAMS[self.server],)), *words]
        spare = self.server == "opensmtpd"
        return await _process.run(command, take=take, limit=LISTING, spare=spare)

    def refused(self, answer: Ended) -> Result:
        """Judge what the program complains of: that there is no server, or that we may not ask."""
        lines = (answer.err.strip() or answer.out.strip()).splitlines()
        said = next((line for line in lines if b"down" in line.lower()), b"".join(lines[:1]))
        why = quote(said) or f"exit {answer.code}"
        return fail(why) if _GONE.search(said) else unknown(why)


_GONE = re.compile(rb"not running|seem to be running|connect:|mail system is down", re.IGNORECASE)


# What the programs print


class Lines:
    """Cuts what comes in pieces into lines; *each* takes one, and returns whether to go on."""

    def __init__(self, each: Callable[[bytes], bool]) -> None:
        self._each = each
        self._rest = b""

    def take(self, data: bytes) -> bool:
        """Hand on the lines that are whole.  Raise ValueError for one that has no end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE:
            raise ValueError(f"a line of more than {LINE >> 20} MiB")
        return all(map(self._each, lines))


def stats(out: bytes) -> dict[str, int]:
    """Read `key=value` lines; values that are no whole number are left out."""
    pairs = (line.partition("=") for line in out.decode("latin-1").splitlines())
    return {key: int(value) for key, _, value in pairs if value.isascii() and value.isdigit()}


def paused(out: bytes) -> tuple[str, ...]:
    """Return which of MDA, MTA and SMTP are paused."""
    return tuple(re.findall(r"^(MDA|MTA|SMTP) paused$", out.decode("latin-1"), re.MULTILINE))


Entry = tuple[
    str, float, str
]  # its state (see Seen), when it came (Unix seconds), and why it waits

# What follows the addresses: created, expires, last try, tries, state, seconds, error.
_TAIL = re.compile(rb"\|(\d+)\|\d+\|\d+\|(\d+)\|(pending|inflight|invalid|offline)\|-?\d*\|")


def envelope(line: bytes) -> Entry:
    """Read a line of `smtpctl show queue`; raise ValueError if it is none.

    Addresses and errors are strangers' words and may have a `|` in them, or figures like ours: of
    an entry with two readings only that it is there counts.
    """
    tails = list(_TAIL.finditer(line))
    fields = line.split(b"|", 4)
    if not tails or len(fields) < 5:
        raise ValueError(f"not an envelope: {quote(line)}")
    if len(tails) > 1:
        return "waiting", 0.0, ""
    tail = tails[0]
    created, tries, run = float(tail[1]), int(tail[2]), tail[3]
    if b"suspend" in fields[3].split(b","):
        return "held", created, ""
    if run == b"inflight":
        return "inflight", created, ""
    if tries:
        return "deferred", created, quote(line[tail.end() :]) or "no reason given"
    return "untried", created, ""


class _Recipient(Struct):
    delay_reason: str = ""


class _Message(Struct):
    queue_name: str
    arrival_time: float
    recipients: list[_Recipient] = []


_decode = msgspec.json.Decoder(_Message).decode
_STATES = {"hold": "held", "active": "inflight", "deferred": "deferred"}


def message(line: bytes) -> Entry:
    """Read a line of `postqueue -j`; raise ValueError if it is none."""
    try:
        try:
            found = _decode(line)
        except UnicodeDecodeError:
            found = _decode(line.decode("utf-8", "replace"))
    except msgspec.DecodeError:
        raise ValueError(f"not a message: {quote(line)}") from None
    state = _STATES.get(found.queue_name, "untried")
    reasons = (each.delay_reason for each in found.recipients if each.delay_reason)
    why = next(reasons, "no reason given") if state == "deferred" else ""
    return state, found.arrival_time, quote(why.encode())


# What it comes to

_NOISE = re.compile(r"<[^>]*>|\S+@\S+|\[[0-9A-Fa-f.:]+\](:\d+)?|\b[0-9A-Fa-f]{8,}\b")


class Seen:
    """Counts the entries of a listing, in memory that does not grow with them.

    They are *untried*, *inflight* (being delivered), *deferred* (tried in vain), *held* (by an
    operator), or *waiting* where no more can be said.
    """

    def __init__(self, now: float, stuck_after: float, most: int) -> None:
        self._now = now
        self._stuck_after = stuck_after
        self._most = most
        self.full = False
        self._states: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._stuck = 0
        self._oldest = self._untried = now

    def add(self, state: str, came: float, why: str) -> bool:
        """Count one more; return whether to go on."""
        self._states[state] += 1
        if why:
            why = _NOISE.sub("...", why)
            known = why in self._reasons or len(self._reasons) < REASONS
            self._reasons[why if known else "other reasons"] += 1
        if 0 < came < self._oldest and state != "held":
            self._oldest = came
        if 0 < came < self._untried and state == "untried":
            self._untried = came
        self._stuck += state != "held" and 0 < came <= self._now - self._stuck_after
        self.full = self._states.total() >= self._most
        return not self.full

    def judge(self, held_up: tuple[str, ...]) -> Result:
        """Return what was seen; *held_up* is what the server does not do at the moment."""
        count = self._states.total()
        oldest = self._now - self._oldest
        parts = [*(f"{part} paused" for part in held_up), *self._words(count, oldest)]
        measures: dict[str, float] = {
            "messages": count,
            "deferred_messages": self._states["deferred"],
            "inflight_messages": self._states["inflight"],
            "held_messages": self._states["held"],
            "stuck_messages": self._stuck,
            "oldest_seconds": oldest,
            "untried_seconds": self._now - self._untried,
        }
        verdict = Verdict.WARN if held_up else Verdict.OK
        return Result(verdict, ", ".join(parts), measures=measures)

    def _words(self, count: int, oldest: float) -> Iterator[str]:
        if not count:
            yield "empty"
            return
        more = "at least " if self.full else ""
        yield f"{more}{count} message{'' if count == 1 else 's'}"
        if oldest > 0:
            yield f"oldest {span(oldest)}"
        if self._stuck:
            yield f"{self._stuck} stuck"
        if self._states["deferred"]:
            common = self._reasons.most_common(SHOWN)
            why = "; ".join(f"{times}: {why}" for why, times in common)
            yield f"{self._states['deferred']} deferred ({why})"
