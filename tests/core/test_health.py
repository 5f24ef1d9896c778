"""Health: quick when sure, calm when not, and unknown is no news."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.core.health import Health, State, step
from hactl.core.model import Checked, Probe, Result, Rule, Verdict, fail, ok, unknown

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
        ("w", State.UP),
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
        health = step(health, Checked(PROBE, number, number, OF[letter]), Rule(rise=99, fall=fall))
        if health.state is State.DOWN and before.state is not State.DOWN:
            assert results[:number].replace("u", "")[-fall:] == "f" * fall


@given(st.text("ofuw", max_size=40))
def test_unknowns_can_be_left_out_of_any_history(results: str) -> None:
    with_, without = fed(results), fed(results.replace("u", ""))
    assert (with_.state, with_.streak) == (without.state, without.streak)
