"""policy: who should serve, from health and from what relayd shows; each step recorded.

The order is fixed: overrides (foreign first, then maint, pin and drain), require with witness looks
and shared fate, prefer with its load guard, exclusive or floor, pace, freeze.  Words used here:

- a member *passes* if no required check is down; a check under shared fate does not count, and one
  that is down but still waits for its witnesses counts as down;
- it is *free* if it passes and neither a hold nor a drain keeps it out;
- it is *hopeful* if relayd shows it up, or cannot have found out yet: it was enabled by us, is
  about to be, or became `unknown` less than two relayd intervals ago.

What relayd shows decides whether the floor is met, never who ranks best: a disabled host shows
nothing, so ranking by it makes a member come and go for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

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
HOLD = 16.0  # seconds of the first hold; each level doubles it
LONGEST = 900.0  # seconds of the longest hold
FORGIVE = 300.0  # seconds without a removal that take a level away
HOUR = 3600.0  # seconds
CAP = 7  # removals by checks per member and hour: at most 15 changes, returns included
RESTART = 5.0  # seconds: a node that answers again so soon was restarted, not sick
LOAD = 120.0  # seconds after a removal in which it may be the cause of what follows
GUARDED = 900.0  # seconds of the first load guard; each one doubles it
GUARD_MOST = 14400.0  # seconds of the longest; after twice that without one it starts anew
NEVER = Health()
PASSES = Note("require", "every required check passes")
BADNESS = {State.DEGRADED: 1, State.DOWN: 2}  # of a preferred check

Seat = tuple[str, Probe]  # a node and the probe that speaks for it there


def lane(probe: Probe) -> str:
    """Name the check whose probes share a fate with *probe*: IPv4 and IPv6 fail by themselves."""
    return f"{probe.check} over IPv6" if ":" in probe.address else probe.check


class Shared(Struct, frozen=True):
    """A latched shared fate: who failed together, and when somebody was up again."""

    seats: frozenset[Seat]
    since: float
    recovered: float | None = None

    @property
    def names(self) -> str:
        """The nodes, for people."""
        return ", ".join(sorted({node for node, _ in self.seats}))


class Fate(Struct, frozen=True):
    """What the probes of one lane, taken together, say of each other.

    *shared* suppresses the check at its seats, *until* the grace ends once somebody was up; *cause*
    does so on its nodes: another check is shared there, and this one is declared to fail with it.
    *waits* has the seats whose removal waits for their siblings' answers, and until when.
    """

    shared: Shared | None = None
    waits: Mapping[Seat, float] = {}
    cause: Shared | None = None
    until: float | None = None

    def suppresses(self, node: str | None, probe: Probe) -> bool:
        """Tell whether the check removes nobody there for now."""
        if self.cause is not None and any(node == other for other, _ in self.cause.seats):
            return True
        return self.shared is not None and (node, probe) in self.shared.seats

    @property
    def names(self) -> str:
        """The nodes that fail together, for people."""
        found = self.shared or self.cause
        return found.names if found is not None else ""


APART = Fate()  # of a lane where nobody is down


def patience(rule: Rule) -> float:
    """Return how long, in seconds, a removal waits for its siblings' answers at most."""
    return 2 * (rule.timeout + 2 * rule.hedge) + 0.5


def first_fail(group: Iterable[Seat], healths: Mapping[Probe, Health]) -> float | None:
    """Return when the newest open row of fails among the seats began, None if there is none."""
    return max(
        (
            health.bad_since
            for _, probe in group
            if (health := healths.get(probe, NEVER)).suspect and health.bad_since is not None
        ),
        default=None,
    )


def _before(looked: float | None, moment: float) -> bool:
    return looked is None or looked < moment


