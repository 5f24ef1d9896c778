"""judge: what doctor makes of the facts: rows that are ok, a warning or an error, with what to do.

Facts come as values, and from programs as the text that they printed, so that all of this can be
tested anywhere.  What could not be read is a fact too: it is said, and nothing is concluded from it.

Sources: relayd.conf(5), pfctl(8), ifconfig(8), ntpctl(8), and what was observed of a running relayd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from checks.host import Host
from checks.maillog import Maillog
from checks.nfs import Nfs
from checks.queue import Queue
from hactl.agent import Answer as AgentAnswer
from hactl.agent.fetch import judge as judge_answer
from hactl.config import Config
from hactl.core.explain import Snapshot
from hactl.core.model import HostStatus, Kind, Observation, Service, Verdict
from hactl.core.proof import active, canonical
from hactl.core.units import Duration, Size, span
from hactl.daemon.plan import mismatches
from hactl.relayd.conf import ConfService, ConfTable, RelaydConf
from hactl.relayd.pf import NonsenseError, parse_rules, parse_table
from hactl.relayd.relayctl import Answer

INTERVAL = 2.0  # seconds; the longest that is advised
TIMEOUT = 1.0  # seconds of a check of relayd; polls keep longer distances than this
EXPIRES, EXPIRED = 14.0, 1.0  # days that a certificate is good for
LITTLE, NOTHING = 50 << 20, 1 << 20  # bytes free on a disk
INODES = 100
SLOW = 1.0  # seconds to look up a name
STEPPED = 60.0  # seconds by which a file may be younger than now
LATE = 0.001  # of the slots
RESERVE = 64  # descriptors that are not for looks
LONGEST_NAME = 31  # of a redirect, as pf's tables are called
SHOWN = 4  # items in a list for people
SLOTS = 10.0  # a second
DENIED = "Permission denied"
TRUSTED = {"wheel", "root", "_hactl"}  # groups that may read a login


T = TypeVar("T")


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Row(Struct, frozen=True):
    """A line of the page: what was looked at, what was found, and what to do."""

    level: Level
    what: str
    found: str
    advice: str = ""


def ok(what: str, found: str) -> Row:
    """Nothing is to be done."""
    return Row(Level.OK, what, found)


def warning(what: str, found: str, advice: str) -> Row:
    """It works, but not as well as it could, or not for ever."""
    return Row(Level.WARNING, what, found, advice)


def error(what: str, found: str, advice: str) -> Row:
    """It does not work, or is not safe."""
    return Row(Level.ERROR, what, found, advice)


# The facts


class Unread(Struct, frozen=True):
    """A fact that could not be read, and why; *absent*: there is no such thing on this system."""

    why: str
    absent: bool = False
    answer: Answer | None = None


class Printed(Struct, frozen=True):
    """What a program printed, and its exit code."""

    out: str
    code: int = 0
    err: str = ""


class Role(StrEnum):
    """What a file is to us."""

    OURS = "configuration"
    CONFIGURATION = "configuration of relayd"
    AUTHORITY = "file of authorities"
    CONTROL = "hactld's socket"
    RELAYD = "relayd's socket"
    DIRECTORY = "directory"
    STATE = "state"
    PROGRAM = "program"
    LOGIN = "login"
    KEY = "key"
    CERTIFICATE = "certificate"


class File(Struct, frozen=True):
    """A file that is there: its mode, who has it, and when it was written last (Unix seconds).

    *readable*: hactld can read it once it is no longer root.
    """

    path: str
    role: Role
    mode: int
    group: str = "wheel"
    written: float = 0.0
    owner: str = "root"
    readable: bool = True


class Script(Struct, frozen=True):
    """A program that relayd.conf names as a check.

    *why* it cannot be looked at; *ours*: it is a link to hactl-verdict; *open*: by what others may
    change it; *closed*: the file or directory that relayd's user may not run or enter.
    """

    path: str
    why: str = ""
    ours: bool = False
    open: str = ""
    closed: str = ""


class Disk(Struct, frozen=True):
    """Where a directory is, its free bytes and inodes (None: not counted); *why* it is not there."""

    path: str
    free: int = 0
    inodes: int | None = None
    read_only: bool = False
    why: str = ""


class Resolved(Struct, frozen=True):
    """What became of a host name."""

    seconds: float
    addresses: tuple[str, ...] = ()
    why: str = ""


class Certified(Struct, frozen=True):
    """What a look at a port under TLS said of the certificate there."""

    node: str
    check: str
    verdict: Verdict
    reason: str
    left_days: float | None = None


class Asked(Struct, frozen=True):
    """What a node's agent, asked for *checks*, answered at once, or *why* it did not.

    *may*: we are allowed what it takes to ask.
    """

    node: str
    url: str
    checks: tuple[str, ...]
    answer: AgentAnswer | None = None
    why: str = ""
    may: bool = True


class Pinned(Struct, frozen=True):
    """A certificate by which agents and balancers know each other: its file, and what is left."""

    path: str
    left_days: float | None = None
    why: str = ""


class Other(Struct, frozen=True):
    """A hactld that runs, and the relayctl and socket that it steers, if its file can be read."""

    pid: int
    file: str
    steers: tuple[str, str] | None = None


class Facts(Struct, frozen=True):
    """Everything that doctor looks at.

    *config_problems* are set if there is no configuration; *config* is then the default one, which
    says where to look.  *account* is whom hactld becomes, "" if it stays who it is; what is unread
    of it is the command that makes it.  Programs: *tested* is `relayd -n`, *pf_tables* and
    *pf_anchors* have what pfctl said of each redirect's table and rule.
    """

    system: str
    now: float
    config_path: str
    config: Config
    config_problems: tuple[str, ...] = ()
    conf: RelaydConf | Unread = Unread("not looked at")
    tested: Printed | Unread = Unread("not looked at", absent=True)
    show: Observation | Unread = Unread("not looked at")
    took: float = 0.0
    status: Snapshot | Unread = Unread("not looked at")
    version: str = ""
    pf_info: Printed | Unread = Unread("not looked at", absent=True)
    pf_rules: Printed | Unread = Unread("not looked at", absent=True)
    pf_list: Printed | Unread = Unread("not looked at", absent=True)
    pf_tables: Mapping[str, Printed | Unread] = {}
    pf_anchors: Mapping[str, Printed | Unread] = {}
    carp: Printed | Unread = Unread("not looked at", absent=True)
    carp_group: Printed | Unread = Unread("not looked at", absent=True)
    ntp: Printed | Unread = Unread("not looked at", absent=True)
    account: str | Unread = ""
    files: tuple[File, ...] = ()
    scripts: tuple[Script, ...] = ()
    disks: tuple[Disk, ...] = ()
    resolved: Mapping[str, Resolved] = {}
    certified: tuple[Certified, ...] = ()
    agents: tuple[Asked, ...] = ()
    pinned: tuple[Pinned, ...] = ()
    descriptors: int | None = None
    others: tuple[Other, ...] | Unread = ()


READ = {Role.OURS, Role.LOGIN, Role.AUTHORITY, Role.KEY, Role.CERTIFICATE}  # by hactld itself


# Judgement


def judge(facts: Facts) -> list[Row]:
    """Judge every fact, in the order of the page; hactld need not say again what was found."""
    parts = PARTS if facts.config.node is None else NODE_PARTS
    rows = [row for part in parts for row in part(facts)]
    found = {row.found for row in rows if row.what != "alerts"}
    return [row for row in rows if row.what != "alerts" or row.found not in found]


def exit_code(rows: Iterable[Row]) -> int:
    """Return 2 for an error, 3 if the only ones are that relayd or hactld cannot be asked."""
    bad = [row for row in rows if row.level is not Level.OK]
    errors = {row.what for row in bad if row.level is Level.ERROR}
    if errors:
        return 3 if errors <= ASKED else 2
    return 1 if bad else 0


ASKED = {"hactld", "relayctl"}  # rows that are errors only if there was no answer


_UNLOADED = (  # what is wrong with hactl.yaml, and what helps
    ("No such file", "hactl init makes one from relayd.conf"),
    ("", "hactld -n tells all of them"),
)
_UNASKED = (  # why hactld did not answer, and what helps
    ("permission denied", "run doctor as root, or as a member of the socket's group"),
    ("does not answer", "rcctl restart hactld, if it hangs: its members stay as they are"),
    ("speaks protocol", "rcctl restart hactld"),
    ("", "rcctl start hactld, or hactld -d to see it work"),
)


def _helps(table: Sequence[tuple[str, str]], why: str) -> str:
    """Return what helps against *why*: what stands beside the first words that are in it."""
    return next(hint for words, hint in table if words in why)


def _config(f: Facts) -> Iterator[Row]:
    for problem in f.config_problems[:10]:
        if DENIED in problem:
            yield _unread("hactl.yaml", Unread(problem))
        else:
            yield error("hactl.yaml", problem, _helps(_UNLOADED, problem))
    if not f.config_problems:
        c = f.config
        acts = [name for name, service in c.services.items() if service.mode != "observe"]
        what = f"{_many(c.nodes, 'node')}, {_many(c.checks, 'check')}, "
        what += f"{_many(c.services, 'service')}; "
        what += f"hactl acts on {_list(acts)}" if acts else "mode observe: nothing is touched"
        yield ok("hactl.yaml", what)


def _conf(f: Facts) -> Iterator[Row]:
    path = str(f.config.relayd.conf)
    if isinstance(f.conf, Unread):
        for problem in f.conf.why.splitlines()[:10]:
            hint = "until it can be read relays are left alone and relayd is never polled"
            if DENIED in problem:  # to us: hactld has root read it
                yield _unread("relayd.conf", Unread(problem))
            else:
                yield error("relayd.conf", problem, hint)
        return
    if isinstance(f.tested, Printed) and f.tested.code != 0:
        said = (f.tested.err or f.tested.out).strip().splitlines() or ["no reason given"]
        hint = "do not reload relayd before: it would drop all that follows the error"
        yield error("relayd.conf", f"relayd -n refuses it: {said[0]}", hint)
    elif isinstance(f.tested, Unread) and not f.tested.absent:
        yield _unread("relayd.conf", f.tested, "relayd -n ")
    long = [
        s.name for s in f.conf.services if s.kind is Kind.REDIRECT and len(s.name) > LONGEST_NAME
    ]
    if long:
        found = f"redirect {_list(long)}: longer than {LONGEST_NAME} characters"
        yield error("relayd.conf", found, "shorten it: relayd -n accepts it and relayd then dies")
    hosts = sum(len(each.hosts) for service in f.conf.services for each in service.tables)
    services = _many(f.conf.services, "redirect or relay", "redirects and relays")
    yield ok("relayd.conf", f"{path}: {services}, {hosts} hosts in tables")


_ADVICE = {
    Answer.NOT_RUN: "say where it is: relayd: {relayctl: PATH} in hactl.yaml",
    Answer.GONE: "rcctl start relayd; if it runs, relayd: {socket: PATH} in hactl.yaml",
    Answer.DENIED: "run doctor as root, or as a user who may open relayd's socket",
    Answer.UNKNOWN: "relayd's pf process hangs or the machine is overloaded",
    Answer.NONSENSE: "hactl moves nothing on what it does not understand; please report it",
}


def _relayctl(f: Facts) -> Iterator[Row]:
    if isinstance(f.show, Unread):
        hint = _ADVICE.get(f.show.answer or Answer.UNKNOWN, "")
        yield error("relayctl", f.show.why, hint)
        return
    statuses = [each.status for service in f.show.services for each in service.tables]
    said = next((status for status in statuses if status.startswith("active")), "")
    form = "no table is active, so the release cannot be told"
    if said:
        age = "old" if said.endswith("up)") else "present"
        form = f"tables read `{said}`, the format of {age} releases"
    yield ok("relayctl", f"answers in {f.took * 1000:.0f} ms; {form}")
    yield from _compared(f, f.show)
    for service in f.show.services:
        hidden = [each.name for each in service.tables if each.status == "disabled"]
        mine = _conf_of(f, service)
        if service.status == "disabled" and (mine is None or not mine.disabled):
            hint = f"relayctl redirect enable {service.id}, if nobody wants it so"
            yield warning("relayd", f"{service.kind} {service.name} is disabled in relayd", hint)
        elif hidden and (mine is None or not any(each.disabled for each in mine.tables)):
            found = f"{service.kind} {service.name}: table {_list(hidden)} is disabled in relayd"
            yield warning("relayd", found, "relayctl table enable ID, if nobody wants it so")


def _conf_of(f: Facts, service: Service) -> ConfService | None:
    services = () if isinstance(f.conf, Unread) else f.conf.services
    same = (s for s in services if (s.kind, s.name) == (service.kind, service.name))
    return next(same, None)


def _compared(f: Facts, show: Observation) -> Iterator[Row]:
    """Compare what relayd runs with its file."""
    if isinstance(f.conf, Unread):
        return
    hint = "relayd runs another file, or an older one: hactl relayd-reload loads it"
    runs = {(service.kind, service.name): service for service in show.services}
    says = {(service.kind, service.name): service for service in f.conf.services}
    if not runs:
        found = "shows nothing: it was started a moment ago, or by a file that it could not read"
        yield error("relayd", found, f"look again; then relayd -n -f {f.config.relayd.conf}")
        return
    for kind, name in sorted(says.keys() - runs.keys()):
        yield error("relayd", f"does not run {kind} {name} of relayd.conf", hint)
    for kind, name in sorted(runs.keys() - says.keys()):
        yield error("relayd", f"runs {kind} {name}, which is not in relayd.conf", hint)
    for key in sorted(says.keys() & runs.keys()):
        shown = runs[key].tables
        if runs[key].status == "disabled" or any(each.status == "disabled" for each in shown):
            continue  # hides what is below it
        have = [(t.name, [(h.id, h.name) for h in t.hosts]) for t in shown]
        want = [(t.shown, [(h.id, h.name) for h in t.hosts]) for t in says[key].tables]
        if have != want:
            found = f"{' '.join(key)} has {_tables(have)}; relayd.conf says {_tables(want)}"
            yield error("relayd", found, hint)


def _tables(tables: Sequence[tuple[str, Sequence[tuple[int, str]]]]) -> str:
    each = (f"{name} ({_list(f'{n}={host}' for n, host in hosts)})" for name, hosts in tables)
    return _list(each) or "no table"


def _matches(f: Facts) -> Iterator[Row]:
    """Say where hactl.yaml and relayd.conf do not speak of the same things."""
    if isinstance(f.conf, Unread) or f.config_problems:
        return
    known = {service.name for service in f.conf.services}
    strange = [name for name in f.config.services if name not in known]
    if strange:
        hint = f"name it as relayd.conf does: {_list(sorted(known))}"
        found = f"no redirect or relay {_list(strange)} in relayd.conf; nothing is steered by it"
        yield error("services", found, hint)
    rest = {name: s for name, s in f.config.services.items() if name in known}
    for found in list(mismatches(replace(f.config, services=rest), f.conf))[:10]:
        if "mode hook" in found:
            hint = "hactl hook install SERVICE prints what relayd.conf needs"
            yield error("hook", found, hint)
            continue
        hint = "relayd: [WORD] of a node names it by relayd's word; or watch the node, or delete it"
        yield warning("nodes", found, hint)
    left = sorted(known - f.config.services.keys())
    text = f"; relayd's {_list(left)} left alone" if left else ""
    yield ok("services", f"{_many(rest, 'service')} known to relayd{text}")


def _speed(f: Facts) -> Iterator[Row]:
    """Judge relayd's own checks: intervals, retries and timeouts."""
    if isinstance(f.conf, Unread):
        return
    times = Duration(f.conf.interval)
    if f.conf.interval > INTERVAL:
        found = f"{times}: a host that comes back gets traffic {times} to {Duration(2 * times)}"
        yield warning("interval", f"{found} later, as that takes two", "interval 2 in relayd.conf")
    else:
        yield ok("interval", f"{times}: a host that comes back gets traffic within two of them")
    for each in _used(f):
        if each.interval > f.conf.interval:
            real = Duration(each.interval + f.conf.interval)
            found = f"table {each.shown} is looked at every {real}, not {Duration(each.interval)}"
            hint = "take `interval` off the table: relayd counts one round too many"
            yield warning("interval", found, hint)
    checked = [each for each in _used(f) if each.check not in (None, "script")]
    bare = [each.shown for each in checked if any(host.retry == 0 for host in each.hosts)]
    if bare:
        found = (
            f"0 in {_list(bare)}: a loss of 5 % of relayd's own checks rewrites pf 35 times an hour"
        )
        yield warning("retry", f"{found}, with retry 2 0.3 times", "retry 2 at each host")
    elif checked:
        yield ok("retry", "every host has one or more, so one lost check moves nothing")
    retried = [each for each in checked if any(host.retry for host in each.hosts)]
    slow = [each for each in retried if each.timeout > TIMEOUT]
    if slow:
        most = Duration(max(each.timeout for each in slow))
        found = f"{most} in {_list(e.shown for e in slow)}: a relayctl poll within it, with retry,"
        hint = "timeout 500 at the table; hactl keeps its polls apart, nobody else's"
        yield warning("timeout", f"{found} puts a dead host in service", hint)


