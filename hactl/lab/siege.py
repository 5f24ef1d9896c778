"""siege: the engine and the relayd model under random events, with the end checked after each.

    python -m hactl.lab.siege --count 100000

Operators with relayctl and hactl, nodes, relayd and relayctl itself do what they like; time is
virtual.  After each event the desired state must be reached within a minute: what was decided holds
in relayd, pf has what relayd says, what somebody did by hand stays, who fails is out where another
serves, and nobody is kept from clients for nothing.  relayd must never die: the model ends at every
condition under which the real one is known to, at once and for certain.
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from hactl import config as config_
from hactl.core.engine import CYCLE, UNSURE, Engine
from hactl.core.model import (
    Action,
    Checked,
    Member,
    Observation,
    Override,
    Probe,
    Verb,
    fail,
    ok,
)
from hactl.core.proof import Pf as Seen
from hactl.daemon.plan import facts, plan
from hactl.lab.model import Check, Host, Model, Pf, State
from hactl.relayd.conf import RelaydConf, parse
from hactl.relayd.relayctl import ANSWERS, Agreement, Nonsense, frame
from hactl.relayd.relayctl import parse as parse_summary

LIMIT = 90.0  # seconds until the desired state must be reached
CALM = 2.0  # seconds for which it must hold
TRANSIT = 0.001  # seconds that a result is on its way inside relayd
TOOK = 0.002  # seconds that a command takes
CHUNK = 250  # events of one life of a cluster
WORDS = ("127.0.0.4", "127.0.0.5", "127.0.0.6")
A, B, C = WORDS

Key = tuple[str, int, str]  # service, table position, word


@lru_cache
def relayd_conf(shift: int) -> RelaydConf:
    """Return the configuration; *shift* hosts stand before all others."""
    extra = "".join(
        f"table <x{n}> {{ {C} }}\nredirect x{n} {{\n\tlisten on 127.0.0.10 port {90 + n}\n"
        f"\tforward to <x{n}> port 25 check tcp\n}}\n"
        for n in range(shift)
    )
    text = f"""\
interval 2
timeout 200
table <mx> {{ {A} retry 1, {B} }}
table <spare> {{ {C} }}
table <kin> {{ {A}, {C} parent {4 + shift} }}
table <two> {{ {B} }}
table <other> {{ {A} }}
table <bare> {{ {A}, {B} }}
{extra}redirect mx {{
	listen on 127.0.0.10 port 25
	forward to <mx> port 25 check tcp
	forward to <spare> port 25 check tcp
}}
redirect kin {{
	listen on 127.0.0.10 port 26
	forward to <kin> port 25 check tcp
}}
redirect two {{
	listen on 127.0.0.10 port 27
	forward to <two> port 25 check tcp
	forward to <other> port 25 check tcp
}}
relay proxy {{
	listen on 127.0.0.10 port 28
	forward to <bare> port 25
}}
"""
    return parse(text, "relayd.conf")


HACTL = f"""\
mode: relayctl
nodes: {{a: {A}, b: {B}, c: {C}}}
checks: {{smtp: {{type: smtp, rise: 2}}}}
defaults: {{service: {{require: [smtp], grace: 1s, pace: 100% in 60s}}}}
services: {{mx: {{}}, kin: {{}}, two: {{}}, proxy: {{}}}}
relayd: {{clear_sources: true, kill_states: true}}
"""
NODES = dict(zip("abc", WORDS, strict=True))


class Sent(NamedTuple):
    """A command of hactl's: to which start and load of relayd, and whether it had everybody up."""

    at: float
    action: Action
    boot: int
    load: int
    everybody_up: bool


