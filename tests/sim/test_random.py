"""Random schedules break no rule; a few in the quick suite, five hundred in the whole one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hactl.sim import scenario
from hactl.sim.chance import keep, run, shrink, soak, story, try_seed
from hactl.sim.rules import broken

QUICK, WHOLE = (0, 3, 4, 5, 7), range(500)


def test_a_few_random_schedules_break_no_rule() -> None:
    assert [found for found in map(try_seed, QUICK) if found.violations] == []


@pytest.mark.service
def test_many_random_schedules_break_no_rule() -> None:
    jobs = min(2, os.cpu_count() or 1)
    assert [found for found in soak(WHOLE, jobs) if found.violations] == []


@pytest.mark.parametrize("seed", range(20))
def test_a_story_reads_back_as_it_was_written(seed: int) -> None:
    each = story(seed)
    read = scenario.parse(each.text("again"), "again.yaml")
    assert (read.events, read.duration, read.seed) == (each.events, each.duration, seed)


def test_a_failing_story_is_shrunk_to_what_it_needs_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 10 is made as strict as can be, so that any story breaks it."""
    monkeypatch.setattr("hactl.sim.rules.BUSY", 0)
    each = story(3)
    assert broken(run(each)) == [10]
    small = shrink(each, 10)
    assert len(small.events) == 1
    kept = keep(3, 10, tmp_path)
    again = scenario.load(kept)
    assert again.events == small.events
    assert "rule 10" in again.about
