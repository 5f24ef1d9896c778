"""reconcile: compares what should be with what relayd shows, and yields the commands for it.

Facts that bind, all of relayd: ids hold only until its next load, so they are taken from the same
observation as the comparison; a disable acts at once while an enabled host gets traffic one to two
intervals later; an enable close behind a disable of the same host can crash it; disabling a host
of an unchecked relay table kills it; a script is told a host's word, and neither its table nor its
id; two polls closer than a check's timeout can make a dead host
show `up` (with `retry`), unless every enabled host was up in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import (
    Action,
    Decision,
    Facts,
    HostStatus,
    Member,
    Note,
    ServicePlan,
    Verb,
    Want,
)
from hactl.core.policy import Standing

DWELL = 1.0  # seconds between a disable and the next enable of the same host
PAIR_GAP = 1.5  # seconds between two poll pairs
BY_HAND = ("maint", "drain")  # causes that disable the host where checks speak through the hook
BLINK = 1e-6  # seconds; times are floats
MARGIN = 0.1  # seconds beyond a check's timeout after which its result must be in


class Polling(Struct, frozen=True):
    """Where the poll pair stands.

    *sent* is the newest poll; *open* while its pair still lacks the second; *gap* grows with each
    pair that helped nobody, until relayd's own round does the same work.  *round*: when relayd's
    newest round of checks began, at the earliest and at the latest; a poll begins one.
    """

    sent: float = float("-inf")
    open: bool = False
    gap: float = PAIR_GAP
    round: tuple[float, float] | None = None

    def ready(self, facts: Facts) -> float:
        """Return when the results of the newest poll are in, whatever its hosts do."""
        return self.sent + facts.longest + MARGIN

    def near(self, facts: Facts, now: float) -> bool:
        """Tell whether relayd itself starts checks so close to now that a poll would meet them.

        Where its rounds are known too vaguely, or come too often to keep away, they do not count.
        """
        if self.round is None:
            return False
        way = facts.longest + MARGIN
        first, last = self.round[0] - way, self.round[1] + way
        if last - first > facts.interval / 2:
            return False
        return any(first < moment < last - BLINK for moment in (now, now - facts.interval))


class Step(Struct, frozen=True):
    """What to do now, in order, and who has to wait for what."""

    actions: tuple[Action, ...] = ()
    waits: Mapping[Member, Note] = {}
    polling: Polling = Polling()


def reconcile(
    pairs: Sequence[tuple[Standing, Decision, int | None]],
    services: Mapping[str, ServicePlan],
    floors: Mapping[str, int],
    disabled_at: Mapping[Member, float],
    eager: frozenset[str],
    polling: Polling,
    facts: Facts,
    everybody_up: bool,
    now: float,
) -> Step:
    """Return the commands that bring relayd to the decisions.

    *pairs* has each member's standing, decision and host id (None: hidden); *floors* the weight
    that must go on serving in each service; *eager* the services where an enabled member whose
    newest look was ok still waits for relayd; *everybody_up*: relayd shows every enabled, checked
    host up.  Enables come first, then disables, then a poll.  In a service with the hook checks
    act by what relayd's script says, operators by a disable; a member returns when neither is left.
    """
    enables: list[Action] = []
    disables: list[Action] = []
    waits: dict[Member, Note] = {}
    guarded = False
    serving = _serving(pairs)
    spoken = {
        (s.member.service, s.member.word)
        for s, d, _ in pairs
        if d.want is Want.IN and d.cause != "pace"  # its other place is its turn as well
    }
    for standing, decision, host in pairs:
        if host is None or standing.fixed:
            continue
        member, off = standing.member, not standing.enabled
        hook = services[member.service].hook and decision.cause not in BY_HAND
        disabled = standing.status is HostStatus.DISABLED
        if services[member.service].hook and decision.want is Want.OUT:
            # each word by its own means: a verdict may be withdrawn, relayd forgets a disable
            off = standing.barred if hook else disabled
        if decision.want is Want.IN and off:
            ready = disabled_at.get(member, float("-inf")) + DWELL
            rivals = _rivals(pairs, member) if services[member.service].exclusive else []
            if rivals:
                text = f"enabled once relayd shows {', '.join(rivals)} disabled"
                waits[member] = Note("exclusive", text)
            elif now < ready:
                waits[member] = Note("dwell", "enabled a second after its disable", ready)
            else:
                why = decision.reason or "passes"
                enable = Action(Verb.ENABLE, decision.id, why, member, host)
                enables += [enable] * disabled
                enables += [replace(enable, hook=True)] * standing.barred
        elif decision.want is Want.OUT and not off:
            service = services[member.service]
            guards = standing.status is HostStatus.UP and decision.cause != "maint"
            guards = guards and service.open and not service.exclusive
            if guards and serving[member.service] < floors[member.service]:
                guarded = True
                waits[member] = Note(
                    "guard", "stays until relayd shows enough of the others up to take its place"
                )
            elif hook and (member.service, member.word) in spoken:
                waits[member] = Note(
                    "hook",
                    "it is in at another place of the service, and the script is one for both",
                )
            else:
                disables.append(
                    Action(Verb.DISABLE, decision.id, decision.reason, member, host, hook)
                )
    needed = guarded or bool(eager)
    if enables:  # new hope: the pairs that helped nobody were for others
        polling = replace(polling, gap=PAIR_GAP)
    poll, polling = _poll(needed, polling, facts, everybody_up, now)
    return Step((*enables, *disables, *poll), waits, polling)


def _rivals(pairs: Sequence[tuple[Standing, Decision, int | None]], member: Member) -> list[str]:
    """Return the members of the same service that are enabled still, or up though barred."""
    return [
        s.member.host
        for s, _, _ in pairs
        if s.member.service == member.service
        and s.member != member
        and (s.enabled or (s.barred and s.status is HostStatus.UP))
    ]


def _serving(pairs: Sequence[tuple[Standing, Decision, int | None]]) -> dict[str, int]:
    """Return, by service, the weight of the members that serve and are meant to go on.

    One that follows its parent does not count: it goes when its parent goes.
    """
    weights: dict[str, int] = {}
    for standing, decision, _ in pairs:
        up = standing.status is HostStatus.UP and not standing.barred
        serves = up and decision.want is not Want.OUT and not standing.follows
        service = standing.member.service
        weights[service] = weights.get(service, 0) + standing.weight * serves
    return weights


def _poll(
    needed: bool, polling: Polling, facts: Facts, everybody_up: bool, now: float
) -> tuple[tuple[Action, ...], Polling]:
    """Send the first or the second poll of a pair when it is useful and harmless."""
    if facts.checked is None:
        return (), polling
    apart = now >= polling.ready(facts) and not polling.near(facts, now)
    harmless = everybody_up or apart
    if polling.open:
        if not harmless:
            return (), polling
        why = "second poll: relayd writes pf's table"
        return (Action(Verb.POLL, 0, why),), Polling(now, False, polling.gap, (now, now))
    if not needed:
        calm = now > polling.sent + polling.gap
        return (), replace(polling, gap=PAIR_GAP) if calm else polling
    if not harmless or now < polling.sent + polling.gap or polling.gap > facts.interval:
        return (), polling
    why = "first poll: relayd checks at once"
    return (Action(Verb.POLL, 0, why),), Polling(now, True, polling.gap * 2, (now, now))
