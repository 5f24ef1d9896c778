"""engine: the one object of the core that holds state; all it does is call the core's functions.

The daemon, the simulator and the tests drive it alike:

    for probe in engine.due(now): ...start a look...
    engine.feed(checked)                      a look has ended
    engine.observed(observation, now)         relayd was read (or unseen(reason): it was not)
    for action in engine.actions(now): ...    carry out the first one, read relayd, ask again
    engine.intend(action); engine.acted(action, outcome, now)
    engine.counted(totals, at, now)           relayd's counts of checks, and
    engine.proved(pf, now)                    what pf has (or unproved(reason)), beside all this
    for cleaning in engine.cleanings(): ...   carry it out; engine.cleaned(cleaning, done=...)

Times are seconds of one monotonic clock that the caller owns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from msgspec import Struct
from msgspec.structs import replace

from hactl.core import health as health_
from hactl.core import policy, proof, schedule
from hactl.core.health import Health, State
from hactl.core.model import (
    Action,
    Checked,
    Cleaning,
    Decision,
    Facts,
    Host,
    HostStatus,
    Kind,
    Member,
    Note,
    Observation,
    Override,
    Owned,
    Plan,
    Probe,
    Service,
    ServicePlan,
    Verb,
    Want,
)
from hactl.core.policy import Fate, Hold, Memory, Seat, Shared, Standing
from hactl.core.proof import Difference, Pf, Proof, Signs
from hactl.core.reconcile import Polling, reconcile
from hactl.core.schedule import Timing

CYCLE = 1.0  # seconds between two readings of relayd
NO_VERDICTS: Mapping[str, AbstractSet[str]] = {}  # no service has the hook
STALE = 2 * CYCLE  # an observation older than this removes nobody
FOREIGN = 600.0  # seconds after which people hear of a host that somebody else disabled
UNSURE = 60.0  # seconds for which a command that was given up may still be carried out
LANDED = 2.0  # seconds for which a command that was carried out late may have been sent twice
FRESH = 5 * CYCLE  # a look at pf older than this says nothing of now
TRIES = 3  # times that pf is asked to forget the same


class Event(Struct, frozen=True):
    """Something that happened, for the log: a name and fields in a fixed order."""

    name: str
    decision: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    level: str = "info"


class Place(Struct, frozen=True):
    """Where a member was last seen in relayd; *shown* is false while relayd hides it."""

    member: Member
    node: str | None
    kind: Kind
    table: str
    host: Host
    since: float
    fixed: str = ""
    shown: bool = True


class Lane(Struct, frozen=True):
    """A check whose probes share a fate: at which seats, neither foreign nor in maintenance."""

    check: str
    seats: frozenset[Seat]
    window: float
    grace: float


class Engine:
    """Holds the health of every probe, the last observation, and what is decided."""

    def __init__(self, plan: Plan, facts: Facts, now: float, *, counter: int = 0) -> None:
        self.facts = facts
        self.started = now
        self.counter = counter
        self.healths: dict[Probe, Health] = {}
        self.overrides: dict[str, Override] = {}
        self.owned: dict[Member, Owned] = {}
        self.barred: dict[Member, Owned] = {}  # whom relayd's script calls down, by our word
        self.decisions: dict[Member, Decision] = {}
        self.standings: dict[Member, Standing] = {}
        self._members: list[tuple[ServicePlan, list[Standing]]] = []
        self._lanes: dict[str, Lane] = {}
        self._gathered: Plan | None = None  # the plan for which these two were made
        self.waits: Mapping[Member, Note] = {}
        self.fates: dict[str, Fate] = {}
        self.memories: dict[str, Memory] = {}
        self.observation: Observation | None = None
        self.blind = "relayd has not been asked yet"
        self._placed_for: tuple[object, ...] = ()  # what the places were made of
        self.releasing = False
        self.places: dict[Member, Place] = {}
        self._timings: dict[Probe, Timing] = {}
        self._queue: list[tuple[float, Probe]] = []
        self._suspects: set[Probe] = set()
        self._urgent: set[Probe] = set()  # of services that have nobody who passes
        self._enabled_at: dict[Member, float] = {}
        self._up_at: dict[Member, float] = {}  # when relayd last showed it so
        self._disabled_at: dict[Member, float] = {}
        self._polling = Polling()
        self._next_polling = self._polling
        self.proof = Proof()
        self.reloads = 0  # of relayd, as far as noticed
        self.forgiving = float("-inf")  # until then a load of relayd takes no ownership away
        self._signs: Signs | None = None
        self._socket: tuple[object, float] | None = None
        self._reloaded_at = float("-inf")
        self._told_foreign: dict[Member, float] = {}
        self._cleaned: dict[Cleaning, tuple[int, bool]] = {}  # times asked, and whether done
        self._there: dict[str, frozenset[str]] = {}  # pf's tables, to look in
        self._asked: dict[Member, tuple[tuple[Probe, ...], tuple[Probe, ...]]] = {}
        self._events: list[Event] = []
        self.floors: dict[str, int] = {}
        self.plan = plan
        self.replan(plan, now)

    # schedule

    def replan(self, plan: Plan, now: float) -> None:
        """Take a new plan; the health of every probe whose rule did not change is kept."""
        old, self.plan = self.plan, plan
        self._words = {word: node.name for node in plan.nodes.values() for word in node.words}
        changed = {c for c in plan.rules if plan.rules[c] != old.rules.get(c)}
        for member, place in self.places.items():
            self.places[member] = replace(place, node=self._words.get(place.host.name))
        self._forget({p for p in self.healths if p.check in changed})
        self._probe_what_is_used(now)
        self._stand(now)

    def _forget(self, probes: Iterable[Probe]) -> None:
        for probe in probes:
            self.healths.pop(probe, None)
            self._timings.pop(probe, None)
            self._suspects.discard(probe)

    def _probe_what_is_used(self, now: float) -> None:
        """Make the probes be those that services and `watch` need at the places now known."""
        self._asked.clear()
        wanted = {
            self._probe(place.node, check, place.host.name)
            for place in self.places.values()
            if place.node and (service := self.plan.services.get(place.member.service))
            for check in (*service.require, *service.prefer, *service.watch)
        }
        wanted |= {
            self._probe(node, check, "")
            for node, checks in self.plan.watch.items()
            for check in checks
        }
        self._forget(self._timings.keys() - wanted)
        order = {check: index for index, check in enumerate(self.plan.rules)}
        for probe in wanted - self._timings.keys():
            rule = self.plan.rules[probe.check]
            timing = schedule.first(probe, order[probe.check], rule, now)
            self.healths[probe] = Health(since=now)
            self._plan(probe, timing)

    def _probes(
        self, place: Place, service: ServicePlan
    ) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
        """Return the probes that a service requires and prefers of a member."""
        node, word = place.node, place.host.name
        if node is None:
            return (), ()
        required = tuple(self._probe(node, check, word) for check in service.require)
        return required, tuple(self._probe(node, check, word) for check in service.prefer)

    def _probe(self, node: str, check: str, word: str) -> Probe:
        """Return the probe that speaks for the host *word*: its own address, or the node's first."""
        place = self.plan.nodes[self.plan.at.get(check, node)]
        return Probe(place.name, check, word if word in place.addresses else place.addresses[0])

    def _plan(self, probe: Probe, timing: Timing) -> None:
        """Queue the next look; what the queue has of earlier plans no longer counts."""
        self._timings[probe] = timing
        heapq.heappush(self._queue, (timing.next, probe))

    def due(self, now: float, *, lagging: bool = False) -> list[Probe]:
        """Return the probes to look at now, and note that their looks start.

        *lagging*: we are late ourselves, so nothing joins a look that seems silent.
        """
        for probe in self._witnesses(now):
            self._plan(probe, schedule.hastened(self._timings[probe], now))
        probes = []
        while self._queue and self._queue[0][0] <= now + schedule.BLINK:
            moment, probe = heapq.heappop(self._queue)
            timing = self._timings.get(probe)
            if timing is None or timing.next != moment:
                continue  # an older plan, or a probe that is gone
            rule, health = self.plan.rules[probe.check], self.healths[probe]
            if not schedule.may_start(timing, health, rule):
                self._plan(probe, schedule.skipped(timing, rule, now))
                continue
            if lagging and timing.busy:
                self._plan(probe, schedule.postponed(timing, rule, now))
                continue
            self._plan(probe, schedule.started(timing, health, rule, now))
            probes.append(probe)
        return probes

    def next_look(self) -> float:
        """Return when the next probe is due."""
        return self._queue[0][0] if self._queue else float("inf")

    def planned(self, probe: Probe) -> float | None:
        """Return when *probe* is looked at next, None if it is gone."""
        timing = self._timings.get(probe)
        return None if timing is None else timing.next

    @property
    def waiting(self) -> bool:
        """Tell whether a removal waits for the answers of siblings."""
        return any(fate.waits for fate in self.fates.values())

    def _witnesses(self, now: float) -> list[Probe]:
        """Return the siblings to look at because a probe is suspect, a few at a time."""
        found: list[Probe] = []
        waits = {name: fate.waits for name, fate in self.fates.items() if fate.waits}
        if not waits and not self._suspects:
            return found
        for name in {policy.lane(p) for p in self._suspects} | waits.keys():
            group = lane.seats if (lane := self._lanes.get(name)) is not None else frozenset()
            down = [self.healths[p].bad_since for _, p in waits.get(name, ()) if p in self.healths]
            moments = [policy.first_fail(group, self.healths), *down]
            newest = max((m for m in moments if m is not None), default=None)
            if newest is None:
                continue
            siblings = {p for _, p in group if not self.healths[p].bad}
            behind = sorted(p for p in siblings if self._timings[p].began < newest)
            busy = sum(self._timings[p].busy > 0 for p in siblings)
            found += [p for p in behind if not self._timings[p].busy][: policy.WITNESSES - busy]
        return found

    # health

    def feed(self, checked: Checked) -> bool:
        """Take the result of a look; return whether decisions may change because of it."""
        probe = checked.probe
        timing, before = self._timings.get(probe), self.healths.get(probe)
        if timing is None or before is None:
            return False
        rule = self.plan.rules[probe.check]
        after = health_.step(before, checked, rule)
        self.healths[probe] = after
        urgent = probe in self._urgent
        self._plan(probe, schedule.finished(timing, after, rule, checked.ended, urgent=urgent))
        if after.suspect:
            self._suspects.add(probe)
        else:
            self._suspects.discard(probe)
        if after.state is not before.state:
            self._say_state(checked, before, after)
            return True
        return before.last is None or bool(self._fate(policy.lane(probe)).waits)

    def watched(self) -> set[Probe]:
        """Return the probes that no member's removal depends on."""
        return self.healths.keys() - {
            p for s in self.standings.values() for p in (*s.probes, *s.prefers)
        }

    def _say_state(self, checked: Checked, before: Health, after: Health) -> None:
        """Tell a transition; of a probe that is only watched, people must hear."""
        rule = self.plan.rules[checked.probe.check]
        row = rule.fall if after.state is State.DOWN else rule.rise
        if before.state is State.UNKNOWN and after.state is State.UP:
            row = 1
        alert = after.state is State.DOWN and checked.probe in self.watched()
        self._events.append(
            Event(
                "state",
                level="error" if alert else "info",
                fields=(
                    ("node", checked.probe.node),
                    ("check", checked.probe.check),
                    ("from", before.state),
                    ("to", after.state),
                    ("streak", f"{min(before.streak + 1, row)}/{row}"),
                    ("took", f"{checked.ended - checked.started:.3f}"),
                    ("reason", after.reason),
                ),
            )
        )

    def suspect(self, probe: Probe, now: float) -> None:
        """Look at a probe at once: its tripwire was cut."""
        if (timing := self._timings.get(probe)) is not None:
            self._plan(probe, schedule.hastened(timing, now))

    # relayd

    def unseen(self, reason: str) -> None:
        """Note that relayd could not be read, and why."""
        if reason != self.blind:
            self._events.append(Event("blind", fields=(("reason", reason),), level="warning"))
        self.blind = reason

    def observed(
        self,
        observation: Observation,
        now: float,
        verdicts: Mapping[str, AbstractSet[str]] = NO_VERDICTS,
    ) -> None:
        """Take what relayd shows; places it hides are remembered, ownership ends where undone.

        *verdicts* has, by service, the words of the hosts that the hook says are down.
        """
        if now > observation.at + STALE:
            self.unseen(f"relayd's answer took longer than {STALE:g}s")
        elif self.blind:
            self._events.append(Event("relayd", fields=(("seen", "yes"),)))
            self.blind = ""
        before_at = self.observation.at if self.observation is not None else now
        self.observation = observation
        # a caller that sees no change hands in the same services again
        made_of = (observation.services, self.plan, self.facts, frozenset(self.owned))
        places, before = self.places, self._placed_for
        if (
            not before
            or before[3] != made_of[3]
            or any(old is not new for old, new in zip(before[:3], made_of, strict=False))
        ):
            self._placed_for, places = made_of, self._placed(observation, now)
        changed = places.keys() != self.places.keys() or any(
            places[m].node != self.places[m].node for m in places
        )
        renumbered = places is not self.places and any(
            old.shown and m in places and places[m].shown and places[m].host.id != old.host.id
            for m, old in self.places.items()
        )
        self.places = places
        if renumbered:
            self._reloaded("host ids changed", before_at, now)
        if changed:
            self._probe_what_is_used(now)
        self.barred = {
            member: self.barred.get(member, Owned(0, "check"))
            for service, words in verdicts.items()
            for member in places
            if member.service == service and member.word in words
        }
        for member, owned in list(self.owned.items()):
            place = places.get(member)
            if place is None or not place.shown:
                continue
            if place.host.status is HostStatus.DISABLED:
                if not self._counted(member, owned):
                    self._removed_by(self._decided(member, owned), now)
                if owned.unsure > now + LANDED:  # it was carried out, with all that waited with it
                    self.owned[member] = replace(owned, unsure=now + LANDED)
            elif now >= owned.unsure:
                del self.owned[member]
                self._say_undone(member)

    def _say_undone(self, member: Member) -> None:
        """Tell that a host we want out is enabled: a hand, or a load of relayd; it goes again."""
        decision = self.decisions.get(member)
        if decision is not None and decision.want is Want.OUT:
            fields = (
                ("service", member.service),
                ("host", member.host),
                ("cause", decision.cause),
                ("reason", "somebody enabled it, or relayd was loaded; it is disabled again"),
            )
            self._events.append(Event("undone", decision.id, fields, "warning"))

    def _placed(self, observation: Observation, now: float) -> dict[Member, Place]:
        """Return every member of the plan's services, hidden ones where they were last seen."""
        places: dict[Member, Place] = {}
        ids: set[int] = set()
        known = self.plan.services.keys() | {member.service for member in self.owned}
        present = {service.name for service in observation.services}
        for service in _once(observation.services):
            if service.name not in known:
                continue
            shown: dict[int, bool] = {}
            for position, table in enumerate(service.tables):
                shown[position] = table.status != "disabled"
                words: dict[str, int] = {}
                for host in table.hosts:
                    words[host.name] = words.get(host.name, 0) + 1
                    again = f"#{words[host.name]}" if words[host.name] > 1 else ""
                    member = Member(service.name, position, host.name + again)
                    places[member] = self._place(member, service, table.name, host, ids, now)
                    ids.add(host.id)
            for member, place in self.places.items():
                if member.service == service.name and not shown.get(member.table, False):
                    places.setdefault(member, replace(place, shown=False))
        for member, place in self.places.items():  # services missing for a moment, or for good
            if member.service not in present and member.service in known:
                places[member] = replace(place, shown=False)
        return places

    def _place(
        self, member: Member, service: Service, table: str, host: Host, ids: set[int], now: float
    ) -> Place:
        before = self.places.get(member)
        since = now
        if before is not None and before.shown and before.host.status is host.status:
            since = before.since
        fixed = ""
        if host.parent is not None:
            fixed = f"follows its parent, host {host.parent}; relayd cannot switch it by itself"
        elif host.id in ids:
            fixed = "the same host in another service; it is switched there"
        elif service.kind is Kind.RELAY and self.facts.checked is None:
            fixed = (
                "relayd.conf cannot be read, so it may have no check; a disable would kill relayd"
            )
        elif service.kind is Kind.RELAY and (
            (service.name, member.table) not in (self.facts.checked or ())
        ):
            fixed = "its table has no check; a disable would kill relayd"
        node = self._words.get(host.name)
        return Place(member, node, service.kind, table, host, since, fixed)

    # loads of relayd, which forget every disable

    def counted(self, totals: Mapping[int, int], at: float, now: float) -> None:
        """Take the checks that relayd made so far, by host id, as asked for at the time *at*."""
        if self._signs is not None and at < self._signs.at:
            return  # it was overtaken
        before, self._signs = self._signs, Signs(at, totals)
        if before is None:
            return
        began = before.at - self.facts.longest
        if proof.checked(before, self._signs) and self._polling.ready(self.facts) < began:
            self._polling = replace(self._polling, round=(began, now))
        switched = self._switched_since(before.at)  # whose counts fell by our own hand
        kept = {id: total for id, total in before.totals.items() if id not in switched}
        if proof.restarted(Signs(before.at, kept), self._signs):
            self._reloaded("its counts of checks fell", before.at, now)

    def last_sign(self, action: Action) -> bool:
        """Tell whether a disable takes the last host whose count would tell of a load.

        Ask relayd for its counts before it: afterwards nothing tells them from another load's.
        """
        if self._signs is None or action.verb is not Verb.DISABLE:
            return False
        lost = self._switched_since(self._signs.at) | {
            place.host.id
            for place in self.places.values()
            if place.host.status is HostStatus.DISABLED
        }
        telling = {id for id, total in self._signs.totals.items() if total and id not in lost}
        return telling == {action.host}

    def _switched_since(self, at: float) -> set[int]:
        """Return the hosts that we disabled or enabled since *at*; their counts began anew."""
        return {
            place.host.id
            for member, place in self.places.items()
            for times in (self._disabled_at, self._enabled_at)
            if times.get(member, float("-inf")) >= at
        }

    def socket(self, identity: object, now: float) -> None:
        """Take what tells relayd's socket from the one of another start; None: there is none."""
        if identity is None:
            return
        before, self._socket = self._socket, (identity, now)
        if before is not None and before[0] != identity:
            for member, owned in self.owned.items():  # what waited for the old one is lost with it
                if owned.unsure and self._disabled_at.get(member, now) < before[1]:
                    self.owned[member] = replace(owned, unsure=0.0)
            self._reloaded("its socket is another one", before[1], now)

    def _reloaded(self, how: str, before: float, now: float) -> None:
        """Note that relayd was loaded after *before*: what is disabled now was disabled since.

        A disable of ours from before that time is gone, so one that shows is somebody else's.
        """
        if now > self._reloaded_at + STALE:  # else one more sign of the same
            self.reloads += 1
            self._events.append(Event("reloaded", fields=(("sign", how),), level="warning"))
        self._reloaded_at = now
        for member, owned in list(self.owned.items()):
            place = self.places.get(member)
            if (
                now >= self.forgiving
                and now >= owned.unsure
                and place is not None
                and place.shown
                and place.host.status is HostStatus.DISABLED
                and self._disabled_at.get(member, float("-inf")) < before
            ):
                del self.owned[member]

    # decisions

    def actions(self, now: float) -> tuple[Action, ...]:
        """Decide, compare with relayd, and return the commands that are needed now, in order."""
        self._expire(now)
        self._stand(now)
        self._tell_foreign(now)
        if self.blind or self.observation is None or now > self.observation.at + STALE:
            return ()  # decisions stay as they are; nothing is removed on old news
        self._judge_fates(now)
        pairs: list[tuple[Standing, Decision, int | None]] = []
        urgent: set[Probe] = set()
        for service, members in self._members:
            decisions = self._decide(service, members, now)
            urgent |= self._desperate(members)
            self.floors[service.name] = policy.minimum(service, members)
            for standing, decision in zip(members, decisions, strict=True):
                decided = self._settle(decision)
                place = self.places[standing.member]
                if service.acts and self._frozen(service.name, "hands-off") is None:
                    pairs.append((standing, decided, place.host.id if place.shown else None))
        for member in self.decisions.keys() - self.standings.keys():
            del self.decisions[member]
        for probe in urgent - self._urgent:
            if self.plan.rules[probe.check].fast:
                self._plan(probe, schedule.hastened(self._timings[probe], now))
        self._urgent = urgent
        step = reconcile(
            pairs,
            {service.name: service for service, _ in self._members},
            self.floors,
            self._disabled_at,
            self._eager(pairs) | self._doubtful({s.member.service for s, _, _ in pairs}, now),
            self._polling,
            self.facts,
            self._everybody_up(),
            now,
        )
        self.waits = step.waits
        self._next_polling = step.polling
        if not any(a.verb is Verb.POLL for a in step.actions):
            self._polling = step.polling
        return step.actions

    def next_moment(self, now: float) -> float:
        """Return when a wait or an override ends, so that the caller may cycle then."""
        ends = [n.until for n in self.waits.values() if n.until]
        ends += [until for fate in self.fates.values() for until in fate.waits.values()]
        if self._polling.open:
            ends.append(self._polling.ready(self.facts))
        return min((e for e in ends if e > now), default=float("inf"))

    def _desperate(self, members: list[Standing]) -> set[Probe]:
        """Return the down probes, to be looked at fast, of a service that has nobody who passes."""
        found: set[Probe] = set()
        for standing in members:
            if policy.overridden(standing) is None:
                down = {p for p in standing.probes if self.healths[p].state is State.DOWN}
                if not down:
                    return down
                found |= down
        return found

    def _frozen(self, service: str, *kinds: str) -> Override | None:
        """Return the freeze of one of *kinds* that a service is under."""
        return next(
            (
                o
                for o in self.overrides.values()
                if o.kind in kinds and o.target in (service, "all")
            ),
            None,
        )

    def _expire(self, now: float) -> None:
        for key, override in list(self.overrides.items()):
            if override.ends is not None and now >= override.ends:
                del self.overrides[key]
                fields = (("override", override.kind), ("target", override.target), ("key", key))
                self._events.append(Event("expired", fields=fields))

    def _stand(self, now: float) -> None:
        """Gather for every member what policy may know of it; what did not change stays."""
        fresh = now - 2 * self.facts.interval
        before, standings = self.standings, {}
        same = list(before) == list(self.places)
        for member, place in self.places.items():
            node = place.node
            asked = self._asked.get(member)  # of the present plan and places
            if asked is None:
                asked = self._asked[member] = self._probes(place, self._service(member.service))
            probes, prefers = asked
            owned, barred = self.owned.get(member), self.barred.get(member)
            if owned is None and place.host.status is not HostStatus.DISABLED:
                owned = barred
            if place.host.status is HostStatus.UP:
                self._up_at[member] = now
            came = self._enabled_at.get(member, float("-inf"))
            fell = place.host.status is HostStatus.DOWN and self._up_at.get(member, came) > came
            standing = Standing(
                member,
                node,
                self.plan.nodes[node].weight if node else 1,
                place.host.status if place.shown else None,
                place.since,
                fresh < came and not fell,  # relayd has found out
                place.fixed,
                self._override(member.service, node) if self.overrides else None,
                owned,
                probes,
                prefers,
                barred is not None,
                place.host.parent is not None,
            )
            same = same and before.get(member) == standing
            standings[member] = standing
        if not same or self._gathered is not self.plan:
            self.standings = standings
            self._gather()

    def _service(self, name: str) -> ServicePlan:
        """Return a service's plan; one that left hactl.yaml is here while we own a disable in it."""
        return self.plan.services.get(name) or ServicePlan(name)

    def _gather(self) -> None:
        """Sort the members by service, and their probes by what they share."""
        self._gathered = self.plan
        members: dict[str, list[Standing]] = {name: [] for name in self.plan.services}
        checks: dict[str, str] = {}
        seats: dict[str, set[Seat]] = {}
        for member, standing in self.standings.items():
            members.setdefault(member.service, []).append(standing)
            override = standing.override
            apart = standing.foreign or (override is not None and override.kind == "maint")
            for probe in (*standing.probes, *standing.prefers):
                name = policy.lane(probe)
                checks[name] = probe.check
                here = seats.setdefault(name, set())
                if standing.node is not None and not apart:
                    here.add((standing.node, probe))
        self._members = [(self._service(name), each) for name, each in members.items()]
        self._lanes = {}
        for name, check in checks.items():
            users = [
                s for s in self.plan.services.values() if check in s.require or check in s.prefer
            ]
            self._lanes[name] = Lane(
                check,
                frozenset(seats[name]),
                max((s.window for s in users), default=10.0),
                max((s.grace for s in users), default=10.0),
            )

    def _override(self, service: str, node: str | None) -> Override | None:
        """Return the strongest override on a member."""
        strength = {"maint": 3, "pin": 2, "drain": 1}
        found = [
            o for o in self.overrides.values() if o.kind in strength and o.covers(service, node)
        ]
        return max(found, key=lambda o: strength[o.kind], default=None)

    def _fate(self, name: str) -> Fate:
        return self.fates.get(name, policy.APART)

    def _judge_fates(self, now: float) -> None:
        """Judge each check over all its nodes, then bring shared causes to their effects."""
        for name in self.fates.keys() - self._lanes.keys():
            del self.fates[name]
        for name, lane in self._lanes.items():
            before = self._fate(name).shared
            rule = self.plan.rules[lane.check]
            fate = policy.judge_fate(
                lane.seats, self.healths, rule, before, lane.window, lane.grace, now
            )
            self.fates[name] = fate
            if (before is None) != (fate.shared is None):
                self._say_shared(name, before, fate.shared)
        for cause, effects in self.plan.causes.items():
            for name, lane in self._lanes.items():
                if lane.check in effects:  # of the same family: the lane's name says which
                    shared = self._fate(cause + name.removeprefix(lane.check)).shared
                    if shared is not None:
                        self.fates[name] = replace(self.fates[name], cause=shared)

    def _say_shared(self, check: str, before: Shared | None, after: Shared | None) -> None:
        shared = after or before
        nodes = shared.names.replace(", ", ",") if shared else ""
        state = "begins" if after else "ends"
        fields = (("check", check), ("nodes", nodes), ("state", state))
        self._events.append(Event("shared_fate", fields=fields, level="error" if after else "info"))

    def _decide(self, service: ServicePlan, members: list[Standing], now: float) -> list[Decision]:
        """Decide a service, or leave it alone while too little is known."""
        if service.name not in self.plan.services:
            why = "its service left hactl.yaml: it is handed back"
            note = (Note("stranger", why),)
            return [
                Decision(s.member, Want.IN if s.owned else Want.LEAVE, "stranger", why, note)
                for s in members
            ]
        # a second member of an exclusive service cannot wait; what is not known yet is neutral
        missing = "" if service.exclusive else self._missing(members, now)
        if missing:
            why = f"starting: no result yet of {missing}"
            chain = (Note("wait", why),)
            return [
                policy.overridden(s) or Decision(s.member, Want.LEAVE, "wait", why, chain)
                for s in members
            ]
        decisions, memory = policy.decide(
            service,
            members,
            self.healths,
            self.fates,
            self.memories.get(service.name, Memory()),
            self.facts.interval,
            now,
            self._frozen(service.name, "freeze"),
        )
        self.memories[service.name] = memory
        if self.releasing:
            return [self._parting(service, s, d) for s, d in zip(members, decisions, strict=True)]
        return decisions

    def _parting(self, service: ServicePlan, standing: Standing, decision: Decision) -> Decision:
        """Decide a member for the last time: give back what checks took, if that is wanted."""
        if service.release and standing.owned and decision.cause in ("check", "prefer", ""):
            return replace(decision, want=Want.IN, cause="exit", reason="on_exit: release")
        return replace(decision, want=Want.LEAVE, cause="exit", reason="hactld ends")

    def _missing(self, members: list[Standing], now: float) -> str:
        """Name a required probe without a first result, until a detection bound has passed."""
        for standing in members:
            for probe in standing.probes:
                health = self.healths[probe]
                if health.last is not None:
                    continue
                rule = self.plan.rules[probe.check]
                bound = rule.interval + rule.fall * rule.timeout + (rule.fall - 1) * rule.fast
                if now < health.since + bound:
                    return str(probe)
        return ""

    def _settle(self, decision: Decision) -> Decision:
        """Give a decision its id: a new one when it wants something else, or for another cause."""
        before = self.decisions.get(decision.member)
        if before is not None and (before.want, before.cause) == (decision.want, decision.cause):
            decided = replace(decision, id=before.id)
        else:
            self.counter += 1
            decided = replace(decision, id=self.counter)
            quiet = ("", "wait")
            if decided.cause not in quiet or (before is not None and before.cause not in quiet):
                self._say_decision(before, decided)
        self.decisions[decision.member] = decided
        for ours in (self.owned, self.barred):
            owned = ours.get(decision.member)
            if owned is not None and decided.want is Want.OUT and owned.cause != decided.cause:
                ours[decision.member] = replace(owned, cause=decided.cause)
        return decided

    def _say_decision(self, before: Decision | None, after: Decision) -> None:
        fields = (
            ("service", after.member.service),
            ("host", after.member.host),
            ("from", before.want if before else "none"),
            ("to", after.want),
            ("cause", after.cause or "passes"),
            ("reason", after.reason),
        )
        self._events.append(Event("decision", after.id, fields))

    def _eager(self, pairs: list[tuple[Standing, Decision, int | None]]) -> frozenset[str]:
        """Name the services that wait for relayd: an enabled member's newest look was ok, or it was
        recalled, yet nobody is up, or somebody is and pf does not have it (the redirect is `down`).
        """
        assert self.observation is not None
        empty = {s.name for s in self.observation.services if s.status == "down"}
        up = {s.member.service for s, _, _ in pairs if s.status is HostStatus.UP}
        return frozenset(
            s.member.service
            for s, d, _ in pairs
            if (s.member.service in empty or s.member.service not in up)
            and d.want is Want.IN
            and s.enabled
            and (d.cause == "floor" or policy.newest_ok(s, self.healths))
        )

    def _doubtful(self, services: set[str], now: float) -> frozenset[str]:
        """Name the services whose table in pf is not what relayd says, as long as a poll may help."""
        return proof.in_doubt(self.proof, now) & services

    def _tell_foreign(self, now: float) -> None:
        """Tell people of hosts that somebody else disabled long ago, once for each time."""
        for member, standing in self.standings.items():
            if not standing.foreign:
                self._told_foreign.pop(member, None)
            elif now >= standing.since + FOREIGN and member not in self._told_foreign:
                self._told_foreign[member] = standing.since
                fields = (
                    ("service", member.service),
                    ("host", member.host),
                    ("for", f"{now - standing.since:.0f}s"),
                )
                self._events.append(Event("foreign", fields=fields, level="error"))

    def _everybody_up(self) -> bool:
        """Tell whether relayd shows every enabled host that it checks up, in whatever service."""
        if self.observation is None:
            return False
        return all(
            h.status in (HostStatus.UP, HostStatus.DISABLED)
            for service in self.observation.services
            for position, table in enumerate(service.tables)
            if (service.name, position) in (self.facts.checked or ())
            for h in table.hosts
        )

    # acting

    def intend(self, action: Action) -> None:
        """Note an action before its command is sent: from now on the disable is ours."""
        if action.verb is Verb.DISABLE and action.member is not None:
            cause = self.decisions[action.member].cause
            ours = self.barred if action.hook else self.owned
            ours[action.member] = Owned(action.decision, cause)

    def acted(self, action: Action, now: float, *, done: bool, unsure: float = 0.0) -> None:
        """Note how a command ended.  *unsure*: it may still be carried out for that many seconds."""
        member = action.member
        if member is None:
            if done or unsure:
                if self._next_polling.open:
                    self.proof = proof.spent(self.proof, proof.in_doubt(self.proof, now), now)
                self._polling = self._next_polling
            return
        if action.verb is Verb.DISABLE:
            self._disabled_at[member] = now
            if done:  # else it counts if it shows
                self._removed_by(self.decisions[member], now)
            if unsure and member in self.owned:
                self.owned[member] = replace(self.owned[member], unsure=now + unsure)
        elif done:
            self._enabled_at[member] = now

    def _removed_by(self, decision: Decision, now: float) -> None:
        """Count a removal that relayd carried out, for holds, pace and load guards."""
        name = decision.member.service
        self.memories[name] = self.memories.get(name, Memory()).removed(decision, now)

    def _counted(self, member: Member, owned: Owned) -> bool:
        """Tell whether the removal behind an own disable was counted.

        It was not if nobody knows how the command ended, or if hactld ended before it knew.  Of
        what the hook says nobody asks that.
        """
        service = self.plan.services.get(member.service)
        if service is None or service.hook:  # there checks do not disable
            return True
        memory = self.memories.get(member.service, Memory())
        return memory.holds.get(member, Hold()).decision in (owned.decision, None)

    def _decided(self, member: Member, owned: Owned) -> Decision:
        """Return the decision of an own disable, or what is still known of it."""
        decision = self.decisions.get(member)
        if decision is not None and decision.id == owned.decision:
            return decision
        return Decision(member, Want.OUT, owned.cause, "", id=owned.decision)

    # proof

    def redirects(self) -> tuple[str, ...]:
        """Name the services whose tables in pf are to be read; relays have none."""
        if self.observation is None:
            return ()
        relays = {s.name for s in self.observation.services if s.kind is Kind.RELAY}
        return tuple(name for name in self.plan.services if name not in relays)

    def unproved(self, reason: str) -> None:
        """Note that pf could not be read, and why; nothing is concluded from that."""
        if reason != self.proof.blind:
            self._events.append(Event("unproved", fields=(("reason", reason),), level="warning"))
        self.proof = Proof(blind=reason, pairs=self.proof.pairs)

    def proved(self, pf: Pf, now: float) -> None:
        """Take what pf has, and compare it with what relayd shows."""
        if self.blind or self.observation is None:
            return
        before = self.proof
        sinces = {member: place.since for member, place in self.places.items()}
        removed = self._removed()
        found = proof.compare(self.plan, self.observation, pf, sinces, self.facts.interval, removed)
        after = proof.step(before, pf, found, now)
        if before.blind:
            self._events.append(Event("proved", fields=(("seen", "yes"),)))
        for difference, standing in after.differences.items():
            known = before.differences.get(difference)
            if standing.counts and (known is None or not known.counts):
                self._say_difference(difference, "begins", "warning")
        for difference, standing in before.differences.items():
            if standing.counts and difference not in after.differences:
                self._say_difference(difference, "ends", "info")
        late = [d for d in after.differences if proof.overdue(after, d, now)]
        for difference in late:
            self._say_difference(difference, "stays", "error")
        self.proof = proof.alerted(after, late)
        self._there = {name: frozenset(table) for name, table in pf.tables.items()}

    def _say_difference(self, difference: Difference, state: str, level: str) -> None:
        host = difference.member.host if difference.member else "-"
        fields = (
            ("service", difference.service),
            ("host", host),
            ("state", state),
            ("reason", difference.text),
        )
        self._events.append(Event("difference", fields=fields, level=level))

    def in_pf(self, member: Member, now: float) -> bool | None:
        """Tell whether pf sends clients to a member; None: not known, or not pf's to do."""
        pf, place = self.proof.pf, self.places.get(member)
        if pf is None or place is None or now > pf.at + FRESH or place.kind is Kind.RELAY:
            return None
        there = self._there.get(member.service)
        own = proof.addresses(place.host.name, self.plan)
        return None if there is None or not own else bool(own & there)

    def _removed(self) -> dict[Member, frozenset[str]]:
        """Return the addresses of members that are out by our hand and in nowhere else."""
        ours = [
            place
            for member, place in self.places.items()
            if place.shown
            and (
                (member in self.owned and place.host.status is HostStatus.DISABLED)
                or (member in self.barred and place.host.status is HostStatus.DOWN)
            )
        ]
        if not ours or self.observation is None:
            return {}
        out = {place.host.id for place in ours}
        used: set[str] = set()
        for service in self.observation.services:
            for table in service.tables:
                for host in table.hosts:
                    if host.status is not HostStatus.DISABLED and host.id not in out:
                        used |= proof.addresses(host.name, self.plan)
        found = {p.member: proof.addresses(p.host.name, self.plan) - used for p in ours}
        return {member: gone for member, gone in found.items() if gone}

    def cleanings(self) -> tuple[Cleaning, ...]:
        """Return what pf is to forget of the hosts that we removed, if that is wanted."""
        if not (self.plan.clear_sources or self.plan.kill_states) or self.blind:
            return ()
        wanted: dict[Cleaning, None] = {}
        sources = (self.proof.pf.sources if self.proof.pf else None) or {}
        for member, gone in self._removed().items():
            owned = self.owned.get(member) or self.barred[member]
            for address in sorted(gone):
                if self.plan.clear_sources:
                    wanted[Cleaning("sources", address, owned.decision)] = None
                if self.plan.kill_states and owned.cause == "check":
                    wanted[Cleaning("states", address, owned.decision)] = None
        self._cleaned = {c: known for c, known in self._cleaned.items() if c in wanted}
        found = []
        for cleaning in wanted:
            tries, done = self._cleaned.get(cleaning, (0, False))
            again = cleaning.what == "sources" and sources.get(cleaning.address)
            if tries < TRIES and (not done or again):
                found.append(cleaning)
        return tuple(found)

    def cleaned(self, cleaning: Cleaning, *, done: bool) -> None:
        """Note that pf was asked to forget something, and whether it did."""
        tries, _ = self._cleaned.get(cleaning, (0, False))
        self._cleaned[cleaning] = (tries + 1, done)

    def remember(self, memories: Mapping[str, Memory]) -> None:
        """Take what was stored of policy's memory; the rest follows from what is owned."""
        for name, memory in memories.items():
            self.memories[name] = memory
            owned = {m: o for m, o in self.owned.items() if m.service == name}
            out = frozenset(m for m, o in owned.items() if self._counted(m, o))
            paced = tuple(sorted(t for hold in memory.holds.values() for t in hold.removals))
            self.memories[name] = replace(memory, out=out, paced=paced)

    # operators

    def override(self, override: Override) -> None:
        """Take an operator's word; it replaces an earlier one of its sort on the same target."""
        self.overrides[override.key] = override

    def resume(self, target: str) -> bool:
        """End the override on *target*; return whether there was one."""
        return self.overrides.pop(target, None) is not None

    def adopt(self, target: str) -> list[Member]:
        """Take over the hosts of *target* that somebody else disabled, and return them."""
        taken = [
            s.member
            for s in self.standings.values()
            if s.foreign
            and target in (s.member.service, s.node, str(s.member), f"{s.member.service}/{s.node}")
        ]
        for member in taken:
            decision = self.decisions.get(member)
            owned = self.owned[member] = Owned(decision.id if decision else 0, "adopted")
            adopted = Decision(member, Want.OUT, owned.cause, "", id=owned.decision)
            self._removed_by(adopted, self.places[member].since)
        return taken

    def thaw(self, target: str) -> bool:
        """End the freeze of *target*; return whether there was one."""
        return self.overrides.pop(f"freeze {target}", None) is not None

    def refusal(self, override: Override) -> str:
        """Say why an override cannot be, "" if it can: an exclusive service has room for one pin."""
        if override.kind != "pin":
            return ""
        for service in self.plan.services.values():
            pinned = {
                s.member
                for s in self.standings.values()
                if s.member.service == service.name
                and (override.covers(service.name, s.node)
                     or (s.override is not None and s.override.kind == "pin"))
            }  # fmt: skip
            if service.exclusive and len(pinned) > 1:
                names = ", ".join(sorted(m.host for m in pinned))
                return f"service {service.name} is exclusive, and would have {names} pinned"
        return ""

    def would_empty(self, override: Override) -> list[str]:
        """Name the services that maint would leave without a member that may serve."""
        if override.kind != "maint":
            return []  # drain yields to the floor
        empty = []
        for name in self.plan.services:
            members = [s for s in self.standings.values() if s.member.service == name]
            left = [
                s
                for s in members
                if not s.foreign
                and not override.covers(name, s.node)
                and not (s.override and s.override.kind == "maint")
            ]
            if members and not left:
                empty.append(name)
        return empty

    def events(self) -> list[Event]:
        """Return what happened since the last call."""
        events, self._events = self._events, []
        return events


def _once(services: Iterable[Service]) -> list[Service]:
    """Keep the first of several services of one name: hactl.yaml cannot tell them apart."""
    found: dict[str, Service] = {}
    for service in services:
        found.setdefault(service.name, service)
    return list(found.values())
