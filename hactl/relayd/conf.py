"""relayd.conf: read what relayd reads, as far as it matters to hactl.

Tables, hosts, checks, intervals and listeners are read; protocols and whatever else is unknown
is skipped, for relayd alone says what it accepts.  An error is reported where relayd would stop
too, or where hactl would otherwise see another configuration than relayd does.

Facts from parse.y up to 1.258.  The text is read character by character, as relayd's own lexer
does: macros expand in the middle of a word, a backslash joins lines even in a comment.
Ids are counted as relayd counts them at each load: hosts and tables in the order in which
`forward to` lines use them.
"""

from __future__ import annotations

import re
import socket
import string
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import Kind

INTERVAL = 10.0  # seconds, relayd's default
TIMEOUT = 0.2  # seconds, relayd's default
LIMIT = 1 << 20  # characters of all files and expanded macros
DEPTH = 16  # files open at a time: a file that includes itself


class Listen(Struct, frozen=True):
    """A `listen on`: *address* as configured; a range of ports goes up to *last*."""

    address: str
    port: int
    last: int | None = None
    proto: str = "tcp"
    interface: str | None = None
    tls: bool = False


class Argument(Struct, frozen=True):
    """What a check was given: only what its kind takes is set.

    *path*: of a script, or of a URL; *send* is None for `nothing`; binary data stay in hex.
    """

    path: str = ""
    host: str = ""
    code: int | None = None
    digest: str = ""
    send: str | None = None
    expect: str = ""
    tls: bool = False


class ConfHost(Struct, frozen=True):
    """A host of one table; a child copies the state of the host with the id *parent*."""

    id: int
    name: str
    retry: int = 0
    parent: int | None = None


class ConfTable(Struct, frozen=True):
    """One use of a table: *shown* is what relayctl calls it (`mx0:25`); times in seconds.

    *check* is icmp, tcp, tls, http, https, send, binary, script or None; *line* is what the line
    says before and after check and timeout, `route to <mx0> port 25` and `interface em1`.
    """

    id: int
    name: str
    shown: str
    port: int
    check: str | None
    argument: Argument
    timeout: float
    interval: float
    mode: str
    key: str | None
    demote: str | None
    disabled: bool
    hosts: tuple[ConfHost, ...]
    line: tuple[str, str] = ("", "")


class ConfService(Struct, frozen=True):
    """A redirect with main and backup table, or a relay with one listener.

    *target* is where a relay goes that uses no table, unless it asks pf or keeps the destination.
    """

    kind: Kind
    id: int
    name: str
    listens: tuple[Listen, ...]
    tables: tuple[ConfTable, ...]
    sticky: bool = False
    disabled: bool = False
    target: tuple[str, int] | None = None


class RelaydConf(Struct, frozen=True):
    """What relayd.conf says; *services* in the order in which relayctl shows them."""

    interval: float
    timeout: float
    services: tuple[ConfService, ...]
    socket: str | None
    sources: tuple[str, ...]


class ConfError(ValueError):
    """Everything found wrong, each as `relayd.conf:7:12: what`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load(path: Path) -> str:
    """Return the text of one file, or a little more than is ever read.  Raise OSError."""
    if path.exists() and not path.is_file():
        raise OSError("not a file")
    with path.open("rb") as file:
        return file.read(LIMIT + 1).decode(errors="surrogateescape")


Load = Callable[[Path], str]


def read(path: Path, macros: Mapping[str, str] = {}, load: Load = load) -> RelaydConf:
    """Read the file and all it includes; *macros* are those given with `-D`, which win.

    *load* gets the text of each file; it raises OSError.  Raise ConfError for a file that cannot
    be read or understood.
    """
    try:
        text = load(path)
    except OSError as error:
        raise ConfError([f"{path}: {error.strerror or error}"]) from error
    return parse(text, str(path), macros, load)


def parse(text: str, name: str, macros: Mapping[str, str] = {}, load: Load = load) -> RelaydConf:
    """Read *text* as relayd.conf called *name*.  Raise ConfError with all that is wrong.

    relayd looks for a relative include in the directory it runs in, which nobody knows; here it
    is the directory of *name*.
    """
    return _Parser(text, name, macros, load).conf()


# Tokens


class Place(NamedTuple):
    """Where a token begins."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class _Type(Enum):
    WORD = auto()
    QUOTED = auto()
    NUMBER = auto()
    MARK = auto()  # one character of punctuation
    LINE = auto()  # the end of a line
    END = auto()
    BAD = auto()  # no token; already reported