class Knowledge(Struct):
    """What there is to know besides relayd's state.

    *foreign*: disabled by hand; *told*: operators' words by target; *failing*: nodes' words whose
    service fails; *fixed*: services that relayctl cannot switch.
    """

    foreign: set[Key] = set()
    told: dict[str, str] = {}
    failing: set[str] = set()
    frozen: bool = False
    fixed: frozenset[str] = frozenset({"proxy"})

    def said(self, service: str, node: str) -> str:
        """Return the strongest word on a member."""
        words = {self.told.get(t, "") for t in (service, node, f"{service}/{node}")}
        return next((w for w in ("maint", "pin", "drain") if w in words), "")


def hosts(model: Model) -> dict[Key, Host]:
    """Return relayd's hosts by where they stand."""
    return {
        (service.conf.name, position, host.conf.name): host
        for service in model.services
        for position, table in enumerate(service.tables)
        for host in table.hosts
    }


class Wish(NamedTuple):
    """What hactl wants of a member, why, and whether it says that this has to wait."""

    want: str
    reason: str
    waits: bool


def wrong(
    model: Model, wants: Mapping[Key, Wish], nodes: Mapping[str, str], known: Knowledge
) -> str:
    """Say what is not as it should be, "" if all is.

    *wants* has what hactl wants of each member; *nodes* the address of each.
    """
    names = {word: name for name, word in nodes.items()}
    every = hosts(model)
    for service in model.services:
        name = service.conf.name
        mine = {key: host for key, host in every.items() if key[0] == name}
        if name in known.fixed:
            if any(host.disabled for host in mine.values()):
                return f"a host of {name} was disabled, which is deadly"
            continue
        if problem := _wrong_pf(model, name):
            return problem
        if not any(key in wants for key in mine):
            continue
        visible = {
            k: h for k, h in mine.items() if not service.off and not service.tables[k[1]].off
        }
        free = {k: h for k, h in visible.items() if h.conf.parent is None}
        for key, host in free.items():
            wish = wants.get(key, Wish("", "", True))
            said = known.said(name, names[key[2]])
            off = {"in": False, "out": True}.get(wish.want, host.disabled)
            if off is not host.disabled and not wish.waits:
                return f"{key} is wanted {wish.want} ({wish.reason})"
            if key in known.foreign and not host.disabled:
                return f"{key} was disabled by hand, and is not any more"
            if said == "maint" and not host.disabled:
                return f"{key} is in maintenance, and enabled"
        if known.frozen:
            continue
        serve = {k for k, h in free.items() if h.up is State.UP and k[2] not in known.failing}
        able = []
        for key, host in free.items():
            said = known.said(name, names[key[2]])
            if key in known.foreign:
                continue
            if key[2] not in known.failing:
                able += [key] * (said in ("", "pin"))
            elif serve and not (host.disabled or said == "pin" or wants[key].waits):
                return f"{key} fails and is in, while {serve} could serve"
        if able and not model.pf.tables.get(name):
            return f"{name} has nobody, and {able} could serve"
    return ""


def _wrong_pf(model: Model, name: str) -> str:
    """Compare pf's table with what relayd means it to be."""
    service = next(s for s in model.services if s.conf.name == name)
    used = next((t for t in service.tables if t.count), None) if not service.off else None
    wanted = {h.address for h in (used.hosts if used else ()) if h.up is State.UP}
    has = set(model.pf.tables.get(name, ()))
    if has != wanted:
        return f"pf's table {name} has {sorted(has)}, relayd means {sorted(wanted)}"
    return f"pf has no rule for {name}" if wanted and name not in model.pf.rules else ""