def _kinds(f: Facts) -> Iterator[Row]:
    """Judge which checks relayd makes, and what follows from them."""
    if isinstance(f.conf, Unread):
        return
    tables = [(service, each) for service in f.conf.services for each in service.tables]
    scripts = [each.shown for _, each in tables if each.check == "script"]
    if scripts:
        found = f"{_list(scripts)}: a reload while scripts run kills relayd, and each runs in turn"
        hint = "check tcp, with hactl's disables for the rest; until then restart it, do not reload"
        yield warning("script checks", found, hint)
    bare = [each.shown for _, each in _mine(f) if each.check is None]
    if bare:
        found = f"{_list(bare)}: no check in relayd, so hactl leaves it alone:"
        hint = "check tcp at the table"
        yield warning("checks", f"{found} to disable a host there kills relayd", hint)
    banners = [each.shown for _, each in _mine(f) if each.check in ("send", "binary")]
    if banners:
        found = f"{_list(banners)}: on a wrong answer send/expect makes a host unknown, not down,"
        yield warning("checks", f"{found} and ignores retry", "check tcp; hactl reads the answer")
    if not (scripts or bare or banners):
        kinds = sorted({each.check for _, each in tables if each.check is not None})
        yield ok("checks", f"relayd has its own in every table ({_list(kinds)}), and no script")
    demoting = [each.shown for _, each in tables if each.demote is not None]
    if demoting:
        found = f"{_list(demoting)}: a drain, a reload or a start of relayd can move carp's role"
        yield warning("demote", found, "take `demote` off the table")
    lone = [
        f"{service.kind} {service.name}"
        for service in dict.fromkeys(service for service, _ in _mine(f))
        if len({host.name for each in service.tables for host in each.hosts}) == 1
    ]
    if lone:
        found = f"{_list(lone)}: one host and no other; without it clients meet the balancer itself"
        yield warning("fallback", found, "a second host, or a backup table")
    else:
        yield ok("fallback", "every service has two hosts or more")
    children = [h.name for _, each in _mine(f) for h in each.hosts if h.parent is not None]
    if children:
        yield ok("parents", f"{_list(children)}: with a parent, so relayd alone switches it")


