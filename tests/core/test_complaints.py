"""What users of other health checkers complain about, and that it cannot happen here.

The names say what is prevented; each goes back to an issue or a post-mortem of such a project.
"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from hactl.core.explain import snapshot
from hactl.core.model import (
    Decision,
    HostStatus,
    Member,
    Override,
    Probe,
    Result,
    Rule,
    ServicePlan,
    Want,
    fail,
)
from tests.core.world import LOST, OK, REFUSED, SILENT, WARNED, World, failing

PAIR = {"mx": (("A", "B"),)}
ONE = {"mx": ServicePlan("mx", ("smtp",), exclusive=True, failback=False)}


def out(world: World) -> set[str]:
    return {host.word for host in world.hosts.values() if host.disabled}


def decided(world: World, word: str) -> Decision:
    return world.engine.decisions[Member("mx", 0, word)]


def alerts(world: World) -> tuple[str, ...]:
    return snapshot(world.engine, world.now, "0", (), {}).alerts


def first_looks(word: str, count: int, how: Result) -> World:
    """Let the first *count* looks at a node after 30 s end like that, and the others well."""
    left = [count]

    def say(probe: Probe, now: float) -> Result:
        if probe.node == word and now >= 1030 and left[0] > 0:
            left[0] -= 1
            return how
        return OK

    return World(PAIR, say=say)


@pytest.mark.parametrize("how", [REFUSED, SILENT, fail("greeting 421"), fail("garbage")])
def test_no_kind_of_failure_ignores_the_threshold(how: Result) -> None:
    assert first_looks("A", 2, how).run(120).switches() == []
    assert first_looks("A", 3, how).run(60).switches()[:1] == ["host disable 1"]


def test_keeping_a_failing_member_is_never_silent() -> None:
    def say(probe: Probe, now: float) -> Result:
        return REFUSED if now - 1000 >= {"A": 30.0, "B": 90.0}[probe.node] else OK

    world = World(PAIR, say=say).run(150)
    assert out(world) == {"A"}
    snap = snapshot(world.engine, world.now, "0", (), {})
    assert not snap.as_wanted
    assert any("mx/B is kept in though" in alert for alert in snap.alerts)


def test_an_overloaded_checker_does_not_call_everybody_dead() -> None:
    late = replace(LOST, reason="hactld itself was late by 2.0s")
    world = World(PAIR, say=failing("A", "B", after=30, how=late)).run(600)
    assert world.switches() == []


def test_a_reload_of_hactl_yaml_brings_no_failed_node_back() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.engine.replan(world.plan, world.now)
    world.run(60)
    assert out(world) == {"A"}


def test_a_reload_of_relayd_gives_a_failed_node_no_traffic() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    for _ in range(5):
        world.load(first_id=len(world.log) + 50)
        for _ in range(200):
            world.run(0.1)
            assert "A" not in world.serving("mx")


def test_a_failed_node_is_not_lost_over_a_reload() -> None:
    world = World(PAIR, say=failing("A", after=30, until=100)).run(60)
    world.engine.replan(world.plan, world.now)
    world.load(first_id=50)
    assert out(world.run(90)) == set()


def test_a_changed_check_forgets_its_verdict_but_moves_nobody_by_that() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    changed = {"smtp": Rule(what="another port")}
    world.engine.replan(replace(world.plan, rules=changed), world.now)
    world.say = failing("A", how=LOST)
    assert out(world.run(60)) == {"A"}
    assert "no answer yet" in decided(world, "A").reason
    world.say = failing()
    assert out(world.run(30)) == set()


@pytest.mark.long
def test_a_node_whose_check_passes_is_re_added_however_long_hactld_runs() -> None:
    world = World(PAIR, rule=Rule(interval=10.0, timeout=1.0, fast=0.2))
    for hour in range(6):
        world.say = failing("A")
        world.run(600)
        world.say = failing()
        world.run(3000)
        assert out(world) == set(), f"hour {hour}"


@pytest.mark.parametrize(
    ("kinds", "passes", "want", "cause"),
    [
        (("maint", "drain"), True, Want.OUT, "maint"),
        (("maint", "pin"), True, Want.OUT, "maint"),
        (("pin", "drain"), True, Want.IN, "pin"),
        (("pin",), False, Want.IN, "pin"),
        (("drain",), True, Want.OUT, "drain"),
        ((), False, Want.OUT, "check"),
        ((), True, Want.IN, ""),
    ],
)
def test_it_is_written_down_who_wins(
    kinds: tuple[str, ...], passes: bool, want: Want, cause: str
) -> None:
    world = World(PAIR, say=failing(*(() if passes else ("A",)), after=10)).run(20)
    for kind, target in zip(kinds, ("A", "mx/A"), strict=False):
        world.engine.override(Override(target, kind, "root", "", 0.0))
    world.run(10)
    assert (decided(world, "A").want, decided(world, "A").cause) == (want, cause)


def test_foreign_wins_over_all_and_says_that_a_pin_does_not_lift_it() -> None:
    world = World(PAIR).run(20)
    host = world.hosts["mx", 0, "A"]
    host.disabled, host.status, host.in_pf = True, HostStatus.UNKNOWN, False
    world.engine.override(Override("A", "pin", "root", "", 0.0))
    world.run(10)
    assert out(world) == {"A"}
    assert "a pin does not lift it" in decided(world, "A").reason


def test_maintenance_that_expires_while_the_node_is_down_brings_it_not_back() -> None:
    world = World(PAIR, say=failing("A", after=30, until=200)).run(20)
    world.engine.override(Override("A", "maint", "root", "", 0.0, 1.0, world.now + 60))
    world.run(100)
    assert out(world) == {"A"}
    assert decided(world, "A").cause == "check"
    assert out(world.run(120)) == set()


def test_the_survivor_is_not_shunned_because_its_replication_cannot_be_judged() -> None:
    world = World(PAIR, checks=("mysql", "replica"))
    world.run(20)
    world.say = lambda probe, now: (
        REFUSED if probe.node == "A" else LOST if probe.check == "replica" else OK
    )
    world.run(120)
    assert out(world) == {"A"}
    assert world.serving("mx") == {"B"}


def test_a_lagging_replica_does_not_return_because_its_check_times_out() -> None:
    world = World(PAIR, say=failing("A", after=30, until=60)).run(59)
    assert out(world) == {"A"}
    world.say = failing("A", how=LOST)
    assert out(world.run(900)) == {"A"}


def test_a_stopped_heartbeat_everywhere_shuns_nobody() -> None:
    world = World(PAIR, say=failing("A", "B", after=30, how=LOST)).run(900)
    assert world.switches() == []


def test_a_backup_job_is_announced_with_an_end() -> None:
    world = World(PAIR, plans=ONE, interval=2.0).run(20)
    (owner,) = world.serving("mx")
    world.engine.override(Override(owner, "maint", "cron", "backup", 0.0, 1.0, world.now + 120))
    world.run(30)
    assert world.serving("mx") == {"A", "B"} - {owner}
    world.run(150)
    assert world.engine.overrides == {}


def test_a_hold_says_until_when_it_lasts_and_why() -> None:
    world = World(PAIR, say=failing("A", after=30, until=60)).run(70)
    world.say = failing("A")
    world.run(30)
    world.say = failing()
    world.run(6)
    assert out(world) == {"A"}
    note = decided(world, "A").chain[-1]
    assert (note.rule, note.text) == (
        "hold",
        "removed 2 times in an hour; it returns later each time",
    )
    assert note.until is not None
    assert note.until > world.now


def test_an_old_owner_that_returns_is_no_second_one() -> None:
    world = World(PAIR, plans=ONE, interval=2.0, say=failing("A", after=30, until=60)).run(120)
    assert world.serving("mx") == {"B"}
    world.load(first_id=50)
    world.restart_hactld()
    for _ in range(100):
        world.run(0.2)
        assert len(world.serving("mx")) <= 1
    assert world.serving("mx") == {"B"}


def test_a_checker_that_was_frozen_fails_nobody_over() -> None:
    world = World(PAIR, plans=ONE).run(30)
    before = world.switches()
    world.now += 600  # stopped by a busy machine; nothing was heard, nothing was seen
    assert world.engine.actions(world.now) == ()
    world.run(60)
    assert world.switches() == before


def test_a_warning_is_no_reason_to_require_anything() -> None:
    world = World(PAIR, say=failing("A", after=30, how=WARNED)).run(120)
    assert world.switches() == []
    assert alerts(world) == ()
