"""relayctl: ask relayctl(8), and understand what it prints.

One call, one deadline, no retry: a call that was killed may still be carried out by
relayd later, so its outcome is *unknown* and the next `show` tells.  A dump is believed whole or
not at all: hactl acts on host ids, and a row that was cut or mixed up would switch another host.

Facts from relayctl.c up to 1.63 and from recordings of a running relayd: columns are separated by
TABs and padded with blanks, names and statuses may hold blanks; exit codes are 0 and 1; `command
succeeded` and `command failed` are on stdout, every other complaint on stderr.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct

from hactl.core.model import Host, HostStatus, Kind, Observation, Service, Table
from hactl.relayd.command import LIMIT, CommandError, Ended, Failure, Programs

ANSWERS = 4  # to `show summary`, until two agree
HEADER = ["Id", "Type", "Name", "Avlblty", "Status"]
HEADS = ("redirect", "relay", "router")
STATUSES = {
    "redirect": re.compile(r"active( \(using backup table\))?|down|disabled"),
    "relay": re.compile(r"active|disabled"),
    "router": re.compile(r"active|disabled"),
    # old releases write "hosts up"
    "table": re.compile(r"active \([0-9]{1,9} hosts( up)?\)|empty|disabled"),
    "host": re.compile(r"up|down|unknown|disabled"),
}
_ID = re.compile(r"[0-9]{1,10}")
_CHILD = re.compile(r"(.+) parent ([0-9]{1,10})")
_AVAILABILITY = re.compile(r"([0-9]{1,3}\.[0-9]{2})%")
_CHECKS = re.compile(
    r"total: ([0-9]{1,20})/([0-9]{1,20}) checks(?:, ([0-9]{1,10}) retries)?(?:, error: (.+))?"
)
_SESSIONS = re.compile(r"total: [0-9]+ sessions|(last|average): [0-9]+/[0-9]+s [0-9/hd ]+ sessions")
_ROUTES = re.compile(r"(rtable|rtlabel|route): .+")
_GONE = re.compile(r"connect: .*: (No such file or directory|Connection refused)")
_DENIED = re.compile(r".*: (Permission denied|Operation not permitted)")


class Nonsense(ValueError):  # noqa: N818 - it says what the output is
    """Output that is no complete dump: the line (from 1) and what is wrong with it."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line
        self.what = what


class Checks(Struct, frozen=True):
    """A host's count line: checks that found it *up* of *total*, *retries* left, last error.

    Counts fall only when relayd was loaded anew or the host was disabled.
    """

    up: int
    total: int
    retries: int = 0
    error: str = ""


class Hosts(Struct, frozen=True):
    """What `show hosts` has: tables without their services, and the checks made by host id.

    A host that had no check yet, or is disabled, has no entry in *checks*.
    """

    tables: tuple[Table, ...]
    checks: Mapping[int, Checks]


class Answer(StrEnum):
    """How a call ended.  Only UNKNOWN and NONSENSE leave open whether relayd did it."""

    DONE = "done"
    REFUSED = "refused"  # no such id, or the host is a child
    GONE = "gone"  # nobody listens on the socket
    DENIED = "denied"  # the socket is not ours to open
    NOT_RUN = "not run"  # relayctl is missing or could not be started
    UNKNOWN = "unknown"  # no answer in time, or relayd went away in mid-call
    NONSENSE = "nonsense"  # an answer that relayctl never gives


class Outcome(Struct, frozen=True):
    """An answer with its line for people: `relayctl: host disable 3: command failed`."""

    answer: Answer
    text: str