class Cluster:
    """The engine as the daemon drives it, a relayd, three nodes, and a random operator."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.pf = Pf()
        self.shift = 0
        self.silent: set[str] = set()  # nodes whose host answers nothing at all
        self.known = Knowledge()
        self.model: Model | None = None
        self.boots = 0
        self.mute_until = 0.0
        self.lost: list[str] = []  # what becomes of the next commands: lost or late
        self.late: list[tuple[float, tuple[str, ...]]] = []
        self.checks: list[tuple[float, int, Model, Check, bool]] = []
        self.looks: list[tuple[float, int, Checked]] = []
        self.serial = 0
        self.config = config_.parse(HACTL, "hactl.yaml")
        self.boot()
        self.engine = self.fresh(None)
        self.planned = self.now
        self.stalled_until = 0.0
        self.sent: list[Sent] = []
        self.strange_until = 0.0  # what relayctl prints is spoilt
        self.others: list[str] = []  # dumps that it is mixed with
        self.lie: object = None  # what the newest spoilt dump said, if it can be read
        self.agreement = Agreement()
        self.last = "", Observation(0.0, ())
        self.crashed = ""

    def fresh(self, old: Engine | None) -> Engine:
        """Start hactld, with what the store kept."""
        conf = relayd_conf(self.shift)
        counter = 0 if old is None else old.counter + 1024
        engine = Engine(plan(self.config), facts(conf), self.now, counter=counter)
        if old is not None:
            engine.owned = dict(old.owned)
            for override in old.overrides.values():
                engine.override(override)
            engine.remember({name: memory.lasting() for name, memory in old.memories.items()})
        return engine

    def boot(self) -> None:
        """Start relayd."""
        self.model = Model(pf=self.pf, transit=TRANSIT)
        self.boots += 1
        self.known.foreign.clear()
        self.model.load(relayd_conf(self.shift), self.now)

    # Time

    def run(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        end = self.now + seconds
        while True:
            next_ = self._next(end)
            self.now = max(self.now, next_)
            if self.now >= end:
                return
            self._relayd()
            if self.now < self.stalled_until:
                continue
            changed = False
            while self.looks and self.looks[0][0] <= self.now:
                changed |= self.engine.feed(heapq.heappop(self.looks)[2])
            for probe in self.engine.due(self.now):
                changed |= self._look(probe)
            if changed or self.now >= min(self.planned, self.engine.next_moment(self.now - 1e-6)):
                self._cycle()

    def _next(self, end: float) -> float:
        times = [end]
        if self.model is not None and (event := self.model.next_event_time) is not None:
            times.append(event)
        times += [queue[0][0] for queue in (self.checks, self.late) if queue]
        if self.now < self.stalled_until:
            times.append(self.stalled_until)
        else:
            times += [self.looks[0][0]] if self.looks else []
            times += [self.engine.next_look(), self.planned, self.engine.next_moment(self.now)]
        return min(times)

    def _relayd(self) -> None:
        """Do what relayd has to do now."""
        while self.late and self.late[0][0] <= self.now:
            _, words = heapq.heappop(self.late)
            if self.model is not None:
                self.model.command(words, self.now)
        while True:
            if self.checks and self.checks[0][0] <= self.now:
                _, _, model, check, up = heapq.heappop(self.checks)
                if model is self.model and model is not None:
                    model.check_done(check, up, self.now)
                continue
            model_ = self.model
            event = None if model_ is None else model_.next_event_time
            if model_ is None or event is None or event > self.now:
                break
            for check in model_.advance(self.now):
                self.serial += 1
                quiet = check.name in self.silent
                at = check.deadline if quiet else self.now + 0.0003
                heapq.heappush(self.checks, (at, self.serial, model_, check, not quiet))
        if self.model is not None and self.model.crashed is not None:
            self.crashed = self.crashed or self.model.crashed

    def _look(self, probe: Probe) -> bool:
        word = NODES[probe.node]
        if word in self.silent:
            self.serial += 1
            ended = self.now + self.engine.plan.rules[probe.check].timeout
            checked = Checked(probe, self.now, ended, fail("no answer"))
            heapq.heappush(self.looks, (ended, self.serial, checked))
            return False
        result = fail("421") if word in self.known.failing else ok("220")
        return self.engine.feed(Checked(probe, self.now, self.now, result))

    # hactld, as hactl.daemon.daemon does it

    def _cycle(self) -> None:
        engine, tried, counted = self.engine, set[tuple[str, ...]](), False
        while True:
            engine.socket(self.boots, self.now)
            model = self.model
            if model is None or self.now < self.mute_until:
                engine.unseen("relayctl: show summary: no answer")
                break
            seen = self.show(model)
            if seen is None:
                engine.unseen("relayctl: show summary: nonsense")
                break
            engine.observed(seen, self.now)
            action = next((a for a in engine.actions(self.now) if a.words() not in tried), None)
            if action is None:
                break
            if not counted and (action.verb is Verb.ENABLE or engine.last_sign(action)):
                counted = True
                if self._count(model):
                    continue
            tried.add(action.words())
            answered = self._act(action)
            if action.verb is Verb.POLL or not answered:
                break
        if self.now >= self.planned:
            self.planned += CYCLE * (1 + (self.now - self.planned) // CYCLE)
            self._prove()
        engine.events()

    def show(self, model: Model) -> Observation | None:
        """Ask for `show summary` as hactl.relayd.relayctl does; None: nothing can be believed."""
        for _ in range(ANSWERS):
            text = model.command(("show", "summary"), self.now).stdout
            if self.now < self.strange_until:
                text = self._lie(text)
            try:
                if text != self.last[0]:
                    self.last = text, parse_summary(text, self.now, whole=True)
            except Nonsense:
                self.agreement.forget()
                return None
            seen = Observation(self.now, self.last[1].services)
            if self.agreement.agrees(seen):
                return seen
        return None

    def _lie(self, text: str) -> str:
        """Spoil a dump, but tell no lie twice in a row: nobody could tell that from the truth."""
        for _ in range(100):
            spoilt = self._spoilt(text)
            try:
                told: object = frame(parse_summary(spoilt, 0.0, whole=True))
            except Nonsense:
                told = None
            if told is None or told != self.lie:
                self.lie = told
                return spoilt
        return text

    def _spoilt(self, text: str) -> str:
        """Cut a dump, mix it with another, or change a few characters of it."""
        rng = self.rng
        lines = text.splitlines(True)
        self.others = [*self.others[-7:], text]
        match rng.randrange(5):
            case 0:
                return text[: rng.randrange(len(text))]
            case 1:  # between two rows
                return "".join(lines[: rng.randrange(1, len(lines) + 1)])
            case 2:
                other = rng.choice(self.others).splitlines(True)
                cut = rng.randrange(1, len(lines) + 1)
                return "".join(lines[:cut] + other[min(cut, len(other)) :])
            case 3:
                one, two = (rng.randrange(1, len(lines)) for _ in range(2))
                lines[one], lines[two] = lines[two], lines[one]
                return "".join(lines)
        for _ in range(rng.randint(1, 3)):  # digits for digits: what still looks like a dump
            at = rng.randrange(len(text))
            new = rng.choice("123456789") if text[at].isdigit() else rng.choice("1 \tx\n")
            text = text[:at] + new + text[at + 1 :]
        return text

    def _act(self, action: Action) -> bool:
        """Send a command; return whether it was answered."""
        assert self.model is not None
        if action.member is not None:
            meant = hosts(self.model).get((action.member.service, *action.member[1:]))
            if meant is None or meant.conf.id != action.host:
                self.crashed = f"{' '.join(action.words())} is not {action.member}"
        self.engine.intend(action)
        fate = self.lost.pop() if self.lost else ""
        done = False
        every = hosts(self.model).values()
        waiting = [
            h for h in every if not h.disabled and h.up is not State.UP and h.table.conf.check
        ]
        self.sent.append(Sent(self.now, action, self.boots, self.model.loads, not waiting))
        if fate == "late":
            late = self.now + self.rng.choice((0.5, 3.0, 20.0))
            late = self.late[0][0] if self.late else late  # relayd wakes up once
            heapq.heappush(self.late, (late, action.words()))
        elif fate != "lost":
            done = self.model.command(action.words(), self.now).stdout == "command succeeded\n"
        if done:
            self.agreement.switched(action.words())
        self.engine.acted(action, self.now, done=done, unsure=UNSURE if fate else 0.0)
        self.now += TOOK
        self._relayd()
        return not fate

    def _count(self, model: Model) -> bool:
        """Read relayd's counts of checks; return whether they tell of a load."""
        loads = self.engine.reloads
        totals = {  # as `show hosts` counts them
            host.conf.id: host.checks
            for host in hosts(model).values()
            if host.conf.parent is None and not host.disabled
        }
        self.engine.counted(totals, self.now, self.now)
        return self.engine.reloads != loads

    def _prove(self) -> None:
        model = self.model
        if model is None or self.now < self.mute_until:
            return
        self._count(model)
        names = self.engine.redirects()
        tables = {name: self.pf.tables.get(name, ()) for name in names}
        self.engine.proved(
            Seen(self.now, tables, frozenset(self.pf.rules), frozenset(names), {}), self.now
        )
        for cleaning in self.engine.cleanings():
            self.engine.cleaned(cleaning, done=True)

    # Judging

    def wrong(self) -> str:
        """Say what is not as it should be."""
        if self.crashed:
            return f"relayd died: {self.crashed}"
        if self.model is None or self.engine.blind:
            return "relayd is not seen"
        waits = {m for m, note in self.engine.waits.items() if note.rule == "guard"}
        wants = {
            (m.service, m.table, m.host): Wish(d.want, d.reason, m in waits or d.cause == "pace")
            for m, d in self.engine.decisions.items()
        }
        told = wrong(self.model, wants, NODES, self.known)
        if told:
            return told
        differences = [d for n in self.engine.plan.services for d in self.engine.proof.of(n)]
        return differences[0].text if differences else ""

    def settle(self) -> str:
        """Let time pass until all is as it should be; return what is not in the end."""
        end, calm = self.now + LIMIT, None
        while self.now < end:
            self.run(0.5)
            found = self.wrong()
            if self.crashed:
                return found
            if found or self.late:
                calm = None
            elif calm is None:
                calm = self.now
            elif self.now >= calm + CALM:
                return ""
        return found

    # Events

    def event(self) -> str:
        """Let something happen; return what."""
        weighted: dict[Callable[[], str], int] = {
            self._node: 8,
            self._by_hand: 5,
            self._order: 3,
            self._resume: 3,
            self._load: 2,
            self._load_and_disable: 2,
            self._restart: 2,
            self._poll: 2,
            self._hide: 2,
            self._kill: 2,
            self._stall: 1,
            self._mute: 1,
            self._lose: 3,
            self._strange: 3,
            self._edit: 1,
        }
        self.lost.clear()
        self.run(self.rng.random() * 2)
        return self.rng.choices(list(weighted), list(weighted.values()))[0]()

    def _node(self) -> str:
        word = self.rng.choice(WORDS)
        if word in self.known.failing:
            self.known.failing.discard(word)
            self.silent.discard(word)
            return f"{word} is well"
        self.known.failing.add(word)
        if self.rng.random() < 0.4:
            self.silent.add(word)
        return f"{word} fails{', silently' if word in self.silent else ''}"

    def _switchable(self) -> list[Key]:
        if self.model is None:
            return []
        found = hosts(self.model).items()
        return sorted(
            k
            for k, h in found
            if k[0] in self.engine.plan.services
            and k[0] not in self.known.fixed
            and h.conf.parent is None
        )

    def _switch(self, key: Key, verb: str) -> None:
        """Switch by hand, apart from results on their way: that would be the operator's crash."""
        assert self.model is not None
        host = hosts(self.model)[key]
        was, owned = host.disabled, self.engine.owned.get(Member(*key))
        self.model.command(("host", verb, str(host.conf.id)), self.now)
        if verb == "enable":
            self.known.foreign.discard(key)
        elif not was and (owned is None or owned.unsure <= self.now):
            self.known.foreign.add(key)  # else it counts as ours, for a minute

    def _by_hand(self) -> str:
        keys = self._switchable()
        if not keys or self.model is None:
            return "nothing"
        key = self.rng.choice(keys)
        verb = "enable" if hosts(self.model)[key].disabled else "disable"
        self.run(0.01)
        self._switch(key, verb)
        return f"host {verb} {key} by hand"

    def _order(self) -> str:
        kind = self.rng.choice(("drain", "maint", "pin", "freeze"))
        target = self.rng.choice(("a", "b", "c", "mx/a", "two/b", "kin"))
        if kind == "freeze":
            target, self.known.frozen = "all", True
        else:
            self.known.told[target] = kind
        self.engine.override(Override(target, kind, "operator", "", self.now))
        return f"hactl {kind} {target}"

    def _resume(self) -> str:
        if self.known.frozen:
            self.known.frozen = False
            self.engine.thaw("all")
            return "hactl thaw"
        if self.known.foreign and self.rng.random() < 0.5:
            key = self.rng.choice(sorted(self.known.foreign))
            taken = self.engine.adopt(f"{key[0]}/{key[2]}")
            self.known.foreign -= {tuple(member) for member in taken}
            return f"hactl resume --foreign {key}: {len(taken)}"
        for target in self.known.told:
            self.engine.resume(target)
        self.known.told.clear()
        return "hactl resume everything"

    def _load(self) -> str:
        if self.model is None:
            return "nothing"
        self.shift = self.rng.choice((self.shift, self.shift, 0, 1, 2))
        self.known.foreign.clear()
        self.model.load(relayd_conf(self.shift), self.now)
        return f"relayd reloads, shifted by {self.shift}"

    def _load_and_disable(self) -> str:
        """Reload, and disable by hand what hactl had disabled, before hactl can look."""
        self.run(9.0)  # until counts are such that their fall shows
        keys = self._switchable()
        owned = self.engine.owned
        ours = [  # whose command may still be carried out counts as ours for a minute
            k
            for k in keys
            if k not in self.known.foreign
            and Member(*k) in owned
            and owned[Member(*k)].unsure <= self.now
        ]
        counts = self.model is not None and any(
            h.checks and not h.disabled for h in hosts(self.model).values()
        )
        chosen = ours[:1] if counts else []  # hactld(8), CAVEATS: nothing tells of this load
        self._load()
        for key in chosen:
            self._switch(key, "disable")
        return f"relayd reloads, and {chosen} is disabled by hand at once"

    def _restart(self) -> str:
        """End relayd, cleanly or not, and start it after a while."""
        if self.model is not None:
            self.model.stop() if self.rng.random() < 0.5 else self.model.crash("pfe: killed")
            self.model = None
        self.known.foreign.clear()
        self.run(self.rng.choice((0.0, 0.3, 1.5, 6.0)))
        self.boot()
        return "relayd ends, and starts"

    def _poll(self) -> str:
        for _ in range(self.rng.randint(1, 4)):
            if self.model is not None:
                self.model.command(("poll",), self.now)
            self.run(self.rng.choice((0.0, 0.1, 0.3)))
        return "somebody polls"

    def _hide(self) -> str:
        if self.model is None:
            return "nothing"
        what, number = self.rng.choice(
            (("redirect", 1), ("redirect", 2), ("table", 1), ("table", 2))
        )
        self.model.command((what, "disable", str(number)), self.now)
        self.run(self.rng.choice((0.0, 0.4, 2.5)))
        self.model.command((what, "enable", str(number)), self.now)
        return f"{what} {number} is disabled for a while"

    def _kill(self) -> str:
        self.looks.clear()
        self.stalled_until = self.now + self.rng.choice((0.0, 0.5, 5.0))
        self.run(self.stalled_until - self.now)
        self.engine = self.fresh(self.engine)
        self.planned = self.now
        return "hactld is killed, and started"

    def _stall(self) -> str:
        self.stalled_until = self.now + self.rng.choice((0.3, 1.5, 8.0))
        return "hactld stands still for a while"

    def _mute(self) -> str:
        self.mute_until = self.now + self.rng.choice((0.3, 1.5, 8.0))
        return "relayctl shows nothing for a while"

    def _strange(self) -> str:
        self.strange_until = self.now + self.rng.choice((1.5, 5.0, 20.0))
        return f"{self._node()}; relayctl is strange for a while"

    def _lose(self) -> str:
        """Have the next commands be lost, or carried out long after relayctl was killed."""
        self.lost = [self.rng.choice(("lost", "late", "")) for _ in range(self.rng.randint(1, 4))]
        said = self._node()
        return f"{said}; the next commands: {self.lost}"

    def _edit(self) -> str:
        """Change pf's table by hand, and put it right after it was told."""
        name = self.rng.choice(("mx", "kin", "two"))
        before = self.pf.tables.get(name, ())
        if not before:
            return "nothing"
        edited = ("192.0.2.99", *before[1:])
        waits = (self.stalled_until, self.mute_until, self.strange_until)
        self.run(max(0.0, *(end - self.now for end in waits)))
        self.pf.tables[name] = edited
        self.run(4.0)
        told = any("192.0.2.99" in d.text for d in self.engine.proof.of(name))
        if self.pf.tables.get(name) == edited:
            self.pf.tables[name] = before
            if not told and not self.engine.blind:
                self.crashed = f"hactl did not see that pf's table {name} was edited"
        return f"pf's table {name} is edited by hand"


