"""health: turns a stream of results into up, down or unknown.

Quick when sure: the first fail is confirmed at the fast interval, and *fall* fails in a row make a
probe down.  Calm when not: *rise* successes in a row at the normal interval make it up again.
Unknown keeps the last verdict, and neither counts nor breaks a row.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import Checked, Result, Rule, Verdict


class State(StrEnum):
    """A probe's state over time."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Health(Struct, frozen=True):
    """A probe's state and the evidence for it.

    *streak* counts the results in a row that contradict *state* (fails, while it is unknown).
    *bad_since* is the start of the first fail of the present row; it stays while down.
    *looked* is the start of the newest look that had an opinion, *last* the newest result of all.
    """

    state: State = State.UNKNOWN
    since: float = 0.0
    streak: int = 0
    bad_since: float | None = None
    looked: float | None = None
    last: Result | None = None
    reason: str = "no result yet"

    @property
    def bad(self) -> bool:
        """Down, or on the way there."""
        return self.bad_since is not None

    @property
    def suspect(self) -> bool:
        """In an open row of fails that has not made it down yet."""
        return self.bad_since is not None and self.state is not State.DOWN


def step(health: Health, checked: Checked, rule: Rule) -> Health:
    """Return the health after one more result; *health* itself is never changed."""
    result, now = checked.result, checked.ended
    if result.verdict is Verdict.UNKNOWN:
        return replace(health, last=result)
    good = result.verdict is not Verdict.FAIL
    if good and (health.state is State.UP or health.state is State.UNKNOWN):
        changed = health.state is State.UNKNOWN
        since = now if changed else health.since
        return Health(State.UP, since, 0, None, checked.started, result, result.reason)
    if not good and health.state is State.DOWN:
        return replace(health, streak=0, looked=checked.started, last=result, reason=result.reason)
    streak = health.streak + 1
    if good and streak >= rule.rise:
        return Health(State.UP, now, 0, None, checked.started, result, result.reason)
    bad_since = health.bad_since if health.bad_since is not None else checked.started
    if not good and streak >= rule.fall:
        return Health(State.DOWN, now, 0, bad_since, checked.started, result, result.reason)
    return replace(
        health, streak=streak, bad_since=bad_since, looked=checked.started, last=result,
        reason=health.reason if good else result.reason,
    )  # fmt: skip
