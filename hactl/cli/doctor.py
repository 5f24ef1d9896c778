"""doctor: one page of checked facts about hactl, relayd, pf and the machine.

Here the facts are read; each may fail by itself, and that is then what is known.  What they mean is
judged in `_judge`.  Nothing is changed, and relayd is asked for nothing but `show`.
"""

from __future__ import annotations

import asyncio
import grp
import json
import os
import platform
import pwd
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

import hactl
from checks import Option
from hactl import config as config_
from hactl.agent import keys
from hactl.agent.fetch import Agents, Heard
from hactl.agent.keys import KeysError
from hactl.cli import ask as ask_
from hactl.cli._judge import (
    Asked,
    Certified,
    Disk,
    Facts,
    File,
    Level,
    Other,
    Pinned,
    Printed,
    Resolved,
    Role,
    Row,
    Script,
    Unread,
    anchors,
    differences,
    exit_code,
    judge,
    steers,
)
from hactl.config import Config, ConfigError, FromAgent
from hactl.core.explain import Snapshot
from hactl.core.model import Checked, Kind, Observation, Probe
from hactl.core.proof import canonical
from hactl.core.units import Secret
from hactl.daemon import plan as plan_
from hactl.daemon import privilege
from hactl.daemon.privilege import Account
from hactl.relayd import conf as conf_
from hactl.relayd.command import CommandError, Failure, Local
from hactl.relayd.conf import ConfError, RelaydConf
from hactl.relayd.hook import linked
from hactl.relayd.pf import SHOW_MAIN, show_rules, show_table, usable
from hactl.relayd.relayctl import Relayctl, RelayctlError
from hactl.show import paint, safe

P = ParamSpec("P")
T = TypeVar("T")

SOCKET = "/var/run/relayd.sock"  # relayd's, unless a file says otherwise
RELAYD = "_relayd"  # whom relayd runs scripts as
PATIENCE = 5.0  # seconds for hactld, and for a name
AGAIN = 10.0  # seconds at most until pf is looked at once more
LOOKS = 100  # certificates
LOOKUPS = 64  # names at a time
DAY = 86400.0  # seconds
ELSEWHERE = Unread("not OpenBSD: not looked at", absent=True)


async def gather(path: Path, control: str | None) -> Facts:
    """Read all facts; *path* is hactl.yaml, *control* hactld's socket if that does not say it."""
    asyncio.get_running_loop().set_default_executor(Unawaited())
    problems: tuple[str, ...] = ()
    try:
        config = config_.load(path)
    except ConfigError as error:
        config, problems = Config(mode="observe"), tuple(map(str, error.errors))
    conf, account = _conf(config), _account(config)
    programs = _programs(config)
    status, tested, names, carp, group, ntp = await asyncio.gather(
        _status(control or str(config.control.path)),
        _tested(programs, conf),
        _resolve(_names(config, conf)),
        _openbsd(programs, "ifconfig", "carp"),
        _openbsd(programs, "ifconfig", "-g", "carp"),
        _openbsd(programs, "ntpctl", "-s", "status"),
    )
    facts = Facts(
        platform.system(),
        time.time(),
        str(path),
        config,
        problems,
        conf,
        tested,
        status=status,
        version=hactl.__version__,
        carp=carp,
        carp_group=group,
        ntp=ntp,
        account=account if isinstance(account, Unread) else account.name if account else "",
        files=tuple(_files(path, config, conf, account if isinstance(account, Account) else None)),
        scripts=tuple(_scripts(conf)),
        disks=tuple(map(_disk, (config.state_dir, config.run_dir))),
        resolved=names,
        certified=await _certificates(config, conf),
        agents=await _agents(config, conf),
        pinned=tuple(_pinned(config)),
        descriptors=None if isinstance(status, Unread) else status.counts.get("cap"),
        others=await asyncio.to_thread(_others, config.user),
    )
    return facts if config.node is not None else await _relayd(facts, programs)


def _conf(config: Config) -> RelaydConf | Unread:
    if config.node is not None:
        return Unread("not looked at: a mail server's hactld steers nothing", absent=True)
    try:
        return conf_.read(config.relayd.conf)
    except ConfError as error:
        return Unread(str(error))


def _programs(config: Config) -> Local:
    """Return how programs are run; relayd(8) is where relayctl(8) is."""
    relayctl = [os.fspath(config.relayd.relayctl)]
    if config.relayd.socket is not None:
        relayctl += ["-s", os.fspath(config.relayd.socket)]
    commands = {
        "relayctl": relayctl,
        "relayd": [os.fspath(config.relayd.relayctl.with_name("relayd"))],
        "pfctl": [os.fspath(config.relayd.pfctl)],
        "ifconfig": ["/sbin/ifconfig"],
        "ntpctl": ["/usr/sbin/ntpctl"],
    }
    return Local(commands, config.relayd.timeout)


