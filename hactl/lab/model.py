"""relayd as a state machine: what it decides, shows and tells pf; no sockets, no clock, no files.

Time comes in as `now`, results of checks come in through `check_done`; the caller starts the checks
that `advance` returns.  Three processes of relayd are told apart where it shows: the check process
(*hce*) keeps its own idea of a host while a check is on its way, the packet filter process (*pfe*)
keeps what `show` prints and writes pf, and the parent runs scripts and loads the file.

What is left out: routers, statistics of sessions, `monitor`, and races between the processes that
last microseconds.  Where relayd dies often but not always, this one dies always.

Source: recordings of relayd and relayctl built from the sources of 2019, and reading those sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Literal, NamedTuple

from msgspec import Struct

from hactl.core.model import Kind
from hactl.relayd.conf import ConfHost, ConfService, ConfTable, Listen, RelaydConf

# From a load to the first sync: until then `show` says `active` of a redirect without a host.
SETTLE = 0.02

HEADER = f"{'Id':<4}\t{'Type':<8}\t{'Name':<24}\t{'Avlblty':<7}\tStatus\n"
INDENT = f"\t{'':8}\t"


class State(Enum):
    """What a check knows of a host."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"


class Check(NamedTuple):
    """A check to start now: *deadline* is when it has failed, *name* is the argument of a script."""

    serial: int
    host: int
    kind: str
    name: str
    address: str
    port: int
    argument: str
    started: float
    deadline: float


class Reply(NamedTuple):
    """What relayctl prints and its exit code; *wants* is what only the parent can do.

    `("reload",)`, `("load", PATH)`, `("stop",)` or `("monitor",)`.
    """

    stdout: str = ""
    stderr: str = ""
    exit: int = 0
    wants: tuple[str, ...] = ()


SUCCEEDED = Reply("command succeeded\n")
FAILED = Reply("command failed\n", exit=1)


class Rule(NamedTuple):
    """The rule in the anchor of a redirect: where it listens, and the port it sends to."""

    listens: tuple[Listen, ...]
    port: int
    sticky: bool


class Pf(Struct):
    """pf as relayd leaves it: it outlives relayd.  *changes* counts tables given other addresses.

    *anchored*: the main rules, which are not relayd's, call relayd's anchors.
    """

    tables: dict[str, tuple[str, ...]] = {}
    rules: dict[str, Rule] = {}
    changes: int = 0
    anchored: bool = True

    def fill(self, name: str, addresses: tuple[str, ...]) -> tuple[int, int]:
        """Replace the addresses of a table; return how many were added and deleted."""
        before = self.tables.get(name, ())
        self.tables[name] = addresses
        self.changes += before != addresses
        return len(set(addresses) - set(before)), len(set(before) - set(addresses))


class Host(Struct, eq=False):
    """A host.  *seen* and *last* are hce's, *up* is pfe's; *retries* are those left."""

    conf: ConfHost
    address: str
    table: Table
    children: list[Host] = []
    disabled: bool = False
    up: State = State.UNKNOWN
    seen: State = State.UNKNOWN
    last: State = State.UNKNOWN
    retries: int = 0
    checks: int = 0
    ups: int = 0
    error: str = ""
    serial: int = 0  # of the check on its way, if it can be cancelled
    told: tuple[float, int] = (-1.0, 0)  # when hce last told pfe, and its count of checks


class Table(Struct, eq=False):
    """A table as one service uses it.  *off* is pfe's flag, *unchecked* is hce's."""

    conf: ConfTable
    hosts: list[Host] = []
    off: bool = False
    unchecked: bool = False
    count: int = 0
    changed: bool = False
    demoted: bool = False
    skip: int = 0
    skipped: int = 0

    @property
    def status(self) -> str:
        """The status column."""
        if self.off:
            return "disabled"
        return f"active ({self.count} hosts)" if self.count else "empty"


class Service(Struct, eq=False):
    """A redirect or a relay; *tables* are main and backup, or a relay's in order."""

    conf: ConfService
    tables: list[Table]
    off: bool = False
    down: bool = False
    backup: bool = False
    ruled: bool = False  # pfe believes its rule is in pf

    @property
    def status(self) -> str:
        """The status column."""
        if self.off:
            return "disabled"
        if self.down:
            return "down"
        return "active (using backup table)" if self.backup else "active"


def _quiet(line: str) -> None:
    """Log nothing."""