def judge_fate(
    group: frozenset[Seat],
    healths: Mapping[Probe, Health],
    rule: Rule,
    latch: Shared | None,
    window: float,
    grace: float,
    now: float,
) -> Fate:
    """Say whether the seats of *group* fail together, and whose removal still has to wait.

    *group* has each node that uses the check (neither foreign nor in maintenance) with its probe.
    A seat whose probe was bad more than *window* before the newest one is no part of it, and
    neither is one whose probe never had a verdict.
    """
    found = {seat: healths.get(seat[1], NEVER) for seat in group}
    if latch is None and not any(h.state is State.DOWN for h in found.values()):
        return APART
    if latch is not None:
        if latch.recovered is None and any(
            health.well and (seat in latch.seats or not _before(health.looked, latch.since))
            for seat, health in found.items()
        ):
            latch = Shared(latch.seats, latch.since, now)
        until = None if latch.recovered is None else latch.recovered + grace
        if latch.seats & group and (until is None or now < until):
            return Fate(latch, until=until)
    seen = {s: h for s, h in found.items() if h.state is not State.UNKNOWN or h.bad}
    down = {s: h for s, h in seen.items() if h.state is State.DOWN}
    if not down:
        return APART
    newest = max(h.bad_since for h in seen.values() if h.bad_since is not None)
    fresh = {
        seat: health
        for seat, health in seen.items()
        if health.bad_since is None or health.bad_since >= newest - window
    }
    several = len({node for node, _ in fresh}) >= 2
    together = several and all(health.bad for health in fresh.values())
    patient = patience(rule)
    waited = [now >= health.since + patient for seat, health in fresh.items() if seat in down]
    if together and waited and (len(waited) == len(fresh) or all(waited)):
        return Fate(Shared(frozenset(fresh), now))
    waits = {}
    for seat, health in down.items():
        until = health.since + patient
        if now < until and any(
            other.suspect or (not other.bad and _before(other.looked, health.bad_since or 0.0))
            for sibling, other in fresh.items()
            if sibling[1] != seat[1]
        ):
            waits[seat] = until
    return Fate(None, waits)


