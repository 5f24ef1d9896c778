"""world: the production engine, its schedule and the relayd model, event by event.

`run` goes from one thing that happens to the next: an edge of the schedule, the end of a look, a
round or a result of relayd, a due look, a cycle of hactld.  hactld cycles here as in
`hactl.daemon.daemon`: once a second on a fixed grid, at once after a result that may change a
decision, and when a wait ends.  The same seed gives the same run.

*leap*: while nothing happens and nothing is awaited, looks and cycles of hactld are left out
(relayd's rounds are not).  The engine's schedule keeps its phases over that by itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hactl.config import Config
from hactl.core.engine import CYCLE, UNSURE, Engine
from hactl.core.model import (
    Action,
    Checked,
    Facts,
    Host,
    HostStatus,
    Kind,
    Member,
    Observation,
    Override,
    Plan,
    Probe,
    Service,
    Table,
    Verb,
    Verdict,
)
from hactl.core.policy import LOAD
from hactl.daemon.clock import Clock, restored, shifted, stored, timed
from hactl.daemon.plan import facts as facts_of
from hactl.daemon.plan import plan as plan_of
from hactl.daemon.store import Lasting
from hactl.lab.model import Check, Model
from hactl.lab.model import State as Seen
from hactl.relayd.conf import RelaydConf
from hactl.sim import truth as truth_
from hactl.sim.ledger import Figures, Layout, Ledger, Seat
from hactl.sim.truth import FAULTS, RELAYD, Edge, Event, Truth, look

WARMUP = 45.0  # seconds before the account begins
START = 1000.0  # the clock at the start of the account; what people see counts from there
WALL = 1e9  # the wall clock when the run's is zero
BLOCK = 1024  # decision ids that a restart of hactld skips
CALM = 35.0  # seconds without anything new after which time may leap
LANDING = 6.0  # seconds before the next thing that happens at which a leap ends
BY_CHECKS = frozenset({"check", "prefer"})
LASTING = ("lag", "stall", "kill", "mute", "late")  # of two at once, the last to end ends it
_STATUS = {
    Seen.UP: HostStatus.UP,
    Seen.DOWN: HostStatus.DOWN,
    Seen.UNKNOWN: HostStatus.UNKNOWN,
}


class Cluster(Struct, frozen=True):
    """What is simulated: hactl.yaml and relayd.conf, as the program would read them."""

    config: Config
    conf: RelaydConf
    plan: Plan
    facts: Facts
    layouts: tuple[Layout, ...]

    @property
    def timeouts(self) -> Mapping[str, float]:
        return {name: rule.timeout for name, rule in self.plan.rules.items()}


def cluster(config: Config, conf: RelaydConf) -> Cluster:
    """Put both files together; a service that relayd.conf lacks has no seats."""
    plan = plan_of(config)
    layouts: list[Layout] = []
    for service in conf.services:
        mine = plan.services.get(service.name)
        if mine is None or any(each.name == service.name for each in layouts):
            continue
        seats = []
        for position, table in enumerate(service.tables):
            words: dict[str, int] = {}
            for host in table.hosts:
                words[host.name] = words.get(host.name, 0) + 1
                again = f"#{words[host.name]}" if words[host.name] > 1 else ""
                member = Member(service.name, position, host.name + again)
                seats.append(Seat(member, plan.node_of(host.name) or host.name))
        layouts.append(Layout(service.name, tuple(seats), mine.require))
    return Cluster(config, conf, plan, facts_of(conf), tuple(layouts))


class Moment(NamedTuple):
    """A line of the timeline: seconds from the start, who (`world`, `hactl`, `relayd`), what."""

    at: float
    who: str
    text: str


class Stretch(NamedTuple):
    """Who was in pf from a time on, for pictures."""

    at: float
    service: str
    serving: frozenset[Member]


class Watcher:
    """Looks on while a world runs; the rules are held by watchers."""

    def action(self, world: World, action: Action) -> None:
        """Call before each command, its intent not yet noted."""

    def acted(self, world: World, action: Action) -> None:
        """Call after each command that relayd carried out."""

    def cycled(self, world: World) -> None:
        """Call after each cycle of hactld."""

    def turned(self, world: World, event: Event, begins: bool) -> None:
        """Call after an edge."""

    def ended(self, world: World) -> None:
        """Call at the end."""


class Run(Struct, frozen=True):
    """What a run left behind."""

    figures: dict[str, Figures]
    timeline: tuple[Moment, ...]
    stretches: tuple[Stretch, ...]
    seconds: float


class World:
    """One run; with *steers* false relayd is alone with its own checks."""

    def __init__(
        self,
        what: Cluster,
        events: Sequence[Event],
        duration: float,
        *,
        seed: int = 0,
        steers: bool = True,
        leap: bool = True,
        watchers: Sequence[Watcher] = (),
        record: bool = True,
    ) -> None:
        self.cluster = what
        self.events = events
        self.duration = duration
        self.rng = random.Random(seed)
        self.truth = Truth(events)
        self.ledger = Ledger(what.layouts)
        self.timeline: list[Moment] = []
        self.stretches: list[Stretch] = []
        self.log: list[tuple[float, Action]] = []
        self.watchers = watchers
        self.now = START - WARMUP
        self._wall = WALL  # the wall clock when `now` is zero, as somebody set it
        self._clock = Clock(lambda: self.now, wall=lambda: self.now + self._wall)
        self.end = START + duration
        self.model = Model()
        self.down = False  # relayd is
        self.mute = False  # relayctl is
        self.late = False  # relayctl's answers are, and are not waited for
        self.lag = self.stalled = False
        self._lasting = dict.fromkeys(LASTING, 0)  # how many of each are under way
        self._off = 0  # and how many that keep relayd down
        self.foreign: set[Member] = set()  # disabled by hand, and seen by hactl
        self.reborn: float | None = None  # when hactld was last started
        self.changed_at = self.now  # when anything last happened that decisions depend on
        self.verdicts: dict[Probe, list[Verdict]] = {}  # the newest three
        self.inputs = 0  # counts all that may move decisions
        self.hooked: dict[str, set[str]] = {  # whom relayd's scripts call down
            name: set() for name, service in what.plan.services.items() if service.hook
        }
        self.engine: Engine | None = None
        self.skipped = 0.0  # seconds leapt over
        self._leaps = leap
        self._record = record
        self._seats = {seat.member: seat for each in what.layouts for seat in each.seats}
        self._timeouts = what.timeouts
        self._shift = 0
        self._conf = what.conf
        self._edges = truth_.edges(events, duration)
        self._edges.reverse()
        self._relayd: list[tuple[float, int, Check, bool]] = []
        self._flights: list[tuple[float, int, Checked]] = []
        self._serial = 0
        self._dirty = True
        self._shown: tuple[Service, ...] = ()
        self._stale_show = True
        self._serving: dict[str, frozenset[Member]] = {}
        self._bad: dict[str, tuple[int, dict[Member, float]]] = {}  # of an epoch of the truth
        self._found: dict[int, HostStatus] = {}  # what relayd last knew of each host
        self._called: set[Member] = set()  # brought back by others than checks: floor, operator
        self._last_out: dict[Member, int] = {}
        self._last_cause: dict[Member, str] = {}
        self._dead: Engine | None = None
        self._started = False
        self._load(self.now - self.rng.random() * what.conf.interval)
        if steers:
            self.engine = Engine(what.plan, what.facts, self.now)
        self._planned = self.now + round(self.rng.random(), 3)
        self._awaited = float("inf")  # when a wait of the engine ends
        self._wake = False

    # Time

    def run(self) -> Run:
        """Run to the end and return the figures."""
        while self.now < self.end:
            self.settle()
            target = self._next()
            if self._leaps and target - self.changed_at > CALM:
                self._leap()
                target = self._next()
            self.now = max(self.now, min(target, self.end))
            if self.now >= self.end:
                break
            self._moment()
        self.settle()
        for watcher in self.watchers:
            watcher.ended(self)
        figures = self.ledger.close(self.end)
        return Run(figures, tuple(self.timeline), tuple(self.stretches), self.duration)

    def _next(self) -> float:
        """Return when the next thing happens."""
        next_ = self.end
        if not self._started:
            next_ = START
        elif self._edges:
            next_ = min(next_, START + self._edges[-1].at)
        if self._relayd:
            next_ = min(next_, self._relayd[0][0])
        event = self.model.next_event_time
        if event is not None and event < next_:
            next_ = event
        engine = self.engine
        if engine is not None and not self.stalled:
            if self._flights and self._flights[0][0] < next_:
                next_ = self._flights[0][0]
            due = engine.next_look()
            if due < next_:
                next_ = due
            cycle = self._cycle_at()
            if cycle < next_:
                next_ = cycle
        return next_

    def _cycle_at(self) -> float:
        """Return when hactld cycles next; waits change in a cycle alone."""
        return min(self._planned, self._awaited)

    def _leap(self) -> None:
        """Pass over calm time: only relayd's rounds happen until shortly before something does."""
        engine = self.engine
        if engine is None or self.stalled or self._flights or self._wake or not self._still():
            return
        until = min(self.end, START + self._edges[-1].at if self._edges else self.end)
        if not self._started:
            return
        until = min([until, *(end for end in self._ends() if end > self.now)]) - LANDING
        if until - self.now < LANDING:
            return
        began, changed = self.now, self.changed_at
        while self.changed_at == changed:
            times = [t for t in (self.model.next_event_time,) if t is not None]
            times += [self._relayd[0][0]] if self._relayd else []
            next_ = min(times, default=until)
            if next_ >= until:
                self.now = max(self.now, until)
                break
            self.now = max(self.now, next_)
            self._run_relayd()
            self.settle()
        self.skipped += self.now - began
        self._planned += CYCLE * max(0, (self.now - self._planned) // CYCLE)

    def _still(self) -> bool:
        """Tell whether looks would find nothing new for as long as nothing happens."""
        if self.truth.restless or self.lag or self.mute or self.down:
            return False
        engine = self.engine
        assert engine is not None
        return not engine.waits and not any(
            h.suspect or h.streak or h.turns or h.count for h in engine.healths.values()
        )

    def _ends(self) -> Iterator[float]:
        """Yield when what decisions wait for will be over."""
        engine = self.engine
        assert engine is not None
        yield engine.next_moment(self.now)
        yield from (o.ends for o in engine.overrides.values() if o.ends is not None)
        for decision in engine.decisions.values():
            yield from (n.until for n in decision.chain if n.until is not None)
        for memory in engine.memories.values():
            yield from (hold.until for hold in memory.holds.values())
            for guard in memory.guards.values():
                yield from (guard.until, guard.removed + LOAD)

    def _moment(self) -> None:
        """Do all that is due now."""
        now = self.now
        if not self._started and now >= START:
            self._started = True
            self.settle()
            self.ledger.start(START)
            for name, serving in self._serving.items():
                self.stretches.append(Stretch(0.0, name, serving))
        while self._started and self._edges and START + self._edges[-1].at <= now:
            self._turn(self._edges.pop())
        self._run_relayd()
        if self.engine is None or self.stalled:
            return
        while self._flights and self._flights[0][0] <= now:
            self._feed(heappop(self._flights)[2])
        self._look()
        if self.engine is not None and (self._wake or now >= self._cycle_at()):
            self._cycle()

    # Faults and deeds

    def _turn(self, edge: Edge) -> None:
        event = self.events[edge.number]
        self._say("world", f"{event}{'' if edge.begins else ' ends'}")
        self._changed()
        if event.do in FAULTS or event.do == "cut":
            self.ledger.settle(self.now)
            self.truth.turn(edge)
            self._dirty = True
        else:
            self._deed(event, edge.begins)
        for watcher in self.watchers:
            watcher.turned(self, event, edge.begins)

    def _deed(self, event: Event, begins: bool) -> None:
        if event.do in LASTING:
            self._lasting[event.do] += 1 if begins else -1
            if self._lasting[event.do] != (1 if begins else 0):
                return
        match event.do:
            case "lag":
                self.lag = begins
            case "mute":
                self.mute = begins
            case "late":
                self.late = begins
            case "ahead" | "back" if begins:
                self._wall += event.by if event.do == "ahead" else -event.by
            case "stall":
                self.stalled = begins
                self._planned = max(self._planned, self.now)
            case "kill":
                self._kill(begins)
            case "reload" if begins and not self.down:
                self._shift += event.shift
                self._load(self.now)
            case "restart" | "down":
                self._restart(event, begins)
            case "disable" | "enable" if begins:
                self._by_hand(event)
            case "drain" | "maint" | "pin" | "freeze" | "hands-off" | "resume" | "thaw" if begins:
                self._order(event)

    def _restart(self, event: Event, begins: bool) -> None:
        if event.lasts:
            self._off += 1 if begins else -1
        if begins and not self.down:
            self._relayd.clear()
            if event.do == "restart":
                self.model.stop()
            else:
                self.model.crash("pfe: ended by the schedule")
            self.down = True
            self.foreign.clear()
            self._touched()
        if self.down and not self._off:
            self.down = False
            self.model = Model(pf=self.model.pf)
            self._load(self.now)

    def _load(self, now: float) -> None:
        conf = _shifted(self._conf, self._shift)
        self.model.load(conf, now)
        self._loaded = self.now
        self.foreign.clear()
        self._touched()

    def _kill(self, begins: bool) -> None:
        """Kill hactld, or start it with what its store kept."""
        if begins:
            self._dead, self.engine = self.engine, None
            self._flights.clear()
            return
        old = self._dead
        if old is None:
            return
        new = Engine(self.cluster.plan, self.cluster.facts, self.now, counter=old.counter + BLOCK)
        keep(old, new, self._clock)
        self.engine = new
        self.reborn = self.now
        self._planned, self._awaited, self._wake = self.now, float("inf"), True

    def members(self, targets: Sequence[str]) -> list[Member]:
        """Return the members that NODE, SERVICE or SERVICE/NODE mean; all for none."""
        return [
            member
            for member, seat in self._seats.items()
            if not targets
            or {seat.node, member.service, f"{member.service}/{seat.node}"} & set(targets)
        ]

    def _by_hand(self, event: Event) -> None:
        """Switch hosts as an operator with relayctl.

        One who does it between a load of relayd and hactl's next look is told from hactl by relayd's
        socket and counts alone, which are simulated in hactl.lab.siege and not here; one who enables
        a host and disables it between two looks is not told at all.
        """
        shown = self.engine.observation if self.engine is not None else None
        seen = shown is not None and shown.at > self._loaded
        for member in self.members(event.to):
            host = self._host_id(member)
            if host is None:
                continue
            standing = self.engine.standings.get(member) if self.engine is not None else None
            known = seen and standing is not None and standing.status is not HostStatus.DISABLED
            was = self.model.hosts[host].disabled
            self.model.command(("host", event.do, str(host)), self.now)
            if event.do == "enable":
                self.foreign.discard(member)
            elif known and not was and not self.stalled:
                self.foreign.add(member)
            self._touched()
        self._wake = self.engine is not None  # hactl's next look comes before anything else

    def _host_id(self, member: Member) -> int | None:
        for service in self.model.services:
            if service.conf.name == member.service and member.table < len(service.tables):
                for host in service.tables[member.table].hosts:
                    if host.conf.name == member.host:
                        return host.conf.id
        return None

    def _order(self, event: Event) -> None:
        """Do as an operator says with hactl; a refusal is shown."""
        engine = self.engine
        if engine is None:
            return
        ends = None if event.lasts is None else self.now + event.lasts
        for target in event.to or ("all",):
            if event.do in ("resume", "thaw"):
                ended = engine.resume(target) if event.do == "resume" else engine.thaw(target)
                if not ended:
                    self._say("hactl", f"{target}: nothing to {event.do}")
            else:
                since, until = self._clock.wall(self.now), ends and self._clock.wall(ends)
                order = Override(target, event.do, "operator", "", since, until, ends)
                if refusal := engine.refusal(order):
                    self._say("hactl", f"refused: {refusal}")
                else:
                    engine.override(order)
        self._wake = True
        self._dirty = True

    # relayd

    def _touched(self) -> None:
        """Note that relayd or pf may show something else from now on."""
        self.ledger.settle(self.now)
        self._stale_show = self._dirty = True

    def _changed(self) -> None:
        """Note that something new happened to the world, or was learnt of it."""
        self.changed_at = self.now
        self.inputs += 1

    def _learnt(self, shown: tuple[Service, ...]) -> None:
        """Note what relayd found out by itself; what shows of our own commands is not new."""
        for service in shown:
            for table in service.tables:
                for host in table.hosts:
                    if host.status not in (HostStatus.UP, HostStatus.DOWN):
                        continue
                    if self._found.get(host.id, host.status) is not host.status:
                        self.inputs += 1
                    self._found[host.id] = host.status

    def _run_relayd(self) -> None:
        model, now = self.model, self.now
        while True:
            event = model.next_event_time
            if self._relayd and self._relayd[0][0] <= now:
                check, up = heappop(self._relayd)[2:]
                model.check_done(check, up, now)
            elif event is not None and event <= now:
                for check in model.advance(now):
                    self._answer(check)
            else:
                return
            self._touched()

    def _answer(self, check: Check) -> None:
        """Find out what relayd's own check of a host will say, and when."""
        name = check.name
        node = self.cluster.plan.node_of(name) or name
        mood = self.truth.mood(node, RELAYD)
        result, took = look(mood, check.deadline - check.started, self.rng, lambda: 0.0)
        self._serial += 1
        up = result.verdict is not Verdict.FAIL
        service = check.argument.rpartition("/")[2]
        if check.kind == "script" and service in self.hooked:
            up, took = name not in self.hooked[service], 0.0
        heappush(self._relayd, (self.now + took, self._serial, check, up))

    def show(self) -> Observation:
        """Return what `relayctl show summary` says, without writing and reading it."""
        if self._stale_show:
            shown = observe(self.model)
            if not _alike(shown, self._shown):
                self.changed_at = self.now
                self._learnt(shown)
            self._shown, self._stale_show = shown, False
        return Observation(self.now, self._shown)

    # hactld

    def _look(self) -> None:
        engine = self.engine
        assert engine is not None
        again = True
        while again and (probes := engine.due(self.now)):
            again = False  # a fail makes hactld look at its siblings between two slots
            for probe in probes:
                rule = self.cluster.plan.rules[probe.check]
                mood = self.truth.mood(probe.node, probe.check)
                if self.lag:
                    result, took = truth_.LAG, 0.0
                else:
                    result, took = look(
                        mood, rule.timeout, self.rng, partial(self.carried, probe.node)
                    )
                checked = Checked(probe, self.now, self.now + took, result)
                if took:
                    self._serial += 1
                    heappush(self._flights, (self.now + took, self._serial, checked))
                else:
                    again = again or result.verdict is Verdict.FAIL
                    self._feed(checked)

    def _feed(self, checked: Checked) -> None:
        engine = self.engine
        assert engine is not None
        probe, verdict = checked.probe, checked.result.verdict
        if self.lag and verdict is not Verdict.UNKNOWN:
            checked = replace(checked, result=truth_.LAG)
            verdict = Verdict.UNKNOWN
        newest = self.verdicts.setdefault(probe, [])
        if len(newest) < 3 or newest[0] is not verdict or newest[2] is not verdict:
            newest.append(verdict)
            del newest[:-3]
        before = engine.healths.get(probe)
        if engine.feed(checked):
            self._wake = True
        after = engine.healths.get(probe)
        if before is not None and after is not None and before.state is not after.state:
            self._changed()

    def carried(self, node: str) -> float:
        """Return the largest share of a service's traffic that goes to a node."""
        return max(
            (
                sum(self._seats[m].node == node for m in serving) / len(serving)
                for serving in self._serving.values()
                if serving
            ),
            default=0.0,
        )

    def _cycle(self) -> None:
        """Cycle as hactld does: read relayd, act once, read again, until both agree."""
        engine = self.engine
        assert engine is not None
        self._wake = False
        tried: set[tuple[str, ...]] = set()
        while True:
            if self.mute or self.down:
                engine.unseen("relayctl: show summary: no answer")
                break
            observation = self.show()
            engine.observed(observation, self.now, self.hooked)
            actions = engine.actions(self.now)
            self._report()
            action = next((a for a in actions if a.words() not in tried), None)
            if action is None:
                break
            tried.add(action.words())
            self._act(action)
            self._run_relayd()
            self.settle()
            if action.verb is Verb.POLL or self.late:
                break
        if self.now >= self._planned:
            self._planned += CYCLE * (1 + (self.now - self._planned) // CYCLE)
        self._awaited = engine.next_moment(self.now)
        if step := self._clock.stepped():
            for key, override in engine.overrides.items():
                engine.overrides[key] = shifted(override, step)
        self._report()
        for watcher in self.watchers:
            watcher.cycled(self)

    def _report(self) -> None:
        """Put the engine's events into the timeline: the decision before its action."""
        assert self.engine is not None
        for event in self.engine.events():
            if self._record:
                fields = " ".join(f"{name}={value}" for name, value in event.fields)
                self._say("hactl", f"{event.name} {fields}")

    def _act(self, action: Action) -> None:
        engine = self.engine
        assert engine is not None
        for watcher in self.watchers:
            watcher.action(self, action)
        again = self.issued_before(action)
        cause = engine.decisions[action.member].cause if action.member is not None else ""
        engine.intend(action)
        if action.hook and action.member is not None:
            down = action.verb is Verb.DISABLE
            words = self.hooked[action.member.service]
            (words.add if down else words.discard)(action.member.word)
            done = True
        else:
            reply = self.model.command(action.words(), self.now)
            done = reply.stdout == "command succeeded\n"
        self._touched()
        late = self.late and not action.hook
        engine.acted(action, self.now, done=done and not late, unsure=UNSURE if late else 0.0)
        self.log.append((self.now - START, action))
        what = [*action.words(), *([str(action.member)] if action.member else [])]
        self._say("hactl", f"{' '.join(what)}: {action.reason}")
        if action.verb is not Verb.POLL:
            self.changed_at = self.now
        if action.member is not None and done:
            self._count(action, cause, again)
        for watcher in self.watchers:
            watcher.acted(self, action)

    def issued_before(self, action: Action) -> bool:
        """Tell whether it repeats what relayd forgot: the same disable of the same decision."""
        return action.member is not None and self._last_out.get(action.member) == action.decision

    def _count(self, action: Action, cause: str, again: bool) -> None:
        """Count a change by checks; those of floor, operators and re-issues are not."""
        member = action.member
        assert member is not None
        account = self.ledger.accounts.get(member.service)
        if account is None:
            return
        account.figures.commands += self._started
        if action.verb is Verb.ENABLE:
            before = self._last_cause.pop(member, "")
            if cause in ("floor", "pin", "exclusive"):  # somebody has to be it
                self._called.add(member)
            elif before in BY_CHECKS and self._started:
                account.note(member, self.now, removal=False)
            return
        called = member in self._called
        self._called.discard(member)
        self._last_out[member] = action.decision
        if again or member in self._last_cause:
            return  # issued once more: relayd was reloaded, or somebody enabled it
        self._last_cause[member] = cause
        if cause in BY_CHECKS:
            if called:
                self._last_cause[member] = "floor"
            elif self._started:
                account.note(member, self.now, removal=True)

    # Who serves

    def serving(self, service: str) -> frozenset[Member]:
        """Return the members to which new clients of a service go."""
        return self._serving.get(service, frozenset())

    def settle(self) -> None:
        """Bring the accounts up to date after anything changed."""
        if not self._dirty:
            return
        self._dirty = False
        moved = False
        for layout in self.cluster.layouts:
            serving = served(self.model, layout)
            if serving != self._serving.get(layout.name):
                moved = True
                self._serving[layout.name] = serving
                if self._started:
                    self.stretches.append(Stretch(self.now - START, layout.name, serving))
                    names = ", ".join(sorted({m.host for m in serving})) or "nobody"
                    self._say("relayd", f"pf of {layout.name}: {names}")
            self._account(layout, serving)
        if moved:
            self.changed_at = self.now

    def _account(self, layout: Layout, serving: frozenset[Member]) -> None:
        position = min((m.table for m in serving), default=None)
        exclusive = bool(serving) and self.cluster.plan.services[layout.name].exclusive
        self.ledger.accounts[layout.name].set(
            self.now,
            serving,
            self._badness(layout),
            self._excused,
            lambda m: exclusive or (m.table != position and self._shown_up(m)),
            self._started,
        )

    def _badness(self, layout: Layout) -> dict[Member, float]:
        """Return how bad each member really is, 0 to 1."""
        epoch, bad = self._bad.get(layout.name, (-1, {}))
        if epoch != self.truth.epoch:
            bad = {
                s.member: self.truth.bad(s.node, layout.require, self._timeouts)
                for s in layout.seats
            }
            self._bad[layout.name] = (self.truth.epoch, bad)
        return bad

    def _shown_up(self, member: Member) -> bool:
        return any(
            host.up is Seen.UP and host.conf.name == member.host
            for service in self.model.services
            if service.conf.name == member.service
            for host in service.tables[member.table].hosts
        )

    def _excused(self, member: Member) -> bool:
        if member in self.foreign:
            return True
        engine = self.engine
        node = self._seats[member].node
        return engine is not None and any(
            o.kind in ("maint", "drain") and o.covers(member.service, node)
            for o in engine.overrides.values()
        )

    def _say(self, who: str, text: str) -> None:
        if self._record and self._started:
            self.timeline.append(Moment(self.now - START, who, text))


def keep(old: Engine, new: Engine, clock: Clock) -> None:
    """Give a new engine what the store keeps of the old one, and as it keeps it."""
    new.owned = dict(old.owned)
    for override in old.overrides.values():
        new.override(timed(override, clock))
    rows = {n: msgspec.json.encode(stored(m, clock)) for n, m in old.memories.items()}
    memories = {n: msgspec.json.decode(row, type=Lasting) for n, row in rows.items()}
    new.remember({name: restored(name, lasting, clock) for name, lasting in memories.items()})


def observe(model: Model) -> tuple[Service, ...]:
    """Return what `show summary` says of *model*; `relayctl.parse` of its text is the same."""
    return tuple(
        Service(
            s.conf.kind,
            s.conf.id,
            s.conf.name,
            s.status,
            ()
            if s.off
            else tuple(
                Table(
                    t.conf.id,
                    t.conf.shown,
                    t.status,
                    ()
                    if t.off
                    else tuple(
                        Host(
                            h.conf.id,
                            h.conf.name,
                            HostStatus.DISABLED if h.disabled else _STATUS[h.up],
                            h.conf.parent,
                            round(h.ups / h.checks * 100, 2) if h.checks else None,
                        )
                        for h in t.hosts
                    ),
                )
                for t in s.tables
            ),
        )
        for s in model.services
    )


def _alike(one: tuple[Service, ...], other: tuple[Service, ...]) -> bool:
    """Tell whether two shows differ in availability alone."""
    return _plain(one) == _plain(other)


def _plain(services: tuple[Service, ...]) -> list[tuple[object, ...]]:
    return [
        (s.id, s.status, t.id, h.id, h.status)
        for s in services
        for t in s.tables
        for h in t.hosts
    ]  # fmt: skip


def served(model: Model, layout: Layout) -> frozenset[Member]:
    """Return who gets the new clients of a service: pf's table, or a relay's targets."""
    service = next((s for s in model.services if s.conf.name == layout.name), None)
    if service is not None and service.conf.kind is Kind.RELAY:
        words = {address for address, _ in model.targets(service)}
        position = next((p for p, t in enumerate(service.tables) if t.count), 0)
    else:
        words = set(model.pf.tables.get(layout.name, ()))
        position = 1 if service is not None and service.backup else 0
    if not words:
        return frozenset()
    found = frozenset(
        s.member for s in layout.seats if s.member.table == position and s.member.host in words
    )
    return found or frozenset(s.member for s in layout.seats if s.member.host in words)


def _shifted(conf: RelaydConf, shift: int) -> RelaydConf:
    """Return *conf* as if other tables and hosts stood before it: every id is *shift* more."""
    if not shift:
        return conf
    return replace(
        conf,
        services=tuple(
            replace(
                service,
                id=service.id + shift,
                tables=tuple(
                    replace(
                        table,
                        id=table.id + shift,
                        hosts=tuple(
                            replace(
                                host,
                                id=host.id + shift,
                                parent=None if host.parent is None else host.parent + shift,
                            )
                            for host in table.hosts
                        ),
                    )
                    for table in service.tables
                ),
            )
            for service in conf.services
        ),
    )