def _used(f: Facts) -> list[ConfTable]:
    """Return relayd's tables, each once."""
    services = () if isinstance(f.conf, Unread) else f.conf.services
    return list({each.id: each for service in services for each in service.tables}.values())


def _mine(f: Facts) -> list[tuple[ConfService, ConfTable]]:
    """Return the tables of the services that hactl.yaml names, of all if it cannot be read."""
    services = () if isinstance(f.conf, Unread) else f.conf.services
    return [
        (service, each)
        for service in services
        if service.name in f.config.services or f.config_problems
        for each in service.tables
        if not (service.disabled or each.disabled)
    ]


def _local(f: Facts) -> Iterator[Row]:
    """Judge whether checks of this machine are taken for those of others."""
    for name, service in f.config.services.items():
        for check in dict.fromkeys((*service.require, *service.prefer)):
            option = f.config.checks[check].option
            if isinstance(option, (Host, Maillog, Nfs, Queue)) or getattr(option, "socket", None):
                found = (
                    f"{check} of {name} looks at this machine, and so says the same of each node"
                )
                yield warning(
                    "checks", found, f"{check}: {{from: agent}}, and an agent at each node"
                )


def _scripts(f: Facts) -> Iterator[Row]:
    """Judge the programs that relayd runs as root's children."""
    for script in f.scripts:
        if DENIED in script.why:
            yield _unread("hook", Unread(script.why), f"{script.path} ")
        elif script.why:
            found = f"{script.path}: {script.why}: relayd takes all of its hosts for down"
            yield error("hook", found, "hactl hook install SERVICE, or mend relayd.conf")
        if script.closed:
            found = f"{script.path}: {script.closed} is closed to relayd's user:"
            found += " relayd takes all of its hosts for down"
            yield error("hook", found, f"chmod o+x {script.closed}")
        if script.open:
            found = f"{script.path} can be changed by others, and relayd runs it: {script.open}"
            yield error("hook", found, "chown root and chmod go-w, the script and its directory")
        modes = [f.config.services[s.name].mode for s in _asking(f, script.path)
                 if s.name in f.config.services]  # fmt: skip
        if script.ours and "hook" not in modes and not f.config_problems:
            found = f"{script.path} says up always: no service with it has mode hook"
            yield warning("hook", found, "mode: hook at the service, and hactl reload")