class Model:
    """One relayd.

    *variant* is the release: `2019` or `later`, in which a switch by name reaches every table and
    a script that is still running is not started again.  *transit* is how long a result travels
    from hce to pfe, seconds: a disable and an enable of its host within that time end relayd.
    """

    def __init__(
        self,
        variant: Literal["2019", "later"] = "later",
        *,
        pf: Pf | None = None,
        log: Callable[[str], None] = _quiet,
        transit: float = 0.0,
    ) -> None:
        self.pf = Pf() if pf is None else pf
        self.crashed: str | None = None
        self.demotions: dict[str, int] = {}
        self.services: list[Service] = []
        self.tables: dict[int, Table] = {}
        self.hosts: dict[int, Host] = {}
        self.loads = 0  # configurations so far
        self._variant = variant
        self._log = log
        self._transit = transit
        self._interval = 10.0
        self._round_at: float | None = None
        self._sync_at: float | None = None
        self._serial = 0
        self._pending: dict[int, Host] = {}
        self._scripts: dict[int, Host] = {}
        self._load: tuple[RelaydConf, Mapping[str, str], bool] | None = None

    # Loading and ending

    def load(self, conf: RelaydConf, now: float, addresses: Mapping[str, str] = {}) -> None:
        """Start with *conf*, or reload it; *addresses* are of hosts given by name.

        A reload forgets every disable and empties the tables in pf, and waits for running scripts:
        their results then meet a pfe that does not know the hosts yet, which ends relayd (in nine
        of ten recorded reloads with several scripts running, never with one).
        """
        if self._scripts:
            self._load = self._load or (conf, addresses, len(self._scripts) > 1)
            return
        self._interval = conf.interval
        begun = self._round_at
        self.loads += 1
        self._forget()
        self._build(conf, addresses)
        for service in self._redirects():
            self.pf.fill(service.conf.name, ())
        self._round_at = now if begun is None else begun
        self._sync_at = now if begun is None else now + SETTLE

    def _build(self, conf: RelaydConf, addresses: Mapping[str, str]) -> None:
        for each in conf.services:
            tables = [
                self.tables.get(table.id) or self._table(table, conf.interval, addresses)
                for table in each.tables
            ]
            self.services.append(Service(each, tables, off=each.disabled))
            if each.disabled and each.kind is Kind.REDIRECT:
                tables[0].off = True
        for host in self.hosts.values():
            if host.conf.parent in self.hosts:
                self.hosts[host.conf.parent].children.append(host)

    def _table(self, conf: ConfTable, interval: float, addresses: Mapping[str, str]) -> Table:
        table = Table(conf, off=conf.disabled, unchecked=conf.disabled)
        table.skip = int(conf.interval // interval) - 1
        self.tables[conf.id] = table
        for each in conf.hosts:
            address = addresses.get(each.name, each.name)
            host = Host(each, address, table, retries=each.retry)
            table.hosts.append(host)
            self.hosts[each.id] = host
        return table

    def stop(self) -> None:
        """End relayd: pf loses the tables and rules of the redirects that it knows now."""
        for service in self._redirects():
            self.pf.changes += bool(self.pf.tables.pop(service.conf.name, ()))
            self.pf.rules.pop(service.conf.name, None)
        self.demotions.clear()
        self._forget()

    def crash(self, reason: str) -> None:
        """End relayd by *reason*; when it was pfe that died nobody cleans pf."""
        self.crashed = reason
        self._log(reason)
        if reason.startswith("pfe"):
            self._forget()
        else:
            self.stop()

    def _forget(self) -> None:
        self._round_at = self._sync_at = None
        self.services.clear()
        self.tables.clear()
        self.hosts.clear()
        self._pending.clear()
        self._scripts.clear()
        self._load = None

    # Rounds of checks

    @property
    def next_event_time(self) -> float | None:
        """When `advance` has something to do next; None once relayd has ended."""
        if self._round_at is None or self._sync_at is None:
            return self._round_at
        return min(self._round_at, self._sync_at)

    def advance(self, now: float) -> list[Check]:
        """Do what is due and return the checks to start: at most one round, however late."""
        if self._sync_at is not None and self._sync_at <= now:
            self._sync_at = None
            self._sync()
        if self._round_at is None or self._round_at > now:
            return []
        due = self._round_at + self._interval
        self._round_at = due if due > now else now + self._interval
        return self._round(now)

    def _round(self, now: float) -> list[Check]:
        """Write pf, give up the checks under way, start one for each host that is due."""
        self._sync()
        checks: list[Check] = []
        for host in self.hosts.values():
            self._pending.pop(host.serial, None)
        for table in self.tables.values():
            if table.unchecked or not table.conf.check:
                continue
            if table.skip:
                # Off by one: the real period is one global interval more than configured.
                late, table.skipped = table.skipped > table.skip, table.skipped + 1
                if late:
                    table.skipped = 0
                if table.skipped != 1:
                    continue
            checks += [
                self._start(host, now)
                for host in table.hosts
                if not host.disabled and host.conf.parent is None and not self._busy(host)
            ]
        return checks

    def _busy(self, host: Host) -> bool:
        return self._variant != "2019" and host in self._scripts.values()

    def _start(self, host: Host, now: float) -> Check:
        """Make the check of a host; one over TCP takes the host for up until it has failed.

        That is the trap of `poll`: a second start remembers this as the last state, and a failure
        with retries left reports the last state.
        """
        self._serial += 1
        conf = host.table.conf
        kind = conf.check or ""
        host.last = host.seen
        check = Check(
            self._serial,
            host.conf.id,
            kind,
            host.conf.name,
            host.address,
            conf.port,
            conf.argument.path,
            now,
            now + conf.timeout,
        )
        self._pending[check.serial] = host
        if kind == "script":
            self._scripts[check.serial] = host
        else:
            host.serial = check.serial
            if kind != "icmp":
                host.seen = State.UP
        return check

    def check_done(self, check: Check, up: bool | None, now: float, reason: str = "") -> None:
        """Take the result of a check; None is unknown (a banner that did not match).

        Results of checks that a newer round or a reload gave up are ignored.
        """
        host = self._pending.pop(check.serial, None)
        self._scripts.pop(check.serial, None)
        if host is not None and self.crashed is None:
            state = State.UNKNOWN if up is None else State.UP if up else State.DOWN
            self._result(host, state, reason or _reason(check.kind, state), now, check)
        if self._load is not None and not self._scripts:
            (conf, addresses, fatal), self._load = self._load, None
            self.load(conf, now, addresses)
            if fatal:
                self.crash("pfe: pfe_dispatch_hce: invalid host id")

    def _result(self, host: Host, state: State, reason: str, now: float, check: Check) -> None:
        """Count a result as hce does, tell pfe, then the children, who share it."""
        if host.disabled:
            self._log(f"host {host.conf.name}, check {check.kind} (ignoring result, host disabled)")
            return
        before = host.last
        if state is State.DOWN and host.retries:
            state = before
            host.retries -= 1
        else:
            host.retries = host.conf.retry
        if state is not State.UNKNOWN:
            host.checks += 1
            host.ups += state is State.UP
        if state is not before:
            took = (now - check.started) * 1000
            self._log(
                f"host {host.conf.name}, check {_LABELS.get(check.kind, check.kind)}"
                f" ({took:.0f}ms,{reason}), state {before.value} -> {state.value},"
                f" availability {_availability(host)}"
            )
        host.seen = host.last = state
        host.error = reason
        host.told = (now, host.checks)
        self._status(host, state)
        for child in host.children:
            self._result(child, state, reason, now, check)

    def _status(self, host: Host, state: State) -> None:
        """pfe hears of a host: a loss is written to pf at once, a gain waits for the next sync."""
        was, host.up = host.up, state
        if state is was or State.UP not in (state, was):
            return
        host.table.count += 1 if state is State.UP else -1
        host.table.changed = True
        if was is State.UP:
            self._sync()

    # pf

    def _sync(self) -> None:
        """Bring pf to what pfe knows, for tables that changed."""
        for service in self._redirects():
            active = self._active(service)
            service.down = active is None
            service.backup = active is not None and active is not service.tables[0]
            if active is not None:
                if service.backup:
                    active.changed |= service.tables[0].changed
                if active.changed:
                    self._fill(service, active)
                if not service.ruled:
                    service.ruled = True
                    self.pf.rules.pop(service.conf.name, None)
                    self.pf.rules[service.conf.name] = Rule(
                        service.conf.listens, service.tables[0].conf.port, service.conf.sticky
                    )
            elif service.ruled:
                service.ruled = False
                self.pf.fill(service.conf.name, ())
                self.pf.rules.pop(service.conf.name, None)
        for table in self.tables.values():
            if table.conf.check:
                table.changed = False
                self._demote(table)

    def _active(self, service: Service) -> Table | None:
        """The table in use: the first with a host that is up; none while the redirect is off."""
        if service.off:
            return None
        return next((table for table in service.tables if table.count), None)

    def _fill(self, service: Service, table: Table) -> None:
        addresses = tuple(host.address for host in table.hosts if host.up is State.UP)
        added, deleted = self.pf.fill(service.conf.name, addresses)
        self._log(
            f"table {service.conf.name}: {added} added, {deleted} deleted, 0 changed, 0 killed"
        )

    def _demote(self, table: Table) -> None:
        """Raise carp's demotion while a table has no host; a reload forgets that it was raised."""
        group = table.conf.demote
        if group and table.demoted is bool(table.count):
            table.demoted = not table.count
            self.demotions[group] = self.demotions.get(group, 0) + (1 if table.demoted else -1)

    def targets(self, service: Service) -> list[tuple[str, int]]:
        """Where a relay sends its next session: it uses a host as soon as it is up.

        The first table with a host; without a check every host that is not disabled counts.
        """
        for table in service.tables:
            hosts = [
                (host.address, table.conf.port)
                for host in table.hosts
                if host.up is State.UP or not (table.conf.check or table.off or host.disabled)
            ]
            if hosts:
                return hosts
        return [] if service.conf.target is None else [service.conf.target]

    # Switching

    def _switch_host(self, host: Host | None, on: bool, now: float, by_name: str = "") -> bool:
        """Enable or disable a host with its children; a child by itself cannot be switched."""
        if host is None or host.conf.parent is not None:
            return False
        if host.disabled is not on:
            # Already so: of the other hosts with this name none is looked at.
            return True
        self._flip(host, on, now)
        if by_name and self._variant != "2019":
            for other in list(self.hosts.values()):
                if other.conf.name == by_name and other.conf.parent is None:
                    self._flip(other, on, now)
        self._sync()
        return True

    def _flip(self, host: Host, on: bool, now: float) -> None:
        if host.disabled is not on:
            return
        if host.up is State.UP:
            host.table.count -= 1
            host.table.changed = True
        host.up = host.seen = State.UNKNOWN
        host.disabled = not on
        host.checks = host.ups = 0
        told, count = host.told
        if not host.table.conf.check:
            self.crash("hce: hce_dispatch_pfe: desynchronized")
        elif on and count > 1 and told <= now <= told + self._transit:
            self.crash("pfe: pfe_dispatch_hce: desynchronized")
        for child in host.children:
            self._flip(child, on, now)

    def _switch_table(self, table: Table | None, on: bool) -> bool:
        """Enable or disable a table; a check on its way is not stopped, and counts."""
        if table is None:
            return False
        if table.off is on:
            table.off = table.unchecked = not on
            table.changed = True
            table.count = 0
            for host in table.hosts:
                host.up = host.seen = State.UNKNOWN
            if not table.conf.check:
                self.crash("hce: hce_dispatch_pfe: desynchronized")
            self._sync()
        return True

    def _switch_redirect(self, service: Service | None, on: bool) -> bool:
        """Enable or disable a redirect: pfe flags the main table, hce goes on checking it."""
        if service is None:
            return False
        if service.off is not on:
            return True
        service.off = not on
        if not on:
            service.tables[0].off = True
            self._sync()
            return True
        for table in service.tables:
            self._switch_table(table, on)
        return True

    # relayctl

    def command(self, words: Sequence[str], now: float) -> Reply:
        """Do one relayctl command; *words* are its arguments after the options."""
        try:
            path, argument = _parse(words)
        except _UsageError as error:
            return Reply(stderr=str(error), exit=1)
        match path:
            case ("show", what):
                return Reply(self._show(what))
            case ("poll",):
                if self._round_at is not None:
                    self._round_at = now
                    for table in self.tables.values():
                        table.skipped = 0
                return SUCCEEDED
            case ("log", _):
                return Reply("logging request sent.\n")
            case ("reload",) | ("monitor",):
                return Reply(wants=path)
            case ("load",):
                return Reply(wants=("load", argument))
            case ("stop",):
                return Reply(stderr="relayctl: pipe closed\n", exit=1, wants=path)
        kind, verb = path
        return SUCCEEDED if self._switch(kind, verb == "enable", argument, now) else FAILED

    def _switch(self, kind: str, on: bool, argument: str, now: float) -> bool:
        """Switch what *argument* names: a number is always an id, and names are cut at 63."""
        by_id = argument.isdigit() and int(argument) <= 0xFFFFFFFF
        number, name = (int(argument), "") if by_id else (0, argument[:63])
        if kind == "host":
            host = self.hosts.get(number)
            if not by_id:
                host = next((each for each in self.hosts.values() if each.conf.name == name), None)
            return self._switch_host(host, on, now, name)
        if kind == "table":
            table = self.tables.get(number)
            if not by_id:
                shown = (each for each in self.tables.values() if each.conf.shown == name)
                table = next(shown, None)
            return self._switch_table(table, on)
        wanted = number if by_id else name
        found = (each for each in self._redirects() if wanted in (each.conf.id, each.conf.name))
        return self._switch_redirect(next(found, None), on)

    def _redirects(self) -> Iterator[Service]:
        return (service for service in self.services if service.conf.kind is Kind.REDIRECT)

    def _show(self, what: str) -> str:
        if what == "sessions":
            return ""
        rows = [HEADER]
        for service in self.services:
            if what in ("summary", f"{service.conf.kind.value}s"):
                conf = service.conf
                rows.append(_row(conf.id, conf.kind.value, conf.name, service.status))
            if what in ("summary", "hosts") and not service.off:
                for table in service.tables:
                    rows += _table_rows(table, what == "hosts")
        return "".join(rows)


def _table_rows(table: Table, counts: bool) -> Iterator[str]:
    yield _row(table.conf.id, "table", table.conf.shown, table.status)
    for host in table.hosts if not table.off else ():
        parent = f" parent {host.conf.parent}" if host.conf.parent is not None else ""
        status = "disabled" if host.disabled else host.up.value
        yield _row(host.conf.id, "host", host.conf.name + parent, status, _availability(host))
        if counts and host.checks:
            retries = f", {host.retries} retries" if host.retries else ""
            error = f", error: {host.error}" if host.up is State.DOWN else ""
            yield f"{INDENT}total: {host.ups}/{host.checks} checks{retries}{error}\n"


def _row(number: int, kind: str, name: str, status: str, availability: str = "") -> str:
    return f"{number:<4}\t{kind:<8}\t{name:<24}\t{availability:<7}\t{status}\n"


def _availability(host: Host) -> str:
    return f"{host.ups / host.checks * 100:.2f}%" if host.checks else ""


# What the log calls a check, where that is not its name in relayd.conf.
_LABELS = {"http": "http code", "https": "http code use tls", "tls": "tcp use tls"}
_REASONS = {
    ("script", State.UP): "script ok",
    ("icmp", State.UP): "icmp ok",
    ("icmp", State.DOWN): "icmp read timeout",
    ("script", State.DOWN): "script failed",
    ("script", State.UNKNOWN): "script failed",
}


def _reason(kind: str, state: State) -> str:
    if state is State.UNKNOWN:
        return _REASONS.get((kind, state), "send/expect failed")
    up = "tcp connect ok" if state is State.UP else "tcp connect failed"
    return _REASONS.get((kind, state), up)


# The words of relayctl

_SWITCH = ("disable", "enable")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "": (
        "monitor",
        "show",
        "load",
        "poll",
        "reload",
        "stop",
        "redirect",
        "table",
        "host",
        "log",
    ),
    "show": ("summary", "hosts", "redirects", "relays", "routers", "sessions"),
    "redirect": _SWITCH,
    "table": _SWITCH,
    "host": _SWITCH,
    "log": ("verbose", "brief"),
}
_ARGUMENTS = {"redirect": "<redirectid>", "table": "<tableid>", "host": "<hostid>"}


