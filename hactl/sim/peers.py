"""peers: the same world under the rules of relayd alone, HAProxy, keepalived and gdnsd.

Each balances by itself: its pool is its table, changed the moment its rule changes.  That flatters
them: they are given all required checks of hactl.yaml as one look, while in the field they have
a port or a banner.  relayd's own `check tcp` is no rule here but the model with nobody steering.

Sources, with the versions read or run:
- HAProxy 2.6, configuration manual (`inter` 2 s, `fastinter`, `fall` 3, `rise` 2): a transition is
  looked at each fastinter; the interval counts from the end of a check, so that a silent server
  costs fall x timeout + (fall - 1) x interval, as measured; backup servers only when no other is up.
- keepalived 2.2, keepalived.conf(5): `delay_loop` 60 s, `retry` 1 after `delay_before_retry` 1 s,
  up at the first success; `sorry_server` when the quorum is lost.
- gdnsd 3, gdnsd-plugin-api and gdnsd.config(5), service_types: `interval` 10, `up_thresh` 20
  successes in a row, `ok_thresh` 10 successes clear the count, `down_thresh` 10 failures over any
  time; multifo with `up_thresh` 0.5 gives out every address when fewer than that are up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import Literal

from msgspec import Struct

from hactl.core.model import Member, Verdict
from hactl.sim import truth as truth_
from hactl.sim.ledger import Ledger, Seat
from hactl.sim.truth import FAULTS, Event, Truth, look
from hactl.sim.world import Cluster, Run, Stretch, World


class RiseFall(Struct, frozen=True):
    """*fall* failures in a row take out, *rise* successes in a row bring back.

    *fast* is the interval while a row is open, 0: as ever; *after*: intervals count from the end
    of a look instead of its start.
    """

    interval: float
    fall: int
    rise: int
    fast: float = 0.0
    after: bool = True


class Counted(Struct, frozen=True):
    """gdnsd's: *down* failures with never *clear* successes in a row between; *up* in a row."""

    interval: float
    down: int
    clear: int
    up: int
    after: bool = False


class Peer(Struct, frozen=True):
    """A named rule; *spare*: what it serves when nobody is up in its pool."""

    name: str
    rule: RiseFall | Counted | None  # None: relayd alone
    spare: Literal["nobody", "all"] = "nobody"


RELAYD = Peer("relayd check tcp", None)
HAPROXY = Peer("HAProxy", RiseFall(2, 3, 2))
FASTINTER = Peer("HAProxy fastinter", RiseFall(2, 3, 2, fast=0.2))
KEEPALIVED = Peer("keepalived", RiseFall(60, 2, 1, fast=1))
GDNSD = Peer("gdnsd", Counted(10, 10, 10, 20), "all")
PEERS = (RELAYD, HAPROXY, FASTINTER, KEEPALIVED, GDNSD)


class Score:
    """What a rule holds of one server: up or not, and its two counts."""

    def __init__(self) -> None:
        self.up = True
        self.fails = self.goods = 0

    def step(self, rule: RiseFall | Counted, good: bool) -> float:
        """Take one result; return the seconds until the next look."""
        if isinstance(rule, Counted):
            self._count(rule, good)
            return rule.interval
        if self.up:
            self.fails = 0 if good else self.fails + 1
            if self.fails >= rule.fall:
                self.up, self.fails, self.goods = False, 0, 0
        else:
            self.goods = self.goods + 1 if good else 0
            if self.goods >= rule.rise:
                self.up, self.fails, self.goods = True, 0, 0
        return rule.fast if rule.fast and (self.fails or self.goods) else rule.interval

    def _count(self, rule: Counted, good: bool) -> None:
        self.goods = self.goods + 1 if good else 0
        if self.up:
            self.fails += not good
            if self.goods >= rule.clear:
                self.fails = 0
            if self.fails >= rule.down:
                self.up, self.fails, self.goods = False, 0, 0
        elif self.goods >= rule.up:
            self.up, self.fails, self.goods = True, 0, 0


JITTER = 0.05  # of an interval; without it fixed rates alias with periodic faults


