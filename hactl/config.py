"""hactl.yaml -> Config: all errors at once, each with its file, line and column.

The types below say what the file may hold, and one walker driven by them reads it; `schema` and
`show` follow the same types.  The rule: a value is what is written or it is an error.  YAML 1.1
reads `no` as false, `010` as eight and `12:30` as 750; here the type asked for decides, so that a
name or a number that YAML would change is refused with a hint.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import ipaddress
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    ClassVar,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec
import yaml
from msgspec import Meta, Struct, field, structs

import checks
from hactl.core.model import Limit
from hactl.core.units import Command, Duration, FileMode, Pace, Secret, Share, Size

FILE_LIMIT = 1 << 20  # bytes
DEPTH_LIMIT = 32  # the deepest that means anything is 5
ALIAS_LIMIT = 10_000  # values that aliases may add: 1,000 services of ten values each
HINT_LIMIT = 50  # searches for a similar word; they are what costs in a file full of errors
AGENT_PORT = 8325
SHORTEST = 0.01  # seconds; anything shorter is a slip, and a busy loop

_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same marks, ten times as fast


# Errors


class Problem(Struct, frozen=True, order=True):
    """One error: its place (1-based; line 0: the file as a whole), its path in the file, the text."""

    file: str
    line: int
    column: int
    path: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.text}" if self.path else f"{place}: {self.text}"


class ConfigError(Exception):
    """The file is not a configuration; *errors* are in the order of the file."""

    def __init__(self, errors: Iterable[Problem]) -> None:
        # What an alias repeats is wrong in one place only.
        first = {(p.line, p.column, p.text): p for p in reversed(list(errors))}
        self.errors = tuple(sorted(first.values()))
        super().__init__("\n".join(map(str, self.errors)))


# What the file may hold


class _Scalar(Struct, frozen=True, eq=False):
    """How a single value is written.

    *form* says what YAML must take it for, *read* raises ValueError if it is something else and
    _RangeError if it is the right thing with a wrong value.
    """

    noun: str
    example: str
    form: Literal["text", "number", "boolean", "any"]
    read: Callable[[str], object]
    schema: Mapping[str, object]


class _RangeError(ValueError):
    """Says which values would have been right."""


class _Name(NamedTuple):
    """The text must be a name in this section."""

    section: Literal["nodes", "checks"]


def _matched(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError
        return text

    return read


def _text(text: str) -> str:
    if not text.isprintable():
        raise _RangeError("text without control characters")
    return text


def _word(text: str) -> str:
    return _matched(r"\S+")(_text(text))


def _whole(text: str) -> int:
    return int(_matched(r"-?(0|[1-9][0-9]{0,17})")(text))


def _decimal(text: str) -> float:
    # the exponent is how `show` writes the very big and the very small
    return float(_matched(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?(e[+-][0-9]{2})?")(text))


def _boolean(text: str) -> bool:
    word = text.lower()
    if word not in {"true", "false", "yes", "no", "on", "off"}:
        raise ValueError
    return word in {"true", "yes", "on"}


def _path(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError
    return Path(_text(text))


def _secret(text: str) -> Secret:
    try:
        mode = _path(text).stat().st_mode
    except OSError as error:
        raise _RangeError(f"a secret's file ({os.strerror(error.errno or 0)})") from None
    if not stat.S_ISREG(mode):
        raise _RangeError("a secret's file, not a directory or device")
    if mode & 0o007:
        raise _RangeError(f"a secret's file that others cannot open, not mode {mode & 0o777:04o}")
    return Secret(text)


def _address(text: str) -> str:
    """Read an IP address or a host name; one whose last label is a number is neither (RFC 1123)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
        if len(text) > 253 or text.rpartition(".")[2].isdigit():
            raise
        _matched(rf"({label}\.)*{label}")(text)
    return text


def _entry(text: str) -> str:
    return _matched(_ENTRY)(text)


