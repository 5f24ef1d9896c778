"""init: from relayd.conf to the hactl.yaml that one would have written by hand.

What a port stands for is a guess, and the most careful way to look is taken; a probe, if one is
made, finds the deepest way that works now.  Everything but the looks and the file is pure.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import yaml
from msgspec import Struct
from msgspec.structs import replace

from hactl import config as config_
from hactl.config import ConfigError
from hactl.core.model import Checked, Kind, Probe, Verdict
from hactl.core.proof import canonical
from hactl.relayd.conf import ConfError, ConfService, Listen, RelaydConf, read
from hactl.show import safe, table

DEFAULT = "/etc/hactl.yaml"
CONF = Path("/etc/relayd.conf")
HOSTS = Path("/etc/hosts")
HOSTS_LIMIT = 1 << 20  # bytes
GROUP = "_hactl"  # reads the file again when hactld has dropped its privileges
SHOWN = 3  # nodes, or reasons, named in a comment

Options = Mapping[str, object]


class Way(NamedTuple):
    """A way to look: the keys of a check, and what a reader of the file should know of it."""

    options: Options
    comment: str = ""


class Guess(NamedTuple):
    """What a port is taken for: a check's name and the ways to look, deepest first.

    The last way fails only on a server that is bad.  *certificate*: TLS from the first byte, so
    there is a certificate to watch.  *wants*: what must be made first; until then it is a comment.
    """

    name: str
    ways: tuple[Way, ...]
    certificate: bool = False
    wants: str = ""


UNVERIFIED = (
    "clients verify the certificate: without verify: false, and with its name: NAME, so does this"
)


def _under_tls(way: Way) -> tuple[Way, ...]:
    """Look in the same way under TLS: with the certificate verified, and without."""
    options = {**way.options, "tls": "implicit"}
    return Way(options), Way({**options, "verify": False}, UNVERIFIED)


_SUBMISSION: Options = {"type": "smtp", "port": 587}
_DEEPER = "depth: rcpt, with mail_to:, sees more"
_LOGIN = "tls: starttls, and login: FILE, see more"
_WEB: Sequence[Options] = ({"send": "HEAD / HTTP/1.0"}, {"send": "", "expect": "HTTP/1"})


def _web(port: int) -> Way:
    """Look by lines of text, which is quick and needs no library."""
    options: Options = {"type": "banner", "port": port, "then": _WEB}
    return Way(options, "type http, with hactl[web], reads status codes and bodies")


GUESSES: Mapping[int, Guess] = {
    24: Guess("lmtp", (Way({"type": "lmtp"}, _DEEPER),)),
    25: Guess("smtp", (Way({"type": "smtp"}, _DEEPER),)),
    80: Guess("http", (_web(80),)),
    110: Guess("pop3", (Way({"type": "pop3"}, _LOGIN),)),
    143: Guess("imap", (Way({"type": "imap"}, _LOGIN),)),
    443: Guess("https", _under_tls(_web(443)), certificate=True),
    465: Guess("smtps", _under_tls(Way({"type": "smtp", "port": 465})), certificate=True),
    587: Guess(
        "submission",
        (
            Way({**_SUBMISSION, "tls": "starttls"}),
            Way({**_SUBMISSION, "tls": "starttls", "verify": False}, UNVERIFIED),
            Way(_SUBMISSION, _LOGIN),
        ),
    ),
    783: Guess(
        "spamd",
        (
            Way({"type": "spamd"}),
            Way({"type": "spamd", "gtube": "0s"}, "without gtube: 0s it must find spam, too"),
        ),
    ),
    993: Guess("imaps", _under_tls(Way({"type": "imap", "port": 993})), certificate=True),
    995: Guess("pop3s", _under_tls(Way({"type": "pop3", "port": 995})), certificate=True),
    3306: Guess(
        "mysql",
        (Way({"type": "mysql", "login": "/etc/hactl/mysql.login"}),),
        wants="wants a file with a login; type tcp would do harm: after 100 connections without one"
        " (error 1129) the server blocks the address that they come from",
    ),
    3310: Guess(
        "clamd",
        (
            Way({"type": "clamd"}),
            Way({"type": "clamd", "sample": "0s"}, "without sample: 0s it must find EICAR's, too"),
        ),
    ),
    4190: Guess("sieve", (Way({"type": "sieve"}, _LOGIN),)),
}
PLAIN = {443: 80, 465: 25, 993: 143, 995: 110}  # what is behind a relay that ends TLS

UNSEEN = "not looked at yet, which takes --probe; to be named in watch"


class CheckGuess(Struct, frozen=True):
    """A check to propose: the ways to look, and which is taken; *users* are the nodes looked at.

    With *taken* None it is not proposed; *said* is what is to be said of it.
    """

    ways: tuple[Way, ...]
    users: tuple[str, ...]
    taken: int | None
    said: str = ""


class NodeGuess(Struct, frozen=True):
    """A node: addresses to look at, and relayd's words for it that are none of them."""

    addresses: tuple[str, ...]
    words: tuple[str, ...] = ()


