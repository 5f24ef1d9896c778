"""schedule: says which probe is due.

Probes start in slots, not with a timer each: wake-ups, not protocols, are what checking costs.
The rate is fixed (the next look is planned an interval after the previous *plan*), the phase of a
node is stable over restarts, and different checks of one node fall into different slots.
"""

from __future__ import annotations

from zlib import crc32

from msgspec import Struct

from hactl.core.health import Health
from hactl.core.model import Probe, Rule

SLOT = 0.1  # seconds
BLINK = 1e-6  # seconds; clocks and sums of slots are floats


class Timing(Struct, frozen=True):
    """When a probe is looked at.

    *due* is the next look of the fixed rate, *next* the one that will really come first (a
    confirmation may come before *due*); *began* is the start of the newest look, *busy* while it
    has not ended.
    """

    due: float
    next: float
    began: float = float("-inf")
    busy: bool = False


def first(probe: Probe, index: int, rule: Rule, now: float) -> Timing:
    """Plan the first look, within an interval; *index* is the check's place among the checks."""
    slots = max(1, round(rule.interval / SLOT))
    phase = (crc32(probe.node.encode()) + index) % slots * SLOT
    due = now - now % rule.interval + phase
    if due < now:
        due += rule.interval
    return Timing(due, due)


def started(timing: Timing, rule: Rule, now: float) -> Timing:
    """Note that a look starts; plans missed because of our own lag are skipped, never made up."""
    due = timing.due
    if due <= now + BLINK:
        due += rule.interval * (1 + max(0.0, now + BLINK - due) // rule.interval)
    return Timing(due, due, now, busy=True)


def finished(timing: Timing, health: Health, rule: Rule, now: float) -> Timing:
    """Note that the look in flight has ended with *health*; confirm an open row fast."""
    nearest = timing.due
    if health.suspect and rule.fast:
        nearest = min(nearest, max(now, timing.began + rule.fast))
    return Timing(timing.due, nearest, timing.began)


def hastened(timing: Timing, now: float) -> Timing:
    """Look at once, unless a look is in flight."""
    if timing.busy or timing.next <= now:
        return timing
    return Timing(timing.due, now, timing.began)


def own_lag(planned: float, now: float) -> float | None:
    """Return by how many seconds a slot planned for then came late, None below one slot."""
    late = now - planned
    return late if late >= SLOT else None