def _asking(f: Facts, path: str) -> list[ConfService]:
    """Return the services that a script is asked for."""
    services = () if isinstance(f.conf, Unread) else f.conf.services
    return [s for s in services
            if any(t.check == "script" and t.argument.path == path for t in s.tables)]  # fmt: skip


# pf


def _pf(f: Facts) -> Iterator[Row]:
    if isinstance(f.pf_info, Unread):
        yield _unread("pf", f.pf_info)
        return
    if re.search(r"^Status: Enabled", f.pf_info.out, re.MULTILINE) is None:
        yield error("pf", "is disabled: no redirect works", "pfctl -e, and pf=YES in rc.conf.local")
    else:
        yield ok("pf", "enabled")
    redirects = {} if isinstance(f.show, Unread) else {
        service.name: service for service in f.show.services if service.kind is Kind.REDIRECT
    }  # fmt: skip
    if isinstance(f.pf_rules, Unread):
        yield _unread("anchor", f.pf_rules)
    elif isinstance(rules := _parsed(f.pf_rules, parse_rules), Unread):
        yield _unread("anchor", rules)
    elif rules[1] & {"relayd/*", "*"}:
        yield ok("anchor", "relayd/* is in the main rule set")
    elif redirects:
        found = "relayd/* is not in the main rule set: tables may be right and no traffic moves"
        yield error("anchor", found, 'anchor "relayd/*" in pf.conf, then pfctl -f /etc/pf.conf')
    yield from _left(f)
    wrong = list(differences(f))
    yield from wrong
    read = [name for name, table in f.pf_tables.items()
            if not isinstance(_parsed(table, parse_table), Unread)]  # fmt: skip
    if redirects and not wrong and read:
        yield ok("pf tables", f"{_many(read, 'table')} as relayd shows")
    for name, table in f.pf_tables.items():
        fact = _parsed(table, parse_table)
        if isinstance(fact, Unread):
            yield _unread("pf tables", fact, f"{name} ")


