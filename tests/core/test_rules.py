"""The rules that are not negotiable, held against random histories of faults.

Each property was seen to fail with its rule broken on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hactl.core.health import State
from hactl.core.model import (
    Action,
    HostStatus,
    Member,
    Override,
    Probe,
    Result,
    ServicePlan,
    Verb,
    Want,
)
from hactl.core.policy import lane
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
HISTORY = st.lists(st.builds(Event, _WAITS, _WHAT, st.sampled_from("ABC")), max_size=14)
WORLDS = st.sampled_from(SHAPES)

quickly = settings(
    max_examples=int(os.environ.get("EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Watched(World):
    """A world that calls *before* and *after* around each command and each cycle."""

    def __init__(
        self,
        tables: dict[str, tuple[tuple[str, ...], ...]],
        plans: Mapping[str, ServicePlan] | None = None,
    ) -> None:
        self.moods: dict[tuple[str, str], Result] = {}
        self.dead: set[str] = set()
        self.foreign: set[tuple[str, int, str]] = set()
        self.on_action: Callable[[Action], None] = lambda action: None
        self.on_cycle: Callable[[], None] = lambda: None
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

    def happen(self, event: Event) -> None:
        """Let time pass, then let the event happen."""
        self.run(event.wait)
        kind, _, how = event.what.partition(" ")
        if kind in self.checks:
            self.moods[event.who, kind] = MOODS[how]
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


@quickly
@given(WORLDS, HISTORY)
def test_rule_1_the_last_serving_member_is_never_removed(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
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
@given(
    WORLDS, HISTORY, st.sets(st.tuples(st.sampled_from("ABC"), st.sampled_from(("smtp", "nfs"))))
)
def test_rule_2_unknown_alone_moves_nothing(
    tables: dict[str, tuple[tuple[str, ...], ...]],
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


@quickly
@given(HISTORY)
def test_rule_3_an_exclusive_service_never_has_two_members_in_pf(history: list[Event]) -> None:
    tables: dict[str, tuple[tuple[str, ...], ...]] = {"mx": (("A", "B", "C"),)}
    plan = ServicePlan("mx", require=("smtp", "nfs"), exclusive=True)
    world = Watched(tables, {"mx": plan})

    def look() -> None:
        assert len(world.serving("mx")) <= 1, "two members serve"

    world.run(20)
    world.on_cycle = look
    for event in history:
        world.happen(event)
    world.run(20)


# One node only: what the floor calls back early because nobody else passes is counted apart.
FLAPS = st.lists(st.sampled_from((1.0, 3.0, 20.0, 70.0)), min_size=4, max_size=30)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(WORLDS, FLAPS)
def test_rule_6_no_pattern_removes_a_member_more_than_seven_times_an_hour(
    tables: dict[str, tuple[tuple[str, ...], ...]], flaps: list[float]
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
@given(WORLDS, HISTORY)
def test_rule_4_foreign_and_maint_are_never_outvoted_and_drain_by_the_floor_alone(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
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
@given(WORLDS, HISTORY)
def test_rule_5_what_is_needed_is_done_in_one_cycle_or_says_what_it_waits_for(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
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


@quickly
@given(WORLDS, HISTORY)
def test_rule_9_while_nobody_passes_checks_remove_nothing(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
) -> None:
    world = Watched(tables)

    def look(action: Action) -> None:
        if action.verb is Verb.DISABLE and world.cause(action) == "check":
            assert action.member is not None
            assert world.passing(action.member.service), f"nobody passes, yet {action}"

    world.on_action = look
    lived(world, history)


@quickly
@given(WORLDS, HISTORY)
def test_rule_10_with_fixed_health_and_a_settled_relayd_nothing_happens(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
) -> None:
    world = lived(Watched(tables), history)
    world.run(120)
    done = len(world.log)
    world.run(60)
    assert world.log[done:] == []


@quickly
@given(WORLDS, HISTORY)
def test_any_history_ends_well_once_everything_is_well_again(
    tables: dict[str, tuple[tuple[str, ...], ...]], history: list[Event]
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
