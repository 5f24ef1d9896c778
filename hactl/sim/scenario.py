"""scenario: a story in YAML: a cluster, what happens to it, and what must come of it.

    about: A hangs for ten minutes while its port stays open
    duration: 20m
    tables: {mx: {main: [A, B]}}
    events:
      - {at: 5m, do: hang, to: [A], for: 10m}
    expect:
      commands: ["disable mx/A 5m..303s", "enable mx/A 15m..906s"]
      empty: 0s

`nodes`, `checks`, `services` and `defaults` are those of hactl.yaml; what is left out is made up:
every word in `tables` is a node, a check without type is an smtp one, a service that is not named
requires every check; relayd has check tcp, or the script where a service's mode is hook.  Whole files
stand in `hactl: |` and `conf: |` (relayd.conf).  Errors are those of hactl.yaml: all at once, each
with its place; what would silently do nothing is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import indent
from typing import Annotated, Literal

from msgspec import Meta, Struct, field, structs

from hactl import config as config_
from hactl.config import Config, ConfigError, Leaf, List, Map, Problem, Tree
from hactl.core.units import Duration, Share
from hactl.relayd import conf as conf_
from hactl.relayd.conf import RelaydConf
from hactl.sim.rules import RULES
from hactl.sim.truth import FAULTS, RELAYD, Deed, Event, Fault
from hactl.sim.world import LASTING, Cluster, cluster

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Length = Annotated[Duration, Meta(ge=1, le=30 * 86400)]
_WINDOW = re.compile(r"(enable|disable) (\S+)/(\S+) (\S+)\.\.(\S+)(?: (\S+))?")
_PLACE = re.compile(r"(.*?):(\d+):(\d+): ")
_SERVED = re.compile(r"(\S+) (\S+): (.+)")


class Written(Struct, frozen=True):
    """An event as the file has it."""

    at: Duration
    do: Literal[Fault, Deed]
    to: tuple[str, ...] = ()
    check: tuple[str, ...] = ()
    lasts: Annotated[Duration, Meta(ge=0.001)] | None = field(name="for", default=None)
    every: Annotated[Duration, Meta(ge=0.1)] | None = None
    until: Duration | None = None
    share: Share = Share(0)
    by: Duration = Duration(0)
    shift: Count = 0


class Expect(Struct, frozen=True):
    """What must come of it.  Seconds and counts are upper bounds, for each service.

    *commands* is every switch, in order: `disable mx/A 5m..303s [CAUSE]`; *most* bounds their
    number.  *serving*: `10m mx: A, B`.  *said* and *unsaid* are found, or not, in the timeline.
    *breaks* names rules that this story is known to break, and why stands in *about*.
    """

    commands: tuple[str, ...] | None = None
    most: Count | None = None
    removals: Count | None = None
    worst_hour: Count | None = None
    empty: Duration | None = None
    needless: Duration | None = None
    avoidable: Duration | None = None
    failing: Duration | None = None
    kept_out: Duration | None = None
    detection: Duration | None = None
    serving: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
    breaks: tuple[Count, ...] = ()


class Tables(Struct, frozen=True):
    """A service's tables."""

    main: tuple[str, ...]
    backup: tuple[str, ...] = ()


class Relayd(Struct, frozen=True):
    """relayd.conf's `interval`, `timeout` and each host's `retry`."""

    interval: Length = Duration(10)
    timeout: Annotated[Duration, Meta(ge=0.01)] = Duration(0.2)
    retry: Count = 0


class File(Struct, frozen=True):
    """The keys of a scenario that are its own."""

    about: str = ""
    duration: Length = Duration(1800)
    seed: Count = 1
    relayd: Relayd = field(default_factory=Relayd)
    tables: dict[str, Tables] = {}
    events: tuple[Written, ...] = ()
    expect: Expect = field(default_factory=Expect)


class Scenario(Struct, frozen=True):
    """A story ready to run; *what* is None when the file leaves the cluster to `-f`."""

    name: str
    about: str
    duration: float
    seed: int
    what: Cluster | None
    events: tuple[Event, ...]
    expect: Expect