def _endpoint(text: str) -> str:
    """Read `ADDRESS:PORT`, where an IPv6 address stands in brackets."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host[:1] + host[-1:] == "[]" else host
    if not colon or (ipaddress.ip_address(bare).version == 6) is (bare == host):
        raise ValueError
    if not 1 <= _whole(port) <= 65535:
        raise _RangeError("a port from 1 to 65535")
    return text


def _url(text: str) -> str:
    """Read where an agent is; whoever is not on this machine needs TLS."""
    match = re.fullmatch(r"(https?)://(.+)", text)
    if match is None:
        raise ValueError
    place = _endpoint(match[2])
    if match[1] == "http" and not is_loopback(place):
        raise _RangeError("https, or http to a loopback address")
    return text


def _fast(text: str) -> Duration:
    value = Duration.parse(text)
    if 0 < value < SHORTEST:
        raise _RangeError(f"a duration of at least {Duration(SHORTEST)}, or 0s")
    return value


def _pace(text: str) -> Pace:
    pace = Pace.parse(text)
    if not 1 <= pace[1] <= 3600:  # policy forgets what is older than an hour
        raise _RangeError("a pace over 1s to 1h")
    return pace


def _command(text: str) -> Command:
    return Command.parse(_text(text))


def _pattern(pattern: str) -> dict[str, object]:
    return {"type": "string", "pattern": f"^{pattern}$"}


_ENTRY = r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,63}"  # a key in nodes, checks, services
_WORD = _Scalar("a word", "", "text", _word, {"type": "string", "pattern": r"^\S+$"})
_ADDRESS = _Scalar("an IP address or a host name", "", "text", _address, {"type": "string"})
_NODE = _Scalar('a name of letters, digits and "_.:@+-"', "", "text", _entry, _pattern(_ENTRY))
_ENDPOINT = _Scalar(
    "an address and a port", ' like "127.0.0.1:8325"', "any", _endpoint, {"type": "string"}
)
_URL = _Scalar("a URL", ' like "https://10.0.0.4:8325"', "text", _url, _pattern("https?://.*"))
_SCALARS: Mapping[object, _Scalar] = {
    str: _Scalar("text", "", "text", _text, {"type": "string"}),
    bool: _Scalar("true or false", "", "boolean", _boolean, {"type": "boolean"}),
    int: _Scalar("a whole number", "", "number", _whole, {"type": "integer"}),
    float: _Scalar("a number", "", "number", _decimal, {"type": "number"}),
    Duration: _Scalar(
        "a duration", ' like "5s"', "any", Duration.parse, _pattern(Duration.PATTERN)
    ),
    Size: _Scalar(
        "a size",
        ' like "10M"',
        "any",
        Size.parse,
        _pattern(Size.PATTERN) | {"type": ["string", "integer"]},
    ),
    Share: _Scalar("a share", ' like "60%"', "any", Share.parse, _pattern(Share.PATTERN)),
    Pace: _Scalar("a pace", ' like "25% in 60s"', "any", _pace, _pattern(Pace.PATTERN)),
    FileMode: _Scalar("a mode", ' like "0660"', "text", FileMode.parse, _pattern(FileMode.PATTERN)),
    Command: _Scalar(
        "a command", ' like "/bin/true -x"', "text", _command, _pattern(Command.PATTERN)
    ),
    Path: _Scalar("an absolute path", "", "text", _path, {"type": "string", "pattern": "^/"}),
    Secret: _Scalar("an absolute path", "", "text", _secret, {"type": "string", "pattern": "^/"}),
}

_FAST = structs.replace(_SCALARS[Duration], read=_fast)

Mode = Literal["relayctl", "hook", "observe"]
Address = Annotated[str, _ADDRESS]
Word = Annotated[str, _WORD]
NodeName = Annotated[str, _Name("nodes")]
CheckName = Annotated[str, _Name("checks")]
Count = Annotated[int, Meta(ge=1, le=1000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Fast = Annotated[Duration, _FAST]
Positive = Annotated[Duration, Meta(ge=SHORTEST)]
OwnName = Annotated[str, _NODE]
Endpoint = Annotated[str, _ENDPOINT]
Url = Annotated[str, _URL]


class Node(Struct, frozen=True):
    """A mail server.  *relayd*: words by which relayd knows it besides its name and addresses.

    *agent*: its hactld can be asked, at its first address or there.
    """

    addresses: tuple[Address, ...] = field(name="address")
    relayd: tuple[Word, ...] = ()
    weight: Count = 1
    agent: bool | Url = False

    def url(self) -> str | None:
        """Return where its agent is, None if it has none."""
        if not isinstance(self.agent, bool):
            return self.agent
        host = self.addresses[0]
        return (
            f"https://{f'[{host}]' if ':' in host else host}:{AGENT_PORT}" if self.agent else None
        )


class FromAgent(checks.Option, frozen=True, kw_only=True, tag="agent"):
    """A check that the node's own hactld makes, by the same name; *kind*: the type it must be."""

    kind: str | None = None

    timing: ClassVar[checks.Timing] = checks.Timing(interval=5.0, timeout=3.0, fast=0.0)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield a missing library."""
        if importlib.util.find_spec("aiohttp") is None:
            yield "from", "agents need aiohttp: pip install 'hactl[web]'"


class Check(Struct, frozen=True):
    """A named check; in the file the options of its type stand beside these keys.

    A *fast_interval* of 0 means the interval, a *hedge* of 0 none.  *tripwire* keeps one idle
    connection per node, whose end starts a look at once.  With *at* it looks at that node alone.
    """

    option: checks.Option
    interval: Positive
    timeout: Positive
    fast_interval: Fast
    hedge: Fast
    fall: Count = 3
    rise: Count = 3
    down_count: Count = 8
    wipe_count: Count = 12
    tripwire: bool = False
    limits: dict[str, Limit] = {}
    at: NodeName | None = None


class Service(Struct, frozen=True):
    """A redirect or relay of relayd; *mode* is the file's mode unless the service has its own.

    *min_serving* is a weight (each member weighs 1 unless its node says otherwise) or a share of
    it; *window* and *grace* are those of shared fate; *stale* says what becomes of the hook's
    verdicts when hactld stops beating.
    """

    mode: Mode = "observe"
    require: tuple[CheckName, ...] = ()
    prefer: tuple[CheckName, ...] = ()
    watch: tuple[CheckName, ...] = ()
    min_serving: Count | Share | None = None
    floor: Literal["open", "closed"] = "open"
    prefer_serving: Share = Share(0.5)
    pace: Pace = Pace((Share(0.25), Duration(60)))
    exclusive: bool = False
    failback: Literal["auto", "manual"] = "auto"
    window: Duration = Duration(10)
    grace: Duration = Duration(10)
    stale: Literal["keep", "up"] = "keep"
    on_exit: Literal["keep", "release"] = "keep"


class Relayd(Struct, frozen=True):
    """Where relayd and pf are, how long their programs may take, and what pf is to forget.

    *clear_sources* and *kill_states*: source-tracking entries and states of hosts that we removed.
    """

    conf: Path = Path("/etc/relayd.conf")
    relayctl: Path = Path("/usr/sbin/relayctl")
    pfctl: Path = Path("/sbin/pfctl")
    socket: Path | None = None
    timeout: Positive = Duration(5)
    clear_sources: bool = False
    kill_states: bool = False


class Control(Struct, frozen=True):
    """The control socket; in the file its path is `hactl.sock` in run_dir unless it is given."""

    path: Path = Path("/var/run/hactl/hactl.sock")
    group: Word | None = None
    mode: FileMode = FileMode(0o660)


class Agent(Struct, frozen=True):
    """Where this hactld tells what it found on its own node, and the directory of its keys.

    *haproxy*: where it says so in the words of HAProxy's agent-check.
    """

    listen: Endpoint = f"0.0.0.0:{AGENT_PORT}"
    keys: Path = Path("/etc/hactl/agent")
    haproxy: Endpoint | None = None


class Config(Struct, frozen=True):
    """The whole file, with every default filled in; *watch* maps nodes to checks.

    *node*: this hactld is that node's agent; the node is then in *nodes*, and all checks are in
    *watch*.  *shared_fate* maps a check to those that fail with it.  Started by root, hactld becomes *user*;
    *on_dead* is run when it does not stay alive.
    """

    mode: Mode
    nodes: dict[str, Node] = {}
    checks: dict[str, Check] = {}
    services: dict[str, Service] = {}
    watch: dict[NodeName, tuple[CheckName, ...]] = {}
    shared_fate: dict[CheckName, tuple[CheckName, ...]] = {}
    relayd: Relayd = field(default_factory=Relayd)
    run_dir: Path = Path("/var/run/hactl")
    state_dir: Path = Path("/var/db/hactl")
    user: Word = "_hactl"
    on_dead: Command | None = None
    control: Control = field(default_factory=Control)
    agent: Agent = field(default_factory=Agent)
    node: OwnName | None = None

    def withdrawn(self) -> frozenset[str]:
        """Return the services whose hook has nothing to say while hactld is dead."""
        services = self.services.items()
        return frozenset(n for n, s in services if s.mode == "hook" and s.stale == "up")


class _Defaults(Struct, frozen=True):
    """Keys that each check and each service has unless its own say otherwise."""

    check: Check
    service: Service


# YAML with places


class Leaf(Struct, frozen=True):
    """A single value, as written; *plain* without quotes."""

    line: int
    column: int
    text: str
    plain: bool
    size: ClassVar[int] = 1

    @property
    def kind(self) -> str:
        """What YAML 1.1 would read: `str`, `int`, `float`, `bool`, `null`, `timestamp` ..."""
        if not self.plain:
            return "str"
        tag: str = _resolve(yaml.ScalarNode, self.text, (True, False))
        return tag.rpartition(":")[2]


class List(Struct, frozen=True):
    """Values in a row."""

    line: int
    column: int
    items: tuple[Tree, ...]
    size: int = 1


class Map(Struct, frozen=True):
    """Keys with their values; what came in by `<<` keeps the place where it was written."""

    line: int
    column: int
    entries: dict[str, tuple[Leaf, Tree]]
    size: int = 1

    def get(self, key: str) -> Tree | None:
        return self.entries[key][1] if key in self.entries else None


Tree = Leaf | List | Map
_resolve: Callable[..., str] = yaml.resolver.Resolver().resolve
# Characters that no editor shows, and line ends that YAML counts and editors do not.
_UNSEEN = re.compile(
    "[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)


def _place(mark: object) -> tuple[int, int]:
    """Return line and column of a YAML mark as editors count them; marks count from zero."""
    return getattr(mark, "line", 0) + 1, getattr(mark, "column", 0) + 1


class _Composer:
    """Builds the tree from YAML's events, within limits on depth and on what aliases add."""

    def __init__(self, file: str, events: Iterator[yaml.Event]) -> None:
        self.file = file
        self.events = events
        self.problems: list[Problem] = []
        self.anchors: dict[str, Tree | None] = {}  # None: not complete yet
        self.added = 0

    def say(self, line: int, column: int, text: str) -> None:
        self.problems.append(Problem(self.file, line, column, "", text))

    def stop(self, event: yaml.Event, text: str) -> ConfigError:
        """Return the error after which nothing more can be read."""
        self.say(*_place(event.start_mark), text)
        return ConfigError(self.problems)

    def document(self) -> Tree | None:
        """Return the only document, None if there is none."""
        next(self.events)  # the start of the stream
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        tree = self.tree(next(self.events), 0)
        next(self.events)  # the end of the document
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise self.stop(event, "a second document starts here; write one")
        return tree

    def tree(self, event: yaml.Event, depth: int) -> Tree:
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if depth > DEPTH_LIMIT:
            raise self.stop(event, f"nested more than {DEPTH_LIMIT} deep")
        assert isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent))
        line, column = _place(event.start_mark)
        if event.tag is not None:
            self.say(line, column, f'tags have no meaning here (got "{_shown(event.tag)}")')
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        tree: Tree
        if isinstance(event, yaml.ScalarEvent):
            tree = Leaf(line, column, event.value, not event.style)
        elif isinstance(event, yaml.SequenceStartEvent):
            items = tuple(self.children(yaml.SequenceEndEvent, depth))
            tree = List(line, column, items, 1 + sum(item.size for item in items))
        else:
            tree = self.mapping(line, column, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = tree
        return tree

    def children(self, end: type[yaml.Event], depth: int) -> Iterator[Tree]:
        while not isinstance(event := next(self.events), end):
            yield self.tree(event, depth + 1)

    def alias(self, event: yaml.AliasEvent) -> Tree:
        anchor = event.anchor or ""
        name = _shown(anchor)
        if anchor not in self.anchors:
            raise self.stop(event, f"*{name} has no &{name} before it")
        tree = self.anchors[anchor]
        if tree is None:
            raise self.stop(event, f"*{name} stands within &{name}")
        self.added += tree.size
        if self.added > ALIAS_LIMIT:
            raise self.stop(event, f"aliases add more than {ALIAS_LIMIT} values")
        return tree

    def mapping(self, line: int, column: int, depth: int) -> Map:
        """Read keys and values, then merge what `<<` brings under them."""
        entries: dict[str, tuple[Leaf, Tree]] = {}
        size = 1
        children = self.children(yaml.MappingEndEvent, depth)
        for key, value in zip(children, children, strict=True):
            size += value.size
            if not isinstance(key, Leaf):
                self.say(key.line, key.column, f"expected a plain key (got {_got(key)})")
            elif key.text in entries:
                place = f"first on line {entries[key.text][0].line}"
                self.say(key.line, key.column, f'"{_shown(key.text)}" is given twice ({place})')
            else:
                entries[key.text] = key, value
        if "<<" in entries and entries["<<"][0].plain:
            merge = entries.pop("<<")[1]
            for source in merge.items if isinstance(merge, List) else (merge,):
                if isinstance(source, Map):
                    entries = source.entries | entries
                else:
                    self.say(
                        source.line,
                        source.column,
                        f"expected a mapping, or a list of them, to merge (got {_got(source)})",
                    )
        return Map(line, column, entries, size)


def _compose(text: str, file: str) -> tuple[Tree | None, list[Problem]]:
    """Return the tree and what is wrong with it already; raise ConfigError if it is no YAML."""
    composer = _Composer(file, yaml.parse(text, Loader=_Loader))
    try:
        return composer.document(), composer.problems
    except (yaml.YAMLError, ValueError) as error:  # ValueError: "\UFFFFFFFF" in PyYAML's own parser
        raise ConfigError([*composer.problems, _syntax(text, file, error)]) from None


def _syntax(text: str, file: str, error: Exception) -> Problem:
    """Say where and why *text* is no YAML, in PyYAML's words whichever parser found it."""
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return Problem(file, 1, 1, "", f"not valid YAML: {error}")
    if _Loader is not yaml.SafeLoader:
        try:
            for _ in yaml.parse(text[: mark.index + 1000], Loader=yaml.SafeLoader):
                pass
        except yaml.MarkedYAMLError as words:
            if words.problem_mark is not None and words.problem_mark.index <= mark.index:
                error, mark = words, words.problem_mark
        except ValueError:
            pass
    line, column = _place(mark)
    before = text.splitlines()[line - 1 : line] or [""]
    indent = before[0][: len(before[0]) - len(before[0].lstrip())]
    if "\t" in indent:
        return Problem(file, line, indent.index("\t") + 1, "", "a tab cannot indent; use spaces")
    why = error.problem or "no reason given"
    if error.context is not None and error.context_mark is not None:
        why += f" ({error.context}, line {_place(error.context_mark)[0]})"
    return Problem(file, line, column, "", f"not valid YAML: {why}")


# Words for people


def _shown(text: str) -> str:
    """Return *text* fit for one line of a terminal."""
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def _got(tree: Tree) -> str:
    if isinstance(tree, Leaf):
        if tree.kind != "str":
            return _shown(tree.text) or "nothing"
        return f'"{_shown(tree.text)}"'
    if isinstance(tree, Map):
        return "a mapping"
    return "a list" if tree.items else "an empty list"


def _either(words: Iterable[str]) -> str:
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last


_KINDS = {
    "bool": "a boolean",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}


def _quote(leaf: Leaf) -> str:
    """Return the hint for a text that YAML takes for something else."""
    if leaf.kind == "str" or not leaf.text:
        return ""
    kind = _KINDS.get(leaf.kind, "something else")
    return f'; YAML reads it as {kind}, quote it: "{_shown(leaf.text)}"'


# The types, taken apart

_TIMES = ("interval", "timeout", "fast_interval", "hedge")


class _Spec(NamedTuple):
    """A key of a mapping; *name* is its attribute."""

    name: str
    kind: object
    required: bool = False
    default: object = None


@functools.cache
def _specs(kind: type[Struct]) -> dict[str, _Spec]:
    """Return the keys that a struct has in the file."""
    specs = {}
    for each in structs.fields(kind):
        default = each.default
        if each.default_factory is not msgspec.NODEFAULT:
            default = each.default_factory()
        required = default is msgspec.NODEFAULT
        # Every port is a port, also where a check's author was content with int.
        wanted = Port if each.name == "port" and each.type is int else each.type
        specs[each.encode_name] = _Spec(each.name, wanted, required, None if required else default)
    return specs


_FROM = {"from": _Spec("from", Literal["agent"], required=True)}


def _common(option: type[checks.Option] | None = None) -> dict[str, _Spec]:
    """Return the keys that all checks have; what is required there has its default by type."""
    specs = {key: s._replace(required=False) for key, s in _specs(Check).items() if key != "option"}
    if option is not None:
        for key, seconds in zip(_TIMES, structs.astuple(option.timing), strict=True):
            specs[key] = specs[key]._replace(default=Duration(seconds))
    return specs


@functools.cache
def _scalar(kind: object) -> _Scalar | None:
    """Return how a single value of this type is written, None if the type is no single value."""
    if get_origin(kind) is Literal:
        words = {str(word): word for word in get_args(kind)}
        return _Scalar(_either(words), "", "any", _choice(words), {"enum": list(words.values())})
    if get_origin(kind) is not Annotated:
        return _SCALARS.get(kind)
    base, *notes = get_args(kind)
    scalar = _scalar(base)
    for note in notes:
        if isinstance(note, _Scalar):
            scalar = note
        elif isinstance(note, Meta) and scalar is not None:
            scalar = _bounded(scalar, base, note)
    return scalar


def _choice(words: Mapping[str, object]) -> Callable[[str], object]:
    def read(text: str) -> object:
        if text not in words:
            raise ValueError
        return words[text]

    return read


def _bounded(scalar: _Scalar, base: type, meta: Meta) -> _Scalar:
    """Return *scalar* with msgspec's constraints on its value."""
    plain: Callable[..., object] = next(k for k in (int, float, str) if issubclass(base, k))
    constraint = Annotated[plain, meta]  # type: ignore[valid-type]
    words = ""
    if meta.ge is not None:
        least = base(meta.ge)  # written in its unit
        words = f" of at least {least}" if meta.le is None else f" from {least} to {base(meta.le)}"

    def read(text: str) -> object:
        value = scalar.read(text)
        try:
            msgspec.convert(plain(value), constraint)
        except msgspec.ValidationError as error:
            wanted = scalar.noun + words if words else str(error).removeprefix("Expected ")
            raise _RangeError(wanted) from None
        return value

    schema = scalar.schema
    if base is plain:
        schema = msgspec.json.schema(constraint)
    return structs.replace(scalar, example=scalar.example or words, read=read, schema=schema)


def _section(kind: object) -> str | None:
    """Return the section whose names this type holds."""
    notes = get_args(kind) if get_origin(kind) is Annotated else ()
    return next((note.section for note in notes if isinstance(note, _Name)), None)


def _members(kind: object) -> tuple[object, ...]:
    """Return the members of a union, the type itself if it is none."""
    return get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)