class _Token(NamedTuple):
    type: _Type
    text: str
    place: Place

    def __str__(self) -> str:
        if self.type is _Type.LINE or self.type is _Type.END:
            return "the end of the " + self.type.name.lower().replace("end", "file")
        return f'"{self.text}"'

    def written(self) -> str:
        """Return the token as it may stand in relayd.conf."""
        if self.type is not _Type.QUOTED:
            return self.text
        return '"' + self.text.replace('"', '\\"') + '"'


class _Char(NamedTuple):
    char: str  # empty at the end of a file
    offset: int
    expanded: bool  # came out of a macro, so `$` is not special


_STARTS_WORD = frozenset(string.ascii_letters + string.digits + ":_")
_IN_WORD = frozenset(string.ascii_letters + string.digits + string.punctuation) - set("(){}<>!=#,/")
_IN_MACRO = frozenset(string.ascii_letters + string.digits + "_")
_ENDS_NUMBER = frozenset(string.whitespace + "),/}=") | {""}


class _File:
    """An open file: its text, how far it was read, and what was pushed back."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.next = 0
        self.back: list[_Char] = []
        self.ended = False
        self.lines = [0, *(n for n, char in enumerate(text, 1) if char == "\n")]

    def read(self) -> _Char:
        if self.back:
            return self.back.pop()
        if self.next == len(self.text):
            return _Char("", self.next, False)
        self.next += 1
        return _Char(self.text[self.next - 1], self.next - 1, False)

    def place(self, offset: int) -> Place:
        line = bisect_right(self.lines, offset)
        return Place(self.name, line, offset - self.lines[line - 1] + 1)


class _Lexer:
    """Makes tokens of a file and of those that are pushed on it."""

    def __init__(self, text: str, name: str, macros: Mapping[str, str]) -> None:
        self.fixed = dict(macros)
        self.macros = dict(macros)
        self.problems: list[str] = []
        self.sources: list[str] = []
        self.files: list[_File] = []
        self._left = LIMIT
        self.push(name, text)

    def push(self, name: str, text: str) -> None:
        """Read *text* now, and go on with the file at hand afterwards."""
        self.sources.append(name)
        self._spend(len(text))
        self.files.append(_File(name, text))

    def report(self, place: Place, what: str) -> None:
        text = f"{place}: {what}"
        self.problems.append("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))

    def token(self) -> _Token:
        while True:
            char = self._char()
            while char.char in (" ", "\t"):
                char = self._char()
            file = self.files[-1]
            place = file.place(char.offset)
            if char.char == "#":
                while (char := self._char()).char not in ("\n", ""):
                    pass
            elif char.char == "$" and not char.expanded:
                if not self._expand(char, place):
                    return _Token(_Type.BAD, "$", place)
                continue
            if char.char in ("'", '"'):
                return self._quoted(char.char, place)
            if char.char in _STARTS_WORD:
                return self._word(char, place)
            if char.char == "\n":
                return _Token(_Type.LINE, char.char, place)
            return _Token(_Type.MARK if char.char else _Type.END, char.char, place)

    def _char(self) -> _Char:
        """Take a character outside quotes: joins lines, and adds an end of line to each file."""
        file = self.files[-1]
        char = file.read()
        while char.char == "\\":
            char = file.read()
            if char.char != "\n":
                break
            char = file.read()
        while char.char == "":
            if not self.files[-1].ended:
                self.files[-1].ended = True
                return char._replace(char="\n")
            if len(self.files) == 1:
                break
            self.files.pop()
            char = self.files[-1].read()
        return char

    def _expand(self, dollar: _Char, place: Place) -> bool:
        """Push the value of the macro whose name follows.  Report one that is not defined."""
        name = ""
        while (char := self._char()).char in _IN_MACRO:
            name += char.char
        self.files[-1].back.append(char)
        if name not in self.macros:
            self.report(place, f'macro "{name}" is not defined')
            return False
        value = self.macros[name]
        self._spend(len(value))
        self.files[-1].back += [_Char(char, dollar.offset, True) for char in reversed(value)]
        return True

    def _quoted(self, quote: str, place: Place) -> _Token:
        file = self.files[-1]
        text: list[str] = []
        while (char := file.read().char) != quote:
            if char in ("", "\0"):
                self.report(place, "a quoted string has no end")
                return _Token(_Type.BAD, quote, place)
            if char == "\\":
                following = file.read()
                if following.char in (quote, " ", "\t"):
                    char = following.char
                else:  # kept, unless it joins lines
                    file.back.append(following)
                    char = "" if following.char == "\n" else char
            if char != "\n":
                text.append(char)
        return _Token(_Type.QUOTED, "".join(text), place)

    def _word(self, char: _Char, place: Place) -> _Token:
        text: list[str] = []
        while char.char in _IN_WORD:
            text.append(char.char)
            char = self._char()
        self.files[-1].back.append(char)
        word = "".join(text)
        number = word.isdigit() and char.char in _ENDS_NUMBER
        return _Token(_Type.NUMBER if number else _Type.WORD, word, place)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ConfError([*self.problems, f"{self.sources[0]}: more than {LIMIT >> 20} MiB"])


# Statements


class _BrokenError(Exception):
    """The statement at hand is wrong, which was reported."""


class _Definition(NamedTuple):
    """A table as defined; each `forward to` makes its own of it."""

    timeout: float
    timeout_place: Place
    disabled: bool
    hosts: tuple[ConfHost, ...]


class _Draft:
    """A redirect or relay while its options are read; *port* is for tables that name none."""

    def __init__(self, kind: Kind | None) -> None:
        self.kind = kind
        self.port: int | None = 0 if kind is None else None
        self.listens: list[Listen] = []
        self.tables: list[ConfTable] = []
        self.sticky = False
        self.disabled = False
        self.target: tuple[str, int] | None = None
        self.tableless = False


_DIGITS = re.compile(r"[0-9]{1,9}")
_SERVICE_WORDS = (
    "disable", "forward", "include", "listen", "match", "pftag", "protocol", "route", "session",
    "sticky-address", "transparent",
)  # fmt: skip
_TABLE_WORDS = ("port", "check", "timeout", "interval", "demote", "mode")
_KEYED_MODES = ("hash", "loadbalance", "source-hash")


class _Parser:
    """Reads statements, and keeps what the later ones refer to."""

    def __init__(self, text: str, name: str, macros: Mapping[str, str], load: Load) -> None:
        self._lexer = _Lexer(text, name, macros)
        self._load = load
        self._directory = Path(name).parent
        self._ahead: _Token | None = None
        self._line: list[str] = []  # what was taken of the option at hand
        self._interval = INTERVAL
        self._timeout = TIMEOUT
        self._socket: str | None = None
        self._definitions: dict[str, _Definition] = {}
        self._uses: dict[ConfTable, ConfTable] = {}
        self._timeout_place = self._peek().place
        self._timeouts: dict[Place, float] = {}
        self._tables = 0
        self._hosts = 0
        self._services: list[ConfService] = []
        self._statements: dict[str, Callable[[], None]] = {
            "interval": self._read_interval,
            "timeout": self._read_timeout,
            "socket": self._read_socket,
            "include": self._include,
            "table": self._table,
            "redirect": lambda: self._service(Kind.REDIRECT),
            "relay": lambda: self._service(Kind.RELAY),
            "router": self._router,
        }

    def conf(self) -> RelaydConf:
        while self._peek().type is not _Type.END:
            try:
                self._statement()
            except _BrokenError:
                self._skip()
        self._timeouts[self._timeout_place] = self._timeout
        for place, timeout in self._timeouts.items():
            if timeout >= self._interval:
                self._lexer.report(place, "timeout must be shorter than the interval")
        if not self._services and not self._lexer.problems:
            self._lexer.report(self._peek().place, "no redirect and no relay: nothing to do")
        if self._lexer.problems:
            raise ConfError(self._lexer.problems)
        shown = sorted(self._services, key=lambda service: service.kind is Kind.RELAY)
        services = tuple(
            replace(service, tables=tuple(map(self._settled, service.tables))) for service in shown
        )
        sources = tuple(dict.fromkeys(self._lexer.sources))
        return RelaydConf(self._interval, self._timeout, services, self._socket, sources)

    def _settled(self, table: ConfTable) -> ConfTable:
        """Give a table without its own interval the global one, which may come last."""
        return table if table.interval else replace(table, interval=self._interval)

    def _statement(self) -> None:
        first = self._take()
        if first.type is _Type.LINE:
            return
        if first.type not in (_Type.WORD, _Type.QUOTED):
            self._wrong("a statement", first)
        if self._mark("="):
            self._macro(first.text)
        elif first.type is _Type.WORD and first.text in self._statements:
            self._statements[first.text]()
        else:
            self._skip()

    def _macro(self, name: str) -> None:
        value = self._text("a value in quotes")
        self._lexer.macros[name] = self._lexer.fixed.get(name, value)

    def _read_interval(self) -> None:
        place = self._peek().place
        interval = self._number("seconds")
        if interval == 0:
            self._fail(place, "interval must be 1 or more")
        self._interval = float(interval)

    def _read_timeout(self) -> None:
        self._timeout_place = self._peek().place
        self._timeout = self._number("milliseconds") / 1000

    def _read_socket(self) -> None:
        self._socket = self._text("a path")

    def _include(self) -> None:
        """Go on with another file; nothing may have been read beyond its name."""
        place = self._peek().place
        path = self._directory / self._text("a path")
        if len(self._lexer.files) == DEPTH:
            self._lexer.report(place, f"more than {DEPTH} files include each other")
            raise ConfError(self._lexer.problems)
        try:
            text = self._load(path)
        except (OSError, ValueError) as error:
            what = getattr(error, "strerror", None) or error
            self._fail(place, f'cannot include "{path}": {what}')
        self._lexer.push(str(path), text)

    def _table(self) -> None:
        place = self._peek().place
        name = self._table_name()
        known = len(self._lexer.problems)
        disabled = False
        hosts: list[ConfHost] = []
        while not self._ends():
            if self._word("disable"):
                disabled = True
            else:
                self._block(f"table {name}", lambda: self._host(hosts))
        if name in self._definitions:
            self._fail(place, f"table {name} is defined twice")
        self._definitions[name] = _Definition(
            self._timeout, self._timeout_place, disabled, tuple(hosts)
        )
        if not hosts and len(self._lexer.problems) == known:
            self._fail(place, f"table {name} has no hosts")

    def _host(self, hosts: list[ConfHost]) -> None:
        if self._mark(","):
            return
        if self._word("include"):
            self._include()
            return
        host = ConfHost(0, self._text("a host"))
        while word := self._word("retry", "parent", "priority", "ip"):
            if word == "ip" and not self._word("ttl"):
                self._wrong('"ttl"')
            number = self._number("a number")
            if word == "retry":
                host = replace(host, retry=number)
            elif word == "parent":
                host = replace(host, parent=number)
        hosts.append(host)

    def _service(self, kind: Kind) -> None:
        place = self._peek().place
        name = self._text("a name")
        draft = _Draft(kind)
        known = len(self._lexer.problems)
        self._block(f"{kind} {name}", lambda: self._option(draft))
        if len(self._lexer.problems) > known:
            return
        before = [other.name for other in self._services if other.kind is kind]
        if name in before:
            self._fail(place, f"{kind} {name} is defined twice")
        if not draft.listens:
            self._fail(place, f"{kind} {name} listens nowhere")
        if not draft.tables and draft.target is None and not draft.tableless:
            self._fail(place, f"{kind} {name} forwards to nothing")
        each = [tuple(draft.listens)]
        if kind is Kind.RELAY:  # a relay with several listeners becomes several relays
            each = [(listen,) for listen in draft.listens]
        tables, target = tuple(draft.tables), draft.target
        for id, listens in enumerate(each, len(before) + 1):
            shown = name if listens is each[0] else f"{name}{id}:{listens[0].port}"
            self._services.append(
                ConfService(kind, id, shown, listens, tables, draft.sticky, draft.disabled, target)
            )

    def _router(self) -> None:
        """Read a router, because its tables and hosts have ids too."""
        draft = _Draft(None)
        self._text("a name")
        self._block("router", lambda: self._option(draft) if self._is("forward") else self._skip())

    def _option(self, draft: _Draft) -> None:
        if self._peek().type is not _Type.WORD:
            self._wrong("an option")
        self._line.clear()
        match word := self._take().text:
            case "listen":
                self._listen(draft)
            case "forward" | "route" | "transparent":
                if word == "transparent" and not self._word("forward"):
                    self._wrong('"forward"')
                self._forward(draft)
            case "disable":
                draft.disabled = True
            case "sticky-address":
                draft.sticky = True
            case "include":
                self._include()
            case _:
                self._skip()

    def _listen(self, draft: _Draft) -> None:
        if not self._word("on"):
            self._wrong('"on"')
        address = self._text("an address")
        proto = "tcp"
        if self._peek().type in (_Type.WORD, _Type.QUOTED) and not self._is("port"):
            proto = self._take().text
        if not self._word("port"):
            self._wrong('"port"')
        listen = Listen(address, *self._ports(), proto)
        while word := self._word("interface", "pflog", "tls", "ssl"):
            if word == "interface":
                listen = replace(listen, interface=self._text("an interface"))
            elif word != "pflog":
                listen = replace(listen, tls=True)
        draft.listens.append(listen)
        if draft.port is None:
            draft.port = listen.port

    def _forward(self, draft: _Draft) -> None:
        if self._word("with") and not self._word("tls", "ssl"):
            self._wrong('"tls"')
        if not self._word("to"):
            self._wrong('"to"')
        place = self._peek().place
        if draft.kind is not Kind.RELAY or self._is_mark("<"):
            table = self._use(draft)
            if draft.kind is Kind.REDIRECT:
                self._check_redirect(place, table, draft.tables)
            draft.tables.append(table)
        elif self._word("destination", "nat"):
            self._word("lookup")
            draft.tableless = True
        else:
            address = self._text("a table or an address")
            if not self._word("port"):
                self._wrong('"port"')
            draft.target = (address, self._single_port())

    def _check_redirect(self, place: Place, table: ConfTable, before: list[ConfTable]) -> None:
        if table.check is None:
            self._fail(place, f"table {table.name} needs a check")
        if len(before) == 2:
            self._fail(place, "a redirect has two tables at most, main and backup")
        if before and (before[0].port, before[0].mode) != (table.port, table.mode):
            self._fail(place, f"table {table.name} needs the port and mode of {before[0].name}")

    def _use(self, draft: _Draft) -> ConfTable:
        """Read `<NAME>` and its options, in any order; skip those that are unknown."""
        place = self._peek().place
        name = self._table_name()
        self._line[-3:] = ["".join(self._line[-3:])]
        definition = self._definitions.get(name)
        if definition is None:
            self._fail(place, f'table "{name}" is not defined')
        port = draft.port
        timeout = interval = 0.0
        mode, key, demote, check, argument = "roundrobin", None, None, None, Argument()
        at = len(self._line)
        while not self._ends() and not self._is(*_SERVICE_WORDS):
            start, option = len(self._line), self._take()
            if option.type is _Type.BAD:
                raise _BrokenError
            match option.text if option.type is _Type.WORD else None:
                case "port":
                    port = self._single_port()
                    at = len(self._line)
                case "check":
                    check, argument = self._check()
                    at = start
                    del self._line[at:]
                case "timeout":
                    timeout = self._number("milliseconds") / 1000
                    self._timeouts[option.place] = timeout
                    del self._line[start:]
                case "interval":
                    interval = float(self._number("seconds"))
                    if interval < self._interval or interval % self._interval:
                        self._fail(
                            option.place, f"interval must be a multiple of {self._interval:g}"
                        )
                case "demote":
                    demote = self._text("an interface group")
                case "mode":
                    mode, key = self._mode()
        if port is None:
            self._fail(place, f"table {name} has no port, and nothing listens before it")
        if not timeout:
            self._timeouts[definition.timeout_place] = definition.timeout
        table = ConfTable(
            0, name, f"{name}:{port}", port, check, argument, timeout or definition.timeout,
            interval, mode, key, demote, definition.disabled, (),
        )  # fmt: skip
        line = " ".join(self._line[:at]), " ".join(self._line[at:])
        # relayd compares before it fills in the timeout: only who spells it out shares a table
        if timeout and table in self._uses:
            return replace(self._uses[table], line=line)
        hosts = tuple(
            replace(host, id=self._hosts + n) for n, host in enumerate(definition.hosts, 1)
        )
        self._hosts += len(hosts)
        self._tables += 1
        used = replace(table, id=self._tables, hosts=hosts)
        self._uses.setdefault(table, used)
        return replace(used, line=line)

    def _mode(self) -> tuple[str, str | None]:
        mode = self._text("a mode")
        if mode not in _KEYED_MODES or self._ends() or self._is(*_TABLE_WORDS, *_SERVICE_WORDS):
            return mode, None
        return mode, self._text("a key")

    def _check(self) -> tuple[str, Argument]:
        kind = self._word("icmp", "tcp", "tls", "ssl", "http", "https", "send", "binary", "script")
        match kind:
            case None:
                self._wrong("a kind of check")
            case "script":
                return kind, Argument(path=self._text("a path"))
            case "http" | "https":
                return kind, self._check_http()
            case "send" | "binary":
                if kind == "binary" and not self._word("send"):
                    self._wrong('"send"')
                send = None if self._word("nothing") else self._text("data to send")
                if not self._word("expect"):
                    self._wrong('"expect"')
                expect = self._text("data to expect")
                return kind, Argument(send=send, expect=expect, tls=bool(self._word("tls", "ssl")))
            case "ssl":
                return "tls", Argument()
        return kind, Argument()

    def _check_http(self) -> Argument:
        path = self._text("a path")
        host = self._text("a host") if self._word("host") else ""
        if self._word("code"):
            return Argument(path, host, code=self._number("a code"))
        if not self._word("digest"):
            self._wrong('"code" or "digest"')
        return Argument(path, host, digest=self._text("a digest"))

    # What statements are made of

    def _block(self, what: str, option: Callable[[], None]) -> None:
        """Read `{`, options until `}`; one that is wrong is reported and skipped."""
        place = self._peek().place
        if not self._mark("{"):
            self._wrong('"{"')
        while not self._mark("}"):
            if self._peek().type is _Type.END:
                self._fail(place, f"{what} has no closing brace")
            if self._peek().type is _Type.LINE:
                self._take()
                continue
            try:
                option()
            except _BrokenError:
                self._skip()

    def _table_name(self) -> str:
        if not self._mark("<"):
            self._wrong("a table in <>")
        name = self._text("a table's name")
        if not self._mark(">"):
            self._wrong('">"')
        return name

    def _single_port(self) -> int:
        place = self._peek().place
        first, last = self._ports()
        if last is not None:
            self._fail(place, "expected one port (got a range)")
        return first

    def _ports(self) -> tuple[int, int | None]:
        token = self._peek()
        if token.type is not _Type.NUMBER:
            self._text("a port")
        else:
            self._take()
        first, colon, last = token.text.partition(":")
        return self._port(token, first), self._port(token, last) if colon else None

    def _port(self, token: _Token, text: str) -> int:
        port = int(text) if _DIGITS.fullmatch(text) else _service_port(text)
        if port is None or not 0 < port < 65536:
            self._fail(token.place, f"unknown port {token}")
        return port

    def _number(self, what: str) -> int:
        token = self._peek()
        if token.type is not _Type.NUMBER or not _DIGITS.fullmatch(token.text):
            self._wrong(what)
        return int(self._take().text)

    def _text(self, what: str) -> str:
        if self._peek().type not in (_Type.WORD, _Type.QUOTED):
            self._wrong(what)
        return self._take().text

    def _is(self, *words: str) -> bool:
        return self._peek().type is _Type.WORD and self._peek().text in words

    def _word(self, *words: str) -> str | None:
        return self._take().text if self._is(*words) else None

    def _is_mark(self, mark: str) -> bool:
        return self._peek().type is _Type.MARK and self._peek().text == mark

    def _mark(self, mark: str) -> bool:
        return self._is_mark(mark) and self._take() is not None

    def _ends(self) -> bool:
        return self._peek().type in (_Type.LINE, _Type.END) or self._is_mark("}")

    def _peek(self) -> _Token:
        if self._ahead is None:
            self._ahead = self._lexer.token()
        return self._ahead

    def _take(self) -> _Token:
        token = self._peek()
        self._ahead = None
        self._line.append(token.written())
        return token

    def _skip(self) -> None:
        """Skip the rest of the line, or of the block that it opens."""
        depth = 0
        while self._peek().type is not _Type.END:
            if depth == 0 and self._ends():
                return
            depth += self._is_mark("{") - self._is_mark("}")
            self._take()

    def _wrong(self, expected: str, token: _Token | None = None) -> NoReturn:
        token = token or self._peek()
        if token.type is _Type.BAD:
            raise _BrokenError
        self._fail(token.place, f"expected {expected} (got {token})")

    def _fail(self, place: Place, what: str) -> NoReturn:
        self._lexer.report(place, what)
        raise _BrokenError


def _service_port(name: str) -> int | None:
    """Look a name up in services(5), tcp first as relayd does."""
    for proto in ("tcp", "udp"):
        with suppress(OSError, ValueError):
            return socket.getservbyname(name, proto)
    return None