class _UsageError(Exception):
    """What relayctl prints about words that it does not take."""


def _parse(words: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Return the command, spelled out, and its argument.  Raise _UsageError."""
    rest = list(words)
    path: tuple[str, ...] = (_keyword(rest, _WORDS[""]),)
    if path[0] in _WORDS:
        path += (_keyword(rest, _WORDS[path[0]]),)
    argument = ""
    placeholder = "<path>" if path[0] == "load" else _ARGUMENTS.get(path[0])
    if placeholder:
        if not rest:
            raise _usage("missing argument:", (placeholder,))
        argument = rest.pop(0)
    if rest:
        raise _UsageError(f"superfluous argument: {rest[0]}\n")
    return path, argument


def _keyword(rest: list[str], words: tuple[str, ...]) -> str:
    """Take one word off *rest*: any beginning that fits one word alone."""
    if not rest:
        raise _usage("missing argument:", words)
    given = rest.pop(0)
    found = [word for word in words if word.startswith(given)]
    if len(found) != 1:
        kind = "ambiguous" if found else "unknown"
        raise _usage(f"{kind} argument: {given}", words)
    return found[0]


def _usage(line: str, words: tuple[str, ...]) -> _UsageError:
    listed = "".join(f"  {word}\n" for word in words)
    return _UsageError(f"{line}\nvalid commands/args:\n{listed}")