def _expectation(kind: object) -> str:
    """Return in words what may stand where this type is asked for."""
    words = []
    for member in _members(kind):
        scalar = _scalar(member)
        if scalar is not None:
            words.append(scalar.noun + scalar.example)
        elif member is not type(None):
            words.append("a list" if get_origin(member) is tuple else "a mapping")
    return _either(words)


# The walker

_BAD = object()  # stands for a value whose problem has been said
_S = TypeVar("_S", bound=Struct)


def _make(kind: type[_S], values: Mapping[str, object]) -> _S:
    return kind(**values)


class _Walker:
    """Reads a tree by types and collects the problems."""

    def __init__(self, file: str, top: Map, problems: list[Problem]) -> None:
        self.file = file
        self.top = top
        self.problems = problems
        self.hints = 0
        self.names = {
            section: tree.entries
            for section in ("nodes", "checks")
            if isinstance(tree := top.get(section) or Map(0, 0, {}), Map)
        }
        defaults = top.get("defaults")
        self.defaults = defaults if isinstance(defaults, Map) else Map(0, 0, {})
        self.owners: dict[str, str] = {}  # address -> its node and line
        self.special: dict[object, Callable[[Map, str], object]] = {
            Node: self.node,
            Check: self.check,
            Service: self.service,
            Limit: self.limit,
            _Defaults: self.default,
        }

    # What went wrong

    def say(self, tree: Tree, path: str, text: str) -> None:
        self.problems.append(Problem(self.file, tree.line, tree.column, path, text))

    def expected(self, what: str, tree: Tree, path: str, hint: str = "") -> None:
        self.say(tree, path, f"expected {what} (got {_got(tree)}){hint}")

    def similar(self, word: str, known: Iterable[str]) -> str:
        """Return the hint for a word that is not known."""
        self.hints += 1
        if self.hints > HINT_LIMIT or len(word) > 64:
            return ""
        close = difflib.get_close_matches(word, known, 1)
        return f'; did you mean "{_shown(close[0])}"?' if close else ""

    # Values by type

    def value(self, kind: object, tree: Tree, path: str) -> object:
        """Return the value of type *kind* that *tree* holds, _BAD after saying why there is none."""
        if kind is Node and isinstance(tree, Leaf):
            tree = Map(tree.line, tree.column, {"address": (tree, tree)})
        if kind in self.special and isinstance(tree, Map):
            return self.special[kind](tree, path)
        members = _members(kind)
        if len(members) > 1:
            return self.union(kind, members, tree, path)
        scalar = _scalar(kind)
        if scalar is not None:
            value = self.scalar(scalar, tree, path)
            named = _section(kind)
            if value is _BAD or named is None:
                return value
            return value if self.known(named, tree, str(value), path) else _BAD
        origin, args = get_origin(kind), get_args(kind)
        if origin is tuple:
            return self.items(args[0], tree, path)
        if origin is dict:
            return self.mapping(args[0], args[1], tree, path)
        assert isinstance(kind, type)
        assert issubclass(kind, Struct)  # any other type is a bug in an option class
        values = self.fields(_specs(kind), tree, path)
        return _BAD if values is None else _make(kind, values)

    def scalar(self, scalar: _Scalar, tree: Tree, path: str) -> object:
        wanted, hint = scalar.noun + scalar.example, ""
        if isinstance(tree, Leaf):
            try:
                value = scalar.read(tree.text)
                if scalar.form == "text" and tree.kind != "str":
                    hint = _quote(tree)
                elif scalar.form in {"number", "boolean"} and not tree.plain:
                    hint = "; write it without quotes"
                else:
                    return value
            except _RangeError as error:
                wanted = str(error)
            except ValueError:
                if scalar.form == "number" and tree.kind == "int":
                    hint = "; write plain decimal digits, or quote it where text is meant"
        self.expected(wanted, tree, path, hint)
        return _BAD

    def union(self, kind: object, members: Iterable[object], tree: Tree, path: str) -> object:
        """Try each member; if only one is not None its own words say what is wrong."""
        members = list(members)
        if type(None) in members:
            members.remove(type(None))
            if isinstance(tree, Leaf) and tree.kind == "null":
                return None
        if len(members) == 1:
            return self.value(members[0], tree, path)
        said = len(self.problems)
        for member in members:
            value = self.value(member, tree, path)
            del self.problems[said:]
            if value is not _BAD:
                return value
        self.expected(_expectation(kind), tree, path)
        return _BAD

    def known(self, section: str, tree: Tree, name: str, path: str) -> bool:
        """Say whether *name* is in the section; a section that is broken has been said already."""
        names = self.names.get(section)
        if names is None or name in names:
            return True
        self.say(tree, path, f'no {section[:-1]} "{_shown(name)}"' + self.similar(name, names))
        return False

    def items(self, kind: object, tree: Tree, path: str) -> object:
        if not isinstance(tree, List):
            self.expected("a list", tree, path)
            return _BAD
        values: list[object] = []
        for item in tree.items:
            value = self.value(kind, item, path)
            if _section(kind) is not None and value is not _BAD and value in values:
                self.say(item, path, f'"{value}" is given twice')
            values.append(value)
        return _BAD if _BAD in values else tuple(values)

    def mapping(self, key_kind: object, kind: object, tree: Tree, path: str) -> object:
        """Read a mapping whose keys are names: of its own entries, or of another section's."""
        if not isinstance(tree, Map):
            self.expected("a mapping", tree, path)
            return _BAD
        values: dict[str, object] = {}
        for name, (key, value) in tree.entries.items():
            inner = f"{path}.{_shown(name)}"
            section = _section(key_kind)
            if key.kind != "str":
                self.expected("a name", key, inner, _quote(key))
            elif section is not None:
                self.known(section, key, name, path)
            elif re.fullmatch(_ENTRY, name) is None:
                self.expected('a name of letters, digits and "_.:@+-"', key, path)
            values[name] = self.value(kind, value, inner)
        return _BAD if _BAD in values.values() else values

    def fields(self, specs: Mapping[str, _Spec], tree: Tree, path: str) -> dict[str, object] | None:
        """Return the values given in a mapping with fixed keys, None if anything is wrong with it."""
        if not isinstance(tree, Map):
            self.expected("a mapping", tree, path)
            return None
        dot = f"{path}." if path else ""
        values = {}
        for key, spec in specs.items():
            value = tree.get(key)
            if value is not None:
                values[spec.name] = self.value(spec.kind, value, dot + key)
            elif spec.required:
                self.say(tree, path, f'missing "{key}"')
                values[spec.name] = _BAD
        for name, (place, _) in tree.entries.items():
            if name not in specs:
                self.say(place, dot + _shown(name), "unknown key" + self.similar(name, specs))
                values[name] = _BAD
        return None if _BAD in values.values() else values

    # Sections with a form of their own

    def config(self) -> Config | None:
        """Read the whole file and what must agree across it; None if there were problems."""
        specs = {"defaults": _Spec("defaults", _Defaults), **_specs(Config)}
        values = self.fields(specs, self.top, "")
        self.share_names()
        self.share_fates()
        if values is None or self.problems:
            return None
        values.pop("defaults", None)
        config = self.alone(_make(Config, values))
        if self.problems:
            return None
        control = self.top.get("control")
        if not isinstance(control, Map) or "path" not in control.entries:
            path = config.run_dir / "hactl.sock"
            config = structs.replace(config, control=structs.replace(config.control, path=path))
        return config

    def alone(self, config: Config) -> Config:
        """Fill in what an agent's file leaves out; say what does not go with agents."""
        sources = {n for n, c in config.checks.items() if isinstance(c.option, FromAgent)}
        asked = any(node.agent for node in config.nodes.values())
        checks_ = self.top.get("checks")
        for name in sorted(sources) if config.node is not None or not asked else ():
            assert isinstance(checks_, Map)
            text = "no node has an agent; say `agent: true` there"
            if config.node is not None:
                text = f"this is the agent of {config.node} itself; give it a type"
            self.say(checks_.entries[name][1], f"checks.{_shown(name)}.from", text)
        if config.node is None:
            return config
        place = self.top.entries["node"][1]
        if config.services:
            self.say(place, "node", "an agent has no services; leave out the one or the other")
        if not config.checks:
            self.say(place, "node", "an agent needs checks")
        if importlib.util.find_spec("aiohttp") is None:
            self.say(place, "node", "agents need aiohttp: pip install 'hactl[web]'")
        own = {config.node: config.nodes.get(config.node, Node(("127.0.0.1",)))}
        watch = {**config.watch, config.node: tuple(config.checks)}
        return structs.replace(config, nodes=config.nodes | own, watch=watch)

    def share_names(self) -> None:
        """Nodes and services share one space of names, so that a command need not say which."""
        nodes, services = self.top.get("nodes"), self.top.get("services")
        if isinstance(services, Map) and "all" in services.entries:
            text = "a freeze of all means every service; take another name"
            self.say(services.entries["all"][0], "services.all", text)
        if not isinstance(nodes, Map) or not isinstance(services, Map):
            return
        for name in nodes.entries.keys() & services.entries.keys():
            node, service = nodes.entries[name][0], services.entries[name][0]
            text = f'the name of a {{}} too, line {{}}; "{_shown(name)}" can mean one of them only'
            if (node.line, node.column) < (service.line, service.column):
                self.say(service, f"services.{_shown(name)}", text.format("node", node.line))
            else:
                self.say(node, f"nodes.{_shown(name)}", text.format("service", service.line))

    def share_fates(self) -> None:
        """Say which checks are declared to be their own cause."""
        tree = self.top.get("shared_fate")
        for name, (_, effects) in tree.entries.items() if isinstance(tree, Map) else ():
            for item in effects.items if isinstance(effects, List) else ():
                if isinstance(item, Leaf) and item.text == name:
                    self.say(item, f"shared_fate.{_shown(name)}", "it cannot be its own cause")

    def default(self, tree: Map, path: str) -> object:
        """Read the defaults for their errors alone; `under` brings them to where they count."""
        service = {k: spec._replace(required=False) for k, spec in _specs(Service).items()}
        specs = {"check": _common(), "service": service}
        for name, (key, value) in tree.entries.items():
            if name in specs:
                self.fields(specs[name], value, f"{path}.{name}")
            else:
                hint = self.similar(name, specs)
                self.say(key, f"{path}.{_shown(name)}", "unknown key" + hint)
        return None

    def under(self, section: str, tree: Map) -> Map:
        """Return *tree* with the defaults of its section under its own keys."""
        defaults = self.defaults.get(section)
        if not isinstance(defaults, Map):
            return tree
        return structs.replace(tree, entries=defaults.entries | tree.entries)

    def node(self, tree: Map, path: str) -> object:
        """Read a node; its address may be one or several."""
        address = tree.get("address")
        if isinstance(address, Leaf):
            key = tree.entries["address"][0]
            address = List(address.line, address.column, (address,))
            tree = structs.replace(tree, entries=tree.entries | {"address": (key, address)})
        values = self.fields(_specs(Node), tree, path)
        if values is None:
            return _BAD
        node = _make(Node, values)
        assert isinstance(address, List)
        if not node.addresses:
            self.expected("at least one address", address, f"{path}.address")
        for place, text in zip(address.items, node.addresses, strict=True):
            self.own(place, text, path)
        return node

    def own(self, place: Tree, address: str, path: str) -> None:
        """Note whose address it is; a result could not say which of two nodes it speaks of."""
        try:
            same = str(ipaddress.ip_address(address))
        except ValueError:
            same = address.lower()
        if same in self.owners:
            self.say(place, f"{path}.address", f"{address} is taken by {self.owners[same]}")
        else:
            self.owners[same] = f"{path}, line {place.line}"

    def check(self, tree: Map, path: str) -> object:
        """Read the common keys and, beside them, the options of the type."""
        own, tree = tree, self.under("check", tree)
        option = FromAgent if "from" in tree.entries else self.option(tree, path)
        common = _common()
        if option is None:  # which keys belong to the type is not known
            known = {key: entry for key, entry in tree.entries.items() if key in common}
            self.fields(common, structs.replace(tree, entries=known), path)
            return _BAD
        options = _specs(option) if option is not FromAgent else _FROM
        values = self.fields({"type": _Spec("type", str)} | common | options, tree, path)
        if values is None or (option is FromAgent and "type" in tree.entries
                              and self.option(tree, path) is None):  # fmt: skip
            return _BAD
        if option is FromAgent:
            values["kind"] = values.get("type")
            options = _specs(option)
        for key in ("type", "from"):
            values.pop(key, None)
        made = _make(
            option, {s.name: values.pop(s.name) for s in options.values() if s.name in values}
        )
        for name, text in made.problems():
            self.say(tree.get(name) or tree, f"{path}.{name}", text)
        times = dict(zip(_TIMES, map(Duration, structs.astuple(made.times())), strict=True))
        check = self.timed(_make(Check, {"option": made} | times | values), tree, path)
        if isinstance(made, checks.Spoken):
            return check
        for key in ("hedge", "tripwire"):
            given = own.get(key)
            if given is not None and getattr(check, key):
                tag = made.__struct_config__.tag
                text = f"type {tag} has none; it is no conversation over TCP"
                if option is FromAgent:
                    text = "what comes from an agent has none"
                self.say(given, f"{path}.{key}", text)
        return structs.replace(check, hedge=Duration(0), tripwire=False)

    def timed(self, check: Check, tree: Map, path: str) -> Check:
        """Fit the type's defaults to the interval; say which given times do not fit it."""
        for key in _TIMES[1:]:
            seconds: Duration = getattr(check, key)
            given = tree.get(key)
            if seconds > check.interval and given is None:
                check = structs.replace(check, **{key: check.interval})
            elif seconds > check.interval and given is not None:
                text = f"{seconds} is longer than the interval, {check.interval}"
                self.say(given, f"{path}.{key}", text)
        window: Duration | None = getattr(check.option, "window", None)
        if window is not None and check.interval > window:
            text = f"{check.interval} is longer than the window, {window}; some would go uncounted"
            self.say(tree.get("interval") or tree.get("window") or tree, f"{path}.interval", text)
        return check

    def limit(self, tree: Map, path: str) -> object:
        """Read the thresholds of a measure; they must stand in order, from good to bad."""
        values = self.fields(_specs(Limit), tree, path)
        if values is None:
            return _BAD
        limit = _make(Limit, values)
        given = [b for b in (limit.clear, limit.warn, limit.fail) if b is not None]
        if limit.warn is None and limit.fail is None:
            self.say(tree, path, "has neither warn nor fail; name a threshold")
        elif given != sorted(given, reverse=limit.low):
            order, hint = (">=", "") if limit.low else ("<=", "; `low: true` turns it")
            self.say(tree, path, f"expected clear {order} warn {order} fail{hint}")
        return limit

    def option(self, tree: Map, path: str) -> type[checks.Option] | None:
        """Return the option class that `type` names."""
        kind = tree.get("type")
        names = checks.names()
        if kind is None:
            self.say(tree, path, f'missing "type"; there are {", ".join(names)}')
            return None
        value = self.scalar(_SCALARS[str], kind, f"{path}.type")
        if value is _BAD:
            return None
        try:
            return checks.load(str(value))
        except KeyError:
            hint = self.similar(str(value), names) or f"; there are {', '.join(names)}"
            self.say(kind, f"{path}.type", f'no check type "{_shown(str(value))}"{hint}')
            return None

    def service(self, tree: Map, path: str) -> object:
        """Read a service; it must ask for something, and say once what it wants of a check."""
        tree = self.under("service", tree)
        values = self.fields(_specs(Service), tree, path)
        if values is None:
            return _BAD
        mode = self.top.get("mode")
        service = _make(Service, {"mode": mode.text if isinstance(mode, Leaf) else ""} | values)
        if not (service.require or service.prefer or service.watch):
            self.say(tree, path, "requires, prefers and watches nothing; name a check")
        roles = {"required": service.require, "preferred": service.prefer}
        for key, names in (("prefer", service.prefer), ("watch", service.watch)):
            given = tree.get(key)
            for place, name in (
                zip(given.items, names, strict=True) if isinstance(given, List) else ()
            ):
                role = next(
                    (r for r, known in roles.items() if name in known and r[:6] != key), None
                )
                if role is not None:
                    self.say(place, f"{path}.{key}", f'"{name}" is {role} already')
        return service