_SIZES = {"loss": "share", "overload": "share", "slow": "by", "ahead": "by", "back": "by"}
_TOLD = frozenset({"drain", "maint", "pin", "freeze", "hands-off"})  # by an operator, for a time
_FREEZES = frozenset({"freeze", "hands-off", "thaw"})  # of services, or of all
_NAMED = frozenset({"drain", "maint", "pin", "resume"})
_TARGETS = _NAMED | _FREEZES | {"disable", "enable"}
_SPANS = frozenset({"cut", "restart", "down", *LASTING}) | _TOLD | FAULTS.keys()  # may end
TURNS = 200_000  # of all events together
_OURS = ("nodes", "checks", "services", "defaults")  # sections of hactl.yaml
_BLOCKS = ("hactl", "conf")  # whole files


def load(path: Path, what: Cluster | None = None) -> Scenario:
    """Read a scenario file.  Raise ConfigError with every error in it."""
    return parse(config_.text_of(path, "scenario"), str(path), what)


def parse(text: str, name: str, what: Cluster | None = None) -> Scenario:
    """Read the text of a scenario called *name*; it runs on *what*, if that is given."""
    if len(text) > config_.FILE_LIMIT:
        raise ConfigError([Problem(name, 0, 0, "", "too long for a scenario")])
    top, problems = config_.mapping(text, name, "tables: {mx: {main: [A, B]}}")
    own = {key: entry for key, entry in top.entries.items() if key not in (*_OURS, *_BLOCKS)}
    file = config_.read(File, structs.replace(top, entries=own), problems, name)
    if what is None:
        what = _given(name, text, top, file)
    else:
        problems += _twice(name, top)
    events = tuple(_event(each) for each in file.events)
    problems += [*_strangers(name, top, events, what), *_idle(name, top, file, events)]
    problems += _unreadable(name, top, file, what)
    if problems:
        raise ConfigError(problems)
    return Scenario(
        Path(name).stem, file.about, float(file.duration), file.seed, what, events, file.expect
    )


def files(path: Path, relayd: Path | None) -> tuple[Config, RelaydConf, Cluster]:
    """Read hactl.yaml and *relayd*, or the relayd.conf that it names; hactl acts in every service.

    Raise ConfigError, if they have no service in common too.
    """
    config = config_.load(path)
    place = relayd or config.relayd.conf
    try:
        conf = conf_.read(place)
    except conf_.ConfError as error:
        raise refused(str(place), error) from None
    what = cluster(config, conf)
    if not what.layouts:
        text = f"has no service of {place}, where there are "
        text += ", ".join(service.name for service in conf.services) or "none"
        raise ConfigError([Problem(str(path), 0, 0, "", text)])
    services = {name: structs.replace(s, acts=True) for name, s in what.plan.services.items()}
    return config, conf, structs.replace(what, plan=structs.replace(what.plan, services=services))


def _event(each: Written) -> Event:
    """Return plain numbers: what is not a file's has no units."""
    lasts, every, until = (
        None if span is None else float(span) for span in (each.lasts, each.every, each.until)
    )
    share, by = float(each.share), float(each.by)
    return Event(
        float(each.at), each.do, each.to, each.check, lasts, every, until, share, by, each.shift
    )


# The cluster


def _given(name: str, text: str, top: Map, file: File) -> Cluster | None:
    """Make the cluster that the file describes, None if it describes none."""
    blocks = [_inlay(name, text, top, key) for key in _BLOCKS if key in top.entries]
    if len(blocks) == 1:
        missing = next(key for key in _BLOCKS if key not in top.entries)
        raise ConfigError([Problem(name, top.line, top.column, "", f'missing "{missing}"')])
    if blocks:
        return _together(name, config_.parse(blocks[0], name), blocks[1])
    if not file.tables:
        return None
    words = {w: None for t in file.tables.values() for w in (*t.main, *t.backup)}
    made = config_.configured(_hactl(top, list(words), list(file.tables)), [], name)
    try:
        return cluster(made, conf_.parse(_conf(file, made), name))
    except conf_.ConfError as error:  # its places are those of a text that nobody sees
        times = top.get("relayd") if "interval" in str(error) else None
        tree = times or top.entries["tables"][1]
        said = dict.fromkeys(p.text for p in refused(name, error).errors)
        raise ConfigError([Problem(name, tree.line, tree.column, "", t) for t in said]) from None