class ServiceGuess(Struct, frozen=True):
    """A redirect or relay and the checks that it uses."""

    conf: ConfService
    require: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()


class Proposal(Struct, frozen=True):
    """What to write; *owners* has the node of each of relayd's words, *notes* what is left open."""

    nodes: dict[str, NodeGuess]
    checks: dict[str, CheckGuess]
    services: tuple[ServiceGuess, ...]
    watch: dict[str, tuple[str, ...]]
    owners: dict[str, str]
    notes: tuple[str, ...]


# What relayd.conf lets us guess


def propose(conf: RelaydConf, names: Mapping[str, str] = {}) -> Proposal:
    """Guess nodes, checks and roles; *names* has the host names of addresses, as hosts(5) does."""
    notes: list[str] = []
    kept = [service for service in conf.services if _fits(service, conf, notes)]
    nodes, owners = _nodes(kept, {service.name for service in conf.services}, names, notes)
    checks: dict[str, CheckGuess] = {}
    services: list[ServiceGuess] = []
    watch: dict[str, tuple[str, ...]] = {}
    for service in kept:
        found: dict[str, None] = {}
        for port, words in _behind(service):
            users = [owners[word] for word in words if word in owners]
            if users:
                found[_use(checks, guess(port, service.listens), port, users)] = None
                if not service.tables:
                    watch[users[0]] = (*watch.get(users[0], ()), *found)
        if not service.tables:
            continue
        if len(found) == 1:
            services.append(ServiceGuess(service, require=tuple(found)))
        elif found:  # required, each would take out the nodes that have another port
            services.append(ServiceGuess(service, watch=tuple(found)))
            notes.append(f"{_called(service)}: its tables have different ports; checks are watched")
        else:
            notes.append(f"{_called(service)}: none of its hosts can be a node; left out")
    watch = {node: tuple(dict.fromkeys(each)) for node, each in watch.items()}
    return Proposal(nodes, checks, tuple(services), watch, owners, tuple(dict.fromkeys(notes)))


def _fits(service: ConfService, conf: RelaydConf, notes: list[str]) -> bool:
    """Tell whether hactl can do anything for a service; note what it cannot."""
    first = next(each for each in conf.services if each.name == service.name)
    why = ""
    if not config_.is_name(service.name) or service.name == "all":
        why = "hactl.yaml cannot have this name"
    elif first is not service:
        why = f"a {first.kind} has this name too"
    elif service.disabled:
        why = "relayd.conf disables it"
    elif not service.tables and service.target is None:
        why = "it forwards to no table"
    elif all(listen.proto == "udp" for listen in service.listens):
        why = "no check is known for UDP"
    elif not service.tables:
        notes.append(f"{_called(service)}: forwards to no table; its host is watched")
    if why:
        notes.append(f"{_called(service)}: {why}; left out")
    return not why


def _called(service: ConfService) -> str:
    return f"{service.kind} {service.name}"