class Found(Struct, frozen=True):
    """What came of a seed: events, commands, virtual seconds, and what was wrong."""

    seed: int
    events: int
    commands: int
    seconds: float
    wrong: str = ""


def besiege(seed: int, count: int = CHUNK) -> Found:
    """Let *count* events happen to a cluster, and stop at the first that is not got over."""
    cluster = Cluster(seed)
    story: list[str] = []
    cluster.run(20.0)
    for number in range(1, count + 1):
        story.append(f"{cluster.now:.1f}s {cluster.event()}")
        if found := cluster.settle():
            text = f"seed {seed}, event {number}: {found}\n  " + "\n  ".join(story[-8:])
            return Found(seed, number, len(cluster.sent), cluster.now - 1000.0, text)
    return Found(seed, count, len(cluster.sent), cluster.now - 1000.0)


def many(count: int, first: int, jobs: int) -> Iterator[Found]:
    """Besiege clusters until *count* events have happened."""
    seeds = range(first, first + (count + CHUNK - 1) // CHUNK)
    if jobs < 2:
        yield from map(besiege, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(besiege, seeds)


def main() -> int:
    parser = argparse.ArgumentParser(description="the engine and relayd under random events")
    parser.add_argument("--count", type=int, default=100_000, help="events [100000]")
    parser.add_argument("--first", type=int, default=0, help="the first seed [0]")
    parser.add_argument("--jobs", type=int, default=2, help="processes [2]")
    options = parser.parse_args()
    began = time.monotonic()
    events = commands = 0
    hours = 0.0
    failed = 0
    for found in many(options.count, options.first, options.jobs):
        events, commands = events + found.events, commands + found.commands
        hours += found.seconds / 3600
        if found.wrong:
            failed += 1
            print(found.wrong, file=sys.stderr, flush=True)
        if events % 10_000 < CHUNK:
            print(f"{events} of {options.count}", file=sys.stderr, flush=True)
    took = time.monotonic() - began
    print(
        f"{events} events, {commands} commands, {hours:.0f} simulated hours in {took:.0f} s:"
        f" {failed} clusters did not reach the desired state"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