class RelayctlError(Exception):
    """A `show` that showed nothing usable; *outcome* says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.text)
        self.outcome = outcome


# What it prints


class _Row(NamedTuple):
    line: int
    type: str
    id: int
    name: str
    availability: float | None
    status: str
    notes: list[re.Match[str]]  # the indented lines below it


def parse(text: str, at: float, *, whole: bool = False) -> Observation:
    """Read `show summary`, `show redirects` or `show relays`, asked at the time *at*.

    A header alone is right: relayd has just started.  Routers are left out.  *whole*: it is the
    summary, so a redirect has a table.  Raise Nonsense for all that is no complete dump; a cut
    between two rows shows if a table then lacks a host that its status counts.
    """
    rows = _rows(text)
    whole = whole or any(row.type == "table" for row in rows)
    services: dict[tuple[str, int], Service] = {}
    tables: dict[int, Table] = {}
    owners: dict[int, int] = {}
    for head, below in _groups(rows, HEADS):
        mine = _tables(below, tables, owners)
        if head.type == "router":
            continue
        if head.type == "redirect" and whole and not mine and head.status != "disabled":
            raise Nonsense(head.line, f"redirect {head.name} has no table")
        service = Service(Kind(head.type), head.id, head.name, head.status, tuple(mine))
        if services.setdefault((head.type, head.id), service) is not service:
            raise Nonsense(head.line, f"{head.type} {head.id} is shown twice")
    return Observation(at, tuple(services.values()))


def parse_hosts(text: str) -> Hosts:
    """Read `show hosts`.  Raise Nonsense for all that is no complete dump."""
    rows = _rows(text)
    tables: dict[int, Table] = {}
    _tables(rows, tables, {})
    checks = {
        row.id: Checks(int(up), int(total), int(retries or 0), error or "")
        for row in rows
        for up, total, retries, error in (note.groups() for note in row.notes)
    }
    return Hosts(tuple(tables.values()), checks)


def _rows(text: str) -> list[_Row]:
    """Split a dump into rows, each right in itself."""
    if len(text) > LIMIT:
        raise Nonsense(1, f"more than {LIMIT >> 20} MiB")
    lines = text.split("\n")
    if [cell.strip(" ") for cell in lines[0].split("\t")] != HEADER:
        raise Nonsense(1, "no header")
    if lines.pop() != "":
        raise Nonsense(len(lines) + 1, "the last line is cut")
    rows: list[_Row] = []
    for number, line in enumerate(lines[1:], 2):
        cells = [cell.strip(" ") for cell in line.split("\t")]
        if not "".join(cells).isprintable():
            raise Nonsense(number, "a control character")
        if len(cells) == 3 and cells[:2] == ["", ""] and rows:
            _note(rows[-1], number, cells[2])
        elif len(cells) == 5:
            rows.append(_row(number, *cells))
        else:
            raise Nonsense(number, f"{len(cells)} columns where a row has 5")
    return rows


def _row(line: int, id: str, type: str, name: str, availability: str, status: str) -> _Row:
    if type not in STATUSES:
        raise Nonsense(line, f"unknown type {type!r}")
    if not _ID.fullmatch(id):
        raise Nonsense(line, f"{id!r} is no id")
    if not name:
        raise Nonsense(line, f"{type} {id} has no name")
    if not STATUSES[type].fullmatch(status):
        raise Nonsense(line, f"{type} {name} has unknown status {status!r}")
    share = _AVAILABILITY.fullmatch(availability)
    if availability and (share is None or type != "host" or float(share[1]) > 100):
        raise Nonsense(line, f"{type} {name} has availability {availability!r}")
    return _Row(line, type, int(id), name, float(share[1]) if share else None, status, [])


def _note(row: _Row, line: int, note: str) -> None:
    form = {"host": _CHECKS, "redirect": _SESSIONS, "relay": _SESSIONS, "router": _ROUTES}
    match = form[row.type].fullmatch(note) if row.type in form else None
    if match is None or (row.type == "host" and (row.notes or int(match[1]) > int(match[2]))):
        raise Nonsense(line, f"{row.type} {row.name} is followed by {note!r}")
    row.notes.append(match)


def _groups(rows: Sequence[_Row], heads: Sequence[str]) -> Iterator[tuple[_Row, Sequence[_Row]]]:
    """Yield each row of a type in *heads* with the rows below it."""
    if rows and rows[0].type not in heads:
        raise Nonsense(rows[0].line, f"{rows[0].type} {rows[0].name} comes before any {heads[0]}")
    starts = [n for n, row in enumerate(rows) if row.type in heads]
    for start, end in pairwise([*starts, len(rows)]):
        yield rows[start], rows[start + 1 : end]


def _tables(rows: Sequence[_Row], seen: dict[int, Table], owners: dict[int, int]) -> list[Table]:
    """Make tables of rows; add them to *seen*, and the table id of each host to *owners*.

    A table that two services share is shown under both, and twice the same.
    """
    tables = []
    for head, below in _groups(rows, ("table",)):
        hosts = tuple(_host(row) for row in below)
        for row in below:
            if owners.setdefault(row.id, head.id) != head.id:
                raise Nonsense(row.line, f"host {row.id} is in tables {owners[row.id]}, {head.id}")
        if len({host.id for host in hosts}) < len(hosts):
            raise Nonsense(head.line, f"table {head.name} shows a host twice")
        up = sum(host.status is HostStatus.UP for host in hosts)
        if head.status != "disabled" and (not hosts or up != _counted(head.status)):
            raise Nonsense(head.line, f"table {head.name} is {head.status} and shows {up} up")
        table = Table(head.id, head.name, head.status, hosts)
        if seen.setdefault(head.id, table) != table:
            raise Nonsense(head.line, f"table {head.id} is shown twice and differs")
        tables.append(table)
    return tables


def _counted(status: str) -> int:
    """Take N from a table's `active (N hosts)`; `empty` has none."""
    return int(status.split()[1].strip("(")) if status.startswith("active") else 0