def _inlay(name: str, text: str, top: Map, key: str) -> str:
    """Return a block of the file standing where it stands there, so that its errors do too."""
    block = top.entries[key][1]
    if not isinstance(block, Leaf):
        said = "expected the text of a file"
        raise ConfigError([Problem(name, block.line, block.column, key, said)])
    below = text.splitlines()[block.line :] if not block.plain else []
    first = next((line for line in below if line.strip()), "")
    margin = first[: len(first) - len(first.lstrip())]
    return "\n" * (block.line - block.plain) + indent(block.text, margin)


def _together(name: str, config: Config, text: str) -> Cluster:
    try:
        return cluster(config, conf_.parse(text, name))
    except conf_.ConfError as error:
        raise refused(name, error) from None


def refused(name: str, error: conf_.ConfError) -> ConfigError:
    """Return what is wrong with the relayd.conf *name* as hactl.yaml's errors are told."""
    problems = []
    for text in error.problems:
        place = _PLACE.match(text)
        if place is None:
            problems.append(Problem(name, 0, 0, "", text.removeprefix(f"{name}: ")))
        else:
            what = text[place.end() :]
            problems.append(Problem(place[1], int(place[2]), int(place[3]), "", what))
    return ConfigError(problems)


def _hactl(top: Map, words: list[str], services: list[str]) -> Map:
    """Return hactl.yaml's tree: what the file has of it, the rest made up."""

    def leaf(text: str, like: Tree = top) -> Leaf:
        return Leaf(like.line, like.column, text, True)

    def map_(entries: Mapping[str, Tree], like: Tree = top) -> Map:
        return Map(like.line, like.column, {key: (leaf(key, v), v) for key, v in entries.items()})

    nodes = top.get("nodes") or map_({w: leaf(f"10.0.{n >> 8}.{n & 255}") for n, w in
                                      enumerate(words, 1)})  # fmt: skip
    checks = top.get("checks") or map_({"smtp": map_({})})
    if isinstance(checks, Map):
        typed = {
            key: (place, _typed(value, leaf("smtp", value)))
            for key, (place, value) in checks.entries.items()
        }
        checks = structs.replace(checks, entries=typed)
        every = tuple(leaf(key) for key in typed)
        require = map_({"require": List(top.line, top.column, every)})
    else:
        require = map_({})
    given = top.get("services") or map_({})
    if isinstance(given, Map):
        made = {name: (leaf(name), require) for name in services if name not in given.entries}
        given = structs.replace(given, entries={**given.entries, **made})
    entries: dict[str, Tree] = {
        "mode": leaf("relayctl"),
        "nodes": nodes,
        "checks": checks,
        "services": given,
    }
    defaults = top.get("defaults")
    return map_(entries | ({"defaults": defaults} if defaults is not None else {}))


def _typed(tree: Tree, kind: Leaf) -> Tree:
    """Return a check's options with a type."""
    if isinstance(tree, Leaf) and tree.kind == "null":
        tree = Map(tree.line, tree.column, {})
    if isinstance(tree, Map) and not tree.entries.keys() & {"type", "from"}:
        return structs.replace(tree, entries=tree.entries | {"type": (kind, kind)})
    return tree


def _conf(file: File, config: Config) -> str:
    """Write the relayd.conf of the tables."""
    relayd = file.relayd
    retry = f" retry {relayd.retry}" if relayd.retry else ""
    lines = [f"interval {relayd.interval:g}", f"timeout {relayd.timeout * 1000:g}"]
    redirects = []
    for number, (service, tables) in enumerate(file.tables.items()):
        redirects += [
            f'redirect "{service}" {{',
            f"listen on 10.9.{number >> 8}.{number & 255} port 25",
        ]
        hook = config.services[service].mode == "hook"
        check = f'script "/usr/local/libexec/hactl/{service}"' if hook else "tcp"
        for kind, words in (("main", tables.main), ("backup", tables.backup)):
            if words:
                hosts = ", ".join(word + retry for word in words)
                lines.append(f"table <{kind}{number}> {{ {hosts} }}")
                redirects.append(f"forward to <{kind}{number}> check {check}")
        redirects.append("}")
    return "\n".join([*lines, *redirects, ""])


