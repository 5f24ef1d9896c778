"""Health: quick when sure, calm when not, and unknown is no news."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.core.health import Health, State, limited, step
from hactl.core.model import Checked, Limit, Probe, Result, Rule, Verdict, fail, ok, unknown

PROBE = Probe("mx0", "smtp", "10.0.0.4")
RULE = Rule(fall=3, rise=3)
OF = {"o": ok("220"), "f": fail("refused"), "u": unknown("no descriptors")}
OF["w"] = Result(Verdict.WARN, "slow")


def fed(letters: str, health: Health | None = None, rule: Rule = RULE) -> Health:
    """Feed one result a second: o(k), f(ail), u(nknown), w(arn)."""
    health = health or Health()
    for second, letter in enumerate(letters):
        health = step(health, Checked(PROBE, second, second + 0.5, OF[letter]), rule)
    return health


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("", State.UNKNOWN),
        ("u", State.UNKNOWN),
        ("o", State.UP),
        ("w", State.DEGRADED),
        ("www", State.DEGRADED),
        ("oww", State.UP),
        ("owww", State.DEGRADED),
        ("owowow", State.UP),
        ("owwwoo", State.DEGRADED),
        ("owwwooo", State.UP),
        ("ofwff", State.DOWN),
        ("ofwof", State.UP),
        ("offfwww", State.DEGRADED),
        ("offfwwo", State.UP),
        ("offfwfww", State.DOWN),
        ("ff", State.UNKNOWN),
        ("fff", State.DOWN),
        ("off", State.UP),
        ("offo" "ff", State.UP),
        ("offf", State.DOWN),
        ("ofuffu", State.DOWN),
        ("offfoo", State.DOWN),
        ("offfoofoo", State.DOWN),
        ("offfooo", State.UP),
        ("offfouoo", State.UP),
        ("offfuuuuuu", State.DOWN),
        ("ouuuuuuuuuu", State.UP),
    ],
)  # fmt: skip
def test_state_after(results: str, state: State) -> None:
    assert fed(results).state is state


def test_a_row_of_fails_remembers_when_it_began_until_it_ends() -> None:
    assert fed("of").bad_since == 1.0
    assert fed("offf").bad_since == 1.0
    assert fed("offfoo").bad_since == 1.0
    assert fed("offo").bad_since is None
    assert fed("offfooo").bad_since is None


def test_a_warn_ends_the_fast_looks_but_not_the_row() -> None:
    assert (fed("ofw").suspect, fed("ofw").streak) == (False, 1)


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ("o" + "foo" * 7, State.UP),
        ("o" + "foo" * 8, State.DOWN),
        ("o" + ("f" + "o" * 12) * 20, State.UP),
        ("o" + "foo" * 7 + "o" * 10 + "foo", State.UP),
    ],
)
def test_a_node_that_fails_every_third_time_is_sick_too(results: str, state: State) -> None:
    found = fed(results[: results.rfind("f") + 1])
    assert found.state is state
    if state is State.DOWN:
        assert "8 fails without 12 successes in a row" in found.reason


def test_a_transition_empties_the_leaky_count() -> None:
    assert fed("o" + "foo" * 5 + "fff").count == 0


def test_a_sample_counts_once() -> None:
    health = fed("o")
    sample = Checked(PROBE, 5.0, 5.0, OF["f"], stamp=77.0)
    once = step(health, sample, RULE)
    assert step(once, sample, RULE) is once
    assert once.streak == 1
    silent = Checked(PROBE, 6.0, 6.0, OF["u"])
    assert step(step(once, silent, RULE), sample, RULE).streak == 1


def test_a_down_probe_remembers_when_it_answered_again() -> None:
    assert fed("offfo").answered == 4.5
    assert fed("offfof").answered is None
    assert fed("offfooo").answered == 4.5


LAG = Limit(warn=10, fail=60, clear=5)
DAYS = Limit(warn=14, fail=1, low=True)


@pytest.mark.parametrize(
    ("limit", "values", "verdicts"),
    [
        (LAG, (9, 10, 60, 59, 9, 5, 4), "o w f w w w o"),
        (LAG, (4, 9, 4), "o o o"),
        (DAYS, (15, 14, 1, 2, 15), "o w f w o"),
        (Limit(fail=5, clear=2), (4, 5, 3, 1), "o f f o"),
        (Limit(warn=3), (2, 3, 2), "o w o"),
    ],
)
def test_limits_with_hysteresis(limit: Limit, values: tuple[float, ...], verdicts: str) -> None:
    levels: Mapping[str, Verdict] = {}
    found = []
    for value in values:
        result, levels = limited(ok("fine", lag=value), levels, {"lag": limit})
        found.append(result.verdict[0])
    assert " ".join(found) == verdicts


def test_a_limit_says_the_measure_and_the_threshold() -> None:
    result, _ = limited(ok("fine", lag=61.5), {}, {"lag": LAG})
    assert result.reason == "lag is 61.5 (limit 60)"


def test_a_measure_that_was_not_taken_keeps_its_level() -> None:
    _, levels = limited(ok("fine", lag=12), {}, {"lag": LAG})
    result, levels = limited(ok("fine"), levels, {"lag": LAG})
    assert (result.verdict, levels) == (Verdict.WARN, {"lag": Verdict.WARN})


def test_suspect_is_an_open_row_and_down_is_not() -> None:
    assert (fed("o").suspect, fed("of").suspect, fed("offf").suspect) == (False, True, False)


def test_unknown_changes_nothing_but_the_newest_result() -> None:
    before = fed("off")
    after = step(before, Checked(PROBE, 9.0, 9.1, OF["u"]), RULE)
    assert (after.state, after.streak, after.looked) == (before.state, before.streak, before.looked)
    assert after.last == OF["u"]


def test_step_never_changes_its_argument() -> None:
    before = fed("of")
    copy = fed("of")
    step(before, Checked(PROBE, 9.0, 9.1, OF["f"]), RULE)
    assert before == copy


@given(st.text("ofu", max_size=30), st.integers(1, 5))
def test_down_only_after_fall_fails_in_a_row(results: str, fall: int) -> None:
    health = Health()
    for number, letter in enumerate(results, 1):
        before = health
        health = step(
            health,
            Checked(PROBE, number, number, OF[letter]),
            Rule(rise=99, fall=fall, down_count=99),
        )
        if health.state is State.DOWN and before.state is not State.DOWN:
            assert results[:number].replace("u", "")[-fall:] == "f" * fall


@given(st.text("ofuw", max_size=40))
def test_unknowns_can_be_left_out_of_any_history(results: str) -> None:
    with_, without = fed(results), fed(results.replace("u", ""))
    assert (with_.state, with_.streak) == (without.state, without.streak)