# What others call


def load(path: Path) -> Config:
    """Read the file at *path*.  Raise ConfigError with every error in it."""
    return parse(text_of(path, "configuration"), str(path))


def text_of(path: Path, what: str) -> str:
    """Return the text of the file at *path*, which should be *what*.  Raise ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, 0, "", error.strerror or str(error))]) from None
    if len(data) > FILE_LIMIT:
        text = f"longer than {Size(FILE_LIMIT)}; this is no {what}"
        raise ConfigError([Problem(str(path), 0, 0, "", text)])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        text = f"not UTF-8 (byte 0x{data[error.start]:02x})"
        place = _end(data[: error.start].decode())
        raise ConfigError([Problem(str(path), *place, "", text)]) from None


def _end(text: str) -> tuple[int, int]:
    """Return line and column of what follows *text*."""
    return text.count("\n") + 1, len(text) - text.rfind("\n")


def parse(text: str, name: str) -> Config:
    """Read the text of a file; *name* stands in its errors.

    Raise ConfigError with all of them; what the checks read from their files is forgotten then.
    """
    return configured(*mapping(text, name, "mode: observe"), name)


def mapping(text: str, name: str, least: str) -> tuple[Map, list[Problem]]:
    """Return the mapping that a YAML text is, with its places, and what is wrong with it so far.

    Raise ConfigError if it is none; *least* is what an empty text lacks.
    """
    text = text.removeprefix("\ufeff")
    unseen = _UNSEEN.search(text)
    if unseen is not None:
        what = f"a character that is not text (U+{ord(unseen[0]):04X})"
        raise ConfigError([Problem(name, *_end(text[: unseen.start()]), "", what)])
    top, problems = _compose(text, name)
    if top is None or (isinstance(top, Leaf) and top.kind == "null"):
        raise ConfigError(
            [Problem(name, 1, 1, "", f'the file is empty; it needs at least "{least}"')]
        )
    if not isinstance(top, Map):
        problems.append(
            Problem(name, top.line, top.column, "", f"expected a mapping (got {_got(top)})")
        )
        raise ConfigError(problems)
    return top, problems


def configured(top: Map, problems: list[Problem], name: str) -> Config:
    """Read a configuration.  Raise ConfigError with all that is wrong, *problems* included."""
    walker = _Walker(name, top, problems)
    with checks.all_or_nothing():
        config = walker.config()
        if config is None or walker.problems:
            raise ConfigError(walker.problems)
    return config


def read(kind: type[_S], top: Map, problems: list[Problem], name: str) -> _S:
    """Read a Struct of scalars, tuples and dicts in the same way, for another kind of file."""
    walker = _Walker(name, structs.replace(top, entries={}), problems)
    values = walker.fields(_specs(kind), top, "")
    if values is None or walker.problems:
        raise ConfigError(walker.problems)
    return _make(kind, values)


def is_name(text: str) -> bool:
    """Tell whether a node, check or service may be called so."""
    return re.fullmatch(_ENTRY, text) is not None


def is_address(text: str) -> bool:
    """Tell whether *text* is an IP address or a host name."""
    try:
        _address(text)
    except ValueError:
        return False
    return True


def endpoint(text: str) -> tuple[str, int]:
    """Take `ADDRESS:PORT` apart."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(place: str) -> bool:
    """Tell whether what listens at `ADDRESS:PORT` is heard on this machine alone."""
    return ipaddress.ip_address(endpoint(place)[0]).is_loopback


