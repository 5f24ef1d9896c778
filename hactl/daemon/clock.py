"""clock: loop time and the wall clock, which may be stepped; and what is stored on the latter.

hactld counts in loop time, which no step of the clock moves.  What must survive a restart is stored
on the wall clock, for after a reboot there is nothing else to go by.  The *epoch*, the wall clock
at loop time zero, joins both.  It is kept in a file in run_dir, which a reboot empties: a hactld of
the same boot reads the store by the epoch with which it was written, whatever the clock says now.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from hactl.core.model import Member, Override
from hactl.core.policy import HOUR, Hold, LoadGuard, Memory
from hactl.daemon.store import GuardRow, HoldRow, Lasting

STEP = 5.0  # seconds; less is drift, or the time between two readings
NEVER = float("-inf")


class Clock:
    """Turns loop time into wall clock and back; *now* and *wall* read them."""

    def __init__(
        self,
        now: Callable[[], float],
        epoch: float | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.now = now
        self._wall = wall
        self.epoch = wall() - now() if epoch is None else epoch

    def wall(self, moment: float) -> float:
        """Return a moment of the loop's clock as Unix seconds."""
        return moment + self.epoch

    def loop(self, stamp: float) -> float:
        """Return Unix seconds as a moment of the loop's clock."""
        return stamp - self.epoch

    def stepped(self) -> float:
        """Return by how many seconds the wall clock was stepped since the last call, and follow."""
        step = self._wall() - self.now() - self.epoch
        if abs(step) < STEP:
            return 0.0
        self.epoch += step
        return step


def read(path: Path) -> float | None:
    """Return the epoch kept in a file, None without one that makes sense."""
    with suppress(OSError, ValueError):
        epoch = float(path.read_text())
        return epoch if math.isfinite(epoch) else None
    return None


def write(path: Path, epoch: float) -> None:
    """Keep the epoch in a file, whole or not at all; raise OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(f"{epoch!r}\n")
    fresh.replace(path)


def timed(override: Override, clock: Clock) -> Override:
    """Put the end of an override on the loop's clock; nothing lasts longer than it was given."""
    if override.until is None:
        return override
    most = max(0.0, override.until - override.since)
    return replace(override, ends=min(clock.loop(override.until), clock.now() + most))


def shifted(override: Override, step: float) -> Override:
    """Let an override end when it would have, after the wall clock was stepped."""
    until = None if override.until is None else override.until + step
    return replace(override, since=override.since + step, until=until)


def stored(memory: Memory, clock: Clock) -> Lasting:
    """Put what policy must remember of a service on the wall clock."""
    owner, latched = memory.owner, memory.latched
    return Lasting(
        tuple(
            HoldRow(
                member.table,
                member.host,
                hold.level,
                tuple(clock.wall(t) for t in hold.removals),
                None if hold.until == NEVER else clock.wall(hold.until),
                None if hold.graced == NEVER else clock.wall(hold.graced),
                hold.decision,
            )
            for member, hold in memory.holds.items()
        ),
        None if owner is None else (owner.table, owner.host),
        None if latched is None else tuple(sorted((m.table, m.host) for m in latched)),
        tuple(
            GuardRow(
                check,
                clock.wall(guard.removed),
                None if guard.until == NEVER else clock.wall(guard.until),
                guard.span,
            )
            for check, guard in memory.guards.items()
        ),
    )


def restored(service: str, lasting: Lasting, clock: Clock) -> Memory:
    """Put a stored memory on the loop's clock.  Nothing lasts longer than it could have."""
    now = clock.now()
    holds = {
        Member(service, row.place, row.host): Hold(
            row.level,
            tuple(min(now, clock.loop(t)) for t in row.removals),
            NEVER if row.until is None else min(clock.loop(row.until), now + HOUR),
            NEVER if row.graced is None else min(now, clock.loop(row.graced)),
            row.decision,
        )
        for row in lasting.holds
    }
    guards = {
        row.check: LoadGuard(
            min(now, clock.loop(row.removed)),
            NEVER if row.until is None else min(clock.loop(row.until), now + row.span),
            row.span,
        )
        for row in lasting.guards
    }
    latched = lasting.latched
    return Memory(
        holds=holds,
        guards=guards,
        owner=None if lasting.owner is None else Member(service, *lasting.owner),
        latched=None if latched is None else frozenset(Member(service, *seat) for seat in latched),
    )