# What the types cannot say


def _places(top: Map, *path: str) -> Iterator[Tree]:
    """Yield the tree at a path, or nothing."""
    tree: Tree | None = top
    for key in path:
        tree = tree.get(key) if isinstance(tree, Map) else None
    if tree is not None:
        yield tree


def _twice(name: str, top: Map) -> Iterator[Problem]:
    """Say what describes a cluster beside the one that is given."""
    for key in ("tables", "relayd", *_OURS, *_BLOCKS):
        if key in top.entries:
            leaf = top.entries[key][0]
            text = "the cluster is that of hactl.yaml; leave this out, or run it without -f"
            yield Problem(name, leaf.line, leaf.column, key, text)


def _strangers(
    name: str, top: Map, events: tuple[Event, ...], what: Cluster | None
) -> Iterator[Problem]:
    """Say which events speak of what does not exist."""
    if what is None:
        return
    nodes = {s.node for each in what.layouts for s in each.seats} | what.plan.nodes.keys()
    services = what.plan.services.keys()
    pairs = {f"{each.name}/{s.node}" for each in what.layouts for s in each.seats}
    items = next((t.items for t in _places(top, "events") if isinstance(t, List)), ())
    for event, tree in zip(events, items, strict=False):
        known = nodes if event.do in FAULTS else nodes | services | pairs
        known = services | {"all"} if event.do in _FREEZES else known
        for target in event.to if event.do in FAULTS or event.do in _TARGETS else ():
            if target not in known:
                text = f'nothing is called "{target}"; there are {", ".join(sorted(known))}'
                yield Problem(name, tree.line, tree.column, "events", text)
        for check in event.check:
            if check not in what.plan.rules and check != RELAYD:
                names = ", ".join([*what.plan.rules, RELAYD])
                text = f'no check "{check}"; there are {names}'
                yield Problem(name, tree.line, tree.column, "events", text)


def _idle(name: str, top: Map, file: File, events: tuple[Event, ...]) -> Iterator[Problem]:
    """Say what would silently do nothing: events, or words of them; services without a table."""
    items = next((t.items for t in _places(top, "events") if isinstance(t, List)), ())
    turns = 0.0
    for event, tree in zip(events, items, strict=False):
        for key, text in _useless(event, float(file.duration)):
            yield Problem(name, tree.line, tree.column, f"events.{key}", text)
        last = float(file.duration) if event.until is None else min(file.duration, event.until)
        turns += max(0.0, last - event.at) / event.every if event.every else 1
        if turns > TURNS:
            text = f"too much happens: at most {TURNS} times in all"
            yield Problem(name, tree.line, tree.column, "events", text)
            break
    for tree in _places(top, "services") if file.tables else ():
        for service, (place, _) in tree.entries.items() if isinstance(tree, Map) else ():
            if service not in file.tables:
                yield Problem(name, place.line, place.column, f"services.{service}",
                              "no such service in tables")  # fmt: skip


def _useless(event: Event, end: float) -> Iterator[tuple[str, str]]:
    """Yield the keys of an event that it lacks or that do nothing, and why."""
    do, size = event.do, _SIZES.get(event.do)
    if size is not None and not getattr(event, size):
        yield size, f"{do} needs it"
    if do in _NAMED and not event.to:
        yield "to", f"{do} needs it"
    if event.at >= end:
        yield "at", f"the story is over after {Duration(end)}"
    if event.until is not None and event.every is None:
        yield "until", 'it goes with "every"'
    elif event.until is not None and event.until <= event.at:
        yield "until", f"before it begins, at {Duration(event.at)}"
    if event.every is not None and event.lasts is None and do in (*FAULTS, *LASTING, "cut"):
        yield "every", 'it needs "for", or the first time lasts to the end'
    fault = do in FAULTS
    for key, given, used in (
        ("to", event.to, fault or do in _TARGETS),
        ("check", event.check, fault),
        ("for", event.lasts, do in _SPANS),
        ("share", event.share, size == "share"),
        ("by", event.by, size == "by"),
        ("shift", event.shift, do == "reload"),
    ):
        if given and not used:
            yield key, f"{do} has no use for it"