def _host(row: _Row) -> Host:
    if row.type != "host":
        raise Nonsense(row.line, f"{row.type} {row.name} among the hosts of a table")
    child = _CHILD.fullmatch(row.name)
    name, parent = (child[1], int(child[2])) if child else (row.name, None)
    return Host(row.id, name, HostStatus(row.status), parent, row.availability)


# How a call ends


def judge(words: str, code: int, out: str, err: str) -> Outcome:
    """Judge exit code and output of a call that ended by itself; *words* are its arguments."""
    if code == 0 and out.strip() == "command succeeded":
        return Outcome(Answer.DONE, f"relayctl: {words}: command succeeded")
    if code == 1 and out.strip() == "command failed":
        return Outcome(Answer.REFUSED, f"relayctl: {words}: command failed")
    for line in err.splitlines() if code == 1 else ():
        complaint = line.removeprefix("relayctl: ")
        if _GONE.fullmatch(complaint):
            return Outcome(Answer.GONE, f"relayctl: {words}: {complaint}")
        if _DENIED.fullmatch(complaint):
            return Outcome(Answer.DENIED, f"relayctl: {words}: {complaint}")
        if complaint == "pipe closed" and words.startswith("show "):
            return Outcome(Answer.GONE, f"relayctl: {words}: pipe closed")
        if complaint == "pipe closed":
            return Outcome(Answer.UNKNOWN, f"relayctl: {words}: pipe closed, outcome unknown")
    said = ascii((err.strip() or out.strip())[:200])
    return Outcome(Answer.NONSENSE, f"relayctl: {words}: unexpected answer, exit {code}: {said}")


def frame(seen: Observation) -> tuple[object, ...]:
    """Return all of a dump but who is up and who is disabled."""
    return tuple(
        (s.kind, s.id, s.name, *((t.id, t.name, *((h.id, h.name, h.parent) for h in t.hosts))))
        for s in seen.services
        for t in s.tables or (Table(0, "", ""),)
    )


