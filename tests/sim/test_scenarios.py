"""Every story in tests/scenarios ends as it says it must, and breaks no rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from hactl.daemon.clock import Clock
from hactl.sim.scenario import load
from hactl.sim.simulate import simulate

LONG = {  # days, or hours in which something happens all the time
    "antiphase", "antiphase-with-backup", "blips", "capacity-leaves-slowly",
    "clock-ahead-over-a-restart", "closed-all-out-one-back-by-shared-fate",
    "drained-after-seven-removals", "drained-while-the-other-flaps", "enabled-into-an-empty-table",
    "exclusive-antiphase", "exclusive-blips-of-all", "exclusive-first-flaps",
    "exclusive-hook-antiphase", "exclusive-out-before-a-restart", "flapping-node",
    "killed-before-its-removal-counts", "load-guard-over-a-restart", "loss-of-a-half",
    "loss-of-a-twentieth", "lossy-check-of-relayd", "lossy-way-to-one",
    "pinned-after-seven-removals", "recalled-one-fails-with-another", "relayctl-too-late-all-out",
    "relayctl-too-late-while-flapping", "sessions-run-out",
    "shared-fate-while-the-one-that-came-back-falls", "slow-under-load", "ten-days-of-running",
    "three-checks-in-turn", "two-services-of-one-node",
}  # fmt: skip
FILES = sorted((Path(__file__).parents[1] / "scenarios").glob("*.yaml"))


@pytest.mark.parametrize(
    "file",
    [pytest.param(f, marks=[pytest.mark.long] if f.stem in LONG else []) for f in FILES],
    ids=lambda file: file.stem,
)
def test_scenario(file: Path) -> None:
    scenario = load(file)
    assert scenario.about
    assert simulate(scenario).disappointments == ()


@pytest.mark.long
@pytest.mark.parametrize(
    "file", [f for f in FILES if f.stem.startswith("clock-")], ids=lambda file: file.stem
)
def test_the_stories_of_a_stepped_clock_need_the_epoch(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the wall clock of the moment what was stored ends early, or lasts too long."""

    def present(clock: Clock, stamp: float) -> float:
        return stamp - (clock._wall() - clock.now())

    monkeypatch.setattr("hactl.daemon.clock.Clock.loop", present)
    assert simulate(load(file)).disappointments