async def _run(programs: Local, program: str, *words: str) -> Printed | Unread:
    try:
        ended = await programs.run(program, words)
    except CommandError as error:
        away = error.failure is Failure.NOT_RUN and platform.system() != "OpenBSD"
        return ELSEWHERE if away else Unread(f"{program} {' '.join(words)}: {error}")
    return Printed(ended.out, ended.code, ended.err)


async def _openbsd(programs: Local, program: str, *words: str) -> Printed | Unread:
    """Run what means the same on OpenBSD alone."""
    if platform.system() != "OpenBSD":
        return ELSEWHERE
    return await _run(programs, program, *words)


async def _tested(programs: Local, conf: RelaydConf | Unread) -> Printed | Unread:
    """Let relayd itself judge the file."""
    if isinstance(conf, Unread):
        return ELSEWHERE
    printed = await _run(programs, "relayd", "-n", "-f", conf.sources[0])
    if isinstance(printed, Printed) and "need root privileges" in printed.err:
        return Unread("relayd -n needs root")
    return printed


async def _status(control: str) -> Snapshot | Unread:
    try:
        reply = await asyncio.to_thread(ask_.ask, control, "status", timeout=PATIENCE)
        return msgspec.convert(reply.data, Snapshot)
    except ask_.AskError as error:
        return Unread(str(error))
    except msgspec.ValidationError as error:
        return Unread(f"hactld's answer is not understood: {error}")


# relayd and pf, which are compared


async def _relayd(facts: Facts, programs: Local) -> Facts:
    """Read what relayd shows and what pf has; once more if they differ, for relayd is late."""
    facts = await _compared(facts, programs)
    if any(differences(facts)):
        interval = AGAIN if isinstance(facts.conf, Unread) else facts.conf.interval
        await asyncio.sleep(min(interval + 0.5, AGAIN))
        facts = await _compared(facts, programs)
    return facts


async def _compared(facts: Facts, programs: Local) -> Facts:
    began = time.monotonic()
    show: Observation | Unread
    try:
        show = await Relayctl(programs).show()
    except RelayctlError as error:
        show = Unread(str(error), answer=error.outcome.answer)
    took = time.monotonic() - began
    info, main, listed = [
        _refused(printed)
        for printed in await asyncio.gather(
            _run(programs, "pfctl", "-s", "info"),
            _run(programs, "pfctl", *SHOW_MAIN),
            _run(programs, "pfctl", "-a", "relayd", "-s", "Anchors"),
        )
    ]
    shown = () if isinstance(show, Unread) else show.services
    names = [service.name for service in shown if service.kind is Kind.REDIRECT]
    names = [name for name in names if usable(name)]
    left = anchors(listed.out) if isinstance(listed, Printed) else []
    if isinstance(info, Unread):  # nor would it say any more, and each time it may take so long
        names = left = []
    left = [name for name in left if usable(name) and name not in names]
    tables = [await _run(programs, "pfctl", *show_table(name)) for name in names]
    rules = [await _run(programs, "pfctl", *show_rules(name)) for name in (*names, *left)]
    return replace(
        facts,
        show=show,
        took=took,
        pf_info=info,
        pf_rules=main,
        pf_list=listed,
        pf_tables=dict(zip(names, map(_refused, tables), strict=True)),
        pf_anchors=dict(zip((*names, *left), map(_refused, rules), strict=True)),
    )


def _refused(printed: Printed | Unread) -> Printed | Unread:
    """Take what pfctl refused for unread, save that a table is not there: it is then empty."""
    if isinstance(printed, Unread) or printed.code == 0:
        return printed
    said = printed.err.strip().splitlines() or ["pfctl says nothing"]
    return Printed("") if "does not exist" in said[-1] else Unread(said[-1])


# The machine


def _account(config: Config) -> Account | Unread | None:
    """Return whom hactld becomes; None if it stays who it is, or we cannot know."""
    try:
        return privilege.account(config.user)
    except LookupError as error:
        return Unread(str(error).splitlines()[1].strip())


