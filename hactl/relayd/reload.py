"""reload: what a reload of relayd would change, what speaks against it, and what it forgets.

Facts that bind: a reload forgets every disable, empties every table in pf until two rounds of
checks have passed, numbers hosts anew, keeps in pf for ever what is no longer in the file, raises
the demotion of tables with `demote`, and ends relayd if scripts are running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct

from hactl.core.model import HostStatus, Kind, Observation
from hactl.relayd.conf import RelaydConf

LONGEST_NAME = 31  # characters of a redirect; relayd -n accepts more, and the daemon dies of it

Seat = tuple[str, int, str, int]  # service, table position, word, which of several with that word


class Layout(Struct, frozen=True):
    """Services with their kind and id, tables by (service, position), hosts by seat, and ids.

    *open*: services whose hosts are shown; the others' cannot be compared.
    """

    services: Mapping[str, tuple[Kind, int]]
    tables: Mapping[tuple[str, int], tuple[str, int]]  # name as shown, id
    hosts: Mapping[Seat, int]
    hidden: frozenset[tuple[str, int]] = frozenset()  # tables that show no hosts; -1: no tables


def shown(seen: Observation) -> Layout:
    """Return the layout that relayd shows."""
    services = {s.name: (s.kind, s.id) for s in seen.services}
    tables = {(s.name, p): (t.name, t.id) for s in seen.services for p, t in enumerate(s.tables)}
    hosts = {
        seat: host_id
        for s in seen.services
        for p, t in enumerate(s.tables)
        for seat, host_id in _seats(s.name, p, ((h.name, h.id) for h in t.hosts))
    }
    hidden = {(s.name, p) for s in seen.services for p, t in enumerate(s.tables) if not t.hosts}
    hidden |= {(s.name, -1) for s in seen.services if s.status == "disabled"}
    return Layout(services, tables, hosts, frozenset(hidden))


def written(conf: RelaydConf) -> Layout:
    """Return the layout that a file asks for."""
    services = {s.name: (s.kind, s.id) for s in conf.services}
    tables = {(s.name, p): (t.shown, t.id) for s in conf.services for p, t in enumerate(s.tables)}
    hosts = {
        seat: host_id
        for s in conf.services
        for p, t in enumerate(s.tables)
        for seat, host_id in _seats(s.name, p, ((h.name, h.id) for h in t.hosts))
    }
    return Layout(services, tables, hosts)


def _seats(
    service: str, position: int, hosts: Iterator[tuple[str, int]]
) -> Iterator[tuple[Seat, int]]:
    words: dict[str, int] = {}
    for word, id in hosts:
        words[word] = words.get(word, 0) + 1
        yield (service, position, word, words[word]), id


def changes(before: Layout, after: Layout) -> Iterator[str]:
    """Say in lines what a reload would add, take away and renumber."""
    for name in before.services.keys() - after.services.keys():
        yield f"{before.services[name][0]} {name}: gone"
    for name in after.services.keys() - before.services.keys():
        yield f"{after.services[name][0]} {name}: new"
    both = before.services.keys() & after.services.keys()
    for service, position in sorted(before.tables.keys() | after.tables.keys()):
        if service not in both or (service, -1) in before.hidden:
            continue
        old, new = before.tables.get((service, position)), after.tables.get((service, position))
        if new is None or old is None:
            name, what = (old[0], "gone") if old else (new[0] if new else "", "new")
            yield f"table {name} of {service}: {what}"
        elif old[0] != new[0]:
            yield f"table {old[0]} of {service}: becomes {new[0]}"
    for seat in sorted(before.hosts.keys() | after.hosts.keys()):
        service, position, word, _ = seat
        if service not in both or {(service, -1), (service, position)} & before.hidden:
            continue
        table = (after.tables.get(seat[:2]) or before.tables[seat[:2]])[0]
        old_id, new_id = before.hosts.get(seat), after.hosts.get(seat)
        if new_id is None:
            yield f"host {word} of {service}, table {table}: gone (id {old_id})"
        elif old_id is None:
            yield f"host {word} of {service}, table {table}: new (id {new_id})"
        elif old_id != new_id:
            yield f"host {word} of {service}, table {table}: id {old_id} becomes {new_id}"


def vanishing(before: Layout, after: Layout) -> dict[str, int]:
    """Return the redirects that the file no longer has, with their ids: they would stay in pf."""
    kept = {name for name, (kind, _) in after.services.items() if kind is Kind.REDIRECT}
    return {
        name: id
        for name, (kind, id) in before.services.items()
        if kind is Kind.REDIRECT and name not in kept
    }


def severed(before: Layout) -> list[str]:
    """Name the relays, whose open sessions end in a reload; those through redirects go on."""
    return sorted(name for name, (kind, _) in before.services.items() if kind is Kind.RELAY)


class Refusal(Struct, frozen=True):
    """Why not to reload; *final*: not even if somebody insists."""

    text: str
    final: bool = False


def refusals(conf: RelaydConf) -> Iterator[Refusal]:
    """Say where a reload to this file would hurt."""
    scripts = sorted({s.name for s in conf.services for t in s.tables if t.check == "script"})
    if scripts:
        yield Refusal(
            f"{', '.join(scripts)}: a reload while check scripts run ends relayd (in most of the"
            " trials on record); use check tcp, or restart relayd on the carp backup"
        )
    demotes = sorted({t.demote for s in conf.services for t in s.tables if t.demote})
    if demotes:
        yield Refusal(
            f"demote {', '.join(demotes)}: a reload raises the carp demotion until the tables are"
            " filled, so the other balancer may take over"
        )
    for service in conf.services:
        if service.kind is Kind.REDIRECT and len(service.name) > LONGEST_NAME:
            text = f"redirect {service.name}: relayd dies of a name over {LONGEST_NAME} characters"
            yield Refusal(text, final=True)


class Disabled(Struct, frozen=True):
    """What was disabled before a reload, whoever did it."""

    hosts: tuple[Seat, ...] = ()
    tables: tuple[tuple[str, int], ...] = ()
    redirects: tuple[str, ...] = ()

    def names(self) -> Iterator[str]:
        """Name all of it, for people."""
        yield from (f"host {seat[2]} of {seat[0]}" for seat in self.hosts)
        yield from (f"table {position + 1} of {name}" for name, position in self.tables)
        yield from (f"redirect {name}" for name in self.redirects)

    def commands(self, now: Layout) -> Iterator[tuple[str, ...]]:
        """Yield what disables all of it again, as far as relayd still has it."""
        for seat in self.hosts:
            if seat in now.hosts:
                yield "host", "disable", str(now.hosts[seat])
        for table in self.tables:
            if table in now.tables:
                yield "table", "disable", str(now.tables[table][1])
        for name in self.redirects:
            if name in now.services:
                yield "redirect", "disable", str(now.services[name][1])


def disabled(seen: Observation) -> Disabled:
    """Return what relayd shows disabled; a child follows its parent."""
    hosts = []
    for service in seen.services:
        for position, table in enumerate(service.tables):
            each = [(h.name, h.id) for h in table.hosts]
            off = {
                h.id for h in table.hosts if h.status is HostStatus.DISABLED and h.parent is None
            }
            seats = _seats(service.name, position, iter(each))
            hosts += [seat for seat, id in seats if id in off]
    tables = [
        (s.name, p) for s in seen.services for p, t in enumerate(s.tables) if t.status == "disabled"
    ]
    redirects = [
        s.name for s in seen.services if s.kind is Kind.REDIRECT and s.status == "disabled"
    ]
    return Disabled(tuple(hosts), tuple(tables), tuple(redirects))