def _left(f: Facts) -> Iterator[Row]:
    """Say which redirects relayd has forgotten in pf, where they go on without any check."""
    if isinstance(f.pf_list, Unread):
        if not f.pf_list.absent:
            yield _unread("anchor", f.pf_list, "the list of anchors ")
        return
    known = () if isinstance(f.show, Unread) else {service.name for service in f.show.services}
    for name in anchors(f.pf_list.out):
        rules = f.pf_anchors.get(name)
        if known and name not in known and isinstance(rules, Printed) and rules.out.strip():
            found = f"redirect {name} is left in pf: its hosts get traffic and nobody checks them"
            yield error("left in pf", found, f"pfctl -a relayd/{name} -F all")


def anchors(printed: str) -> list[str]:
    """Read `pfctl -a relayd -s Anchors`: the redirects that pf has."""
    names = {line.strip().removeprefix("relayd/") for line in printed.splitlines()}
    return sorted(names - {"", "relayd"})


def differences(f: Facts) -> Iterator[Row]:
    """Say where pf's tables and rules are not what relayd shows.

    A host that came up a moment ago gets into pf one interval later, so what this yields is worth
    a second look.
    """
    for service in () if isinstance(f.show, Unread) else f.show.services:
        if service.kind is not Kind.REDIRECT or service.name not in f.pf_tables:
            continue
        have = _parsed(f.pf_tables[service.name], parse_table)
        want = None if isinstance(have, Unread) else _expected(service, f, have)
        rules = f.pf_anchors.get(service.name)
        if want and isinstance(rules, Printed) and not rules.out.strip():
            found = f"redirect {service.name} has no rule in pf, though relayd shows it active"
            yield error("pf rules", found, "hactl relayd-reload writes it anew")
        if isinstance(have, tuple) and want is not None and set(have) != want:
            found = f"{service.name} has {_list(sorted(have)) or 'nobody'} in pf;"
            found += f" relayd shows {_list(sorted(want)) or 'nobody'}"
            yield error("pf tables", found, "relayctl poll twice, a second apart, fills it anew")


def _parsed(fact: Printed | Unread, parse: Callable[[str], T]) -> T | Unread:
    if isinstance(fact, Unread):
        return fact
    try:
        return parse(fact.out)
    except NonsenseError as problem:
        return Unread(str(problem))


def _expected(service: Service, f: Facts, have: Sequence[str]) -> set[str] | None:
    """Return the addresses that should be in pf.

    relayd looked names up when it was loaded: any address of a name will do that is in *have*.
    None if a host is known by a name whose address we do not know.
    """
    used = active(service)
    found: set[str] = set()
    for host in used.hosts if used is not None else ():
        if host.status is HostStatus.UP:
            each = _addresses(host.name, f)
            if not each:
                return None
            found.add(next((address for address in each if address in have), each[0]))
    return found


