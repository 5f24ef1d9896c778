"""policy: who should serve, from health and from what relayd shows; each step recorded.

The order is fixed: overrides (foreign first, then maint, then drain), require with witness looks
and shared fate, floor.  Words used here:

- a member *passes* if no required check is down; a check under shared fate does not count;
- it is *hopeful* if relayd shows it up, or cannot have found out yet: it was enabled by us, is
  about to be, or became `unknown` less than two relayd intervals ago.

What relayd shows decides whether the floor is met, never who ranks best: a disabled host shows
nothing, so ranking by it makes a member come and go for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from hactl.core.health import Health, State
from hactl.core.model import (
    Decision,
    HostStatus,
    Member,
    Note,
    Override,
    Owned,
    Probe,
    Rule,
    ServicePlan,
    Verdict,
    Want,
)

WITNESSES = 8  # witness looks at a time, per check
NEVER = Health()


class Shared(Struct, frozen=True):
    """A latched shared fate: the nodes that failed together, and when the first was up again."""

    nodes: frozenset[str]
    since: float
    recovered: float | None = None


class Fate(Struct, frozen=True):
    """What the probes of one check, taken together, say of each other.

    *shared* suppresses the check on its nodes; *waits* has the nodes whose removal waits for
    their siblings' answers, and until when.
    """

    shared: Shared | None = None
    waits: Mapping[str, float] = {}

    def suppresses(self, node: str | None) -> bool:
        """Tell whether the check removes nobody on *node* for now."""
        return self.shared is not None and node in self.shared.nodes


def patience(rule: Rule) -> float:
    """Return how long, in seconds, a removal waits for its siblings' answers at most."""
    return 2 * rule.timeout + 0.5


def unanswered(group: Mapping[str, Probe], healths: Mapping[Probe, Health]) -> set[Probe]:
    """Return the probes that have not been looked at since a sibling's first fail."""
    suspects = {p for p in group.values() if healths.get(p, NEVER).suspect}
    if not suspects:
        return set()
    newest = max(healths[p].bad_since or 0.0 for p in suspects)
    return {
        p
        for p in group.values()
        if p not in suspects and _before(healths.get(p, NEVER).looked, newest)
    }


def _before(looked: float | None, moment: float) -> bool:
    return looked is None or looked < moment


def judge_fate(
    group: Mapping[str, Probe],
    healths: Mapping[Probe, Health],
    rule: Rule,
    latch: Shared | None,
    window: float,
    grace: float,
    now: float,
) -> Fate:
    """Say whether the nodes of *group* fail together, and whose removal still has to wait.

    *group* maps each node that uses the check (neither foreign nor in maintenance) to its probe.
    A node whose probe was bad more than *window* before the newest one is no part of it, and
    neither is one whose probe never had a verdict.
    """
    if latch is not None:
        if latch.recovered is None and any(
            healths.get(group[n], NEVER).state is State.UP and not healths[group[n]].bad
            for n in latch.nodes & group.keys()
        ):
            latch = Shared(latch.nodes, latch.since, now)
        if latch.nodes & group.keys() and (
            latch.recovered is None or now < latch.recovered + grace
        ):
            return Fate(latch)
    seen = {
        node: health
        for node, probe in group.items()
        if (health := healths.get(probe, NEVER)).state is not State.UNKNOWN or health.bad
    }
    down = {node: health for node, health in seen.items() if health.state is State.DOWN}
    if not down:
        return Fate()
    newest = max(h.bad_since for h in seen.values() if h.bad_since is not None)
    fresh = {
        node: health
        for node, health in seen.items()
        if health.bad_since is None or health.bad_since >= newest - window
    }
    together = len(fresh) >= 2 and all(health.bad for health in fresh.values())
    patient = patience(rule)
    out_of_patience = all(
        now >= health.since + patient for node, health in fresh.items() if node in down
    )
    if together and (fresh.keys() <= down.keys() or out_of_patience):
        return Fate(Shared(frozenset(fresh), now))
    waits = {}
    for node, health in down.items():
        until = health.since + patient
        if now < until and any(
            other.suspect or (not other.bad and _before(other.looked, health.bad_since or 0.0))
            for sibling, other in fresh.items()
            if sibling != node and group[sibling] != group[node]
        ):
            waits[node] = until
    return Fate(None, waits)