class Agreement:
    """Believes ids, and who is disabled, once two answers in a row agree on them.

    A dump can be whole and wrong, and a wrong id switches another host.  What a command of ours
    has changed is expected, so it costs a second question only when somebody else changed something.
    """

    def __init__(self) -> None:
        self._seen: tuple[Service, ...] | None = None
        self._frame: tuple[object, ...] = ()
        self._off: frozenset[int] = frozenset()
        self._parents: dict[int, int] = {}

    def agrees(self, seen: Observation) -> bool:
        """Tell whether *seen* is what the answer before it said."""
        if seen.services is self._seen:
            return True
        hosts = [h for s in seen.services for t in s.tables for h in t.hosts]
        before = None if self._seen is None else (self._frame, self._off)
        self._seen, self._frame = seen.services, frame(seen)
        self._off = frozenset(h.id for h in hosts if h.status is HostStatus.DISABLED)
        self._parents = {h.id: h.parent for h in hosts if h.parent is not None}
        return before == (self._frame, self._off)

    def forget(self) -> None:
        """Start anew: an answer that was none came between."""
        self._seen = None

    def switched(self, words: Sequence[str]) -> None:
        """Expect what `host disable ID` or `host enable ID` changes, for its children, too."""
        if words[0] == "host":
            id = int(words[2])
            both = {id, *(child for child, parent in self._parents.items() if parent == id)}
            self._off = self._off | both if words[1] == "disable" else self._off - both


class Relayctl:
    """relayctl, one of *programs*.  Calls may run side by side: relayd serves many clients."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._last: tuple[str, Observation] | None = None  # most dumps are the one before again
        self._last_hosts: tuple[str, Hosts] | None = None
        self._agreement = Agreement()

    async def show(self) -> Observation:
        """Ask for `show summary`, again if it is news.

        Raise RelayctlError if nothing that can be believed comes.
        """
        for _ in range(ANSWERS):
            try:
                seen = await self._summary()
            except RelayctlError:
                self._agreement.forget()
                raise
            if self._agreement.agrees(seen):
                return seen
        raise _error(Answer.NONSENSE, "show summary", "its answers contradict each other")

    async def _summary(self) -> Observation:
        at = asyncio.get_running_loop().time()
        dump = await self._dump("show summary")
        if self._last is not None and self._last[0] == dump:
            return Observation(at, self._last[1].services)
        try:
            observation = parse(dump, at, whole=True)
        except Nonsense as error:
            raise _error(Answer.NONSENSE, "show summary", str(error)) from error
        self._last = dump, observation
        return observation

    async def show_hosts(self) -> Hosts:
        """Ask for `show hosts`, which has the counts of checks.  Raise RelayctlError like show."""
        dump = await self._dump("show hosts")
        if self._last_hosts is None or self._last_hosts[0] != dump:
            try:
                self._last_hosts = dump, parse_hosts(dump)
            except Nonsense as error:
                raise _error(Answer.NONSENSE, "show hosts", str(error)) from error
        return self._last_hosts[1]

    async def run(self, *words: str) -> Outcome:
        """Run `host disable ID`, `host enable ID` or `poll`, which is done once it is queued."""
        try:
            ended = await self._call(words)
        except RelayctlError as error:
            return error.outcome
        outcome = judge(" ".join(words), *ended)
        if outcome.answer is Answer.DONE:
            self._agreement.switched(words)
        return outcome

    async def reload(self) -> None:
        """Have relayd load its file again: no answer, and never an error, whatever becomes of it.

        Raise RelayctlError if relayd could not be told.
        """
        ended = await self._call(("reload",))
        if ended != Ended(0, "", ""):
            raise RelayctlError(judge("reload", *ended))

    async def _dump(self, words: str) -> str:
        ended = await self._call(words.split())
        if ended.code != 0:
            raise RelayctlError(judge(words, *ended))
        return ended.out

    async def _call(self, words: Sequence[str]) -> Ended:
        try:
            return await self._programs.run("relayctl", words)
        except CommandError as error:
            raise _error(_ANSWERS[error.failure], " ".join(words), str(error)) from error


_ANSWERS = {
    Failure.NOT_RUN: Answer.NOT_RUN,
    Failure.NO_END: Answer.UNKNOWN,
    Failure.TOO_MUCH: Answer.NONSENSE,
}


def _error(answer: Answer, words: str, what: str) -> RelayctlError:
    return RelayctlError(Outcome(answer, f"relayctl: {words}: {what}"))