def _files(
    path: Path, config: Config, conf: RelaydConf | Unread, account: Account | None
) -> Iterator[File]:
    """Look at who may do what; files that are not there are told of elsewhere."""
    sources: tuple[str, ...] = (str(config.relayd.conf),)
    named = None
    if isinstance(conf, RelaydConf):
        sources, named = conf.sources, conf.socket
    roles = {
        str(path): Role.OURS,
        **dict.fromkeys(sources, Role.CONFIGURATION),
        **dict(_named(config)),
        str(config.control.path): Role.CONTROL,
        str(config.relayd.socket or named or SOCKET): Role.RELAYD,
        str(config.run_dir): Role.DIRECTORY,
        str(config.run_dir / "down"): Role.DIRECTORY,
        str(config.state_dir): Role.DIRECTORY,
        str(config.state_dir / "hactl.db"): Role.STATE,
        str(config.relayd.relayctl): Role.PROGRAM,
    }
    for name, role in roles.items():
        with suppress(OSError):
            found = Path(name).stat()
            owner, group = _owner(found.st_uid), str(found.st_gid)
            with suppress(KeyError):
                group = grp.getgrgid(found.st_gid).gr_name
            file = File(name, role, stat.S_IMODE(found.st_mode), group, found.st_mtime, owner)
            if role is not Role.OURS or stat.S_ISREG(found.st_mode):
                yield replace(file, readable=account is None or _reads(Path(name), account))


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _named(config: Config) -> Iterator[tuple[str, Role]]:
    """Yield the files that checks name."""
    for check in config.checks.values():
        for field in check.option.__struct_fields__:
            value = getattr(check.option, field)
            if isinstance(value, Secret):
                yield value.path, Role.LOGIN
            elif field == "ca" and value is not None:
                yield str(value), Role.AUTHORITY
    certificates: list[Path] = []
    with suppress(KeysError):
        certificates = _shown(config)
    if certificates:
        yield str(keys.own(config.agent.keys)[1]), Role.KEY
    yield from ((str(path), Role.CERTIFICATE) for path in certificates)


def _shown(config: Config) -> list[Path]:
    """Return the certificates that agents and those who ask them show each other.

    Raise KeysError.
    """
    asks = any(isinstance(check.option, FromAgent) for check in config.checks.values())
    if config.node is None and not asks:
        return []
    files = [keys.own(config.agent.keys)[0], *keys.trusted(config.agent.keys).values()]
    try:
        return [path for path in files if path.exists()]
    except OSError as error:
        raise KeysError(f"{error.filename}: {error.strerror or error}") from None


def _reads(path: Path, account: Account) -> bool:
    """Tell whether *account* may go to a file and read it."""
    wanted = [(path, 4), *((parent, 1) for parent in path.absolute().parents)]
    return all(_may(each.stat(), account, bit) for each, bit in wanted)


def _may(found: os.stat_result, account: Account, bit: int) -> bool:
    if found.st_uid == account.uid:
        bit <<= 6
    elif found.st_gid in account.groups:
        bit <<= 3
    return bool(found.st_mode & bit)


def _scripts(conf: RelaydConf | Unread) -> Iterator[Script]:
    """Look at the programs that relayd runs as checks."""
    services = conf.services if isinstance(conf, RelaydConf) else ()
    tables = [each for service in services for each in service.tables if each.check == "script"]
    for name in dict.fromkeys(each.argument.path for each in tables):
        path = Path(name)
        try:
            real = path.resolve(strict=True)
            script = Script(name, "", linked(path), _open(path, real), _closed(path, real))
        except OSError as error:
            script = Script(name, error.strerror or str(error))
        yield script


def _open(path: Path, real: Path) -> str:
    """Say why others than root can change a script; who is not root may have scripts of his own."""
    for each in dict.fromkeys((real, path.parent, real.parent)):
        found = each.stat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{each} belongs to {_owner(found.st_uid)}"
        if found.st_mode & 0o022:
            return f"{each} has mode {stat.S_IMODE(found.st_mode):04o}"
    return ""


def _closed(path: Path, real: Path) -> str:
    """Return what keeps relayd's user from a script, "" for nothing."""
    who = Account(RELAYD, -1, -1, ())
    with suppress(KeyError):
        entry = pwd.getpwnam(RELAYD)
        groups = os.getgrouplist(RELAYD, entry.pw_gid)
        who = Account(RELAYD, entry.pw_uid, entry.pw_gid, tuple(groups))
    steps = dict.fromkeys((*reversed(path.parents), *reversed(real.parents), real))
    return next((str(each) for each in steps if not _may(each.stat(), who, 1)), "")


def _disk(path: Path) -> Disk:
    try:
        found = os.statvfs(path)
    except OSError as error:
        return Disk(str(path), why=error.strerror or str(error))
    return Disk(
        str(path),
        found.f_bavail * found.f_frsize,
        found.f_favail if found.f_files else None,
        bool(found.f_flag & os.ST_RDONLY),
    )


