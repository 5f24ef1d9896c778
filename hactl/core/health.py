"""health: turns a stream of results into up, degraded, down or unknown.

Quick when sure: the first fail is confirmed at the fast interval, and *fall* fails in a row make a
probe down.  Calm when not: *rise* successes in a row at the normal interval make it up again.
Fails are also counted over any time (a leaky count: *wipe_count* successes in a row or a transition
empty it), for a node that fails every third time is sick too.  A warn is a success that was slow
or short of something: it has streaks of its own, and breaks no row of fails.  Unknown keeps the
last verdict, and neither counts nor breaks a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import Checked, Limit, Result, Rule, Verdict


class State(StrEnum):
    """A probe's state over time."""

    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    UNKNOWN = "unknown"


class Health(Struct, frozen=True):
    """A probe's state and the evidence for it.

    *streak* counts the results in a row that speak for leaving *state*: fails; while down,
    successes.  *turns* does so for the way between up and degraded.  *count* is the leaky count,
    *calm* the successes in a row that will empty it.  *bad_since* is the start of the first fail
    of the present row; it stays while down.  *answered* is when a down probe's node answered again
    for the first time.  *looked* is the start of the newest look that had an opinion, *last* the
    newest result of all, *levels* the measures that are beyond a limit.
    """

    state: State = State.UNKNOWN
    since: float = 0.0
    streak: int = 0
    turns: int = 0
    count: int = 0
    calm: int = 0
    bad_since: float | None = None
    answered: float | None = None
    looked: float | None = None
    stamp: float | None = None
    last: Result | None = None
    levels: Mapping[str, Verdict] = {}
    reason: str = "no result yet"

    @property
    def bad(self) -> bool:
        """Down, or on the way there."""
        return self.bad_since is not None

    @property
    def suspect(self) -> bool:
        """In an open row of fails that has not made it down yet."""
        return self.bad_since is not None and self.state is not State.DOWN

    @property
    def well(self) -> bool:
        """Up or degraded, and in no open row of fails."""
        return self.bad_since is None and self.state in (State.UP, State.DEGRADED)


def step(health: Health, checked: Checked, rule: Rule) -> Health:
    """Return the health after one more result; *health* itself is never changed.

    A sample with the time stamp of the one before is no result, whatever came between.
    """
    if checked.stamp is not None and checked.stamp == health.stamp:
        return health
    result, levels = limited(checked.result, health.levels, rule.limits)
    if result.verdict is Verdict.UNKNOWN:
        stamp = health.stamp if checked.stamp is None else checked.stamp
        return replace(health, last=result, stamp=stamp)
    if result.verdict is Verdict.OK and health.state is State.UP and not health.streak:
        calm = health.calm + 1 if health.count else 0  # the common case, made cheap
        return Health(
            State.UP, health.since, 0, 0, health.count if calm < rule.wipe_count else 0, calm,
            None, None, checked.started, checked.stamp, result, levels, result.reason,
        )  # fmt: skip
    seen = replace(health, looked=checked.started, stamp=checked.stamp, last=result, levels=levels)
    if health.state is State.DOWN:
        return _while_down(seen, checked, result, rule)
    return _while_up(seen, checked, result, rule)


def _turned(health: Health, state: State, now: float, reason: str) -> Health:
    """Enter *state*: every count starts anew."""
    return Health(
        state, now, bad_since=health.bad_since if state is State.DOWN else None,
        looked=health.looked, stamp=health.stamp, last=health.last, levels=health.levels,
        reason=reason,
    )  # fmt: skip


def _while_down(health: Health, checked: Checked, result: Result, rule: Rule) -> Health:
    if result.verdict is Verdict.FAIL:
        return replace(health, streak=0, answered=None, reason=result.reason)
    if health.streak + 1 >= rule.rise:
        state = State.UP if result.verdict is Verdict.OK else State.DEGRADED
        return replace(_turned(health, state, checked.ended, result.reason),
                       answered=health.answered or checked.ended)  # fmt: skip
    return replace(health, streak=health.streak + 1, answered=health.answered or checked.ended)


def _while_up(health: Health, checked: Checked, result: Result, rule: Rule) -> Health:
    now, reason = checked.ended, result.reason
    if result.verdict is Verdict.FAIL:
        bad_since = checked.started if health.bad_since is None else health.bad_since
        failed = replace(
            health, streak=health.streak + 1, count=health.count + 1, calm=0,
            bad_since=bad_since, reason=reason,
        )  # fmt: skip
        known = health.state is not State.UNKNOWN
        if failed.streak >= rule.fall:
            return _turned(failed, State.DOWN, now, reason)
        if known and failed.count >= rule.down_count:
            text = f"{reason} ({failed.count} fails without {rule.wipe_count} successes in a row)"
            return _turned(failed, State.DOWN, now, text)
        return failed
    warned = result.verdict is Verdict.WARN
    target = State.DEGRADED if warned else State.UP
    if health.state is State.UNKNOWN:
        return _turned(replace(health, bad_since=None), target, now, reason)
    calm = health.calm + 1
    turns = health.turns + 1 if health.state is not target else 0
    if turns >= (rule.fall if warned else rule.rise):
        return _turned(health, target, now, reason)
    return replace(
        health, streak=health.streak if warned else 0, turns=turns, calm=calm,
        count=health.count if calm < rule.wipe_count else 0, bad_since=None, reason=reason,
    )  # fmt: skip


def limited(
    result: Result, levels: Mapping[str, Verdict], limits: Mapping[str, Limit]
) -> tuple[Result, Mapping[str, Verdict]]:
    """Judge the measures of a result by their limits; return it and what is beyond a limit now.

    A limit can only make a result worse.  A measure that was beyond one stays there, as a warn at
    least, until it is on the good side of *clear*.
    """
    if not limits or result.verdict in (Verdict.UNKNOWN, Verdict.FAIL):
        return result, levels
    beyond: dict[str, Verdict] = {}
    reasons: list[str] = []
    for name, limit in limits.items():
        value = result.measures.get(name)
        if value is None:
            if name in levels:
                beyond[name] = levels[name]  # not measured this time: as it was
            continue
        level = limit.level(value, levels.get(name, Verdict.OK))
        if level is not Verdict.OK:
            beyond[name] = level
            reasons.append(f"{name} is {value:g} (limit {limit.bound(level):g})")
    if not beyond:
        return result, {}
    worst = Verdict.FAIL if Verdict.FAIL in beyond.values() else Verdict.WARN
    reason = "; ".join(reasons) or result.reason
    return replace(result, verdict=worst, reason=reason), beyond