class Standing(Struct, frozen=True):
    """All that policy knows of one member at one moment.

    *status* is None where relayd hides the host; *since* is when it began to show *status*;
    *fixed* says why nothing can be done to the host ("" if something can); *probes* has the
    required checks' probes, in the service's order.
    """

    member: Member
    node: str | None
    weight: int = 1
    status: HostStatus | None = None
    since: float = 0.0
    fresh: bool = False
    fixed: str = ""
    override: Override | None = None
    owned: Owned | None = None
    probes: tuple[Probe, ...] = ()

    @property
    def foreign(self) -> bool:
        """Somebody else disabled it."""
        return self.status is HostStatus.DISABLED and self.owned is None and not self.fixed

    @property
    def enabled(self) -> bool:
        return self.status is not None and self.status is not HostStatus.DISABLED


class View(Struct, frozen=True):
    """One member, judged by its own checks alone: what policy reasons with from there on."""

    standing: Standing
    failing: tuple[str, ...]  # "smtp: no answer at greeting", checks that speak for removal
    held: str  # why it may not return yet, if it is out
    drained: bool
    notes: tuple[Note, ...]
    order: int

    @property
    def passes(self) -> bool:
        return not self.failing

    @property
    def free(self) -> bool:
        return self.passes and not self.drained and not self.held

    @property
    def rank(self) -> tuple[int, bool, bool, int, int]:
        """Sort key for recalls: class, who is in now, who is up in relayd, weight, order."""
        standing = self.standing
        grade = 5 + self.drained if self.failing else 2 if self.drained or self.held else 0
        up = standing.status is HostStatus.UP
        return (grade, not standing.enabled, not up, -standing.weight, self.order)


def view(
    standing: Standing,
    order: int,
    healths: Mapping[Probe, Health],
    fates: Mapping[str, Fate],
) -> View:
    """Judge one candidate by its required checks, shared fate and witness waits applied."""
    failing: list[str] = []
    notes: list[Note] = []
    unsure: list[str] = []
    answered = False
    for probe in standing.probes:
        health, check = healths.get(probe, NEVER), probe.check
        fate = fates.get(check, Fate())
        answered = answered or health.state is not State.UNKNOWN
        if health.state is State.UNKNOWN and health.bad:
            unsure.append(check)
        if health.state is not State.DOWN:
            continue
        text = f"{check}: {health.reason}"
        if fate.suppresses(standing.node):
            assert fate.shared is not None
            names = ", ".join(sorted(fate.shared.nodes))
            notes.append(
                Note("shared fate", f"{text}; {names} fail together, so nobody is removed")
            )
        elif standing.enabled and (until := fate.waits.get(standing.node or "")) is not None:
            notes.append(Note("witness", f"{text}; waits for the answers of its siblings", until))
        else:
            failing.append(text)
            notes.append(Note("require", f"{text}; down removes the member"))
    held = ""
    owned = standing.owned
    if standing.status is HostStatus.DISABLED and owned and owned.cause == "check":
        if unsure:
            held = f"{unsure[0]} has no verdict yet, and its newest look failed"
        elif standing.probes and not answered:
            held = "no required check has an answer yet"
    if held:
        notes.append(Note("unknown", f"{held}; it stays out"))
    drained = standing.override is not None and standing.override.kind == "drain"
    return View(standing, tuple(failing), held, drained, tuple(notes), order)


def hopeful(standing: Standing, interval: float, now: float) -> bool:
    """Tell whether the member serves, or whether relayd cannot have found out yet."""
    if standing.status is HostStatus.UP or standing.status is HostStatus.DISABLED:
        return True  # a disabled one that is wanted is about to be enabled
    if standing.status is HostStatus.UNKNOWN and now < standing.since + 2 * interval:
        return True
    return standing.status is not None and standing.fresh


def minimum(service: ServicePlan, standings: Iterable[Standing]) -> int:
    """Return the weight that must go on serving: of those who may serve at all, that is, whom
    neither an override nor a foreign hand keeps out.  1 in a service with a backup table.
    """
    members = [s for s in standings if overridden(s) is None]
    if any(s.member.table for s in members):
        return 1
    return max(service.least, int(service.share * sum(s.weight for s in members) + 1e-9))