def _addresses(name: str, f: Facts) -> Sequence[str]:
    own = canonical(name)
    if own is not None:
        return [own]
    return f.resolved[name].addresses if name in f.resolved else ()


# hactld, and the machine


def _hactld(f: Facts) -> Iterator[Row]:
    if isinstance(f.status, Unread):
        yield error("hactld", f.status.why, _helps(_UNASKED, f.status.why))
        return
    s = f.status
    yield ok("hactld", f"{s.version} runs for {span(s.uptime_seconds)}, {_many(s.probes, 'probe')}")
    if f.version and s.version != f.version:
        hint = "rcctl restart hactld"
        yield warning("version", f"hactld is {s.version}, this hactl {f.version}", hint)
    if not f.config_problems:
        runs = {service.name: service.mode for service in s.services}
        says = {name: service.mode for name, service in f.config.services.items()}
        strange = {p.node for p in s.probes} - f.config.nodes.keys()
        strange |= {p.check for p in s.probes} - f.config.checks.keys()
        if runs != says or strange:
            found = f"hactld runs by another configuration than {f.config_path} has now"
            yield warning("loaded", found, "hactl reload")
    for alert in s.alerts[:10]:
        yield warning("alerts", alert, "hactl status; hactl explain NAME tells why")
    foreign = [f"{m.service}/{m.node or m.host}" for service in s.services
               for m in service.members if m.mark == "foreign"]  # fmt: skip
    if foreign:
        hint = "hactl resume --foreign NODE, if whoever did it agrees"
        yield warning("foreign", f"disabled by somebody else: {_list(foreign)}", hint)
    slots = s.uptime_seconds * SLOTS
    late = s.counts.get("own_lag", 0)
    if slots > 600 and late > slots * LATE:
        found = f"hactld was late in {late} of {slots:.0f} slots; it then discards what it saw"
        yield warning("lag", found, "look for what else takes the CPU; renice hactld")


def _files(f: Facts) -> Iterator[Row]:
    """Judge who may write, speak or read where hactl and relayd trust."""
    if isinstance(f.account, Unread):
        yield error("user", f"there is no {f.config.user} for hactld to become", f.account.why)
    rows = [row for file in f.files for row in _file(file, f.account)]
    yield from rows
    down = str(f.config.run_dir / "down")
    hooked = any(service.mode == "hook" for service in f.config.services.values())
    for file in f.files if hooked else ():
        if file.path in (str(f.config.run_dir), down) and not file.mode & 0o001:
            found = f"{file.path} has mode {file.mode & 0o777:04o}: relayd's user cannot enter it,"
            yield error("hook", f"{found} and the hook says up always", f"chmod o+x {file.path}")
    if f.files and not rows:
        yield ok("files", f"{len(f.files)} files, sockets and directories are closed to others")


def _file(file: File, account: str | Unread) -> Iterator[Row]:
    path, mode = file.path, f"{file.path} has mode {file.mode & 0o777:04o}"
    if file.role in (Role.CONTROL, Role.RELAYD):
        if file.mode & 0o006:
            found = f"{file.role} {mode}: everybody on this machine may steer the cluster"
            yield error("sockets", found, f"chmod o-rw {path}")
        return
    if file.mode & 0o002:
        found = f"{file.role} {mode}: everybody may change it"
        yield error("files", found, f"chmod o-w {path}")
    secret = {Role.LOGIN: "the password", Role.KEY: "it"}.get(file.role)
    if secret and file.mode & 0o004:
        found = f"{file.role} {mode}: everybody on this machine may read {secret}"
        yield error("secrets", found, f"chmod o= {path}")
    elif secret and file.mode & 0o040 and file.group not in TRUSTED | {account}:
        found = f"{file.role} {mode}: everybody in group {file.group} may read {secret}"
        yield error("secrets", found, f"chgrp _hactl {path}")
    if not account or isinstance(account, Unread):
        return
    if file.role in READ and not file.readable:
        found = f"{file.role} {path} cannot be read by {account}, which hactld becomes"
        yield error("files", found, f"chgrp {account} {path}; chmod g+r {path}")
    if file.role is Role.DIRECTORY and file.owner != account:
        found = f"{path} belongs to {file.owner}, and hactld becomes {account}"
        yield error("files", found, f"chown -R {account}: {path}")


def _disks(f: Facts) -> Iterator[Row]:
    """Judge the disks below state_dir and run_dir."""
    rows = [row for disk in f.disks for row in _disk(disk, runs=not isinstance(f.status, Unread))]
    yield from rows
    free = [disk.free for disk in f.disks if not disk.why]
    if free and not rows:
        yield ok("disk", f"{Size(min(free) >> 20 << 20)} free")


def _disk(disk: Disk, *, runs: bool) -> Iterator[Row]:
    if disk.why:
        if runs:  # otherwise hactld makes it when it starts
            hint = f"install -d -o _hactl -g _hactl -m 0755 {disk.path}, and restart hactld"
            yield error("disk", f"{disk.path}: {disk.why}", hint)
    elif disk.read_only:
        hint = "until it can be written, drains and holds are forgotten when hactld restarts"
        yield error("disk", f"{disk.path} is read-only", hint)
    elif disk.free < LITTLE or (disk.inodes is not None and disk.inodes < INODES):
        found = f"{disk.path} has {Size(disk.free >> 10 << 10)} left"
        found += "" if disk.inodes is None else f", {_many(range(disk.inodes), 'inode')}"
        make = error if disk.free < NOTHING or disk.inodes == 0 else warning
        yield make("disk", found, "make room: what is kept there are drains and holds")