class _Pool:
    """All services of a cluster under one rule."""

    def __init__(
        self, what: Cluster, events: Sequence[Event], duration: float, peer: Peer, seed: int
    ) -> None:
        assert peer.rule is not None
        self.rule = peer.rule
        self.peer = peer
        self.what = what
        self.events = events
        self.duration = duration
        self.rng = random.Random(seed)
        self.truth = Truth(events)
        self.ledger = Ledger(what.layouts)
        self.seats = {s.member: s for each in what.layouts for s in each.seats}
        self.require = {each.name: each.require for each in what.layouts}
        self.scores = {member: Score() for member in self.seats}
        self.out: set[Member] = set()
        self.stretches: list[Stretch] = []
        self.timeouts = what.timeouts

    def run(self) -> Run:
        queue = [(self.rng.random() * self.rule.interval, member) for member in self.scores]
        heapify(queue)
        edges = truth_.edges(self.events, self.duration)
        edges.reverse()
        self._settle(0.0)
        self.ledger.start(0.0)
        while True:
            now = min(queue[0][0] if queue else self.duration, self.duration)
            if edges and edges[-1].at <= now:
                edge = edges.pop()
                self._turn(edge)
                self._settle(edge.at)
                continue
            if now >= self.duration:
                break
            member = queue[0][1]
            before = self.scores[member].up
            good, took = self._look(self.seats[member])
            pause = self.scores[member].step(self.rule, good)
            pause *= 1 + JITTER * (2 * self.rng.random() - 1)
            if self.scores[member].up is not before:
                self._settle(min(self.duration, now + took))
            heapreplace(queue, (now + (pause + took if self.rule.after else pause), member))
        return Run(self.ledger.close(self.duration), (), tuple(self.stretches), self.duration)

    def _turn(self, edge: truth_.Edge) -> None:
        event = self.events[edge.number]
        if event.do in FAULTS or event.do == "cut":
            self.truth.turn(edge)
        elif event.do in ("disable", "drain", "maint", "enable", "resume"):
            mine = {
                m
                for m, s in self.seats.items()
                if not event.to or {s.node, m.service, f"{m.service}/{s.node}"} & set(event.to)
            }
            if edge.begins and event.do in ("disable", "drain", "maint"):
                self.out |= mine
            else:
                self.out -= mine

    def _look(self, seat: Seat) -> tuple[bool, float]:
        """Look with every required check; return whether all passed, and the longest time."""
        good, longest = True, 0.0
        for check in self.require[seat.member.service]:
            mood = self.truth.mood(seat.node, check)
            timeout = self.timeouts[check]
            result, took = look(mood, timeout, self.rng, lambda: 0.0)
            longest = max(longest, took)
            cut = result.verdict is Verdict.UNKNOWN and mood.bad > 0
            good = good and result.verdict is not Verdict.FAIL and not cut
        return good, longest

    def _settle(self, now: float) -> None:
        self.ledger.settle(max(now, 0.0))
        for layout in self.what.layouts:
            seats = [s.member for s in layout.seats if s.member not in self.out]
            up = [m for m in seats if self.scores[m].up]
            main = [m for m in up if m.table == 0]
            pool = main or up
            whole = [m for m in seats if m.table == 0]
            if self.peer.spare == "all" and 2 * len(main) < len(whole):
                pool = [m for m in up if m.table] or whole
            bad = {
                s.member: self.truth.bad(s.node, layout.require, self.timeouts)
                for s in layout.seats
            }
            serving = frozenset(pool)
            account = self.ledger.accounts[layout.name]
            self._note(account.serving, serving, now, layout.name)
            account.set(
                now,
                serving,
                bad,
                self.out.__contains__,
                lambda m: self.scores[m].up,
                self.ledger.counting,
            )

    def _note(
        self, before: frozenset[Member], after: frozenset[Member], now: float, service: str
    ) -> None:
        if before == after:
            return
        self.stretches.append(Stretch(now, service, after))
        if self.ledger.counting:
            for member in before ^ after:
                if member not in self.out:
                    self.ledger.accounts[service].note(member, now, removal=member in before)


def run(what: Cluster, events: Sequence[Event], duration: float, peer: Peer, seed: int = 0) -> Run:
    """Run a schedule under a peer's rule."""
    if peer.rule is not None:
        return _Pool(what, events, duration, peer, seed).run()
    alone = World(what, events, duration, seed=seed, steers=False).run()
    for figures in alone.figures.values():
        figures.removals = figures.changes // 2
        figures.per_hour = figures.changes * 3600 / duration
    return alone