def decide(
    service: ServicePlan,
    standings: Sequence[Standing],
    healths: Mapping[Probe, Health],
    fates: Mapping[str, Fate],
    interval: float,
    now: float,
) -> list[Decision]:
    """Say for every member what it should be; *interval* is relayd's, in seconds."""
    decisions = {s.member: d for s in standings if (d := overridden(s)) is not None}
    views = [
        view(standing, order, healths, fates)
        for order, standing in enumerate(standings)
        if standing.member not in decisions
    ]
    floor = minimum(service, standings)
    bystanders = sum(  # members that we cannot switch, but that do serve
        s.weight
        for s in standings
        if s.status is HostStatus.UP
        and (d := decisions.get(s.member)) is not None
        and d.want is Want.LEAVE
    )
    wanted = {v.standing.member for v in views if v.free}
    recalled: dict[Member, str] = {}

    def weight() -> int:
        return bystanders + sum(
            v.standing.weight
            for v in views
            if (v.standing.member in wanted or v.standing.member in recalled)
            and hopeful(v.standing, interval, now)
        )

    for candidate in sorted(views, key=lambda v: v.rank):
        if weight() >= floor or not views:
            break
        if candidate.passes and candidate.standing.member not in wanted:
            recalled[candidate.standing.member] = "fewer than the floor would serve"
    if views and weight() < floor:
        for v in views:
            if v.standing.enabled and v.standing.member not in wanted:
                recalled.setdefault(v.standing.member, "nobody who passes serves in its place")
        if weight() == 0 and not any(
            hopeful(v.standing, interval, now) for v in views if v.standing.enabled
        ):
            for v in views:
                if v.standing.member not in wanted:
                    recalled.setdefault(v.standing.member, "nobody serves at all")
    for v in views:
        decisions[v.standing.member] = _decision(v, wanted, recalled, floor)
    return [decisions[s.member] for s in standings]


def overridden(standing: Standing) -> Decision | None:
    """Decide what no check can change: hosts we cannot switch, foreign ones, maintenance."""
    member, override = standing.member, standing.override
    if standing.fixed:
        return _fixed(member, Want.LEAVE, "fixed", standing.fixed)
    if standing.foreign:
        text = "disabled by somebody else; it is never undone by hactl"
        return _fixed(member, Want.LEAVE, "foreign", text)
    if override is not None and override.kind == "maint":
        return _fixed(member, Want.OUT, "maint", words(override))
    if standing.status is None:
        text = "relayd hides it: its table or service is disabled, or gone"
        return _fixed(member, Want.LEAVE, "hidden", text)
    if standing.node is None:
        text = f"no node of hactl.yaml has the name or address {member.host}"
        return _fixed(member, Want.LEAVE, "stranger", text)
    return None


def _fixed(member: Member, want: Want, cause: str, text: str) -> Decision:
    return Decision(member, want, cause, text, (Note(cause, text),))


def words(override: Override) -> str:
    """Say who wants an override and why."""
    return f"{override.who}: {override.reason}" if override.reason else override.who


def _decision(v: View, wanted: set[Member], recalled: Mapping[Member, str], floor: int) -> Decision:
    """Turn what was found out about a candidate into its decision."""
    member, standing = v.standing.member, v.standing
    notes = list(v.notes)
    cause, reason = "check", "; ".join(v.failing)
    if v.drained:
        assert standing.override is not None
        cause, reason = "drain", words(standing.override)
        notes.insert(0, Note("drain", reason, standing.override.ends))
    elif not reason:
        reason = v.held
    if member in recalled:
        text = f"{recalled[member]} (floor {floor}): it stays in"
        notes.append(Note("floor", text))
        return Decision(member, Want.IN, "floor", f"{reason}; {text}", tuple(notes))
    if member not in wanted:
        return Decision(member, Want.OUT, cause, reason, tuple(notes))
    waits = next((n.text for n in notes), "")
    if not notes:
        notes.append(Note("require", "every required check passes"))
    return Decision(member, Want.IN, "", waits, tuple(notes))


def newest_ok(standing: Standing, healths: Mapping[Probe, Health]) -> bool:
    """Tell whether the newest look of every required check was ok, and there was one."""
    lasts = [healths.get(probe, NEVER).last for probe in standing.probes]
    return bool(lasts) and all(last and last.verdict is Verdict.OK for last in lasts)