def _behind(service: ConfService) -> Iterator[tuple[int, list[str]]]:
    """Yield each port that a service forwards to, and relayd's words for the hosts there."""
    if not service.tables and service.target is not None:
        yield service.target[1], [service.target[0]]
    for each in service.tables:
        yield each.port, [host.name for host in each.hosts]


def _use(checks: dict[str, CheckGuess], guess: Guess, port: int, users: Iterable[str]) -> str:
    """Add a check, or users to one there is; return its name."""
    limits = {"left_days": {"warn": 14, "fail": 1, "low": True}}
    watched = Way({"type": "tls", "port": port, "interval": "1h", "limits": limits})
    taken = None if guess.wants else len(guess.ways) - 1
    wanted = [(guess.name, CheckGuess(guess.ways, (), taken, guess.wants))]
    if guess.certificate:
        wanted.append((_certificate(guess.name), CheckGuess((watched,), (), None, UNSEEN)))
    for name, fresh in wanted:
        known = checks.get(name, fresh)
        checks[name] = replace(known, users=tuple(dict.fromkeys((*known.users, *users))))
    return guess.name


def _certificate(name: str) -> str:
    """Return the name of the check that watches the certificate beside the check *name*."""
    return f"{name}-cert"


def guess(port: int, listens: Sequence[Listen] = ()) -> Guess:
    """Guess by the port itself, else by the one relayd listens on; else connect, and no more."""
    if port in GUESSES:
        return GUESSES[port]
    known = {PLAIN.get(each.port, each.port) if each.tls else each.port for each in listens}
    if len(known) == 1 and (alike := GUESSES.get(known.pop())) is not None:
        ways = tuple(Way({**options, "port": port}, say) for options, say in alike.ways)
        return alike._replace(name=f"{alike.name}-{port}", ways=ways)
    comment = "sees no more than relayd's own check tcp; type banner might"
    return Guess(f"tcp-{port}", (Way({"type": "tcp", "port": port}, comment),))


def _nodes(
    services: Sequence[ConfService],
    taken: set[str],
    names: Mapping[str, str],
    notes: list[str],
) -> tuple[dict[str, NodeGuess], dict[str, str]]:
    """Make a node of all words that mean the same host; return the nodes, and each word's."""
    words: dict[str, list[str]] = {}  # with what tables say of each
    for service in services:
        for word, name in _uses(service):
            words.setdefault(word, []).extend([name] if name else [])
    groups: dict[str, list[str]] = {}
    for word in words:
        if config_.is_address(word):
            same = _canonical(word)
            groups.setdefault(names.get(same, same), []).append(word)
        else:
            notes.append(f"host {word}: no address and no host name, so no node")
    nodes: dict[str, NodeGuess] = {}
    owners: dict[str, str] = {}
    for same, mine in groups.items():
        tables = [name for word in mine for name in words[word]]
        node = next(
            name
            for name in _named(same, mine, tables)
            if config_.is_name(name)
            and name not in taken
            and (name in mine or name not in words)  # it would mean another host
        )
        taken.add(node)
        first = {_canonical(word): word for word in reversed(mine)}
        addresses = tuple(word for word in mine if first[_canonical(word)] == word)
        nodes[node] = NodeGuess(addresses, tuple(word for word in mine if word not in addresses))
        owners.update(dict.fromkeys(mine, node))
    return nodes, owners


def _uses(service: ConfService) -> Iterator[tuple[str, str]]:
    """Yield relayd's word for each host, and what its table says of who it is: its name, or "".

    That is so of a main table that has no other host; a backup's name says whom it stands in for.
    """
    for each in service.tables:
        telling = each is service.tables[0] and len(each.hosts) == 1
        yield from ((host.name, each.name if telling else "") for host in each.hosts)
    if not service.tables and service.target is not None:
        yield service.target[0], ""


def _named(same: str, words: Sequence[str], tables: Sequence[str]) -> Iterator[str]:
    """Yield what a node might be called, the best first."""
    yield from (word for word in (*words, same) if canonical(word) is None)
    yield from tables
    yield from words
    yield from (f"node{number}" for number in count(1))


def _canonical(word: str) -> str:
    """Return an address, or a name, in its one spelling."""
    return canonical(word) or word.lower()


