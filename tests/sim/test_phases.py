"""Shared fate over every pair of phases: when two nodes fail together, nobody is left without."""

from __future__ import annotations

import pytest

from hactl.sim.rules import Watch
from hactl.sim.truth import Event
from hactl.sim.world import World
from tests.sim.farm import pair

pytestmark = pytest.mark.long
STEPS = [n * 0.25 for n in range(9)]  # an interval, in parts of an eighth


@pytest.mark.parametrize("late", STEPS)
@pytest.mark.parametrize("phase", STEPS[::2])
def test_two_that_fail_within_an_interval_both_stay(phase: float, late: float) -> None:
    events = [
        Event(60 + phase, "refuse", ("A",), ("nfs",), lasts=60),
        Event(60 + phase + late, "refuse", ("B",), ("nfs",), lasts=60),
    ]
    watch = Watch()
    world = World(pair(), events, 200, seed=1, watchers=[watch])
    figures = world.run().figures["mx"]
    assert watch.violations == []
    assert figures.empty == 0
    if late == 0:
        assert figures.commands == 0
    else:
        assert figures.removals <= 1


@pytest.mark.parametrize("late", [0.0, 1.0, 3.0, 4.0])
def test_two_that_recover_apart_both_stay(late: float) -> None:
    """Later the grace, ten seconds from the first that is up, ends before the second is up."""
    events = [
        Event(60, "refuse", ("A",), ("nfs",), lasts=60),
        Event(60.3, "refuse", ("B",), ("nfs",), lasts=60 + late),
    ]
    figures = World(pair(), events, 200, seed=1).run().figures["mx"]
    assert (figures.commands, figures.empty) == (0, 0)


@pytest.mark.parametrize("late", [12.0, 20.0, 31.0])
def test_the_second_of_two_failures_far_apart_is_kept_by_the_floor(late: float) -> None:
    events = [
        Event(60, "refuse", ("A",), ("nfs",), lasts=120),
        Event(60 + late, "refuse", ("B",), ("nfs",), lasts=120),
    ]
    figures = World(pair(), events, 400, seed=1).run().figures["mx"]
    assert figures.empty == 0