class Hold(Struct, frozen=True):
    """How often a member was removed by checks, and until when it may not return for that.

    *level* as of the newest of *removals* (their times, those of the last hour); *graced* is when
    a restart last cost no level; *decision* is that of the last disable of ours, whatever its
    cause, of which we know that it was carried out; None: nobody knows.
    """

    level: int = 0
    removals: tuple[float, ...] = ()
    until: float = float("-inf")
    graced: float = float("-inf")
    decision: int | None = 0

    def removed(self, now: float) -> Hold:
        """Count a removal; the return waits nothing at level 0, then 16 s, doubling."""
        level = self.level_at(now)
        wait = min(HOLD * 2 ** (level - 1), LONGEST) if level else 0.0
        removals = (*(t for t in self.removals if t > now - HOUR), now)
        hold = Hold(level + 1, removals, now + wait, self.graced, self.decision)
        return replace(hold, until=max(hold.until, hold.capped()))

    def capped(self) -> float:
        """Return the time before which another removal could be one too many in an hour."""
        return self.removals[-CAP] + HOUR if len(self.removals) >= CAP else float("-inf")

    def level_at(self, now: float) -> int:
        """Return the level: one less for each five minutes since the last removal."""
        if not self.removals:
            return 0
        return max(0, self.level - int((now - self.removals[-1]) // FORGIVE))

    def forgiven(self, answered: float, now: float) -> Hold:
        """Take the level back if the node was only restarted, once an hour."""
        quick = bool(self.removals) and answered - self.removals[-1] <= RESTART
        if self.level == 1 and quick and now > self.graced + HOUR:
            return Hold(0, self.removals, self.until, now, self.decision)
        return self


class LoadGuard(Struct, frozen=True):
    """Whether a prefer check's removals made things worse: *removed* is the newest of them.

    Until *until* the check removes nobody; *span* is how long the next guard will be.
    """

    removed: float = float("-inf")
    until: float = float("-inf")
    span: float = GUARDED


class Memory(Struct, frozen=True):
    """What policy remembers of a service from one decision to the next.

    *out* has the members whose removal was carried out and still holds (doing it again is no new
    removal), *paced* the times of removals by checks, *swaps* of those for which somebody came in,
    *guards* the load guards by check, *owner*
    an exclusive service's owner, *latched* the members that a freeze keeps in.
    """

    holds: Mapping[Member, Hold] = {}
    out: frozenset[Member] = frozenset()
    paced: tuple[float, ...] = ()
    swaps: tuple[float, ...] = ()
    guards: Mapping[str, LoadGuard] = {}
    owner: Member | None = None
    latched: frozenset[Member] | None = None

    def lasting(self) -> Memory:
        """Return the part that must survive a restart of hactld."""
        return Memory(holds=self.holds, guards=self.guards, owner=self.owner, latched=self.latched)

    def removed(self, decision: Decision, now: float) -> Memory:
        """Count a removal that was carried out; the same one again after a reload is none."""
        member = decision.member
        hold = replace(self.holds.get(member, Hold()), decision=decision.id)
        kept = replace(self, out=self.out | {member}, holds={**self.holds, member: hold})
        if member in self.out or decision.cause not in ("check", "prefer"):
            return kept
        guards = dict(self.guards)
        for check in decision.checks if decision.cause == "prefer" else ():
            guards[check] = replace(guards.get(check, LoadGuard()), removed=now)
        holds = {**self.holds, member: hold.removed(now)}
        kept = replace(kept, holds=holds, guards=guards)
        if decision.swap:
            return replace(kept, swaps=(*(t for t in self.swaps if t > now - HOUR), now))
        return replace(kept, paced=(*(t for t in self.paced if t > now - HOUR), now))


class Standing(Struct, frozen=True):
    """All that policy knows of one member at one moment.

    *status* is None where relayd hides the host; *since* is when it began to show *status*;
    *fixed* says why nothing can be done to the host ("" if something can), *follows* that this is
    because it goes where its parent goes; *probes* has the required checks' probes, *prefers*
    those of the preferred ones, in the service's order.
    *barred*: relayd's script says that it is down, because we said so; *owned* then tells why.
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
    prefers: tuple[Probe, ...] = ()
    barred: bool = False
    follows: bool = False

    @property
    def foreign(self) -> bool:
        """Somebody else disabled it."""
        return self.status is HostStatus.DISABLED and self.owned is None and not self.fixed

    @property
    def enabled(self) -> bool:
        out = self.barred or self.status is HostStatus.DISABLED
        return self.status is not None and not out


class View(Struct, frozen=True):
    """One member, judged by its own checks alone: what policy reasons with from there on.

    *failing*: the required checks that are down and speak for removal, *waiting* whether that
    removal waits for witnesses; *worse* maps each preferred check that is bad to how bad (1
    degraded, 2 down), *unsure* that no newest look said so; *held* says why the member may not
    return yet, if it is out; *shared*: a required check is down, and shared fate suppresses it.
    """

    standing: Standing
    failing: tuple[str, ...]
    waiting: bool
    worse: Mapping[str, int]
    unsure: bool
    held: str
    notes: tuple[Note, ...]
    order: int
    degraded: bool = False
    shared: bool = False

    @property
    def member(self) -> Member:
        return self.standing.member

    @property
    def drained(self) -> bool:
        override = self.standing.override
        return override is not None and override.kind == "drain"

    @property
    def pinned(self) -> bool:
        override = self.standing.override
        return override is not None and override.kind == "pin"

    @property
    def passes(self) -> bool:
        return not self.failing

    @property
    def free(self) -> bool:
        return self.passes and not self.drained and not self.held

    @property
    def on_hold(self) -> bool:
        """Nothing but its hold keeps it out."""
        return self.passes and not self.drained and any(n.rule == "hold" for n in self.notes)

    @property
    def badness(self) -> int:
        """How bad its worst preferred check is: 0 well, 1 degraded, 2 down."""
        return max(self.worse.values(), default=0)

    @property
    def grade(self) -> int:
        """The member's class: 0 up, 1 degraded, 2 held or drained, 5 down, 6 down and drained."""
        if self.failing:
            return 6 if self.drained else 5
        if self.drained or self.held:
            return 2
        return 1 if self.worse or self.degraded else 0

    def rank(self, holds: Mapping[Member, Hold], now: float) -> tuple[float, ...]:
        """Sort key: class, who is in, who is up, fewest removals, weight, table and name order."""
        standing = self.standing
        up = standing.status is HostStatus.UP
        hold = holds.get(self.member, Hold())
        recent = sum(t > now - HOUR for t in hold.removals)
        return (self.grade, not standing.enabled, not up, recent, -standing.weight, self.order)


def view(
    standing: Standing,
    order: int,
    healths: Mapping[Probe, Health],
    fates: Mapping[str, Fate],
    memory: Memory,
    now: float,
) -> View:
    """Judge one candidate by its checks, with shared fate, witness waits and holds applied."""
    failing: list[str] = []
    notes: list[Note] = []
    waiting = degraded = suppressed = False
    stays = standing.enabled and standing.member not in memory.out
    for probe in standing.probes:
        health = healths.get(probe, NEVER)
        if health.state is not State.DOWN:
            degraded = degraded or health.state is State.DEGRADED
            continue
        fate = fates.get(lane(probe), APART)
        text = f"{probe.check}: {health.reason}"
        if fate.suppresses(standing.node, probe):
            shared = f"{text}; {fate.names} fail together, so nobody is removed"
            notes.append(Note("shared fate", shared, fate.until))
            suppressed = True
            continue
        failing.append(text)
        until = fate.waits.get((standing.node or "", probe)) if standing.enabled else None
        if until is not None:
            waiting = True
            notes.append(Note("witness", f"{text}; waits for the answers of its siblings", until))
        elif stays and (why := _undecided(health)):
            waiting = True
            notes.append(Note("unknown", f"{text}; {why}"))
        else:
            notes.append(Note("require", f"{text}; down removes the member"))
    # one reason that needs no witness is enough
    waiting = waiting and not any(note.rule == "require" for note in notes)
    worse: dict[str, int] = {}
    unsure = True
    for probe in standing.prefers:
        health = healths.get(probe, NEVER)
        bad = BADNESS.get(health.state, 0)
        if not bad:
            continue
        fate = fates.get(lane(probe), APART)
        text = f"{probe.check} is {health.state}: {health.reason}"
        guard = memory.guards.get(probe.check, LoadGuard())
        if fate.suppresses(standing.node, probe):
            shared = f"{text}; {fate.names} fail together, so nobody is removed"
            notes.append(Note("shared fate", shared, fate.until))
        elif now < guard.until:
            why = "it got worse for the others when it removed one, so it removes nobody"
            notes.append(Note("load guard", f"{text}; {why}", guard.until))
        else:
            worse[probe.check] = bad
            why = _undecided(health) if stays else ""
            unsure = unsure and bool(why)
            notes.append(Note("unknown", f"{text}; {why}") if why else Note("prefer", text))
    held = _held(standing, healths, memory, now, notes)
    unsure = unsure and bool(worse)
    return View(
        standing, tuple(failing), waiting, worse, unsure, held, tuple(notes), order, degraded,
        suppressed,
    )  # fmt: skip


def _held(
    standing: Standing,
    healths: Mapping[Probe, Health],
    memory: Memory,
    now: float,
    notes: list[Note],
) -> str:
    """Say why a member that is out may not return yet, "" if it may.

    If an operator took it out, only the cap holds it.
    """
    owned = standing.owned
    if standing.enabled or owned is None:
        return ""
    hold = memory.holds.get(standing.member, Hold())
    if owned.cause not in ("check", "prefer", "floor"):
        until = hold.until if owned.cause == "exclusive" else hold.capped()
        return _wait(hold, until, now, notes)
    seen = [(probe, healths.get(probe, NEVER)) for probe in standing.probes]
    for probe, health in seen:
        if health.state is State.UNKNOWN and health.bad:
            held = f"{probe.check} has no verdict yet, and its newest look failed"
            notes.append(Note("unknown", f"{held}; it stays out"))
            return held
    for probe, health in seen:
        if health.state is State.UNKNOWN:
            held = f"{probe.check} has no answer yet"
            notes.append(Note("unknown", f"{held}; it stays out"))
            return held
    if held := _wait(hold, hold.until, now, notes):
        return held
    lost = [probe.check for probe, health in seen if _lost(health)]
    if hold.level and seen and len(lost) == len(seen):
        held = "its hold is over, but no required check can be looked at now"
        notes.append(Note("unknown", f"{held}; it waits for an answer"))
        return held
    return ""


def _wait(hold: Hold, until: float, now: float, notes: list[Note]) -> str:
    """Say that a hold lasts until then, "" if that is over."""
    if now >= until:
        return ""
    held = f"removed {len(hold.removals)} times in an hour; it returns later each time"
    notes.append(Note("hold", held, until))
    return held


def _undecided(health: Health) -> str:
    """Say why a probe that is bad removes nobody who is still in: its newest look was not."""
    if health.last is None or health.last.verdict is Verdict.FAIL:
        return ""
    if health.last.verdict is Verdict.WARN and health.state is State.DEGRADED:
        return ""
    if _lost(health):
        return "now it cannot be looked at, so nothing moves"
    return "but its newest look was ok"


def _lost(health: Health) -> bool:
    return health.last is not None and health.last.verdict is Verdict.UNKNOWN


def hopeful(standing: Standing, interval: float, now: float) -> bool:
    """Tell whether the member serves, or whether relayd cannot have found out yet."""
    if standing.status is HostStatus.UP or standing.status is HostStatus.DISABLED:
        return True  # a disabled one that is wanted is about to be enabled
    if standing.status is not None and standing.barred:
        return True  # so is one that the hook keeps down
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


class _Round(Struct):
    """One decision of a service, while it is made."""

    service: ServicePlan
    views: list[View]
    memory: Memory
    floor: int
    bystanders: int  # weight of members that we cannot switch, but that do serve
    interval: float
    now: float
    wanted: set[Member]
    kept: dict[Member, Note]  # in against their own checks or wishes, and why
    pushed: dict[Member, str]  # out though they pass, and why ("prefer", "exclusive")
    swapped: set[Member]  # out, and somebody comes in for them

    def weight(self, *, waiting: bool = False, sure: bool = False) -> int:
        """Return the weight of those who are wanted and hopeful; *waiting* ones too, if so asked.

        *sure*: nobody counts who passes only because shared fate suppresses its check.
        """
        return self.bystanders + sum(
            v.standing.weight
            for v in self.views
            if (
                (v.member in self.wanted and v.passes)
                or v.member in self.kept
                or (waiting and v.waiting)
            )
            and hopeful(v.standing, self.interval, self.now)
            and not (sure and v.shared)
        )


def decide(
    service: ServicePlan,
    standings: Sequence[Standing],
    healths: Mapping[Probe, Health],
    fates: Mapping[str, Fate],
    memory: Memory,
    interval: float,
    now: float,
    frozen: Override | None = None,
) -> tuple[list[Decision], Memory]:
    """Say for every member what it should be; *interval* is relayd's, in seconds."""
    decisions = {s.member: d for s in standings if (d := overridden(s)) is not None}
    memory = _relieve(memory, standings, healths, now)
    candidates = [s for s in standings if s.member not in decisions]
    memory = _guard_load(memory, service, candidates, healths, now)
    views = [view(s, n, healths, fates, memory, now) for n, s in enumerate(candidates)]
    bystanders = sum(
        s.weight
        for s in standings
        if s.status is HostStatus.UP and not s.follows and s.member in decisions
        and decisions[s.member].want is Want.LEAVE
    )  # fmt: skip
    wanted = {v.member for v in views if v.free or v.pinned}
    floor = minimum(service, standings)
    round_ = _Round(service, views, memory, floor, bystanders, interval, now, wanted, {}, {}, set())
    if service.exclusive:
        owner = _exclusive(round_)
        memory = memory if owner == memory.owner else replace(memory, owner=owner)
    else:
        _prefer(round_)
        _hold_the_floor(round_)
        _pace(round_)
    found = {v.member: _decision(v, round_) for v in views}
    back = frozenset(m for m, d in found.items() if d.want is Want.IN)
    if memory.out & back:
        memory = replace(memory, out=memory.out - back)
    memory, found = _freeze(frozen, service, memory, views, found)
    decisions.update(found)
    return [decisions[s.member] for s in standings], memory


def _relieve(
    memory: Memory, standings: Sequence[Standing], healths: Mapping[Probe, Health], now: float
) -> Memory:
    """Forgive the members that were only restarted."""
    if not memory.holds:
        return memory
    holds = dict(memory.holds)
    for standing in standings:
        hold = holds.get(standing.member)
        if hold is None or hold.level != 1:
            continue
        states = [healths.get(probe, NEVER) for probe in standing.probes]
        times = [h.answered for h in states if h.answered is not None]
        if times and all(h.state is not State.DOWN for h in states):
            holds[standing.member] = hold.forgiven(max(times), now)
    return memory if holds == memory.holds else replace(memory, holds=holds)


def _guard_load(
    memory: Memory,
    service: ServicePlan,
    candidates: Sequence[Standing],
    healths: Mapping[Probe, Health],
    now: float,
) -> Memory:
    """Undo a preferred check's removals if all who were left turned bad on it soon after."""
    if not memory.guards:
        return memory
    guards = dict(memory.guards)
    for check in service.prefer:
        guard = guards.get(check)
        if guard is None or now < guard.until or now > guard.removed + LOAD:
            continue
        left = [
            healths.get(probe, NEVER)
            for s in candidates
            if s.enabled
            for probe in s.prefers
            if probe.check == check
        ]
        if left and all(h.state in (State.DEGRADED, State.DOWN) for h in left):
            span = GUARDED if now > guard.until + 2 * GUARD_MOST else guard.span
            guards[check] = LoadGuard(guard.removed, now + span, min(span * 2, GUARD_MOST))
    return memory if guards == memory.guards else replace(memory, guards=guards)


def _prefer(round_: _Round) -> None:
    """Take out the worst of those that pass, as long as a better one serves and enough stay."""
    if not any(v.worse for v in round_.views):
        return
    total = sum(v.standing.weight for v in round_.views)
    # of those equally bad, who is out stays out
    order = sorted(round_.views, key=lambda v: (-v.badness, v.standing.enabled, -v.order))
    for v in order:
        if not v.badness or v.unsure or v.member not in round_.wanted or v.pinned:
            continue
        rest = [u for u in round_.views if u.member in round_.wanted and u is not v]
        better = any(u.badness < v.badness and u.standing.status is HostStatus.UP for u in rest)
        weight = sum(
            u.standing.weight for u in rest if hopeful(u.standing, round_.interval, round_.now)
        )
        if better and weight + round_.bystanders >= round_.service.prefer_share * total:
            round_.wanted.discard(v.member)
            round_.pushed[v.member] = "prefer"


def _exclusive(round_: _Round) -> Member | None:
    """Choose the one member that is in; return it.  A pinned one is it in any case."""
    views = {v.member: v for v in round_.views}
    holds, now = round_.memory.holds, round_.now
    by_rank = sorted(round_.views, key=lambda v: v.rank(holds, now))
    owner = views.get(round_.memory.owner) if round_.memory.owner else None
    if owner is None:  # nobody is it yet: whoever serves now, if it passes
        owner = next((v for v in by_rank if v.standing.enabled and v.passes), None)
    free = [v for v in by_rank if v.free and not v.waiting]
    well = [v for v in free if not v.shared]
    held = [v for v in by_rank if v.on_hold and not v.shared]
    unsure = [v for v in by_rank if v.passes and v.held and not v.drained and not v.waiting]
    pinned = next((v for v in round_.views if v.pinned), None)
    stays = owner
    if owner is None or owner.drained or owner.on_hold or not (owner.passes or owner.waiting):
        stays = None
    if pinned is not None:
        chosen: View | None = pinned
    elif stays is not None:
        ready = (v for v in well if now >= holds.get(v.member, Hold()).until)
        first = min(ready, key=lambda v: v.order, default=stays)
        back = round_.service.failback and first.order < stays.order
        chosen = first if back else stays
    else:
        chosen = next(iter(well or held or free or unsure), None)
        if chosen is None and round_.service.open:
            chosen = owner or next(iter(by_rank), None)
            if chosen is not None:
                text = "nobody passes, and somebody has to be it"
                round_.kept[chosen.member] = Note("exclusive", text)
    if chosen in unsure:
        text = "nobody else is to serve, so it waits no longer"
        round_.kept[chosen.member] = Note("floor", text)
    round_.wanted = set() if chosen is None else {chosen.member}
    round_.pushed = {
        v.member: "exclusive"
        for v in round_.views
        if v is not chosen and not v.held and (v.passes or (v.waiting and chosen is not None))
    }
    return chosen.member if chosen is not None else round_.memory.owner


def _hold_the_floor(round_: _Round) -> None:
    """Call members back, or keep them, so that a service is never emptied."""
    views, floor = round_.views, round_.floor
    if round_.weight(sure=True) >= floor:
        return
    by_rank = sorted(views, key=lambda v: v.rank(round_.memory.holds, round_.now))
    for sure in (True, False):
        for v in by_rank:
            if round_.weight(waiting=True, sure=sure) >= floor:
                break
            if v.passes and not (sure and v.shared) and v.member not in round_.wanted:
                text = f"fewer than the floor ({floor}) would serve without it"
                round_.kept[v.member] = Note("floor", text)
    if round_.weight() >= floor or not round_.service.open:
        return
    nobody = not any(v.free and hopeful(v.standing, round_.interval, round_.now) for v in views)
    for v in by_rank:
        if not nobody and round_.weight() >= floor:
            break  # somebody passes: the best of the others, as many as the floor needs
        if v.standing.enabled and v.member not in round_.wanted:
            text = f"nobody who passes serves in its place (floor {floor})"
            round_.kept.setdefault(v.member, Note("floor", text))
    hoped = any(
        hopeful(v.standing, round_.interval, round_.now) for v in views if v.standing.enabled
    )
    if round_.weight() == 0 and not hoped:
        for v in views:
            if v.member not in round_.wanted:
                text = "nobody serves at all, so everybody may try"
                round_.kept.setdefault(v.member, Note("floor", text))


def _pace(round_: _Round) -> None:
    """Let only so many removals by checks happen in a while; those beyond wait, the best last."""
    service, memory, now = round_.service, round_.memory, round_.now
    leaving = [
        v
        for v in round_.views
        if v.standing.enabled
        and v.member not in round_.wanted
        and v.member not in round_.kept
        and v.member not in memory.out
        and not v.waiting
        and not v.drained
    ]
    if not leaving:
        return
    entering = sum(
        v.member in round_.wanted | round_.kept.keys()
        and (not v.standing.enabled or v.standing.fresh)
        for v in round_.views
    )
    used = sum(t > now - 2 * round_.interval for t in memory.swaps)  # nobody comes in for two
    free = max(0, entering - used)
    recent = [t for t in memory.paced if t > now - service.pace_span]
    most = max(1, int(service.pace_share * len(round_.views) + 1e-9))
    leaving.sort(key=lambda v: (-v.grade, -v.badness, v.order))
    round_.swapped = {v.member for v in leaving[:free]}
    for v in leaving[free + max(0, most - len(recent)) :]:
        until = min(recent, default=now) + service.pace_span
        text = f"at most {most} may be removed within {service.pace_span:g}s; it has to wait"
        round_.kept[v.member] = Note("pace", text, until)


def _freeze(
    frozen: Override | None,
    service: ServicePlan,
    memory: Memory,
    views: Sequence[View],
    found: dict[Member, Decision],
) -> tuple[Memory, dict[Member, Decision]]:
    """While frozen, let those be in who were in when it began; the decisions are shown all the same."""
    if frozen is None:
        if memory.latched is None:
            return memory, found
        return replace(memory, latched=None), found
    latched = memory.latched
    if latched is None:
        # whom we removed is not in, though relayd may have forgotten it in a restart just now
        latched = frozenset(
            v.member for v in views if v.standing.enabled and v.member not in memory.out
        )
        if service.exclusive and memory.owner in latched:
            latched = frozenset({memory.owner})  # a restart may have brought others back just now
        memory = replace(memory, latched=latched)
    if service.exclusive:  # an operator's pin moves the one that serves, frozen or not
        latched = frozenset(v.member for v in views if v.pinned) or latched
    for v in views:
        decision = found[v.member]
        want = Want.IN if v.member in latched else Want.OUT
        if decision.cause in ("drain", "pin") or decision.want is want:
            continue
        text = f"{words(frozen)}; without the freeze it would be {decision.want}"
        note = Note("freeze", text, frozen.ends)
        found[v.member] = Decision(
            v.member, want, "freeze", f"frozen: {decision.reason}", (*decision.chain, note)
        )
    return memory, found


def overridden(standing: Standing) -> Decision | None:
    """Decide what no check can change: hosts we cannot switch, foreign ones, maintenance."""
    member, override = standing.member, standing.override
    if standing.fixed:
        return _fixed(member, Want.LEAVE, "fixed", standing.fixed)
    if standing.foreign:
        text = "disabled by somebody else; it is never undone by hactl"
        if override is not None and override.kind == "pin":
            text += "; a pin does not lift it either"
        return _fixed(member, Want.LEAVE, "foreign", text)
    if override is not None and override.kind == "maint":
        return _fixed(member, Want.OUT, "maint", words(override), override.ends)
    if standing.status is None:
        text = "relayd hides it: its table or service is disabled, or gone"
        return _fixed(member, Want.LEAVE, "hidden", text)
    if standing.node is None:
        text = f"no node of hactl.yaml has the name or address {member.host}"
        if standing.owned is not None:  # we disabled it when it was a node still
            return _fixed(member, Want.IN, "stranger", f"{text} any more: it is handed back")
        return _fixed(member, Want.LEAVE, "stranger", text)
    return None


def _fixed(
    member: Member, want: Want, cause: str, text: str, until: float | None = None
) -> Decision:
    return Decision(member, want, cause, text, (Note(cause, text, until),))


def words(override: Override) -> str:
    """Say who wants an override and why."""
    return f"{override.who}: {override.reason}" if override.reason else override.who


def _decision(v: View, round_: _Round) -> Decision:
    """Turn what was found out about a candidate into its decision."""
    member, override = v.member, v.standing.override
    notes = list(v.notes)
    cause, reason = "check", "; ".join(v.failing)
    if override is not None and (v.drained or v.pinned):
        cause, reason = override.kind, words(override)
        notes.insert(0, Note(override.kind, reason, override.ends))
        if v.pinned:
            return Decision(member, Want.IN, "pin", reason, tuple(notes))
    elif member in round_.pushed and (v.waiting or not v.failing):
        cause = round_.pushed[member]
        reason = notes[0].text if cause == "prefer" else _who_is_it(round_)
    elif not reason:
        reason = v.held
    if (note := round_.kept.get(member)) is not None:
        notes.append(note)
        told = f"{reason}; {note.text}" if reason else note.text
        return Decision(member, Want.IN, note.rule, told, tuple(notes))
    if member in round_.wanted or (v.waiting and not v.drained and not round_.service.exclusive):
        told = notes[0].text if notes else ""
        return Decision(member, Want.IN, "", told, tuple(notes) or (PASSES,))
    if cause == "exclusive":
        notes.append(Note("exclusive", reason))
    swap = member in round_.swapped
    return Decision(member, Want.OUT, cause, reason, tuple(notes), 0, tuple(v.worse), swap)


def _who_is_it(round_: _Round) -> str:
    return f"{', '.join(m.host for m in round_.wanted) or 'nobody'} is the one member that serves"


def newest_ok(standing: Standing, healths: Mapping[Probe, Health]) -> bool:
    """Tell whether the newest look of every required check was ok, and there was one."""
    lasts = [healths.get(probe, NEVER).last for probe in standing.probes]
    return bool(lasts) and all(
        last and last.verdict in (Verdict.OK, Verdict.WARN) for last in lasts
    )