def _names(config: Config, conf: RelaydConf | Unread) -> set[str]:
    """Return the host names that somebody has to look up."""
    words = {address for node in config.nodes.values() for address in node.addresses}
    if isinstance(conf, RelaydConf):
        words |= {h.name for s in conf.services for t in s.tables for h in t.hosts}
    words -= {interface for _, interface in socket.if_nameindex()}  # relayd takes their addresses
    return {word for word in words if config_.is_address(word) and canonical(word) is None}


class Unawaited(ThreadPoolExecutor):
    """Begins each call at once in a thread of its own, and ends without those that hang."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - whoever waits for it is told
                future.set_exception(error)

        Thread(target=call, daemon=True).start()
        return future


async def _resolve(names: Iterable[str]) -> dict[str, Resolved]:
    loop = asyncio.get_running_loop()
    turns = asyncio.Semaphore(LOOKUPS)

    async def look(name: str) -> Resolved:
        async with turns:
            return await timed(name)

    async def timed(name: str) -> Resolved:
        began = loop.time()
        try:
            found = await asyncio.wait_for(loop.getaddrinfo(name, None), PATIENCE)
        except TimeoutError:
            return Resolved(PATIENCE, why=f"no answer in {PATIENCE:g}s")
        except OSError as error:
            return Resolved(loop.time() - began, why=error.strerror or str(error))
        addresses = dict.fromkeys(str(each[4][0]) for each in found)
        return Resolved(loop.time() - began, tuple(addresses))

    each = sorted(names)
    return dict(zip(each, await asyncio.gather(*map(look, each)), strict=True))


async def _certificates(config: Config, conf: RelaydConf | Unread) -> tuple[Certified, ...]:
    """Look once at every port under TLS that hactl checks."""
    from hactl.daemon.runner import Runner

    secure = {name: check for name, check in config.checks.items() if _is_secure(check.option)}
    probes = sorted(probe for probe in _probes(config, conf) if probe.check in secure)[:LOOKS]
    if not probes:
        return ()
    loop = asyncio.get_running_loop()
    runner = Runner(lambda now: [], lambda checked: None)
    try:
        runner.configure(secure)
        await runner.resolve({p.address for p in probes if canonical(p.address) is None})
        ended: list[asyncio.Future[Checked]] = [loop.create_future() for _ in probes]
        for probe, future in zip(probes, ended, strict=True):
            runner.look(probe, future.set_result)
        results = [checked.result for checked in await asyncio.gather(*ended)]
    finally:
        runner.stop()
    return tuple(
        Certified(p.node, p.check, r.verdict, r.reason, r.measures.get("left_days"))
        for p, r in zip(probes, results, strict=True)
    )


def _is_secure(option: Option) -> bool:
    """Tell whether a check speaks TLS: it has a policy, and is not told to leave TLS off."""
    return hasattr(option, "policy") and getattr(option, "tls", "") != "off"


def _probes(config: Config, conf: RelaydConf | Unread) -> set[Probe]:
    """Return who is looked at with what, as far as the files tell."""
    plan = plan_.plan(config)
    owners = {word: node.name for node in plan.nodes.values() for word in node.words}
    used = {(node, check) for node, names in config.watch.items() for check in names}
    for service in conf.services if isinstance(conf, RelaydConf) else ():
        asks = config.services.get(service.name)
        hosts = {host.name for each in service.tables for host in each.hosts} & owners.keys()
        if asks is not None:
            names = (*asks.require, *asks.prefer, *asks.watch)
            used |= {(plan.at.get(name, owners[host]), name) for host in hosts for name in names}
    return {Probe(node, check, config.nodes[node].addresses[0]) for node, check in used}


async def _agents(config: Config, conf: RelaydConf | Unread) -> tuple[Asked, ...]:
    """Ask the agent of every node once, if some of its checks are made there."""
    names = {n for n, check in config.checks.items() if isinstance(check.option, FromAgent)}
    wanted: dict[str, list[str]] = {}
    for probe in sorted(_probes(config, conf)):
        if probe.check in names:
            wanted.setdefault(probe.node, []).append(probe.check)
    agents = Agents()
    try:
        await agents.configure(config.nodes, config.checks, config.agent.keys)
        heard = await asyncio.gather(*map(agents.ask, wanted))
    finally:
        await agents.close()
    asked = []
    for (node, checks), what in zip(wanted.items(), heard, strict=True):
        each = Asked(node, config.nodes[node].url() or "", tuple(checks))
        if isinstance(what, Heard):
            asked.append(replace(each, answer=what.answer))
        else:
            may = os.geteuid() == 0 or "Permission denied" not in what
            asked.append(replace(each, why=what, may=may))
    return tuple(asked)


def _pinned(config: Config) -> Iterator[Pinned]:
    """Look at the certificates by which agents and balancers know each other."""
    try:
        certificates = _shown(config)
    except KeysError as error:
        yield Pinned(str(config.agent.keys), why=str(error))
        return
    for path in certificates:
        try:
            yield Pinned(str(path), (keys.ends(path) - time.time()) / DAY)
        except KeysError as error:
            yield Pinned(str(path), why=str(error))


def _others(user: str) -> tuple[Other, ...] | Unread:
    """Find the hactlds that run, each once: a child or helper of one is no other.

    Anybody can call a process hactld: only those of root, of *user* and our own are believed.
    """
    import psutil

    trusted = {0, os.getuid()}
    with suppress(KeyError):
        trusted.add(pwd.getpwnam(user).pw_uid)
    found = {}
    try:
        for process in psutil.process_iter(["pid", "ppid", "uids", "cmdline"]):
            words, uids = process.info["cmdline"] or [], process.info["uids"]
            if _is_hactld(words) and uids is not None and uids.real in trusted:
                file = _option(words, "-f", "/etc/hactl.yaml")
                found[process.info["pid"]] = process.info["ppid"], file
    except (psutil.Error, OSError) as error:
        return Unread(str(error))
    others = [(pid, _whole(pid, file)) for pid, file in _elders(found)]
    return tuple(Other(pid, file, _steered(file)) for pid, file in others)


def _is_hactld(words: Sequence[str]) -> bool:
    """Tell whether a command line runs hactld: by its name, or by Python as a script or module."""
    each = iter(words)
    program = Path(next(each, "")).name
    if not program.startswith("python"):
        return program == "hactld"
    for word in each:
        if word == "-m":
            return next(each, "") == "hactl.daemon.main"
        if word in ("-W", "-X"):
            next(each, "")
        elif not word.startswith("-"):
            return Path(word).name == "hactld"
    return False


def _elders(found: Mapping[int, tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield pid and file of each that was not started by another of them.

    A helper is in / by now; the file that it was given is told in full to what it starts.
    """
    told = dict(found.values())
    for pid, (parent, file) in sorted(found.items()):
        if parent not in found:
            yield pid, told.get(pid, file)


