"""truth: what really is the matter with each node at a moment, and what a look at it would find.

The world is piecewise constant: an Event begins and ends at edges, and between two edges only loss
(a share of the looks fails) and overload (a probe is slow while its node carries much) vary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from hactl.core.model import Result, Verdict, fail, ok, unknown
from hactl.core.units import Duration, Share

RELAYD = "relayd"  # stands among an event's checks for relayd's own check
FOREVER = float("inf")

Fault = Literal["crash", "vanish", "hang", "refuse", "slow", "warn", "unknown", "loss", "overload"]
Deed = Literal[
    "cut", "lag", "stall", "kill", "mute", "late", "ahead", "back",
    "reload", "restart", "down",
    "disable", "enable", "drain", "maint", "pin", "resume", "freeze", "hands-off", "thaw",
]  # fmt: skip

FAULTS: Mapping[str, str] = {
    "crash": "the host answers every connection with a reset, relayd's check too",
    "vanish": "the host answers nothing at all, relayd's check included",
    "hang": "connections are accepted, and nothing is ever said; check tcp is content",
    "refuse": "the service says no at once (421, 451); check tcp is content",
    "slow": "answers take `by`; beyond the timeout that is a hang",
    "warn": "the check says warn: works, but not well",
    "unknown": "the check cannot say: its agent is silent",
    "loss": "a `share` of the looks fails, and of the clients",
    "overload": "the check says warn while its node carries `share` of the service or more",
}
DEEDS: Mapping[str, str] = {
    "cut": "the balancer's network is gone: every look is unknown, relayd's checks fail",
    "lag": "hactld is late: every look is discarded as unknown",
    "stall": "hactld stands still and then goes on",
    "kill": "hactld is killed, and started after `for` with what it had stored",
    "mute": "relayctl gives no answer",
    "late": "relayctl is given up before it answers; relayd carries its commands out all the same",
    "ahead": "the wall clock jumps ahead `by`",
    "back": "the wall clock jumps back `by`",
    "reload": "relayd is reloaded; `shift` adds to its ids",
    "restart": "relayd is stopped, pf cleaned, and started after `for`",
    "down": "relayd dies, pf keeps what it had, and starts after `for`",
    "disable": "somebody runs relayctl host disable",
    "enable": "somebody runs relayctl host enable",
    "drain": "hactl drain", "maint": "hactl maint", "pin": "hactl pin", "resume": "hactl resume",
    "freeze": "hactl freeze", "thaw": "hactl thaw",
    "hands-off": "hactl freeze --hands-off",
}  # fmt: skip


class Event(Struct, frozen=True, omit_defaults=True):
    """Something that happens *at* a second, to nodes, SERVICE/NODE or services.

    *lasts* None: to the end.  With *every* it happens again and again until *until*.  *check*
    limits a fault to some checks.  *share*, *by* and *shift* are for the kinds that say so.
    """

    at: float
    do: str
    to: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    lasts: float | None = None
    every: float | None = None
    until: float | None = None
    share: float = 0.0
    by: float = 0.0
    shift: int = 0

    def __str__(self) -> str:
        what = f"{self.do} {', '.join(self.to)}".strip()
        what += f" ({', '.join(self.check)})" if self.check else ""
        what += f" {Share(self.share)}" if self.share else ""
        what += f" by {Duration(self.by)}" if self.by else ""
        return what + (f" by {self.shift} ids" if self.shift else "")


class Edge(NamedTuple):
    """An event begins or ends; *number* is its place among the events."""

    at: float
    number: int
    turn: int
    begins: bool


def edges(events: Sequence[Event], end: float) -> list[Edge]:
    """Return every beginning and end before *end*, in order; an end comes before a beginning."""
    found: list[Edge] = []
    for number, event in enumerate(events):
        start, turn = event.at, 0
        last = min(end, FOREVER if event.until is None else event.until)
        while start < last:
            found.append(Edge(start, number, turn, True))
            if event.lasts is not None and start + event.lasts < end:
                found.append(Edge(start + event.lasts, number, turn, False))
            if not event.every:
                break
            start, turn = start + event.every, turn + 1
    return sorted(found, key=lambda e: (e.at, e.begins, e.number))


class Mood(NamedTuple):
    """What a look finds: *result* after *delay* seconds, but a share *loss* of the looks fails.

    *bad* is the part of the clients that are not served: 0 to 1.
    """

    result: Result
    delay: float = 0.0
    loss: float = 0.0
    bad: float = 0.0
    overload: float = 0.0


WELL = Mood(ok("well"))
REFUSED = Mood(fail("connection refused"), bad=1.0)
SILENT = Mood(fail("no answer"), FOREVER, bad=1.0)
CUT = Mood(unknown("network is unreachable"), bad=1.0)
LAG = unknown("hactld itself was late")
LOST = fail("connection reset")
OVERLOADED = Result(Verdict.WARN, "slow under load")
_MOODS: Mapping[str, Mood] = {
    "crash": REFUSED,
    "vanish": SILENT,
    "hang": SILENT,
    "refuse": Mood(fail("greeting 421 not now"), bad=1.0),
    "warn": Mood(Result(Verdict.WARN, "slow")),
    "unknown": Mood(unknown("its agent does not answer")),
}
_RANK = ("cut", "vanish", "crash", "hang", "refuse", "unknown", "loss", "slow", "warn", "overload")


class Truth:
    """Knows what is the matter; `turn` is called at each edge."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._turns: dict[int, int] = {}  # how many of an event's turns are under way
        self._active: list[Event] = []
        self._events = events
        self._moods: dict[tuple[str, str], Mood] = {}
        self.epoch = 0  # counts what began and ended

    def turn(self, edge: Edge) -> None:
        """Let an event begin or end."""
        event = self._events[edge.number]
        if event.do not in FAULTS and event.do != "cut":
            return
        turns = self._turns[edge.number] = self._turns.get(edge.number, 0) + (
            1 if edge.begins else -1
        )
        if turns != (1 if edge.begins else 0):
            return  # another turn goes on
        if edge.begins:
            self._active.append(event)
        else:
            self._active.remove(event)
        self._moods.clear()
        self.epoch += 1

    @property
    def restless(self) -> bool:
        """Looks may differ although nothing begins or ends."""
        return any(e.do in ("loss", "overload") for e in self._active)

    def mood(self, node: str, check: str) -> Mood:
        """Return what a look by *check* at *node* finds; RELAYD is relayd's own check."""
        key = (node, check)
        found = self._moods.get(key)
        if found is None:
            found = self._moods[key] = self._find(node, check)
        return found

    def _find(self, node: str, check: str) -> Mood:
        mine = [e for e in self._active if _concerns(e, node, check)]
        if not mine:
            return WELL
        event = min(mine, key=lambda e: (_RANK.index(e.do), -e.share, -e.by))
        match event.do:
            case "cut":
                return SILENT if check == RELAYD else CUT
            case "slow":
                return Mood(ok("well, late"), event.by)
            case "loss":
                return Mood(ok("well"), 0.0, event.share, event.share)
            case "overload":
                return Mood(ok("well"), overload=event.share)
            case _:
                return _MOODS[event.do]

    def bad(self, node: str, checks: Iterable[str], timeouts: Mapping[str, float]) -> float:
        """Return the part of a service's clients that *node* does not serve, 0 to 1."""
        worst = 0.0
        for check in checks:
            mood = self.mood(node, check)
            late = mood.delay >= timeouts.get(check, FOREVER)
            worst = max(worst, 1.0 if late else mood.bad)
        return worst


def _concerns(event: Event, node: str, check: str) -> bool:
    if event.do == "cut":
        return True
    if event.to and node not in event.to:
        return False
    if event.check:
        return check in event.check
    return check != RELAYD or event.do in ("crash", "vanish")


def look(
    mood: Mood, timeout: float, rng: random.Random, carried: Callable[[], float]
) -> tuple[Result, float]:
    """Return what one look finds and the seconds it takes."""
    if mood.loss and rng.random() < mood.loss:
        return LOST, 0.0
    if mood.delay >= timeout:
        return fail(f"no answer in {timeout:g}s"), timeout
    if mood.overload and carried() >= mood.overload:
        return OVERLOADED, mood.delay
    return mood.result, mood.delay
