"""The rules that are not negotiable, held all at once against random histories of faults.

A state machine makes the histories.  Each rule fails on an example with a core that was broken on
purpose: the last test breaks them one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from hactl.core import explain, health, policy, reconcile
from hactl.core.engine import Engine
from hactl.core.health import Health, State
from hactl.core.model import (
    Action,
    Checked,
    HostStatus,
    Member,
    Override,
    Probe,
    Result,
    Rule,
    ServicePlan,
    Verb,
    Verdict,
    Want,
)
from hactl.core.policy import Standing, lane
from hactl.core.reconcile import Polling, Step
from hactl.core.schedule import BLINK, SLOT
from tests.core.world import LOST, OK, REFUSED, SILENT, World

Tables = Mapping[str, tuple[tuple[str, ...], ...]]
SHAPES: tuple[Tables, ...] = (
    {"mx": (("A", "B"),)},
    {"mx": (("A", "B", "C"),)},
    {"mx0": (("A",), ("B",)), "mx1": (("B",), ("A",))},
    {"mx": (("A", "B"), ("C",)), "imap": (("A", "B"),)},
)
CHECKS = ("smtp", "nfs")
MOODS = {"ok": OK, "refused": REFUSED, "silent": SILENT, "unknown": LOST}
PAIR, THREE = SHAPES[:2]


class Event(NamedTuple):
    """After *wait* seconds *what* happens to *who*."""

    wait: float
    what: str
    who: str = ""


WAITS = st.sampled_from((0.0, 0.3, 0.9, 2.1, 5.0, 12.0, 31.0))
WHO = st.sampled_from("ABC")
LOOKS = st.sets(st.tuples(WHO, st.sampled_from(CHECKS)))
EXAMPLES = int(os.environ.get("EXAMPLES", "60"))
quickly = settings(
    max_examples=EXAMPLES,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Watched(World):
    """A world in which rules are held at each command and after each cycle."""

    def __init__(
        self,
        tables: Tables,
        plans: Mapping[str, ServicePlan] | None = None,
        at_commands: Iterable[AtCommand] = (),
        after_cycles: Iterable[AfterCycle] = (),
    ) -> None:
        self.moods: dict[tuple[str, str], Result] = {}
        self.touched: set[tuple[str, str]] = set()  # what was ever told to answer otherwise
        self.dead: set[str] = set()
        self.foreign: set[tuple[str, int, str]] = set()
        self.at_commands, self.after_cycles = tuple(at_commands), tuple(after_cycles)
        self.fed: dict[Probe, list[Checked]] = {}
        super().__init__(
            tables,
            checks=CHECKS,
            interval=5.0,
            plans=plans or {},
            say=lambda probe, now: self.moods.get((probe.node, probe.check), OK),
            tcp=lambda word, now: word not in self.dead,
        )

    def carry_out(self, action: Action) -> None:
        if action.member is not None:
            for held in self.at_commands:
                held(self, action, action.member)
        super().carry_out(action)

    def act(self) -> None:
        super().act()
        for held in self.after_cycles:
            held(self)

    def feed(self, checked: Checked) -> bool:
        self.fed.setdefault(checked.probe, []).append(checked)
        return super().feed(checked)

    def restart_hactld(self) -> None:
        super().restart_hactld()
        self.fed.clear()
        self.looks.clear()

    def happen(self, event: Event) -> None:
        """Let time pass, then let the event happen."""
        self.run(event.wait)
        kind, _, how = event.what.partition(" ")
        if kind in self.checks:
            self.moods[event.who, kind] = MOODS[how]
            self.touched.add((event.who, kind))
        elif kind == "disables":
            self.refused = {Verb.DISABLE} if how == "refused" else set()
        elif kind == "tcp":
            (self.dead.add if how == "dead" else self.dead.discard)(event.who)
        elif kind == "foreign":
            self.disable_by_hand(event.who)
        elif kind in ("maint", "drain"):
            self.engine.override(Override(event.who, kind, "root", "", 0.0))
        elif kind == "resume":
            self.engine.resume(event.who)
        elif what := {"reload": self.reload, "restart": self.restart_hactld}.get(kind):
            what()

    def disable_by_hand(self, word: str) -> None:
        """An operator runs `relayctl host disable`; hactl saw the host before, and sees this.

        (One who does it between a reload and hactl's next look cannot be told from hactl.)
        """
        self.act()
        for key, host in self.hosts.items():
            if host.word == word and not host.disabled:
                host.disabled, host.status, host.in_pf = True, HostStatus.UNKNOWN, False
                self.foreign.add(key)
        self.sync()
        self.act()

    def reload(self) -> None:
        self.foreign.clear()
        self.load(first_id=max(h.id for h in self.hosts.values()) + 7)

    def members(self, service: str) -> Iterable[Member]:
        return (m for m in self.engine.standings if m.service == service)

    def passing(self, service: str) -> set[Member]:
        """The members none of whose required checks is down, shared fate left out."""
        return {
            member
            for member in self.members(service)
            if not any(
                self.engine.healths[p].state is State.DOWN
                and not self.engine.fates[lane(p)].suppresses(p.node, p)
                for p in self.engine.standings[member].probes
            )
        }

    def cause(self, member: Member) -> str:
        return self.engine.decisions[member].cause


AtCommand = Callable[[Watched, Action, Member], None]
AfterCycle = Callable[[Watched], None]


# The rules, by number: those held at each command


def the_last_serving_member_is_never_removed(world: Watched, action: Action, who: Member) -> None:
    if action.verb is not Verb.DISABLE or world.cause(who) == "maint":
        return
    up = {
        key for key, host in world.hosts.items()
        if key[0] == who.service and host.status is HostStatus.UP and not host.disabled
    }  # fmt: skip
    assert who not in up or up - {who}, f"rule 1: {who.service} is emptied: {action}"


def foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone(
    world: Watched, action: Action, who: Member
) -> None:
    if action.verb is not Verb.ENABLE:
        return
    assert tuple(who) not in world.foreign, f"rule 4: foreign is undone: {action}"
    override = world.engine.standings[who].override
    if override is not None:
        assert override.kind == "drain", f"rule 4: maint is outvoted: {action}"
        standings = world.engine.standings
        enough = {  # the floor is one member in all of these worlds
            m
            for m in world.passing(who.service)
            if standings[m].status is HostStatus.UP and standings[m].override is None
        }
        assert world.cause(who) == "floor", f"rule 4: drain is outvoted: {action}"
        assert not enough, f"rule 4: drain is outvoted though {enough} serve: {action}"


def while_nobody_passes_checks_remove_nothing(world: Watched, action: Action, who: Member) -> None:
    if action.verb is Verb.DISABLE and world.cause(who) == "check":
        assert world.passing(who.service), f"rule 9: nobody passes, yet {action}"


# Those held after each cycle


def who_is_in_maintenance_is_out(world: Watched) -> None:
    for key, host in world.hosts.items():
        override = world.engine.overrides.get(host.word)
        if override is not None and override.kind == "maint":
            assert host.disabled, f"rule 4: {key} serves in maintenance"


def what_is_needed_is_done_in_one_cycle_or_says_what_it_waits_for(world: Watched) -> None:
    for member, decision in world.engine.decisions.items():
        off = world.hosts[member.service, member.table, member.host].disabled
        if (decision.want is Want.OUT and not off) or (decision.want is Want.IN and off):
            wait = world.engine.waits.get(member)
            assert wait is not None, f"rule 5: {member} should be {decision.want}"
            assert wait.rule in ("guard", "dwell"), f"rule 5: {member} waits for {wait.rule}"


def nothing_is_claimed_that_was_not_measured(world: Watched) -> None:
    """(A probe that fails in a row is joined by its siblings; all of it comes through `feed`.)"""
    for view in explain.snapshot(world.engine, world.now, "", (), {}).probes:
        fed = world.fed.get(Probe(view.node, view.check, view.address), [])
        opinions = [c.started for c in fed if c.result.verdict is not Verdict.UNKNOWN]
        newest = fed[-1].result.verdict if fed else ""
        assert view.newest == newest, f"rule 8: {view} is not {newest}"
        ago = world.now - opinions[-1] if opinions else None
        assert view.looked_seconds_ago == ago, f"rule 8: {view} was looked at {ago} ago"
        old = ago is not None and ago > 3 * world.rule.interval + world.rule.timeout
        assert view.stale or not old, f"rule 8: {view} is not stale"


# Those held at the end


def no_probe_waits_for_one_that_hangs(world: Watched) -> None:
    looks: dict[Probe, list[float]] = {}
    for at, probe in world.looks:
        looks.setdefault(probe, []).append(at)
    for probe, times in looks.items():
        if (probe.node, probe.check) not in world.touched:
            gaps = [b - a for a, b in pairwise(times)]
            longest = world.rule.interval + SLOT
            assert max(gaps, default=0.0) <= longest, f"rule 7: {probe} had to wait"


def with_fixed_health_and_a_settled_relayd_nothing_happens(world: Watched) -> None:
    world.run(120)
    done = len(world.log)
    world.run(60)
    assert world.log[done:] == [], f"rule 10: {world.log[done:]}"


def unknown_alone_moves_nothing(world: Watched, lost: Collection[tuple[str, str]]) -> None:
    done = len(world.switches())
    world.moods |= dict.fromkeys(lost, LOST)
    world.run(120)
    assert world.switches()[done:] == [], f"rule 2: {world.switches()[done:]}"


def all_ends_well_once_everything_is_well_again(world: Watched) -> None:
    world.moods.clear()
    world.dead.clear()
    world.engine.overrides.clear()
    world.run(60)
    assert {k for k, host in world.hosts.items() if host.disabled} == world.foreign
    for service in world.tables:
        foreign = {key for key in world.foreign if key[0] == service}
        keys = {key for key in world.hosts if key[0] == service}
        assert world.serving(service) or foreign == keys


def cluster(tables: Tables) -> Watched:
    """Return a world that has come up, with every rule held."""
    world = Watched(
        tables,
        at_commands=(
            while_nobody_passes_checks_remove_nothing,
            the_last_serving_member_is_never_removed,
            foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone,
        ),
        after_cycles=(
            who_is_in_maintenance_is_out,
            what_is_needed_is_done_in_one_cycle_or_says_what_it_waits_for,
            nothing_is_claimed_that_was_not_measured,
        ),
    )
    world.run(20)
    return world


def end(world: Watched, lost: Collection[tuple[str, str]] = ()) -> None:
    """Hold what can be told at the end alone; *lost*: looks that become unknown then."""
    world.run(20)
    no_probe_waits_for_one_that_hangs(world)
    with_fixed_health_and_a_settled_relayd_nothing_happens(world)
    unknown_alone_moves_nothing(world, lost)
    all_ends_well_once_everything_is_well_again(world)


class AnyHistory(RuleBasedStateMachine):
    """Anything may happen to a cluster, at any time; every rule holds all along."""

    @initialize(tables=st.sampled_from(SHAPES), lost=LOOKS)
    def begin(self, tables: Tables, lost: set[tuple[str, str]]) -> None:
        self.world, self.lost = cluster(tables), lost

    @rule(wait=WAITS, who=WHO, check=st.sampled_from(CHECKS), how=st.sampled_from(list(MOODS)))
    def a_check_answers_otherwise(self, wait: float, who: str, check: str, how: str) -> None:
        self.world.happen(Event(wait, f"{check} {how}", who))

    @rule(wait=WAITS, who=WHO, how=st.sampled_from(("refused", "silent")))
    def smtp_fails(self, wait: float, who: str, how: str) -> None:
        self.world.happen(Event(wait, f"smtp {how}", who))

    @rule(wait=WAITS, who=WHO, how=st.sampled_from(("dead", "well")))
    def relayd_sees_a_node_otherwise(self, wait: float, who: str, how: str) -> None:
        self.world.happen(Event(wait, f"tcp {how}", who))

    @rule(wait=WAITS, who=WHO, what=st.sampled_from(("foreign", "maint", "drain", "resume")))
    def an_operator_acts(self, wait: float, who: str, what: str) -> None:
        self.world.happen(Event(wait, what, who))

    @rule(wait=WAITS, what=st.sampled_from(("reload relayd", "restart hactld")))
    def something_starts_anew(self, wait: float, what: str) -> None:
        self.world.happen(Event(wait, what))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            end(self.world, self.lost)


def test_a_few_histories_break_no_rule() -> None:
    run_state_machine_as_test(AnyHistory, settings=settings(quickly, max_examples=4))


@pytest.mark.long
def test_many_histories_break_no_rule() -> None:
    run_state_machine_as_test(AnyHistory, settings=quickly)


# Rules that need a world of their own

REFUSALS = st.lists(
    st.builds(
        Event, WAITS,
        st.sampled_from(("disables refused", "disables ok", "smtp refused", "smtp silent", "smtp ok",
                         "nfs unknown", "nfs ok", "tcp dead", "tcp well", "foreign", "maint",
                         "drain", "resume", "reload relayd", "restart hactld")),
        WHO,
    ), max_size=14,
)  # fmt: skip


def exclusive(tables: Tables) -> Watched:
    """Return a world with an exclusive service, of which no two members may be in pf."""

    def held(world: Watched) -> None:
        if not world.refused:
            assert len(world.serving("mx")) <= 1, "rule 3: two members serve"

    def alone(world: Watched, action: Action, who: Member) -> None:
        others = [h.word for h in world.hosts.values() if not h.disabled and h.id != action.host]
        assert action.verb is not Verb.ENABLE or not others, f"rule 3: {who} beside {others}"

    world = Watched(tables, {"mx": ServicePlan("mx", require=CHECKS, exclusive=True)})
    world.run(20)
    world.after_cycles, world.at_commands = (held,), (alone,)
    return world


@settings(quickly, max_examples=12)
@given(st.sampled_from((THREE, {"mx": (("A",), ("B", "C"))})), REFUSALS)
def test_rule_3_an_exclusive_service_never_has_two_members_in_pf(
    tables: Tables, history: list[Event]
) -> None:
    world = exclusive(tables)
    for event in history:
        world.happen(event)
    world.run(20)


# One node only: what the floor calls back early because nobody else passes is counted apart.
FLAPS = st.lists(st.sampled_from((1.0, 3.0, 20.0, 70.0)), min_size=4, max_size=30)


def flapping(tables: Tables, flaps: list[float]) -> None:
    """Let a node fail for six seconds again and again, *flaps* apart, for an hour and a half."""
    removals: dict[Member, list[float]] = {}

    def held(world: Watched, action: Action, who: Member) -> None:
        if action.verb is Verb.DISABLE and world.cause(who) in ("check", "prefer"):
            times = removals.setdefault(who, [])
            times.append(world.now)
            assert sum(t > world.now - 3600 for t in times) <= 7, "rule 6: removed too often"

    world = Watched(tables, at_commands=(held,))
    world.run(20)
    while world.now < 1000 + 5400:
        for well in flaps:
            world.moods["A", "smtp"] = REFUSED
            world.run(6)
            world.moods["A", "smtp"] = OK
            world.run(well)


@pytest.mark.long
@settings(quickly, max_examples=max(2, EXAMPLES // 20))
@example(PAIR, [20.0])
@given(st.sampled_from(SHAPES), FLAPS)
def test_rule_6_no_pattern_removes_a_member_more_than_seven_times_an_hour(
    tables: Tables, flaps: list[float]
) -> None:
    flapping(tables, flaps)


# Cores that were broken on purpose

_step, _due, _reconcile, _poll = health.step, Engine.due, reconcile.reconcile, reconcile._poll


def _unknown_is_a_fail(before: Health, checked: Checked, rule: Rule) -> Health:
    if checked.result.verdict is Verdict.UNKNOWN:
        checked = replace(checked, result=REFUSED)
    return _step(before, checked, rule)


def _unknown_is_a_look(before: Health, checked: Checked, rule: Rule) -> Health:
    return replace(_step(before, checked, rule), looked=checked.started)


def _one_at_a_time(engine: Engine, now: float) -> list[Probe]:
    if not any(timing.busy for timing in engine._timings.values()):
        return _due(engine, now)
    engine._queue.clear()
    for probe, timing in list(engine._timings.items()):
        late = timing.next <= now + BLINK
        engine._plan(probe, replace(timing, next=now + SLOT) if late else timing)
    return []


def _no_disables(*arguments: Any) -> Step:
    step = _reconcile(*arguments)
    return replace(step, actions=tuple(a for a in step.actions if a.verb is not Verb.DISABLE))


def _poll_on_and_on(needed: bool, polling: Polling, *rest: Any) -> tuple[Any, Polling]:
    return _poll(needed, replace(polling, gap=reconcile.PAIR_GAP), *rest)


Break = tuple[object, str, object]
NO_GUARD: Break = (reconcile, "_serving", lambda pairs: dict.fromkeys(("mx", "mx0", "mx1"), 99))
# A is out, and back but not yet up in relayd, when B fails.
BACK_TOO_LATE = (
    Event(0.3, "smtp refused", "A"), Event(12.0, "smtp ok", "A"), Event(5.0, "smtp refused", "B"),
)  # fmt: skip
IN_TURN = (  # further apart than pace
    Event(0.3, "smtp refused", "A"), Event(31.0, "resume", "A"), Event(31.0, "smtp refused", "B"),
)  # fmt: skip
HUNG = (Event(0.3, "smtp silent", "A"), Event(0.3, "nfs silent", "B"))
DEAF = (Event(0.3, "tcp dead", "A"), Event(0.0, "tcp dead", "B"))
NOT_DONE = (Event(0.3, "disables refused"), Event(0.3, "smtp refused", "A"))


def lives(*history: Event, tables: Tables = PAIR) -> None:
    """Hold every rule through a history."""
    world = cluster(tables)
    for event in history:
        world.happen(event)
    end(world)


def lives_in_doubt() -> None:
    """Hold the rule of unknown results alone: what they are made to be here breaks rule 8 first."""
    world = Watched(PAIR)
    world.run(20)
    unknown_alone_moves_nothing(world, {("A", "smtp")})


def lives_alone(*history: Event) -> None:
    """Hold the rule of exclusive services through a history."""
    world = exclusive(THREE)
    for event in history:
        world.happen(event)
    world.run(20)


EXAMPLES_OF_EACH: dict[str, tuple[Callable[[], None], tuple[Break, ...]]] = {
    "rule 1: no guard": (lambda: lives(*BACK_TOO_LATE), (NO_GUARD,)),
    "rule 2: unknown is a fail": (lives_in_doubt, ((health, "step", _unknown_is_a_fail),)),
    "rule 3: make before break": (
        lambda: lives_alone(*NOT_DONE), ((reconcile, "_rivals", lambda pairs, member: []),),
    ),
    "rule 4: foreign is nothing": (
        lambda: lives(Event(0.3, "foreign", "A")),
        ((Standing, "foreign", property(lambda standing: False)),),
    ),
    "rule 4: maint is a drain": (
        lambda: lives(Event(0.3, "maint", "A"), Event(5.0, "smtp refused", "B")),
        ((policy, "overridden", lambda standing: None),),
    ),
    "rule 5: no disables": (
        lambda: lives(Event(0.3, "smtp refused", "A")),
        (("hactl.core.engine", "reconcile", _no_disables),),
    ),
    "rule 6: no cap": (lambda: flapping(PAIR, [20.0]), ((policy, "CAP", 99),)),
    "rule 7: one look at a time": (
        lambda: lives(*HUNG, tables=THREE), ((Engine, "due", _one_at_a_time),),
    ),
    "rule 8: unknown is a look": (
        lambda: lives(Event(0.3, "smtp unknown", "A")), ((health, "step", _unknown_is_a_look),),
    ),
    "rule 9: no floor": (
        lambda: lives(*IN_TURN), ((policy, "_hold_the_floor", lambda round_: None), NO_GUARD),
    ),
    "rule 10: polls without an end": (
        lambda: lives(*DEAF), ((reconcile, "_poll", _poll_on_and_on),),
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES_OF_EACH)
def test_each_rule_holds_on_its_example(name: str) -> None:
    EXAMPLES_OF_EACH[name][0]()


@pytest.mark.parametrize("name", EXAMPLES_OF_EACH)
def test_each_rule_is_seen_to_be_broken_where_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, breaks = EXAMPLES_OF_EACH[name]
    for where, what, how in breaks:
        if isinstance(where, str):
            monkeypatch.setattr(f"{where}.{what}", how)
        else:
            monkeypatch.setattr(where, what, how)
    with pytest.raises(AssertionError, match=name.partition(":")[0] + ":"):
        holds()