def _whole(pid: int, file: str) -> str:
    """Return where *file* is for a process; as it was if we may not know."""
    import psutil

    if not file.startswith("/"):
        with suppress(psutil.Error, OSError):
            return os.path.normpath(Path(psutil.Process(pid).cwd() or "", file))
    return file


def _option(words: Sequence[str], option: str, default: str) -> str:
    """Return what follows an option in a command line, in the same word or the next."""
    for word, after in zip(words, (*words[1:], default), strict=True):
        if word.startswith(option):
            return word.removeprefix(option) or after
    return default


def _steered(file: str) -> tuple[str, str] | None:
    """Return what a hactld with *file* steers; whatever is no regular file is left alone."""
    if not file.startswith("/"):
        return None
    with suppress(OSError, ValueError, ConfigError):
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                return None
            text = opened.read(config_.FILE_LIMIT).decode()
        config = config_.parse(text, file)
        return steers(config) if config.node is None else None
    return None


# The command

_COLOURS = {Level.OK: "", Level.WARNING: "yellow", Level.ERROR: "red"}


def page(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the page: what was found, with what to do below it, and the sum."""
    width = max(len(row.what) for row in rows)
    for row in rows:
        line = f"{row.level:<7}  {safe(row.what):<{width}}  {safe(row.found)}"
        yield paint(line, _COLOURS[row.level])
        if row.advice:
            yield f"{'':9}{'':{width}}  -> {safe(row.advice)}"
    levels = [row.level for row in rows]
    yield ""
    yield (
        f"{levels.count(Level.ERROR)} errors, {levels.count(Level.WARNING)} warnings,"
        f" {levels.count(Level.OK)} ok"
    )


def run(path: Path, control: str | None, *, as_json: bool, say: Callable[[str], object]) -> int:
    """Do what `hactl doctor` is asked for and return its exit code."""
    rows = judge(asyncio.run(gather(path, control)))
    code = exit_code(rows)
    if as_json:
        say(json.dumps({"exit": code, "rows": msgspec.to_builtins(rows)}, indent=1))
    else:
        say("\n".join(page(rows)))
    return code
