"""explain: what the engine knows and why it decided so, as data (a snapshot) and as text.

A snapshot is complete in itself: `hactl status`, `hactl explain` and `--json` print the same one.
Durations are seconds; nothing in it needs a clock to be understood.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from hactl import PROTOCOL
from hactl.core.engine import FOREIGN
from hactl.core.health import State
from hactl.core.model import HostStatus, Kind, Note, Probe, Want
from hactl.core.proof import active
from hactl.core.units import span

if TYPE_CHECKING:
    from hactl.core.engine import Engine
    from hactl.core.policy import Standing

FORCED = ("drain", "maint", "pin", "freeze")  # what operators want is as wanted
ENDS = {  # what has no time of its own ends so
    "shared fate": "ends once one of them is up and the grace has passed",
    "drain": "ends with hactl resume",
    "maint": "ends with hactl resume",
    "pin": "ends with hactl resume",
    "freeze": "ends with hactl thaw",
    "foreign": "ends when somebody enables it, or with hactl resume --foreign",
}
STALE_ALERT = 300.0  # seconds after which people hear of a probe that finds out nothing


class Link(Struct, frozen=True):
    """A link of a decision's chain; *ends_in* seconds it will end, if that is known."""

    rule: str
    text: str
    ends_in: float | None = None


class ProbeView(Struct, frozen=True):
    """A probe as it stands: `streak` results in a row of the `row` that would change *state*.

    *turns* of *turn_row* do so for the way between up and degraded.  *stale*: nothing has been
    found out for three intervals.
    """

    node: str
    check: str
    address: str
    state: str
    for_seconds: float
    streak: int
    row: int
    reason: str
    looked_seconds_ago: float | None
    newest: str
    newest_reason: str
    stale: bool = False
    count: int = 0
    down_count: int = 0
    turns: int = 0
    turn_row: int = 0


class MemberView(Struct, frozen=True):
    """A member as relayd shows it (*relayd*), what it should be (*want*) and the whole why.

    *barred*: relayd's script says down, by our word.  *serving*: relayd has it up, and pf sends it
    clients as far as pf is pf's to tell.  *mark* is the forced state, if one is forced: drain,
    maint, pin, freeze or foreign.  *as_wanted* is false
    while something is wrong or has to wait.
    """

    service: str
    kind: str
    table: str
    role: str
    host: str
    node: str | None
    id: int | None
    relayd: str
    want: str
    mark: str
    for_seconds: float
    passing: int
    required: int
    decision: str
    reason: str
    chain: tuple[Link, ...]
    would: str
    as_wanted: bool
    probes: tuple[str, ...]
    barred: bool = False
    serving: bool = False
    prefers: tuple[str, ...] = ()


class ServiceView(Struct, frozen=True):
    """A service: the weight that serves now, and the floor below which it is not emptied."""

    name: str
    mode: str
    status: str
    serving: int
    floor: int
    members: tuple[MemberView, ...]


class OverrideView(Struct, frozen=True):
    """An operator's word in force; *since* and *until* are Unix seconds."""

    target: str
    kind: str
    who: str
    reason: str
    since: float
    until: float | None


class Snapshot(Struct, frozen=True):
    """Everything that operators can ask about, at one moment.

    *relayd* and *pf* say why the one or the other cannot be read, "" if it can.
    """

    protocol: int
    version: str
    uptime_seconds: float
    relayd: str
    seen_seconds_ago: float | None
    services: tuple[ServiceView, ...]
    probes: tuple[ProbeView, ...]
    overrides: tuple[OverrideView, ...]
    alerts: tuple[str, ...]
    counts: dict[str, int]
    pf: str = ""

    @property
    def as_wanted(self) -> bool:
        """Tell whether every service is as wanted; what an operator forced is wanted."""
        return not self.relayd and all(
            m.as_wanted for s in self.services for m in s.members
        ) and all(s.members for s in self.services)  # fmt: skip


def snapshot(
    engine: Engine, now: float, version: str, alerts: Sequence[str], counts: dict[str, int]
) -> Snapshot:
    """Take a snapshot of the engine; *alerts* are the daemon's own, put before the engine's."""
    seen = engine.observation
    return Snapshot(
        PROTOCOL,
        version,
        now - engine.started,
        engine.blind,
        None if seen is None else now - seen.at,
        tuple(_service(engine, name, now) for name in engine.plan.services),
        tuple(_probe(engine, now)),
        tuple(
            OverrideView(o.target, o.kind, o.who, o.reason, o.since, o.until)
            for o in engine.overrides.values()
        ),
        (*alerts, *_alerts(engine, now)),
        counts,
        engine.proof.blind,
    )