def _clock(f: Facts) -> Iterator[Row]:
    young = [file.path for file in f.files if file.written > f.now + STEPPED]
    if young:
        hint = "set the clock right: drains and holds end by it"
        yield warning("clock", f"{_list(young)} was written in the future: the clock was set", hint)
    if isinstance(f.ntp, Unread):
        yield _unread("clock", f.ntp)
    elif "clock synced" in f.ntp.out:
        yield ok("clock", "synchronised by ntpd")
    else:
        said = (f.ntp.out or f.ntp.err).strip().splitlines() or ["ntpctl says nothing"]
        hint = "rcctl start ntpd: drains end by the clock, certificates are judged by it"
        yield warning("clock", f"not synchronised: {said[-1].strip()}", hint)


def _resolver(f: Facts) -> Iterator[Row]:
    hosts = {host.name for each in _used(f) for host in each.hosts}
    for name, found in f.resolved.items():
        hint = f"write the address in place of {name}, or put it in /etc/hosts"
        if not found.addresses:
            then = "relayd cannot be loaded" if name in hosts else "its checks are unknown"
            yield error("resolver", f"{name}: {found.why}; {then}", hint)
        elif found.seconds > SLOW:
            text = f"{name} takes {span(found.seconds)}; a start of hactld or relayd waits for it"
            yield warning("resolver", text, hint)
    if not f.resolved:
        yield ok("resolver", "not needed: hosts and nodes are addresses")
    elif all(each.addresses and each.seconds <= SLOW for each in f.resolved.values()):
        yield ok("resolver", f"{_many(f.resolved, 'name')} found")


def _descriptors(f: Facts) -> Iterator[Row]:
    """Compare what hactld may open with what its probes can need, two at a time each."""
    if isinstance(f.status, Unread) or f.descriptors is None:
        return
    needed = 2 * len(f.status.probes)
    if needed > f.descriptors:
        found = f"hactld may hold {f.descriptors} conversations, {len(f.status.probes)} probes may"
        hint = "openfiles in the login class of hactld, login.conf(5)"
        yield warning("descriptors", f"{found} need {needed} at a time", hint)
    else:
        yield ok("descriptors", f"{f.descriptors} conversations at a time, {needed} may be needed")


def _agents(f: Facts) -> Iterator[Row]:
    """Judge whether the agents of nodes answer, and with what is asked for."""
    if f.config.node is not None:
        yield ok("agent", f"of {f.config.node}: nothing is steered here, relayd is not looked at")
    ages, rows = [], []
    for each in f.agents:
        if each.answer is None:
            rows.append(_silent(f, each))
            continue
        if f.version and each.answer.version != f.version:
            found = f"of {each.node}: hactl {each.answer.version}, here it is {f.version}"
            rows.append(warning("agents", found, "the same release on both; restart hactld there"))
        for name in each.checks:
            told = judge_answer(each.answer, name, f.config.checks[name], 0.0)
            report = each.answer.checks.get(name)
            if told.stamp is not None and report is not None:
                ages.append(report.age)
                continue
            found = f"of {each.node}: {name}: {told.result.reason.removeprefix('the agent ')}"
            if report is None:
                hint = f"a check {name} in hactl.yaml of {each.node}, and hactl reload there"
                rows.append(error("agents", found, hint))
            elif "is of type" in found:
                hint = f"type: {report.type} here, or another type there"
                rows.append(error("agents", found, hint))
            else:
                hint = f"look again; then hactl status and the log of hactld on {each.node}"
                rows.append(warning("agents", found, hint))
    yield from rows
    if f.agents and not rows:
        found = f"{_many(f.agents, 'agent')} asked, the oldest look ended {span(max(ages))} ago"
        yield ok("agents", found)


_UNHEARD = (  # what is wrong with an agent, and what helps
    ("has none in", "agent: true at {node} in hactl.yaml"),
    ("no certificate of", "copy cert.pem of {node} here; hactl agent trust FILE; hactl reload"),
    ("no key in", "hactl agent keygen; on {node}: hactl agent trust, with cert.pem of this one"),
    (
        "another certificate",
        "if it was made anew: rm {keys}/trusted/{node}.pem, and trust it again",
    ),
    ("trust us", "on {node}: hactl agent trust, with {keys}/cert.pem of this one; hactl reload"),
    ("speaks protocol", "the same release of hactl on both"),
    ("says it is", "node: in hactl.yaml of {node}, or another address here"),
    ("", "on {node}: hactl doctor; does it listen at {url}, and does pf let us in?"),
)


def _silent(f: Facts, agent: Asked) -> Row:
    if not agent.may:
        return _unread("agents", Unread(agent.why), f"of {agent.node}: ")
    hint = _helps(_UNHEARD, agent.why).format(
        node=agent.node, keys=f.config.agent.keys, url=agent.url
    )
    return error("agents", f"of {agent.node}: {agent.why}", hint)


REFUSED = re.compile(r"tls: .*(certificate|authority)")


