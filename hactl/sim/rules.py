"""rules: the ten that are not negotiable, held over a run by looking on.

A Watch is told of every command, cycle, change of pf and edge of the schedule, and notes a
Violation where a rule is broken.  Rules 7 (nothing hangs on another probe) and 8 (nothing is
claimed unmeasured) are the runner's, and no simulation of decisions can break them.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from hactl.core.engine import Engine
from hactl.core.health import State
from hactl.core.model import Action, HostStatus, Member, Verb, Verdict, Want
from hactl.core.policy import Fate, Standing, lane, newest_ok
from hactl.sim.ledger import worst_hour
from hactl.sim.truth import Event
from hactl.sim.world import BY_CHECKS, START, Watcher, World

RULES = {
    1: "hactl never removes the last serving member",
    2: "unknown alone never moves anything",
    3: "an exclusive service never has two members in pf",
    4: "foreign disables, maint and pin are never outvoted",
    5: "needed commands come within a cycle, or say what they wait for",
    6: "at most 7 removals and 15 changes by checks per member in an hour",
    9: "while nobody passes, checks remove nothing",
    10: "no limit cycles",
}
LATE = 2.5  # seconds: two cycles of hactld and a poll's way
EMPTY = 2.6  # seconds: rule 1's poll pair and cycle, and the dwell of an enable
BUSY = 6  # commands to one member with nothing new to decide on
POLLS = 60  # polls in ten minutes with nothing new


class Violation(Struct, frozen=True):
    """Rule *rule* was broken *at* a second, in words."""

    rule: int
    at: float
    text: str

    def __str__(self) -> str:
        return f"rule {self.rule} ({RULES[self.rule]}) at {self.at:.1f}s: {self.text}"


class Watch(Watcher):
    """Holds all rules at once; *violations* has the first of each kind and member."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._said: set[tuple[int, str]] = set()
        self._before: dict[str, frozenset[Member]] = {}
        self._late: dict[Member, float] = {}
        self._held: dict[Member, float] = {}
        self._inputs = -1
        self._commands: dict[Member, int] = {}
        self._polls: list[float] = []
        self._news = 0.0
        self._blind = (
            START  # when hactl last could not see relayd, or tell what became of a command
        )
        self._unanswered = False  # this cycle's last command, with which a cycle ends

    def _say(self, world: World, rule: int, who: object, text: str) -> None:
        if (rule, str(who)) not in self._said:
            self._said.add((rule, str(who)))
            self.violations.append(Violation(rule, round(world.now - START, 3), text))

    # Commands

    def action(self, world: World, action: Action) -> None:
        world.settle()
        self._before = {each.name: world.serving(each.name) for each in world.cluster.layouts}
        if action.member is None:
            self._poll(world)
            return
        self._quiet(world, action.member)
        if action.verb is Verb.DISABLE:
            self._disable(world, action, action.member)
        else:
            self._enable(world, action, action.member)

    def _disable(self, world: World, action: Action, member: Member) -> None:
        engine = world.engine
        assert engine is not None
        cause = engine.decisions[member].cause
        standing = engine.standings[member]
        override = standing.override
        if override is not None and override.kind == "pin" and cause != "maint":
            self._say(world, 4, member, f"{member} is pinned and was disabled ({cause})")
        memory = engine.memories.get(member.service)
        again = world.issued_before(action) or (memory is not None and member in memory.out)
        if cause not in BY_CHECKS or not standing.enabled or again:
            return  # nobody is removed who is out: relayd forgot it, or the hook takes over
        plan = world.cluster.plan.services[member.service]
        probes = (*standing.probes, *standing.prefers)
        newest = [world.verdicts.get(p, []) for p in probes]
        if all(not n or set(n) == {Verdict.UNKNOWN} for n in newest):
            self._say(world, 2, member, f"{member} disabled on unknown results: {action.reason}")
        if plan.open and not plan.exclusive:
            passing = [
                m
                for m, s in engine.standings.items()
                if m.service == member.service and s.node is not None and not _failing(engine, s)
            ]
            if not passing:
                self._say(world, 9, member, f"{member} disabled while nobody passes")

    def _enable(self, world: World, action: Action, member: Member) -> None:
        engine = world.engine
        assert engine is not None
        standing, decision = engine.standings[member], engine.decisions[member]
        if member in world.foreign:
            self._say(world, 4, member, f"{member}, disabled by hand, was enabled")
        if standing.override is not None and standing.override.kind == "maint":
            self._say(world, 4, member, f"{member} in maintenance was enabled")
        newest = [world.verdicts.get(p, [])[-3:] for p in standing.probes]
        rest = [
            s.status
            for m, s in engine.standings.items()
            if m.service == member.service and m != member
        ]
        # relayd itself has seen the need if it shows nobody up, or fewer than preferring needs
        preferred = standing.owned is not None and standing.owned.cause == "prefer"
        seen = HostStatus.UP not in rest or (preferred and HostStatus.DOWN in rest)
        if (
            decision.cause == ""
            and standing.owned is not None
            and standing.owned.cause in BY_CHECKS
            and not seen
            and newest
            and all(n and set(n) == {Verdict.UNKNOWN} for n in newest)
            and (world.reborn is None or world.now > world.reborn + 60)
        ):
            self._say(world, 2, member, f"{member} enabled while every check is unknown")

    def acted(self, world: World, action: Action) -> None:
        self._unanswered = world.late and not action.hook
        member, engine = action.member, world.engine
        if member is None or action.verb is not Verb.DISABLE or engine is None:
            return
        world.settle()
        plan = world.cluster.plan.services[member.service]
        cause = engine.decisions[member].cause
        closed = not plan.open or plan.exclusive
        if self._before.get(member.service) and not world.serving(member.service):
            again = member not in self._before[member.service]
            if cause != "maint" and not closed and not again:
                self._say(world, 1, member.service, f"disabling {member} ({cause}) emptied pf")

    def _quiet(self, world: World, member: Member) -> None:
        """Rule 10: few commands to a member unless something new was learnt."""
        if world.inputs != self._inputs:
            self._inputs = world.inputs
            self._commands.clear()
        self._commands[member] = self._commands.get(member, 0) + 1
        if self._commands[member] > BUSY:
            self._say(world, 10, member, f"{member} is switched again and again with nothing new")

    def _poll(self, world: World) -> None:
        if self._news != world.changed_at:
            self._news = world.changed_at
            self._polls.clear()
        self._polls = [at for at in self._polls if at > world.now - 600]
        self._polls.append(world.now)
        if len(self._polls) > POLLS:
            self._say(world, 10, "poll", "relayd is polled on and on with nothing new")

    # Cycles

    def cycled(self, world: World) -> None:
        engine = world.engine
        assert engine is not None
        if engine.blind or world.now < START:
            self._late.clear()
            self._held.clear()
            self._blind = world.now
            return
        if self._unanswered:  # one command a cycle then: what else is needed waits for the next
            self._unanswered = False
            self._late.clear()
            out = {m for m in self._held if engine.decisions[m].want is Want.OUT}
            self._held = {m: self._held[m] for m in out}  # those wanted in wait for their turn
            self._blind = world.now
        self._exclusive(world)
        frozen = {s for s in world.cluster.plan.services if self._frozen(world, s)}
        for member, decision in engine.decisions.items():
            standing = engine.standings.get(member)
            if standing is None:
                continue
            differs = (decision.want is Want.OUT and standing.enabled) or (
                decision.want is Want.IN and standing.status is HostStatus.DISABLED
            )
            acts = world.cluster.plan.services[member.service].acts
            if not differs or member in engine.waits or member.service in frozen or not acts:
                self._late.pop(member, None)
            elif world.now > self._late.setdefault(member, world.now) + LATE:
                self._say(
                    world, 5, member, f"{member} is not {decision.want}, and nothing says why"
                )
            self._kept(world, member)

    def _frozen(self, world: World, service: str) -> bool:
        assert world.engine is not None
        return any(
            o.kind in ("freeze", "hands-off") and o.target in (service, "all")
            for o in world.engine.overrides.values()
        )

    def _kept(self, world: World, member: Member) -> None:
        """Rule 1: while pf is empty no passing member is held back for long."""
        engine = world.engine
        assert engine is not None
        standing = engine.standings[member]
        held = (
            not world.serving(member.service)
            and standing.status is HostStatus.DISABLED
            and standing.owned is not None
            and standing.owned.cause in BY_CHECKS
            and all(engine.healths[p].state is State.UP for p in standing.probes)
            and newest_ok(standing, engine.healths)  # nobody knows that of one cut off
            and not (standing.override and standing.override.kind == "maint")
            and not self._frozen(world, member.service)
            and not self._another(world, member)
        )
        if not held:
            self._held.pop(member, None)
        elif world.now > self._held.setdefault(member, world.now) + EMPTY:
            self._say(world, 1, member.service, f"pf is empty while {member}, which passes, is out")

    def _another(self, world: World, member: Member) -> bool:
        """Tell whether an exclusive service has its one: pinned, up, or in and not failing."""
        engine = world.engine
        assert engine is not None
        return world.cluster.plan.services[member.service].exclusive and any(
            s.status is HostStatus.UP
            or (s.override is not None and s.override.kind == "pin")
            or (s.enabled and not _failing(engine, s))
            for other, s in engine.standings.items()
            if other.service == member.service and other != member
        )

    def _exclusive(self, world: World) -> None:
        for name, plan in world.cluster.plan.services.items():
            sure = world.now > max(self._blind, world.reborn or START) + LATE + 1
            if plan.exclusive and sure and len(world.serving(name)) > 1:
                self._say(world, 3, name, f"{name} has two members in pf")

    def turned(self, world: World, event: Event, begins: bool) -> None:
        if event.do in ("mute", "stall", "kill", "restart", "down", "freeze", "hands-off"):
            self._blind = world.now
        self._late.clear()
        self._held.clear()

    def ended(self, world: World) -> None:
        for account in world.ledger.accounts.values():
            for member, times in account.removed.items():
                if worst_hour(times) > 7:
                    text = f"{member} was removed {worst_hour(times)} times in an hour"
                    self._say(world, 6, member, text)
            for member, times in account.changed.items():
                if worst_hour(times) > 15:
                    text = f"{member} was changed {worst_hour(times)} times in an hour"
                    self._say(world, 6, member, text)


def _failing(engine: Engine, standing: Standing) -> bool:
    """Tell whether a required check speaks against a member, as policy counts it."""
    for probe in standing.probes:
        if engine.healths[probe].state is not State.DOWN:
            continue
        fate = engine.fates.get(lane(probe), Fate())
        waits = standing.enabled and (standing.node, probe) in fate.waits
        if not waits and not fate.suppresses(standing.node, probe):
            return True
    return False


def broken(violations: Sequence[Violation]) -> list[int]:
    """Return the numbers of the rules that were broken."""
    return sorted({v.rule for v in violations})
