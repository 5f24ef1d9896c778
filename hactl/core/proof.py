"""proof: compares what pf has with what relayd says it gave pf, and remembers what differs.

relayd keeps one anchor `relayd/NAME` and in it one table NAME for a redirect, with the addresses of
the main table's hosts that are up, else of the backup's.  Facts that bind: a host that came up is
in pf's table an interval later; one that went down is out at once; a redirect without a host has an
empty table, and its rule is gone unless a reload left it; one that a reload dropped stays in pf.

relayd writes a table only when it believes that something changed, so a pair of polls repairs what
was late and nothing else; what remains needs a person.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import HostStatus, Kind, Member, Observation, Plan, Service, Table

SURE = 0.5  # seconds for which a difference lasts before it is one: show and pf are read in turn
LATE = 1.5  # seconds beyond relayd's interval after which a host that came up is in pf
LEFT = 10.0  # seconds after which what relayd does not show is gone, and not just starting
REPAIR = 10.0  # seconds that poll pairs have to repair a difference before people hear of it
PAIRS = 3  # poll pairs for a service's differences within SPAN
SPAN = 600.0  # seconds


class Pf(Struct, frozen=True):
    """What pf has.  *tables*: addresses by redirect; *rules*: the redirects with a rule.

    *anchored* has those whose anchor the main rules call; *sources* counts the source-tracking
    entries by the address that they point to.  The last three are read less often; None: not yet.
    """

    at: float
    tables: Mapping[str, tuple[str, ...]]
    rules: frozenset[str] | None = None
    anchored: frozenset[str] | None = None
    sources: Mapping[str, int] | None = None


class Difference(NamedTuple):
    """What differs in a redirect: *text* says it, *member* is the one it is about, if one."""

    service: str
    kind: str  # lacks, has, rule, anchor, left, sources
    text: str
    member: Member | None = None

    @property
    def repairable(self) -> bool:
        """Tell whether a pair of polls may help."""
        return self.kind in ("lacks", "has")


class Standing(Struct, frozen=True):
    """Since when a difference is seen, whether it counts, and whether people heard of it."""

    since: float
    counts: bool = False
    alerted: bool = False


class Proof(Struct, frozen=True):
    """The newest look at pf, what differs, and the poll pairs spent on it by service.

    *blind* says why pf cannot be read, "" while it can or nothing is to be read.
    """

    pf: Pf | None = None
    blind: str = ""
    differences: Mapping[Difference, Standing] = {}
    pairs: Mapping[str, tuple[float, ...]] = {}

    def of(self, service: str) -> Iterator[Difference]:
        """Yield the differences of a service that count."""
        return (d for d, s in self.differences.items() if d.service == service and s.counts)


@lru_cache(1 << 14)  # asked each second, for each host
def canonical(word: str) -> str | None:
    """Return an address in its one spelling; None for a name."""
    try:
        return str(ip_address(word))
    except ValueError:
        return None


def addresses(word: str, plan: Plan) -> frozenset[str]:
    """Return the addresses that relayd may have taken for *word*; none for a name nobody knows."""
    own = canonical(word)
    if own is not None:
        return frozenset({own})
    node = plan.nodes.get(plan.node_of(word) or "")
    known = {canonical(a) for a in node.addresses} if node is not None else set()
    return frozenset(a for a in known if a is not None)


def active(service: Service) -> Table | None:
    """Return the table whose hosts relayd has given to pf; None: an empty table."""
    if service.status not in ("active", "active (using backup table)") or not service.tables:
        return None
    return service.tables[-1 if "backup" in service.status else 0]


def compare(
    plan: Plan,
    seen: Observation,
    pf: Pf,
    sinces: Mapping[Member, float],
    interval: float,
    removed: Mapping[Member, frozenset[str]],
) -> dict[Difference, float]:
    """Return what differs, and the time from which on it would be wrong.

    *sinces*: when each member began to show its status; *removed*: the addresses of members that
    we took out, where no service has them in.
    """
    found: dict[Difference, float] = {}
    shown = {service.name: service for service in reversed(seen.services)}
    for name in plan.services:
        table = pf.tables.get(name)
        if table is None:
            continue
        service = shown.get(name)
        if service is None:
            if seen.services and (table or name in (pf.rules or ())):
                found[_left(name, table)] = pf.at + LEFT
            continue
        if service.kind is Kind.REDIRECT:
            found |= _compare_table(plan, service, table, sinces, interval)
            found |= dict.fromkeys(_compare_rules(service, pf), 0.0)
    for member, gone in removed.items():
        count = sum((pf.sources or {}).get(address, 0) for address in gone)
        if count:
            text = f"{count} source-tracking entries still lead clients to it"
            found[Difference(member.service, "sources", text, member)] = 0.0
    return found


def _left(name: str, table: Sequence[str]) -> Difference:
    to = f" and sends clients to {', '.join(table)}" if table else ""
    return Difference(
        name,
        "left",
        f"relayd no longer has it, and pf still does{to}; pfctl -a relayd/{name} -F all removes it",
    )


def _compare_table(
    plan: Plan,
    service: Service,
    table: Collection[str],
    sinces: Mapping[Member, float],
    interval: float,
) -> dict[Difference, float]:
    found: dict[Difference, float] = {}
    used = active(service)
    there = set(table)
    expected: set[str] = set()
    nameless = False  # a host that is up and whose address we cannot know
    hosts: dict[str, Member] = {}  # every member's addresses
    for position, each in enumerate(service.tables):
        words: dict[str, int] = {}
        for host in each.hosts:
            words[host.name] = words.get(host.name, 0) + 1
            again = f"#{words[host.name]}" if words[host.name] > 1 else ""
            member = Member(service.name, position, host.name + again)
            own = addresses(host.name, plan)
            for address in own:
                hosts.setdefault(address, member)
            if each is not used or host.status is not HostStatus.UP:
                continue
            expected |= own
            nameless = nameless or not own
            if own and not own & there:
                text = f"relayd shows {host.name} up, and pf's table lacks it"
                since = sinces.get(member, float("-inf"))
                found[Difference(service.name, "lacks", text, member)] = since + interval + LATE
    for address in table:
        if address not in expected and (not nameless or address in hosts):
            text = f"pf's table has {address}, which relayd does not have in use"
            found[Difference(service.name, "has", text, hosts.get(address))] = 0.0
    return found


def _compare_rules(service: Service, pf: Pf) -> Iterator[Difference]:
    name = service.name
    if active(service) is None:
        return
    if pf.anchored is not None and name not in pf.anchored:
        text = 'pf\'s main rules do not call it: pf.conf lacks anchor "relayd/*"'
        yield Difference(name, "anchor", text)
    if pf.rules is not None and name not in pf.rules:
        text = "relayd says active, and its anchor in pf has no rule; a reload of relayd writes it"
        yield Difference(name, "rule", text)


def step(proof: Proof, pf: Pf, found: Mapping[Difference, float], now: float) -> Proof:
    """Return the proof after one more look at pf, in which *found* differed."""
    differences: dict[Difference, Standing] = {}
    for difference, wrong_from in found.items():
        before = proof.differences.get(difference, Standing(now))
        counts = before.counts or (now >= before.since + SURE and now >= wrong_from)
        differences[difference] = replace(before, counts=counts)
    return replace(proof, pf=pf, blind="", differences=differences)


def overdue(proof: Proof, difference: Difference, now: float) -> bool:
    """Tell whether people must hear of a difference: it cannot be repaired, or was not."""
    standing = proof.differences[difference]
    if not standing.counts or standing.alerted or difference.kind == "sources":
        return False
    return not difference.repairable or now >= standing.since + REPAIR


def alerted(proof: Proof, heard: Collection[Difference]) -> Proof:
    """Note that people heard of differences."""
    if not heard:
        return proof
    marked = {d: replace(proof.differences[d], alerted=True) for d in heard}
    return replace(proof, differences={**proof.differences, **marked})


def in_doubt(proof: Proof, now: float) -> frozenset[str]:
    """Name the services for whose differences a poll pair may still be spent."""
    return frozenset(
        d.service
        for d, s in proof.differences.items()
        if s.counts
        and d.repairable
        and sum(t > now - SPAN for t in proof.pairs.get(d.service, ())) < PAIRS
    )


def spent(proof: Proof, services: Collection[str], now: float) -> Proof:
    """Note that a poll pair was spent on services."""
    pairs = dict(proof.pairs)
    for name in services:
        pairs[name] = (*(t for t in pairs.get(name, ()) if t > now - SPAN), now)
    return replace(proof, pairs=pairs)


class Signs(Struct, frozen=True):
    """What tells one load of relayd from the next, and when it was last seen to hold.

    *totals*: checks made so far by host id, of hosts that are checked by themselves.
    """

    at: float
    totals: Mapping[int, int]


def restarted(before: Signs, after: Signs) -> bool:
    """Tell by the totals whether relayd was loaded between two looks.

    A load sets every count to nothing; somebody's disable and enable does so for one host.
    """
    both = before.totals.keys() & after.totals.keys()
    fallen = {id for id in both if after.totals[id] < before.totals[id]}
    return bool(fallen) and fallen == {id for id in both if before.totals[id]}


def checked(before: Signs, after: Signs) -> bool:
    """Tell whether relayd checked hosts between two looks."""
    both = before.totals.keys() & after.totals.keys()
    return any(after.totals[id] > before.totals[id] for id in both)