def host_names(text: str) -> dict[str, str]:
    """Read hosts(5): the first name of each address."""
    names: dict[str, str] = {}
    for line in text.splitlines():
        address, *rest = line.partition("#")[0].split() or [""]
        if rest and canonical(address) is not None:
            names.setdefault(_canonical(address), rest[0].lower())
    return names


# What is written

HEAD = """\
# hactl.yaml, made by hactl init from {conf}.
# hactl.yaml(5) explains every key, `hactld -n` checks the file, `hactl doctor` the whole set-up.

# With observe hactl decides and shows, and touches nothing; with relayctl it acts.
mode: observe
"""
ABOUT = {
    "nodes": "The mail servers: names of your own choice, and addresses that relayd knows.",
    "checks": "How to look at them; what a port is for was guessed.",
    "services": "relayd's redirects and relays.  A check in require takes a member out when it is\n"
    "# down, one in prefer does so if a better member serves, one in watch alerts only.",
    "watch": "Nodes that are in no table: alerts only.",
}


def text(proposal: Proposal, conf: RelaydConf, path: Path) -> str:
    """Write the file; *path* is relayd.conf's."""
    relayd = {} if path == CONF else {"conf": str(path)}
    if conf.socket is not None:
        relayd["socket"] = conf.socket
    parts = [HEAD.format(conf=_comment(str(path)))]
    parts += _section("nodes", (_node_line(name, n) for name, n in proposal.nodes.items()))
    parts += _section("checks", (_check_line(name, c) for name, c in proposal.checks.items()))
    parts += _section("services", (_service_line(each, proposal) for each in proposal.services))
    watch = _watched(proposal)
    if watch:
        parts += _section("watch", (f"  {_word(n)}: {_flow(each)}" for n, each in watch.items()))
    if relayd:
        parts.append(f"\nrelayd: {_flow(relayd)}\n")
    if proposal.notes:
        parts.append("\n# What hactl init left open:\n")
        parts += (f"# {_comment(note)}\n" for note in proposal.notes)
    return "".join(parts)


def _section(key: str, entries: Iterable[str]) -> Iterator[str]:
    lines = [f"{entry}\n" for entry in entries]
    bare = all(part.startswith("  #") for line in lines for part in line.splitlines())
    yield f"\n# {ABOUT[key]}\n{key}:{' {}' if bare else ''}\n"
    yield from lines


def _node_line(name: str, node: NodeGuess) -> str:
    if len(node.addresses) == 1 and not node.words:
        return f"  {_word(name)}: {_word(node.addresses[0])}"
    keys: dict[str, object] = {"address": node.addresses}
    if node.words:
        keys["relayd"] = node.words
    return f"  {_word(name)}: {_flow(keys)}"


def _check_line(name: str, check: CheckGuess) -> str:
    options, comment = check.ways[-1 if check.taken is None else check.taken]
    line = f"{_word(name)}: {_flow(options)}"
    if check.taken is None:
        return f"  # {line}\n  #   {_comment(check.said)}"
    about = "; ".join(filter(None, (check.said, comment)))
    return f"  # {_comment(about)}\n  {line}" if about else f"  {line}"


def _service_line(service: ServiceGuess, proposal: Proposal) -> str:
    conf, roles = service.conf, _roles(service, proposal)
    where = ", ".join(f"{each.address} port {each.port}" for each in conf.listens)
    about = f"{conf.kind} on {where}, to {', then '.join(each.shown for each in conf.tables)}"
    line = f"{_word(conf.name)}: {_flow(roles or {'require': service.require or service.watch})}"
    return f"  # {_comment(about)}\n  {'' if roles else '# '}{line}"


def _roles(service: ServiceGuess, proposal: Proposal) -> dict[str, list[str]]:
    """Return the checks that are proposed by their role, and certificates to watch."""
    named = (*service.require, *service.watch)
    wanted = {"require": service.require, "watch": (*service.watch, *map(_certificate, named))}
    found = {role: _taken(names, proposal) for role, names in wanted.items()}
    return {role: names for role, names in found.items() if names}