def _certificates(f: Facts) -> Iterator[Row]:
    good = []
    for look in (*f.certified, *_told(f)):
        where, left = f"{look.check} on {look.node}", look.left_days
        refused = look.verdict is Verdict.FAIL and REFUSED.match(look.reason) is not None
        if left is not None and left < EXPIRES and (left < 0 or not refused):
            make = error if left < EXPIRED else warning
            ends = f"ends in {left:.0f} days" if left >= 0 else "has expired"
            yield make("certificates", f"{where}: {ends}", "renew it")
        elif refused:
            hint = "name: in the check, if it is for another name; ca:, if it is your own"
            yield error("certificates", f"{where}: {look.reason.removeprefix('tls: ')}", hint)
        elif left is not None:
            good.append(left)
    for pin in f.pinned:
        if DENIED in pin.why:
            yield _unread("certificates", Unread(pin.why))
        elif pin.left_days is None:
            yield error(
                "certificates", pin.why, "hactl agent trust, with the other side's cert.pem"
            )
        elif pin.left_days < EXPIRES:
            ends = f"ends in {pin.left_days:.0f} days" if pin.left_days >= 0 else "has expired"
            hint = "hactl goes by the key alone, others who ask an agent may not; make it anew"
            yield warning("certificates", f"{pin.path}: {ends}", hint)
        else:
            good.append(pin.left_days)
    if good:
        found = f"{_many(good, 'certificate')} seen, the first ends in {min(good):.0f} days"
        yield ok("certificates", found)


def _told(f: Facts) -> Iterator[Certified]:
    """Yield what agents say of certificates."""
    for each in f.agents:
        reports = {} if each.answer is None else each.answer.checks
        for name in each.checks:
            if name in reports and (found := reports[name].result) is not None:
                left = found.measures.get("left_days")
                yield Certified(each.node, name, found.verdict, found.reason, left)


_ROLE = re.compile(r"^(carp[0-9]+):|^\s*carp: ([A-Z]+)\b", re.MULTILINE)


def _carp(f: Facts) -> Iterator[Row]:
    if isinstance(f.carp, Unread):
        yield _unread("carp", f.carp)
        return
    roles: dict[str, str] = {}
    name = ""
    for interface, role in _ROLE.findall(f.carp.out):
        name = interface or name
        if role:
            roles.setdefault(name, role)
    if not roles:
        yield ok("carp", "no carp interface")
        return
    text = _list(f"{name} {role}" for name, role in roles.items())
    if "INIT" in roles.values():
        yield error("carp", f"{text}: INIT takes no part", "ifconfig: is its parent interface up?")
    elif len(set(roles.values())) > 1:
        hint = "net.inet.carp.preempt=1, and all of them in one demotion group"
        yield warning("carp", f"{text}: the roles are split between the balancers", hint)
    else:
        yield ok("carp", f"{text}; hactl acts in either role")
    if isinstance(f.carp_group, Printed):
        count = re.search(r"demote count ([0-9]+)", f.carp_group.out)
        if count is not None and int(count[1]):
            hint = "ifconfig -g carp -carpdemote N, once its cause is over"
            yield warning("carp", f"demoted by {count[1]}", hint)


def _others(f: Facts) -> Iterator[Row]:
    if isinstance(f.others, Unread):
        yield _unread("processes", f.others)
        return
    ours = steers(f.config)
    same = [other for other in f.others if other.steers == ours]
    if len(same) > 1:
        found = _list(f"pid {other.pid} with {other.file}" for other in same)
        hint = "stop all but one: each undoes what the other does"
        yield error("processes", f"{len(same)} hactlds steer this relayd: {found}", hint)


def steers(config: Config) -> tuple[str, str]:
    """Return what tells one relayd from another: relayctl, and its socket."""
    return str(config.relayd.relayctl), str(config.relayd.socket or "")


PARTS: Sequence[Callable[[Facts], Iterable[Row]]] = (
    _config, _conf, _relayctl, _matches, _speed, _kinds, _local, _scripts, _pf, _hactld, _others, _files,
    _disks, _clock, _resolver, _descriptors, _agents, _certificates, _carp,
)  # fmt: skip
NODE_PARTS: Sequence[Callable[[Facts], Iterable[Row]]] = (
    _config, _agents, _hactld, _files, _disks, _clock, _resolver, _descriptors, _certificates,
)  # fmt: skip


# Words for people


_UNREADABLE = (  # why a fact could not be read, and what helps
    (DENIED, "run doctor as root"),
    ("no answer in", "it hangs: run it by hand, and look at what the machine waits for"),
    ("line ", "hactl believes nothing that it does not understand; please report it"),
    ("", "run doctor as root"),
)


def _unread(what: str, fact: Unread, which: str = "") -> Row:
    if fact.absent:
        return ok(what, fact.why)
    return warning(what, f"{which}could not be read: {fact.why}", _helps(_UNREADABLE, fact.why))


def _list(items: Iterable[str]) -> str:
    """Write a list, each item once, and of a long one the first few."""
    each = list(dict.fromkeys(items))
    more = f" and {len(each) - SHOWN} more" if len(each) > SHOWN else ""
    return ", ".join(each[:SHOWN]) + more


def _many(items: Sequence[object] | Mapping[str, object], one: str, many: str = "") -> str:
    """Write how many there are."""
    return f"{len(items)} {one if len(items) == 1 else many or one + 's'}"
