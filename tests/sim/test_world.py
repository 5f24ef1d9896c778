"""The simulator shows what relayd would, repeats itself, and leaps without losing anything."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hactl.relayd.relayctl import parse
from hactl.sim.truth import Event
from hactl.sim.world import START, WALL, Cluster, Watcher, World, observe
from tests.sim.farm import pair

HANG = Event(300, "hang", ("A",), lasts=600)
BLIPS = Event(60, "refuse", ("B",), ("nfs",), lasts=3, every=400)
DEEDS = (
    Event(100, "crash", ("A",), lasts=50),
    Event(400, "reload", shift=7),
    Event(600, "disable", ("B",)),
    Event(700, "enable", ("B",)),
    Event(800, "restart", lasts=5),
    Event(900, "kill", lasts=20),
    Event(905, "refuse", ("B",), lasts=60),
    Event(1200, "maint", ("A",), lasts=100),
    Event(1500, "cut", lasts=30),
    Event(1700, "lag", lasts=40),
)
RUNS: list[tuple[Cluster, Sequence[Event]]] = [
    (pair(), [HANG]),
    (pair(), [BLIPS, HANG]),
    (pair(tables="A|B"), DEEDS),
    (pair(nodes="ABC", tables="AB|C"), DEEDS),
]


class Shown(Watcher):
    """Compares the short cut to an observation with the long way."""

    def __init__(self) -> None:
        self.seen = 0

    def cycled(self, world: World) -> None:
        if world.down:
            return
        text = world.model.command(("show", "summary"), world.now).stdout
        assert parse(text, world.now, whole=True).services == observe(world.model)
        self.seen += 1


class Cycles(Watcher):
    """Notes when hactld cycled."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def cycled(self, world: World) -> None:
        self.at.append(world.now - START)


@pytest.mark.long
@pytest.mark.parametrize(("cluster", "events"), RUNS)
def test_what_is_observed_is_what_relayctl_would_have_printed(
    cluster: Cluster, events: Sequence[Event]
) -> None:
    shown = Shown()
    World(cluster, events, 2000, seed=3, watchers=[shown], leap=False).run()
    assert shown.seen > 1500


@pytest.mark.long
@pytest.mark.parametrize(("cluster", "events"), RUNS)
def test_a_leap_changes_no_command_and_no_figure(cluster: Cluster, events: Sequence[Event]) -> None:
    walked = World(cluster, events, 4000, seed=3, leap=False)
    leapt = World(cluster, events, 4000, seed=3)
    walked.run()
    leapt.run()
    assert [(round(at, 3), a.words()) for at, a in walked.log] == [
        (round(at, 3), a.words()) for at, a in leapt.log
    ]
    assert leapt.skipped > 1000


@pytest.mark.long
def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    events = [Event(0, "loss", ("A",), share=0.3)]
    one, same, other = (World(pair(), events, 1800, seed=s).run() for s in (1, 1, 2))
    assert one == same
    assert one.figures != other.figures


def test_a_hanging_node_costs_its_share_until_it_is_out() -> None:
    run = World(pair(), [HANG], 1800, seed=1).run()
    figures = run.figures["mx"]
    assert figures.detection is not None
    assert figures.failing == pytest.approx(figures.detection / 2)
    assert (figures.empty, figures.removals, figures.changes, figures.commands) == (0, 1, 2, 2)


def test_relayd_alone_does_not_see_a_node_that_hangs() -> None:
    figures = World(pair(), [HANG], 1800, seed=1, steers=False).run().figures["mx"]
    assert (figures.failing, figures.avoidable, figures.changes) == (300.0, 300.0, 0)


def test_relayd_alone_sees_a_node_that_is_gone_at_its_next_round() -> None:
    crash = Event(300, "crash", ("A",), lasts=600)
    figures = World(pair(), [crash], 1800, seed=1, steers=False).run().figures["mx"]
    assert figures.detection is not None
    assert 0 < figures.detection <= 10
    assert figures.back is not None
    assert 10 <= figures.back <= 20


def test_foreign_hands_and_maintenance_are_no_healthy_time_kept_out() -> None:
    events = [Event(100, "disable", ("A",)), Event(200, "maint", ("B",), lasts=300)]
    figures = World(pair(nodes="ABC"), events, 400, seed=1).run().figures["mx"]
    assert figures.kept_out == 0


def test_somebody_who_reads_nothing_of_relayd_does_nothing() -> None:
    world = World(pair(), [Event(50, "mute", lasts=100), Event(60, "refuse", ("A",))], 300, seed=1)
    world.run()
    assert [at for at, _ in world.log if 0 <= at < 150] == []
    assert next(a.words() for at, a in world.log if at > 0) == ("host", "disable", "1")


def test_of_two_kills_at_once_the_last_to_end_starts_hactld_again() -> None:
    events = [Event(10, "kill", lasts=30), Event(20, "kill", lasts=60), Event(35, "lag", lasts=9)]
    watch = Cycles()
    World(pair(), events, 120, seed=1, watchers=[watch]).run()
    assert not any(10 < at < 80 for at in watch.at)
    assert watch.at[-1] > 115


@pytest.mark.parametrize("do", ["lag", "mute", "late", "stall"])
def test_what_lasts_goes_on_while_another_of_its_kind_does(do: str) -> None:
    events = [Event(10, do, lasts=60), Event(20, do, lasts=10)]
    world = World(pair(), events, 50, seed=1)
    world.run()
    assert {"lag": world.lag, "mute": world.mute, "late": world.late, "stall": world.stalled}[do]


def test_relayd_is_down_until_the_last_that_keeps_it_so_ends() -> None:
    long, short = Event(10, "down", lasts=60), Event(20, "restart", lasts=10)
    for at, down in ((50, True), (80, False)):
        world = World(pair(), [long, short, Event(40, "restart")], at, seed=1)
        world.run()
        assert world.down is down


def test_a_fault_that_comes_again_before_it_ended_goes_on() -> None:
    often = Event(10, "refuse", ("A",), lasts=15, every=10, until=60)
    once = Event(10, "refuse", ("A",), lasts=55)
    one, other = (World(pair(), [e], 200, seed=1).run().figures for e in (often, once))
    assert one == other


def test_the_clock_jumps_when_the_event_begins_and_not_when_it_ends() -> None:
    world = World(pair(), [Event(10, "ahead", lasts=10, by=3600)], 60, seed=1)
    world.run()
    assert world._wall - WALL == 3600


def test_what_was_not_set_cannot_be_ended() -> None:
    events = [Event(10, "resume", ("A",)), Event(20, "thaw", ("mx",))]
    said = [m.text for m in World(pair(), events, 60, seed=1).run().timeline]
    assert {"A: nothing to resume", "mx: nothing to thaw"} <= set(said)