def _unreadable(name: str, top: Map, file: File, what: Cluster | None) -> Iterator[Problem]:
    """Say which lines of `expect` are not of their form, or can never come true."""
    expect = file.expect
    words: dict[str, set[str]] = {}
    for layout in what.layouts if what is not None else ():
        words[layout.name] = {seat.member.host for seat in layout.seats}

    def unknown(service: str, hosts: Iterable[str]) -> str:
        if what is None:
            return ""
        if service not in words:
            return f'no service "{service}"; there are {", ".join(words)}'
        strange = [host for host in hosts if host not in words[service]]
        known = ", ".join(sorted(words[service]))
        return f'no host "{strange[0]}" in {service}; there are {known}' if strange else ""

    for tree in _places(top, "expect"):

        def wrong(key: str, text: str, tree: Tree = tree) -> Problem:
            return Problem(name, tree.line, tree.column, f"expect.{key}", text)

        for line in expect.commands or ():
            span = window(line)
            if span is None:
                yield wrong("commands", f'expected "disable mx/A 5m..303s" (got "{line}")')
            elif text := unknown(span.service, [span.word]):
                yield wrong("commands", text)
            elif span.last < span.first:
                yield wrong("commands", f'it ends before it begins (got "{line}")')
        for line in expect.serving:
            found = served(line)
            if found is None:
                yield wrong("serving", f'expected "10m mx: A, B" (got "{line}")')
            elif any("#" in word for word in found[2]):
                yield wrong("serving", f'pf has addresses, none with a # (got "{line}")')
            elif text := unknown(found[1], found[2]):
                yield wrong("serving", text)
            elif found[0] > file.duration:
                yield wrong("serving", f'the story is over after {file.duration} (got "{line}")')
        for rule in expect.breaks:
            if rule not in RULES:
                held = ", ".join(map(str, RULES))
                yield wrong("breaks", f"no rule {rule} is held here; there are {held}")


class Window(Struct, frozen=True):
    """A command and the seconds between which it must come."""

    verb: str
    service: str
    word: str
    first: float
    last: float
    cause: str = ""


def window(line: str) -> Window | None:
    """Read a line of `expect.commands`."""
    match = _WINDOW.fullmatch(line)
    if match is None:
        return None
    verb, service, word, first, last, cause = match.groups()
    try:
        return Window(verb, service, word, Duration.parse(first), Duration.parse(last), cause or "")
    except ValueError:
        return None


def served(line: str) -> tuple[float, str, frozenset[str]] | None:
    """Read a line of `expect.serving`: second, service, words."""
    match = _SERVED.fullmatch(line)
    if match is None:
        return None
    try:
        at = Duration.parse(match[1])
    except ValueError:
        return None
    words = frozenset(match[3].split(", ")) - {"nobody"}
    return at, match[2], words


def write(
    about: str, tables: Mapping[str, tuple[tuple[str, ...], ...]], events: tuple[Event, ...],
    duration: float, seed: int, more: str = "",
) -> str:  # fmt: skip
    """Write a scenario file, for a schedule that was found by chance; *more* goes between."""
    lines = [f"about: {about}", f"duration: {Duration(duration)}", f"seed: {seed}"]
    lines += ["tables:"] if tables else []
    for service, (main, *backup) in tables.items():
        spare = f", backup: [{', '.join(backup[0])}]" if backup else ""
        lines.append(f"  {service}: {{main: [{', '.join(main)}]{spare}}}")
    lines += [more.rstrip("\n")] if more else []
    lines.append("events:" if events else "events: []")
    for e in events:
        parts = [f"at: {Duration(round(e.at, 3))}", f"do: {e.do}"]
        parts += [f"to: [{', '.join(e.to)}]"] if e.to else []
        parts += [f"check: [{', '.join(e.check)}]"] if e.check else []
        for key, value in (("for", e.lasts), ("every", e.every), ("until", e.until)):
            parts += [f"{key}: {Duration(round(value, 3))}"] if value is not None else []
        parts += [f"share: {Share(round(e.share, 4))}"] if e.share else []
        parts += [f"by: {Duration(e.by)}"] if e.by else []
        parts += [f"shift: {e.shift}"] if e.shift else []
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"
