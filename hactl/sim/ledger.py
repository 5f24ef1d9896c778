"""ledger: what a run cost the users of each service, integrated between the changes.

- *empty*: seconds in which nobody was in pf; *needless*: while a healthy member existed;
- *failing*: seconds of traffic that met a failing member; *avoidable*: what of it the best member
  there was would have served;
- *kept out*: member-seconds in which a healthy member, wanted by its operators, was not ready;
- *changes*: changes of the set in pf; *removals*: by checks, member by member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

from msgspec import Struct

from hactl.core.model import Member

HOUR = 3600.0


class Seat(Struct, frozen=True):
    """A member with the node behind it (its word, if hactl.yaml has no such node)."""

    member: Member
    node: str


class Layout(Struct, frozen=True):
    """A service's members, and the checks without which it does not serve."""

    name: str
    seats: tuple[Seat, ...]
    require: tuple[str, ...]


class Figures(Struct):
    """One service's account; seconds."""

    empty: float = 0.0
    needless: float = 0.0
    longest_needless: float = 0.0
    failing: float = 0.0
    avoidable: float = 0.0
    kept_out: float = 0.0
    changes: int = 0
    removals: int = 0
    worst_hour: int = 0
    per_hour: float = 0.0
    commands: int = 0
    detection: float | None = None
    worst_detection: float | None = None
    back: float | None = None
    worst_back: float | None = None


class Account:
    """The running account of one service."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.figures = Figures()
        self.serving: frozenset[Member] = frozenset()
        self.bad: dict[Member, float] = {}
        self.changed: dict[Member, list[float]] = {}  # changes by checks
        self.removed: dict[Member, list[float]] = {}
        self.detections: list[float] = []
        self.returns: list[float] = []
        self._rates = (0.0,) * 5
        self._needless_since: float | None = None
        self._failed_at: dict[Member, float] = {}
        self._well_at: dict[Member, float] = {}

    def pass_time(self, seconds: float) -> None:
        empty, needless, failing, avoidable, kept = self._rates
        figures = self.figures
        figures.empty += empty * seconds
        figures.needless += needless * seconds
        figures.failing += failing * seconds
        figures.avoidable += avoidable * seconds
        figures.kept_out += kept * seconds

    def set(
        self,
        now: float,
        serving: frozenset[Member],
        bad: dict[Member, float],
        excused: Callable[[Member], bool],
        ready: Callable[[Member], bool],
        counting: bool,
    ) -> None:
        """Take the new state of things; *excused*: an operator wants the member out."""
        figures = self.figures
        if counting and serving != self.serving:
            figures.changes += 1
        if counting:
            self._delays(now, serving, bad)
        self.serving, self.bad = serving, bad
        may = [m for m in bad if not excused(m)]
        best = min((bad[m] for m in may), default=1.0)
        empty = 0.0 if serving else 1.0
        needless = empty if best < 0.5 else 0.0
        failing = sum(bad[m] for m in serving) / len(serving) if serving else 0.0
        avoidable = max(0.0, failing - best)
        kept = float(sum(1 for m in may if bad[m] == 0.0 and m not in serving and not ready(m)))
        if needless and self._needless_since is None:
            self._needless_since = now
        elif not needless and self._needless_since is not None:
            if counting:
                span = now - self._needless_since
                figures.longest_needless = max(figures.longest_needless, span)
            self._needless_since = None
        self._rates = (empty, needless, failing, avoidable, kept)

    def _delays(self, now: float, serving: frozenset[Member], bad: Mapping[Member, float]) -> None:
        """Note how long it takes until a failing member is out, and a healthy one in."""
        for member, badness in bad.items():
            before = self.bad.get(member, 0.0)
            if badness == 1.0 and before < 1.0 and member in serving:
                self._failed_at[member] = now
            elif badness == 0.0 and before > 0.0 and member not in serving:
                self._well_at[member] = now
            if badness < 1.0:
                self._failed_at.pop(member, None)
            if badness > 0.0:
                self._well_at.pop(member, None)
            if member not in serving and member in self._failed_at:
                self.detections.append(now - self._failed_at.pop(member))
            if member in serving and member in self._well_at:
                self.returns.append(now - self._well_at.pop(member))

    def note(self, member: Member, now: float, *, removal: bool) -> None:
        """Count a change by checks."""
        self.changed.setdefault(member, []).append(now)
        if removal:
            self.removed.setdefault(member, []).append(now)

    def close(self, now: float, hours: float) -> Figures:
        """Return the account at the end of the run."""
        figures = self.figures
        if self._needless_since is not None:
            span = now - self._needless_since
            figures.longest_needless = max(figures.longest_needless, span)
        members = max(1, len(self.layout.seats))
        figures.removals = sum(map(len, self.removed.values()))
        figures.per_hour = sum(map(len, self.changed.values())) / members / max(hours, 1e-9)
        figures.worst_hour = max((worst_hour(times) for times in self.changed.values()), default=0)
        if self.detections:
            figures.detection = median(self.detections)
            figures.worst_detection = max(self.detections)
        if self.returns:
            figures.back, figures.worst_back = median(self.returns), max(self.returns)
        return figures


def worst_hour(times: list[float]) -> int:
    """Return the most of *times* (in order) that lie within one hour."""
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - HOUR:
            first += 1
        most = max(most, last - first + 1)
    return most


class Ledger:
    """The accounts of all services; `settle` before anything changes, `set` after."""

    def __init__(self, layouts: tuple[Layout, ...]) -> None:
        self.accounts = {each.name: Account(each) for each in layouts}
        self.counting = False
        self._since = 0.0
        self._began = 0.0

    def start(self, now: float) -> None:
        """Begin to count."""
        self._since = self._began = now
        self.counting = True
        for account in self.accounts.values():
            account.detections.clear()
            account._needless_since = now if account._rates[1] else None

    def settle(self, now: float) -> None:
        """Add up the time until *now*."""
        if self.counting and now > self._since:
            for account in self.accounts.values():
                account.pass_time(now - self._since)
            self._since = now

    def close(self, now: float) -> dict[str, Figures]:
        """End the accounts and return the figures of each service."""
        self.settle(now)
        hours = (now - self._began) / HOUR
        return {name: account.close(now, hours) for name, account in self.accounts.items()}