def _service(engine: Engine, name: str, now: float) -> ServiceView:
    plan = engine.plan.services[name]
    shown = next((s for s in engine.observation.services if s.name == name), None) if (
        engine.observation
    ) else None  # fmt: skip
    members = tuple(_members(engine, name, now))
    return ServiceView(
        name,
        ("hook" if plan.hook else "relayctl") if plan.acts else "observe",
        shown.status if shown else "not in relayd" if engine.observation else "not read yet",
        sum(
            s.weight
            for s in engine.standings.values()
            if s.member.service == name and _serves(engine, s, now)
        ),
        engine.floors.get(name, 0),
        members,
    )


def _serves(engine: Engine, standing: Standing, now: float) -> bool:
    """Tell whether a member serves; while pf cannot be asked, relayd's word has to do."""
    name, position, _ = member = standing.member
    shown = engine.observation.services if engine.observation else ()
    service = next((s for s in shown if s.name == name), None)
    if standing.status is not HostStatus.UP or service is None:
        return False
    if service.kind is Kind.RELAY:
        ups = [any(h.status is HostStatus.UP for h in t.hosts) for t in service.tables]
        return any(ups) and ups.index(True) == position
    used = active(service)
    mine = position < len(service.tables) and used is service.tables[position]
    return mine and engine.in_pf(member, now) is not False


def _members(engine: Engine, service: str, now: float) -> Iterable[MemberView]:
    acts = engine.plan.services[service].acts
    for member, standing in engine.standings.items():
        if member.service != service:
            continue
        place, decision = engine.places[member], engine.decisions.get(member)
        want = decision.want if decision else Want.LEAVE
        cause = decision.cause if decision else ""
        wait = engine.waits.get(member)
        wrong = [d for d in engine.proof.of(service) if d.member in (None, member)]
        chain = [*(decision.chain if decision else ()), *((wait,) if wait else ())]
        chain += [Note("pf", d.text) for d in wrong]
        status = standing.status
        off = not standing.enabled
        differs = (want is Want.IN and off) or (want is Want.OUT and not off)
        forced = cause if cause in (*FORCED, "foreign") else ""
        proved = all(d.kind == "sources" for d in wrong)
        healthy = want is Want.IN and status is HostStatus.UP and not cause and proved
        states = [engine.healths[p].state for p in standing.probes]
        passing = sum(state in (State.UP, State.DEGRADED) for state in states)
        yield MemberView(
            service,
            place.kind,
            place.table,
            "backup" if member.table else "main",
            member.host,
            standing.node,
            place.host.id if place.shown else None,
            status if status is not None else "hidden",
            want,
            forced,
            now - place.since,
            passing,
            len(standing.probes),
            f"{decision.id:08x}" if decision else "",
            (decision.reason if decision else "") or _why(engine, standing.probes),
            tuple(_link(note, now) for note in chain),
            f"would: {want}" if differs and not acts else "",
            (healthy and passing == len(standing.probes))
            or ((forced in FORCED or cause == "exclusive") and not differs and proved),
            _names(standing.probes),
            standing.barred,
            _serves(engine, standing, now),
            _names(standing.prefers),
        )


def _names(probes: Sequence[Probe]) -> tuple[str, ...]:
    return tuple(f"{p.node}/{p.check}@{p.address}" for p in probes)


def _why(engine: Engine, probes: Sequence[Probe]) -> str:
    """Give the newest reason of the first required probe that is not simply well."""
    for probe in probes:
        health = engine.healths[probe]
        if health.bad:
            return f"{probe.check}: {health.reason}"
    return ""


def _link(note: Note, now: float) -> Link:
    return Link(note.rule, note.text, None if note.until is None else max(0.0, note.until - now))


def _probe(engine: Engine, now: float) -> Iterable[ProbeView]:
    for probe in sorted(engine.healths):
        health, rule = engine.healths[probe], engine.plan.rules[probe.check]
        last = health.last
        yield ProbeView(
            probe.node,
            probe.check,
            probe.address,
            health.state,
            now - health.since,
            health.streak,
            rule.rise if health.state is State.DOWN else rule.fall,
            health.reason,
            None if health.looked is None else now - health.looked,
            last.verdict if last else "",
            last.reason if last else "",
            _stale_for(engine, probe, now) > 0,
            health.count,
            rule.down_count,
            health.turns,
            rule.rise if health.state is State.DEGRADED else rule.fall,
        )


def _stale_for(engine: Engine, probe: Probe, now: float) -> float:
    """Return for how long nothing has been found out of a probe, beyond three intervals."""
    health, rule = engine.healths[probe], engine.plan.rules[probe.check]
    known = health.since if health.looked is None else health.looked
    return now - known - 3 * rule.interval - rule.timeout