def _watched(proposal: Proposal) -> dict[str, list[str]]:
    found = {node: _taken(names, proposal) for node, names in proposal.watch.items()}
    return {node: names for node, names in found.items() if names}


def _taken(names: Iterable[str], proposal: Proposal) -> list[str]:
    checks = proposal.checks
    return [name for name in names if name in checks and checks[name].taken is not None]


_BARE = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./-]*")


def _word(text: str) -> str:
    """Write a text so that YAML reads it as that text."""
    if _BARE.fullmatch(text) and yaml.safe_load(text) == text:
        return text
    return json.dumps(text)


def _flow(value: object) -> str:
    """Write a value on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return _word(value)
        case Mapping():
            return "{" + ", ".join(f"{_word(key)}: {_flow(value[key])}" for key in value) + "}"
        case Sequence():
            return "[" + ", ".join(map(_flow, value)) + "]"
    raise TypeError(value)


def _comment(text: str) -> str:
    """Make a stranger's words fit for a comment."""
    return "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in text)


# What people see


def page(proposal: Proposal) -> Iterator[str]:
    """Yield what was found, a line for each host, then what is left open."""
    rows = []
    for service in proposal.services:
        roles = _roles(service, proposal).items()
        checks = ", ".join(f"{role} {name}" for role, names in roles for name in names) or "none"
        for position, each in enumerate(service.conf.tables):
            backup = position > 0 and service.conf.kind is Kind.REDIRECT
            name = f"{each.shown}, backup" if backup else each.shown
            for host in each.hosts:
                node = proposal.owners.get(host.name, "-")
                rows.append((service.conf.name, name, host.name, node, checks))
    for node, names in _watched(proposal).items():
        address = proposal.nodes[node].addresses[0]
        rows.append(("-", "-", address, node, f"watch {', '.join(names)}"))
    yield from table(("SERVICE", "TABLE", "HOST", "NODE", "CHECKS"), rows)
    missing = {name: c.said for name, c in proposal.checks.items() if c.taken is None}
    unseen = [name for name, said in missing.items() if said == UNSEEN]
    notes = [f"check {name}: {said}" for name, said in missing.items() if said != UNSEEN]
    notes += [f"certificates are not watched yet: {', '.join(unseen)}"] if unseen else []
    if notes or proposal.notes:
        yield ""
    yield from (f"! {safe(note)}" for note in (*notes, *proposal.notes))


# Looking

WORKS = (Verdict.OK, Verdict.WARN)


class Look(NamedTuple):
    """What a look at a node by one way of a check found."""

    check: str
    way: int
    node: str
    verdict: Verdict
    reason: str


async def look(proposal: Proposal) -> list[Look]:
    """Look at every address of every node in every way, as hactld would."""
    from hactl.daemon.runner import Runner

    runner = Runner(lambda now: [], lambda checked: None)
    plans = {
        f"{name}/{number}": (name, number, made)
        for name, check in proposal.checks.items()
        for number, way in enumerate(check.ways)
        if (made := _made(way)) is not None
    }
    runner.configure({key: made for key, (_, _, made) in plans.items()})
    loop = asyncio.get_running_loop()
    waiting: list[tuple[str, int, str, asyncio.Future[Checked]]] = []
    try:
        nodes = proposal.nodes
        await runner.resolve(
            {a for n in nodes.values() for a in n.addresses if canonical(a) is None}
        )
        for key, (name, number, _) in plans.items():
            for node in proposal.checks[name].users:
                for address in nodes[node].addresses:
                    ended: asyncio.Future[Checked] = loop.create_future()
                    runner.look(Probe(node, key, address), ended.set_result)
                    where = node if len(nodes[node].addresses) == 1 else f"{node} at {address}"
                    waiting.append((name, number, where, ended))
        return [
            Look(name, number, where, checked.result.verdict, checked.result.reason)
            for name, number, where, ended in waiting
            for checked in [await ended]
        ]
    finally:
        runner.stop()