def show(config: Config) -> str:
    """Return the effective configuration as YAML; reading it again gives an equal one."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: object) -> object:
    """Return *value* as the file would hold it."""
    if isinstance(value, Check):
        option = {"type": value.option.__struct_config__.tag} | _keys(value.option)
        if isinstance(value.option, FromAgent):
            option = {"from": "agent"}
            if value.option.kind is not None:
                option["type"] = value.option.kind
        rest = _keys(value)
        del rest["option"]
        return option | rest
    if isinstance(value, Struct):
        return _keys(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Pace | Command):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Duration | Size | Share | FileMode | Path | Secret):
        return str(value)
    return value


def _keys(value: Struct) -> dict[str, object]:
    return {key: _plain(getattr(value, s.name)) for key, s in _specs(type(value)).items()}


def schema() -> dict[str, object]:
    """Return a JSON Schema of the file, for editors; what names refer to only `load` can tell."""
    keys = {"defaults": _Spec("defaults", _Defaults), **_specs(Config)}
    defaults = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"check": _object(_common()), "service": _object(_specs(Service))},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hactl.yaml",
        **_object(keys, defaults=defaults),
    }


def _object(specs: Mapping[str, _Spec], **more: object) -> dict[str, object]:
    """Return the schema of a mapping with fixed keys; *more* replaces some of their schemas."""
    properties = {}
    for key, spec in specs.items():
        known = {} if spec.default is None else {"default": _plain(spec.default)}
        properties[key] = more.get(key) or _schema(spec.kind) | known
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [key for key, spec in specs.items() if spec.required],
        "properties": properties,
    }


def _check_schema(name: str) -> dict[str, object]:
    """Return the schema of a check of this type."""
    option = checks.load(name)
    specs = {"type": _Spec("type", str, required=True)} | _common(option) | _specs(option)
    return _object(specs, type={"const": name})


def _from_schema() -> dict[str, object]:
    """Return the schema of a check that a node's own hactld makes."""
    specs = {"from": _FROM["from"], "type": _Spec("type", str)} | _common(FromAgent)
    return _object(specs, type={"enum": checks.names()})


def _schema(kind: object) -> dict[str, object]:
    """Return the schema of a type, as `_Walker.value` reads it."""
    if kind is Check:
        return {"oneOf": [*(_check_schema(name) for name in checks.names()), _from_schema()]}
    members = _members(kind)
    if len(members) > 1:
        return {"anyOf": [_schema(member) for member in members]}
    if kind is type(None):
        return {"type": "null"}
    scalar = _scalar(kind)
    if scalar is not None:
        return dict(scalar.schema)
    args = get_args(kind)
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _schema(args[0])}
    if get_origin(kind) is dict:
        keys: dict[str, object] = (
            {} if _section(args[0]) else {"propertyNames": {"pattern": f"^{_ENTRY}$"}}
        )
        return {"type": "object", "additionalProperties": _schema(args[1])} | keys
    assert isinstance(kind, type)
    assert issubclass(kind, Struct)
    if kind is not Node:
        return _object(_specs(kind))
    address = _schema(Address)
    several = {"type": "array", "items": address, "minItems": 1}
    return {"anyOf": [address, _object(_specs(Node), address={"anyOf": [address, several]})]}
