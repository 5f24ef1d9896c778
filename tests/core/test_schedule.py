"""Schedule: slots, a fixed rate, a stable phase, fast confirmation, no overlap."""

from __future__ import annotations

import pytest

from hactl.core import schedule
from hactl.core.health import Health, State
from hactl.core.model import Probe, Rule, fail, ok, unknown
from hactl.core.schedule import Timing

RULE = Rule(interval=2.0, timeout=1.0, fast=0.2)
PROBE = Probe("mx0", "smtp", "10.0.0.4")
WELL = Health(state=State.UP)
SUSPECT = Health(state=State.UP, streak=1, bad_since=5.0, last=fail("refused"))


def test_first_look_comes_within_an_interval_in_a_slot_of_its_own() -> None:
    firsts = [schedule.first(PROBE, index, RULE, 100.03).due for index in range(4)]
    assert all(100.03 <= due < 102.03 for due in firsts)
    assert len({round(due, 3) for due in firsts}) == 4
    assert all(abs(due / 0.1 - round(due / 0.1)) < 1e-6 for due in firsts)


def test_phase_is_stable_over_restarts() -> None:
    early = schedule.first(PROBE, 0, RULE, 100.0).due
    late = schedule.first(PROBE, 0, RULE, 777.7).due
    assert (late - early) % 2.0 == pytest.approx(0.0, abs=1e-6)


def test_rate_is_fixed_however_late_a_look_starts() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, RULE, 10.07)
    assert (timing.due, timing.next, timing.began, timing.busy) == (12.0, 12.0, 10.07, 1)


def test_plans_missed_by_our_own_lag_are_skipped_not_made_up() -> None:
    assert schedule.started(Timing(10.0, 10.0), WELL, RULE, 17.3).due == 18.0


def test_a_plan_a_blink_away_counts_as_reached() -> None:
    assert schedule.started(Timing(10.0, 10.0), WELL, RULE, 9.9999999999).due == 12.0


def test_an_open_row_is_confirmed_at_the_fast_interval() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, RULE, 10.0)
    assert schedule.finished(timing, SUSPECT, RULE, 10.01).next == 10.2
    assert schedule.finished(timing, SUSPECT, RULE, 11.0).next == 11.0  # after a silent look
    assert schedule.finished(timing, Health(state=State.UP), RULE, 10.01).next == 12.0
    assert schedule.finished(timing, Health(state=State.DOWN), RULE, 10.01).next == 12.0


def test_a_look_without_an_opinion_is_not_repeated_fast() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, RULE, 10.0)
    lost = Health(state=State.UP, streak=1, bad_since=5.0, last=unknown("no descriptors"))
    assert schedule.finished(timing, lost, RULE, 10.01).next == 12.0


def test_the_first_look_of_a_check_that_runs_once_an_hour_is_soon() -> None:
    hourly = Rule(interval=3600.0, timeout=5.0, fast=0.0)
    assert schedule.first(PROBE, 0, hourly, 100.0).next <= 105.0


def test_without_a_fast_interval_the_normal_one_confirms() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, Rule(fast=0.0), 10.0)
    assert schedule.finished(timing, SUSPECT, Rule(fast=0.0), 10.01).next == 12.0


HEDGED = Rule(interval=2.0, timeout=1.0, fast=0.2, hedge=0.1)


def test_a_silent_look_is_joined_until_enough_are_on_their_way_to_decide() -> None:
    timing = Timing(10.0, 10.0)
    starts = []
    for now in (10.0, 10.1, 10.2, 10.3):
        assert timing.next == pytest.approx(now)
        if not schedule.may_start(timing, WELL, HEDGED):
            break
        timing = schedule.started(timing, WELL, HEDGED, now)
        starts.append(now)
        if timing.next > now + 1:
            break
    assert starts == [10.0, 10.1, 10.2]
    assert (timing.busy, timing.next) == (3, 12.0)


def test_an_answer_ends_the_looks_that_would_have_joined() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, HEDGED, 10.0)
    assert timing.next == 10.1
    answered = Health(state=State.UP, last=ok("220"))
    assert schedule.finished(timing, answered, HEDGED, 10.03) == Timing(12.0, 12.0, 10.0, 0)


def test_fails_of_looks_in_flight_are_not_doubled_by_fast_ones() -> None:
    timing = Timing(12.0, 12.0, 10.2, busy=3)
    first = Health(state=State.UP, streak=1, bad_since=10.0, last=fail("silent"))
    after = schedule.finished(timing, first, HEDGED, 11.0)
    assert (after.busy, after.next) == (2, 12.0)


def test_a_down_probe_is_looked_at_fast_only_while_nobody_passes() -> None:
    timing = schedule.started(Timing(10.0, 10.0), WELL, RULE, 10.0)
    down = Health(state=State.DOWN, bad_since=5.0)
    assert schedule.finished(timing, down, RULE, 10.01).next == 12.0
    assert schedule.finished(timing, down, RULE, 10.01, urgent=True).next == 10.2


def test_a_witness_look_comes_at_once_unless_one_is_in_flight() -> None:
    assert schedule.hastened(Timing(12.0, 12.0), 10.5) == Timing(12.0, 10.5)
    busy = Timing(12.0, 12.0, 10.4, busy=1)
    assert schedule.hastened(busy, 10.5) is busy


@pytest.mark.parametrize(("now", "late"), [(10.0, None), (10.05, None), (10.15, 0.15), (9.9, None)])
def test_own_lag_counts_from_one_slot(now: float, late: float | None) -> None:
    found = schedule.own_lag(10.0, now)
    assert found is None if late is None else found == pytest.approx(late)
