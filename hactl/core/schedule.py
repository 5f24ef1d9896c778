"""schedule: says which probe is due.

Probes start in slots, not with a timer each: wake-ups, not protocols, are what checking costs.
The rate is fixed (the next look is planned an interval after the previous *plan*), the phase of a
node is stable over restarts, and different checks of one node fall into different slots.  Looks of
one probe overlap in one case only: a silent one is joined by those that would confirm it (hedge).
"""

from __future__ import annotations

from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.health import Health, State
from hactl.core.model import Probe, Rule, Verdict

SLOT = 0.1  # seconds
SOON = 5.0  # seconds within which every probe is looked at for the first time
BLINK = 1e-6  # seconds; clocks and sums of slots are floats


class Timing(Struct, frozen=True):
    """When a probe is looked at.

    *due* is the next look of the fixed rate, *next* the one that will really come first (a
    confirmation may come before *due*); *began* is the start of the newest look, *busy* how many
    have not ended.
    """

    due: float
    next: float
    began: float = float("-inf")
    busy: int = 0


def first(probe: Probe, index: int, rule: Rule, now: float) -> Timing:
    """Plan the first look, within an interval and soon in any case; *index* is the check's place among the checks."""
    slots = max(1, round(rule.interval / SLOT))
    phase = (crc32(probe.node.encode()) + index) % slots * SLOT
    due = now - now % rule.interval + phase
    if due < now:
        due += rule.interval
    return Timing(due, min(due, now + phase % SOON))


def _confirms(timing: Timing, health: Health, rule: Rule) -> bool:
    """Tell whether one more look beside those in flight could still matter for going down."""
    return health.state is not State.DOWN and timing.busy + health.streak < rule.fall


def may_start(timing: Timing, health: Health, rule: Rule) -> bool:
    """Tell whether a look may start now that its time has come."""
    return not timing.busy or (rule.hedge > 0 and _confirms(timing, health, rule))


def started(timing: Timing, health: Health, rule: Rule, now: float) -> Timing:
    """Note that a look starts; plans missed because of our own lag are skipped, never made up."""
    due = _beyond(timing.due, rule, now)
    begun = Timing(due, due, now, timing.busy + 1)
    if may_start(begun, health, rule):
        return replace(begun, next=min(due, now + rule.hedge))
    return begun


def skipped(timing: Timing, rule: Rule, now: float) -> Timing:
    """Leave a turn out: the look before is still on its way."""
    due = _beyond(timing.due, rule, now)
    return replace(timing, due=due, next=due)


def postponed(timing: Timing, rule: Rule, now: float) -> Timing:
    """Let a look that would join another wait for its hedge once more."""
    due = _beyond(timing.due, rule, now)
    return replace(timing, due=due, next=min(due, now + rule.hedge))


def _beyond(due: float, rule: Rule, now: float) -> float:
    """Return the first planned look after *now*."""
    if due > now + BLINK:
        return due
    return due + rule.interval * (1 + max(0.0, now + BLINK - due) // rule.interval)


def finished(
    timing: Timing, health: Health, rule: Rule, now: float, *, urgent: bool = False
) -> Timing:
    """Note that a look has ended with *health*; confirm an open row fast.

    *urgent*: a service has nobody who passes, so a down probe is looked at fast too.
    """
    left = Timing(timing.due, timing.due, timing.began, max(0, timing.busy - 1))
    opinion = health.last is not None and health.last.verdict is not Verdict.UNKNOWN
    row = health.suspect and _confirms(left, health, rule) and opinion
    if rule.fast and (row or (urgent and health.state is State.DOWN)):
        return replace(left, next=min(timing.due, max(now, timing.began + rule.fast)))
    if left.busy and health.last and health.last.verdict in (Verdict.FAIL, Verdict.UNKNOWN):
        return replace(left, next=timing.next)  # the looks that join a silent one go on
    return left


def hastened(timing: Timing, now: float) -> Timing:
    """Look at once, unless a look is in flight."""
    if timing.busy or timing.next <= now:
        return timing
    return replace(timing, next=now)


def own_lag(planned: float, now: float) -> float | None:
    """Return by how many seconds a slot planned for then came late, None below one slot."""
    late = now - planned
    return late if late >= SLOT else None