def _alerts(engine: Engine, now: float) -> Iterable[str]:
    if engine.blind:
        yield f"relayd cannot be read: {engine.blind}; nothing is moved"
    if engine.proof.blind:
        yield f"pf cannot be read: {engine.proof.blind}; who serves is what relayd says"
    for difference, standing in engine.proof.differences.items():
        if standing.counts and difference.kind != "sources":
            yield f"{difference.member or difference.service}: {difference.text}"
    for check, fate in sorted(engine.fates.items()):
        if fate.shared is not None:
            names = fate.shared.names
            yield f"{check} fails on {names} at once: a common cause, so nobody is removed for it"
    shown = {s.name for s in engine.observation.services} if engine.observation else set()
    for name in engine.plan.services:
        if engine.observation is not None and name not in shown:
            yield f"service {name}: relayd shows no redirect or relay of that name"
    healths = engine.healths
    for probe in sorted(p for p in healths if _stale_for(engine, p, now) > STALE_ALERT):
        last = healths[probe].last
        why = last.reason if last else "never looked"
        ago = span(now - (healths[probe].looked or engine.started))
        yield f"{probe} is stale: nothing found out for {ago} ({why})"
    for probe in sorted(p for p in engine.watched() if healths[p].state is State.DOWN):
        yield f"{probe} is down: {healths[probe].reason}"
    for member, decision in engine.decisions.items():
        age = now - engine.places[member].since
        if decision.cause == "foreign":
            if age >= FOREIGN:
                yield f"{member}: {decision.reason}; for {span(age)} now"
        elif decision.cause in ("stranger", "fixed"):
            yield f"{member}: {decision.reason}"
        elif decision.cause in ("floor", "exclusive") and decision.want is Want.IN:
            yield f"{member} is kept in though something speaks against it: {decision.reason}"
    for override in engine.overrides.values():
        if override.kind == "hands-off":
            yield f"hands off {override.target}: nothing is sent to relayd and no rule holds"


def explain(snap: Snapshot, name: str) -> list[str]:
    """Tell in lines why the members that *name* speaks of are as they are.

    *name* is NODE, SERVICE or SERVICE/NODE.  Empty if nothing has that name.
    """
    lines: list[str] = []
    for service in snap.services:
        for member in service.members:
            known = (service.name, member.node, member.host)
            full = (f"{service.name}/{member.node}", f"{service.name}/{member.host}")
            if name in known or name in full:
                lines += [*_explain(snap, service, member), ""]
    if not lines:
        probes = [p for p in snap.probes if p.node == name]
        lines += [f"{name}: in no relayd table; it is watched only", *map(_probe_line, probes)] * (
            bool(probes)
        )
    return lines[:-1] if lines and not lines[-1] else lines


def _explain(snap: Snapshot, service: ServiceView, member: MemberView) -> Iterable[str]:
    node = member.node or member.host
    yield f"{service.name}/{node}: {member.relayd} in relayd, wanted {member.want}"
    yield f"  host       {member.host}, id {member.id or '-'}, {member.role} table {member.table}"
    yield f"  service    {service.status}, {service.serving} serving, floor {service.floor}"
    if member.decision:
        yield f"  decision   {member.decision}"
    for link in member.chain:
        ends = ENDS.get(link.rule) if link.ends_in is None else f"ends in {span(link.ends_in)}"
        yield f"  {link.rule:<10} {link.text}" + (f" ({ends})" if ends else "")
    if member.would:
        yield f"  mode       observe: nothing is sent; {member.would}"
    yield "  checks"
    used = {*member.probes, *member.prefers}
    for probe in snap.probes:
        if f"{probe.node}/{probe.check}@{probe.address}" in used:
            yield _probe_line(probe)
            if (change := _change(probe)) is not None:
                yield f"    {'':10} {change}"


def _probe_line(probe: ProbeView) -> str:
    ago = probe.looked_seconds_ago
    looked = "never looked" if ago is None else f"looked {span(ago)} ago"
    state = f"{probe.state} for {span(probe.for_seconds)}" + (", stale" if probe.stale else "")
    return f"    {probe.check:<10} {state}, {looked}: {probe.newest_reason or probe.reason}"


def _change(probe: ProbeView) -> str | None:
    """Say what would change the probe's state."""
    left = probe.row - probe.streak
    if probe.state == State.DOWN:
        return f"up after {left} more successes in a row"
    if probe.state == State.UNKNOWN:
        return f"up at its first success, down after {left} fails in a row"
    changes = []
    if probe.state == State.DEGRADED:
        changes.append(f"up after {probe.turn_row - probe.turns} more without a warning in a row")
    elif probe.turns:
        changes.append(f"degraded after {probe.turn_row - probe.turns} more warnings in a row")
    if probe.streak or probe.count:
        more = probe.down_count - probe.count
        changes.append(
            f"down after {left} more fails in a row, or {more} more before it is well for a while"
        )
    return "; ".join(changes) or None
