"""What is stored on the wall clock means the same after somebody stepped it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from hactl.core.model import Member, Override
from hactl.core.policy import HOUR, Hold, LoadGuard, Memory
from hactl.daemon import clock as clock_
from hactl.daemon.clock import Clock, restored, shifted, stored, timed
from hactl.daemon.store import Lasting

A, B = Member("mx", 0, "10.0.0.4"), Member("mx", 1, "10.0.0.5")
C = Member("mx", 0, "10.0.0.6")  # whom nobody but an operator took out
MEMORY = Memory(
    holds={
        A: Hold(2, (100.0, 250.0), 300.0),
        B: Hold(1, (90.0,), 90.0, 95.0, 7),
        C: Hold(decision=9),
    },
    guards={"spamd": LoadGuard(200.0, 1100.0, 1800.0), "queue": LoadGuard(210.0)},
    owner=B,
    latched=frozenset({A, B}),
)


class Times:
    """Both clocks, set by hand."""

    def __init__(self, now: float = 260.0, wall: float = 1_800_000_260.0) -> None:
        self.now, self.wall = now, wall

    def clock(self, epoch: float | None = None) -> Clock:
        return Clock(lambda: self.now, epoch, lambda: self.wall)


def test_a_memory_reads_back_as_it_was_stored() -> None:
    clock = Times().clock()
    written = msgspec.json.encode(stored(MEMORY, clock))
    read = msgspec.json.decode(written, type=Lasting)
    assert restored("mx", read, clock) == MEMORY


@pytest.mark.parametrize("step", [3600.0, -3600.0, 86400.0])
def test_a_restart_after_a_step_reads_by_the_epoch_of_the_boot(step: float) -> None:
    times = Times()
    before = times.clock()
    rows = stored(MEMORY, before)
    override = Override("mx0", "maint", "root", "", before.wall(250), before.wall(850))
    times.now, times.wall = 280.0, times.wall + 20 + step
    after = times.clock(before.epoch)
    assert restored("mx", rows, after) == MEMORY
    assert timed(override, after).ends == 850
    assert after.stepped() == step
    assert after.stepped() == 0.0
    moved = shifted(override, step)
    assert (timed(moved, after).ends, moved.until) == (850, times.wall + 570)


def test_after_a_reboot_the_wall_clock_counts() -> None:
    rows = stored(MEMORY, Times().clock())
    rebooted = Times(20.0, 1_800_000_290.0).clock()  # thirty seconds later
    assert restored("mx", rows, rebooted).holds[A] == Hold(2, (-170.0, -20.0), 30.0)


def test_nothing_lasts_longer_than_it_could_have_when_the_clock_is_wrong() -> None:
    rows = stored(MEMORY, Times().clock())
    long_ago = Times(20.0, 100.0).clock()  # a machine without a battery
    found = restored("mx", rows, long_ago)
    assert found.holds[A] == Hold(2, (20.0, 20.0), 20 + HOUR)
    assert found.guards["spamd"].until == 20 + 1800
    override = Override("mx0", "maint", "root", "", 1_800_000_000.0, 1_800_000_600.0)
    assert timed(override, long_ago).ends == 620


def test_drift_is_no_step() -> None:
    times = Times()
    clock = times.clock()
    times.wall += 1.5
    assert clock.stepped() == 0.0


def test_the_epoch_is_kept_and_a_spoilt_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    assert clock_.read(path) is None
    clock_.write(path, 1_799_999_999.123456)
    assert clock_.read(path) == 1_799_999_999.123456
    for text in ("", "soon", "nan", "inf"):
        path.write_text(text)
        assert clock_.read(path) is None
