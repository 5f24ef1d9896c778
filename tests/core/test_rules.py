"""The rules that are not negotiable, held against random histories of faults.

Each property has an example, and fails on it with a core that was broken on purpose: the last test
breaks them one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
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

SHAPES = (
    {"mx": (("A", "B"),)},
    {"mx": (("A", "B", "C"),)},
    {"mx0": (("A",), ("B",)), "mx1": (("B",), ("A",))},
    {"mx": (("A", "B"), ("C",)), "imap": (("A", "B"),)},
)
MOODS = {"ok": OK, "refused": REFUSED, "silent": SILENT, "unknown": LOST}


class Event(NamedTuple):
    """After *wait* seconds *what* happens to *who*."""

    wait: float
    what: str
    who: str


_WAITS = st.sampled_from((0.0, 0.3, 0.9, 2.1, 5.0, 12.0, 31.0))
_WHAT = st.sampled_from(
    (*(f"smtp {mood}" for mood in MOODS), *(f"nfs {mood}" for mood in MOODS),
     "smtp refused", "smtp silent", "tcp dead", "tcp well", "foreign", "maint", "drain",
     "resume", "reload relayd", "restart hactld")
)  # fmt: skip
_WHO = st.sampled_from("ABC")
HISTORY = st.lists(st.builds(Event, _WAITS, _WHAT, _WHO), max_size=14)
WORLDS = st.sampled_from(SHAPES)
Tables = dict[str, tuple[tuple[str, ...], ...]]
PAIR, THREE = SHAPES[:2]

quickly = settings(
    max_examples=int(os.environ.get("EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
fewer = settings(quickly, max_examples=max(1, quickly.max_examples // 2))


class Watched(World):
    """A world that calls *before* and *after* around each command and each cycle."""

    def __init__(
        self,
        tables: Tables,
        plans: Mapping[str, ServicePlan] | None = None,
    ) -> None:
        self.moods: dict[tuple[str, str], Result] = {}
        self.dead: set[str] = set()
        self.foreign: set[tuple[str, int, str]] = set()
        self.on_action: Callable[[Action], None] = lambda action: None
        self.on_cycle: Callable[[], None] = lambda: None
        self.fed: dict[Probe, list[Checked]] = {}
        super().__init__(
            tables,
            checks=("smtp", "nfs"),
            interval=5.0,
            plans=plans or {},
            say=lambda probe, now: self.moods.get((probe.node, probe.check), OK),
            tcp=lambda word, now: word not in self.dead,
        )

    def carry_out(self, action: Action) -> None:
        self.on_action(action)
        super().carry_out(action)

    def act(self) -> None:
        super().act()
        self.on_cycle()

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

    def cause(self, action: Action) -> str:
        assert action.member is not None
        return self.engine.decisions[action.member].cause


def lived(world: Watched, history: list[Event]) -> Watched:
    world.run(20)
    for event in history:
        world.happen(event)
    world.run(20)
    return world


# A is out, and back but not yet up in relayd, when B fails.
BACK_TOO_LATE = [
    Event(0.3, "smtp refused", "A"), Event(12.0, "smtp ok", "A"), Event(5.0, "smtp refused", "B"),
]  # fmt: skip


@quickly
@example(PAIR, BACK_TOO_LATE)
@given(WORLDS, HISTORY)
def test_rule_1_the_last_serving_member_is_never_removed(
    tables: Tables, history: list[Event]
) -> None:
    world = Watched(tables)

    def look(action: Action) -> None:
        if action.verb is not Verb.DISABLE or world.cause(action) == "maint":
            return
        assert action.member is not None
        service = action.member.service
        up = {
            key for key, host in world.hosts.items()
            if key[0] == service and host.status is HostStatus.UP and not host.disabled
        }  # fmt: skip
        assert action.member not in up or up - {action.member}, f"{service} is emptied: {action}"

    world.on_action = look
    lived(world, history)


@quickly
@example(PAIR, [], {("A", "smtp")})
@given(WORLDS, HISTORY, st.sets(st.tuples(_WHO, st.sampled_from(("smtp", "nfs")))))
def test_rule_2_unknown_alone_moves_nothing(
    tables: Tables,
    history: list[Event],
    lost: set[tuple[str, str]],
) -> None:
    world = lived(Watched(tables), history)
    world.run(60)
    done = len(world.switches())
    for probe in lost:
        world.moods[probe] = LOST
    world.run(120)
    assert world.switches()[done:] == []


REFUSALS = st.lists(
    st.builds(Event, _WAITS, st.one_of(_WHAT, st.sampled_from(("disables refused", "disables ok"))),
              _WHO), max_size=14,
)  # fmt: skip
EXCLUSIVE = st.sampled_from((THREE, {"mx": (("A",), ("B", "C"))}))
NOT_DONE = [Event(0.3, "disables refused", ""), Event(0.3, "smtp refused", "A")]


@quickly
@example(THREE, NOT_DONE)
@given(EXCLUSIVE, REFUSALS)
def test_rule_3_an_exclusive_service_never_has_two_members_in_pf(
    tables: Tables, history: list[Event]
) -> None:
    plan = ServicePlan("mx", require=("smtp", "nfs"), exclusive=True)
    world = Watched(tables, {"mx": plan})

    def look() -> None:
        if not world.refused:
            assert len(world.serving("mx")) <= 1, "two members serve"

    def enabled(action: Action) -> None:
        others = [h.word for h in world.hosts.values() if not h.disabled and h.id != action.host]
        assert action.verb is not Verb.ENABLE or not others, f"{action} beside {others}"

    world.run(20)
    world.on_cycle, world.on_action = look, enabled
    for event in history:
        world.happen(event)
    world.run(20)


# One node only: what the floor calls back early because nobody else passes is counted apart.
FLAPS = st.lists(st.sampled_from((1.0, 3.0, 20.0, 70.0)), min_size=4, max_size=30)


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(PAIR, [20.0])
@given(WORLDS, FLAPS)
def test_rule_6_no_pattern_removes_a_member_more_than_seven_times_an_hour(
    tables: Tables, flaps: list[float]
) -> None:
    world = Watched(tables)
    removals: dict[Member, list[float]] = {}

    def look(action: Action) -> None:
        if action.verb is Verb.DISABLE and world.cause(action) in ("check", "prefer"):
            assert action.member is not None
            times = removals.setdefault(action.member, [])
            times.append(world.now)
            assert sum(t > world.now - 3600 for t in times) <= 7, "removed too often"

    world.on_action = look
    world.run(20)
    while world.now < 1000 + 5400:
        for well in flaps:
            world.moods["A", "smtp"] = REFUSED
            world.run(6)
            world.moods["A", "smtp"] = OK
            world.run(well)


@quickly
@example(PAIR, [Event(0.3, "foreign", "A")])
@example(PAIR, [Event(0.3, "maint", "A"), Event(5.0, "smtp refused", "B")])
@given(WORLDS, HISTORY)
def test_rule_4_foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone(
    tables: Tables, history: list[Event]
) -> None:
    world = Watched(tables)

    def look(action: Action) -> None:
        if action.verb is not Verb.ENABLE:
            return
        assert action.member is not None
        assert tuple(action.member) not in world.foreign, f"foreign is undone: {action}"
        override = world.engine.standings[action.member].override
        if override is not None:
            assert override.kind == "drain", f"maint is outvoted: {action}"
            service, standings = action.member.service, world.engine.standings
            enough = {  # the floor is one member in all of these worlds
                m
                for m in world.passing(service)
                if standings[m].status is HostStatus.UP and standings[m].override is None
            }
            assert world.cause(action) == "floor", f"drain is outvoted: {action}"
            assert not enough, f"drain is outvoted though {enough} serve: {action}"

    def maintained() -> None:
        for key, host in world.hosts.items():
            override = world.engine.overrides.get(host.word)
            if override is not None and override.kind == "maint":
                assert host.disabled, f"{key} serves in maintenance"

    world.on_action, world.on_cycle = look, maintained
    lived(world, history)


@quickly
@example(PAIR, [Event(0.3, "smtp refused", "A")])
@given(WORLDS, HISTORY)
def test_rule_5_what_is_needed_is_done_in_one_cycle_or_says_what_it_waits_for(
    tables: Tables, history: list[Event]
) -> None:
    world = Watched(tables)

    def look() -> None:
        for member, decision in world.engine.decisions.items():
            off = world.hosts[member.service, member.table, member.host].disabled
            if (decision.want is Want.OUT and not off) or (decision.want is Want.IN and off):
                wait = world.engine.waits.get(member)
                assert wait is not None, f"{member} should be {decision.want}"
                assert wait.rule in ("guard", "dwell")

    world.on_cycle = look
    lived(world, history)


HUNG = [Event(0.3, "smtp silent", "A"), Event(0.3, "nfs silent", "B")]


@fewer
@example(THREE, HUNG)
@given(WORLDS, HISTORY)
def test_rule_7_no_probe_waits_for_one_that_hangs(tables: Tables, history: list[Event]) -> None:
    world = lived(Watched(tables), history)
    looks: dict[Probe, list[float]] = {}
    for at, probe in world.looks:
        looks.setdefault(probe, []).append(at)
    for probe, times in looks.items():
        if not any(who == probe.node and what.startswith(probe.check) for _, what, who in history):
            gaps = [b - a for a, b in pairwise(times)]
            assert max(gaps, default=0.0) <= world.rule.interval + SLOT, f"{probe} had to wait"


@fewer
@example(PAIR, [Event(0.3, "smtp unknown", "A")])
@given(WORLDS, HISTORY)
def test_rule_8_nothing_is_claimed_that_was_not_measured(
    tables: Tables, history: list[Event]
) -> None:
    """(A probe that fails in a row is joined by its siblings; all of it comes through `feed`.)"""
    world = Watched(tables)

    def look() -> None:
        shown = explain.snapshot(world.engine, world.now, "", (), {})
        for view in shown.probes:
            probe = Probe(view.node, view.check, view.address)
            fed = world.fed.get(probe, [])
            opinions = [c.started for c in fed if c.result.verdict is not Verdict.UNKNOWN]
            assert view.newest == (fed[-1].result.verdict if fed else "")
            ago = world.now - opinions[-1] if opinions else None
            assert view.looked_seconds_ago == ago
            if ago is not None and ago > 3 * world.rule.interval + world.rule.timeout:
                assert view.stale

    world.on_cycle = look
    lived(world, history)


IN_TURN = [  # further apart than pace
    Event(0.3, "smtp refused", "A"), Event(31.0, "resume", "A"), Event(31.0, "smtp refused", "B"),
]  # fmt: skip


@quickly
@example(PAIR, IN_TURN)
@given(WORLDS, HISTORY)
def test_rule_9_while_nobody_passes_checks_remove_nothing(
    tables: Tables, history: list[Event]
) -> None:
    world = Watched(tables)

    def look(action: Action) -> None:
        if action.verb is Verb.DISABLE and world.cause(action) == "check":
            assert action.member is not None
            assert world.passing(action.member.service), f"nobody passes, yet {action}"

    world.on_action = look
    lived(world, history)


DEAF = [Event(0.3, "tcp dead", "A"), Event(0.0, "tcp dead", "B")]


@quickly
@example(PAIR, DEAF)
@given(WORLDS, HISTORY)
def test_rule_10_with_fixed_health_and_a_settled_relayd_nothing_happens(
    tables: Tables, history: list[Event]
) -> None:
    world = lived(Watched(tables), history)
    world.run(120)
    done = len(world.log)
    world.run(60)
    assert world.log[done:] == []


@quickly
@given(WORLDS, HISTORY)
def test_any_history_ends_well_once_everything_is_well_again(
    tables: Tables, history: list[Event]
) -> None:
    world = lived(Watched(tables), history)
    world.moods.clear()
    world.dead.clear()
    world.engine.overrides.clear()
    world.run(60)
    assert {k for k, host in world.hosts.items() if host.disabled} == world.foreign
    for service in tables:
        foreign = {key for key in world.foreign if key[0] == service}
        keys = {key for key in world.hosts if key[0] == service}
        assert world.serving(service) or foreign == keys
    assert all(isinstance(probe, Probe) for _, probe in world.looks)


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
BROKEN: dict[str, tuple[Any, tuple[object, ...], tuple[Break, ...]]] = {
    "1, no guard": (
        test_rule_1_the_last_serving_member_is_never_removed, (PAIR, BACK_TOO_LATE), (NO_GUARD,),
    ),
    "2, unknown is a fail": (
        test_rule_2_unknown_alone_moves_nothing, (PAIR, [], {("A", "smtp")}),
        ((health, "step", _unknown_is_a_fail),),
    ),
    "3, make before break": (
        test_rule_3_an_exclusive_service_never_has_two_members_in_pf, (THREE, NOT_DONE),
        ((reconcile, "_rivals", lambda pairs, member: []),),
    ),
    "4, foreign is nothing": (
        test_rule_4_foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone,
        (PAIR, [Event(0.3, "foreign", "A")]),
        ((Standing, "foreign", property(lambda standing: False)),),
    ),
    "4, maint is a drain": (
        test_rule_4_foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone,
        (PAIR, [Event(0.3, "maint", "A"), Event(5.0, "smtp refused", "B")]),
        ((policy, "overridden", lambda standing: None),),
    ),
    "5, no disables": (
        test_rule_5_what_is_needed_is_done_in_one_cycle_or_says_what_it_waits_for,
        (PAIR, [Event(0.3, "smtp refused", "A")]),
        (("hactl.core.engine", "reconcile", _no_disables),),
    ),
    "6, no cap": (
        test_rule_6_no_pattern_removes_a_member_more_than_seven_times_an_hour,
        (PAIR, [20.0]), ((policy, "CAP", 99),),
    ),
    "7, one look at a time": (
        test_rule_7_no_probe_waits_for_one_that_hangs, (THREE, HUNG),
        ((Engine, "due", _one_at_a_time),),
    ),
    "8, unknown is a look": (
        test_rule_8_nothing_is_claimed_that_was_not_measured,
        (PAIR, [Event(0.3, "smtp unknown", "A")]), ((health, "step", _unknown_is_a_look),),
    ),
    "9, no floor": (
        test_rule_9_while_nobody_passes_checks_remove_nothing, (PAIR, IN_TURN),
        ((policy, "_hold_the_floor", lambda round_: None), NO_GUARD),
    ),
    "10, polls without an end": (
        test_rule_10_with_fixed_health_and_a_settled_relayd_nothing_happens, (PAIR, DEAF),
        ((reconcile, "_poll", _poll_on_and_on),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_property_fails_on_its_example_where_its_rule_is_broken(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds, arguments, breaks = BROKEN[name]
    for where, what, how in breaks:
        if isinstance(where, str):
            monkeypatch.setattr(f"{where}.{what}", how)
        else:
            monkeypatch.setattr(where, what, how)
    with pytest.raises(AssertionError):
        holds.hypothesis.inner_test(*arguments)