def _made(way: Way) -> config_.Check | None:
    """Make the check of a way; None if it cannot be made here, as for want of a library."""
    options = {"interval": "1h", **way.options}  # so that no timeout is too long for it
    try:
        made = config_.parse(f"mode: observe\nchecks: {_flow({'it': options})}", "a guess")
    except ConfigError:
        return None
    return made.checks["it"]


def settle(proposal: Proposal, looks: Sequence[Look]) -> Proposal:
    """Take of each check the deepest way that works on the most nodes; say where it does not."""
    checks = {}
    for name, check in proposal.checks.items():
        mine = [each for each in looks if each.check == name]
        if not mine and check.taken is None:  # there was no way to look
            checks[name] = check
            continue
        works = [
            sum(each.way == way and each.verdict in WORKS for each in mine)
            for way in range(len(check.ways))
        ]
        taken = works.index(max(works)) if any(works) else None
        last = len(check.ways) - 1 if taken is None else taken
        fails = [each for each in mine if each.way == last and each.verdict not in WORKS]
        said = _failing(fails)
        if taken and not fails:  # why not in the way before it
            said = next((each.reason for each in mine if each.way == taken - 1), "")
        checks[name] = replace(check, taken=taken, said=said)
    return replace(proposal, checks=checks)


def _failing(fails: Sequence[Look]) -> str:
    """Say which nodes fail, those together that fail alike."""
    nodes: dict[str, list[str]] = {}
    for each in fails:
        nodes.setdefault(each.reason, []).append(each.node)
    said = []
    for reason, names in nodes.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        said.append(f"not now on {', '.join(names[:SHOWN])}{more}: {reason}")
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more


# The command


def run(path: Path, output: str, *, probe: bool, say: Callable[..., object]) -> int:
    """Do what `hactl init` is asked for and return its exit code; *say* is click.echo."""
    to = None if output == "-" else Path(output).absolute()
    if to is not None and os.path.lexists(to):
        hint = "it is never overwritten; -o FILE writes another, -o - prints it"
        say(f"hactl: {safe(str(to))} exists: {hint}", err=True)
        return 1
    path = path.absolute()
    try:
        conf = read(path)
    except ConfError as error:
        for problem in error.problems:
            hint = "; run it as root" if problem.endswith("Permission denied") else ""
            say(f"hactl: {safe(problem)}{hint}", err=True)
        return 1
    proposal = propose(conf, host_names(_hosts_text()))
    if probe:
        proposal = settle(proposal, asyncio.run(look(proposal)))
    written = text(proposal, conf, path)
    if problem := _saved(written, to):
        say(f"hactl: {safe(str(to or '-'))}: {safe(problem)}", err=True)
        return 1
    say("\n".join(page(proposal)), err=to is None)
    if to is None:
        say(written, nl=False)
        return 0
    file = "" if str(to) == DEFAULT else f" -f {safe(quote(str(to)))}"
    say(f"\nwrote {safe(str(to))} with mode observe: hactld will look and show, and touch nothing.")
    say(f"Next: hactl doctor{file}; hactld -d{file}; and in another window hactl status.")
    return 0


def _hosts_text() -> str:
    with suppress(OSError), HOSTS.open("rb") as file:
        return file.read(HOSTS_LIMIT).decode(errors="replace")
    return ""


def _saved(text: str, to: Path | None) -> str:
    """Write the file, unless it is to be printed; return what keeps it from being written."""
    if len(text) > config_.FILE_LIMIT:
        return "it would be longer than hactld reads; let relayd.conf name fewer hosts"
    try:
        config_.parse(text, "hactl.yaml")
        if to is not None:
            _write(to, text)
    except ConfigError as error:
        return str(error.errors[0])
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _write(path: Path, text: str) -> None:
    """Make a new file that hactld can read.  Raise OSError, and leave no part of it behind."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        with os.fdopen(file, "w", encoding="ascii") as stream:
            stream.write(text)
        if os.geteuid() == 0:
            with suppress(LookupError):
                shutil.chown(path, group=GROUP)
    except OSError:
        path.unlink(missing_ok=True)
        raise
