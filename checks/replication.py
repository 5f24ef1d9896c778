"""replication: a replica runs, knows how far it is behind, and has the same data.

What it cannot know it does not claim: with its source dead the lag is unknown, and the survivor is
well.  What looks well and is not has a name: *diverged*, where a transaction was skipped; *keys*,
where both sides of a pair give out the same ones; *filters*, where one logs what the other drops.
Source: MariaDB's SHOW ALL SLAVES STATUS and its GTID; MySQL 8.4's SHOW REPLICA STATUS, where the same
columns have other names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pymysql
from msgspec import Struct, structs

from checks import Step, Target
from checks._mysql import DOOR, FULL, Account, Refused, Row, Session, ask, trouble
from checks._wire import quote
from hactl.core.model import Result, Verdict, fail, unknown
from hactl.core.units import span

PATIENCE = 1.0  # seconds for the other side, once this one has answered
DIGITS = 18  # of a number that we believe
SYNTAX = 1064  # what a server says to the other one's statements

# Why a source cannot be reached; none of these speaks of the replica.
_AWAY = frozenset({0, 1040, 1053, 1129, 1158, 1159, 1160, 1161, 2002, 2003, 2005, 2006, 2013, 2055})
_MEANINGS = {
    1032: "a row is missing: the data differ",
    1045: "the source refuses the replica's login",
    1062: "duplicate key: both sides wrote the same one",
    1130: "the source lets nobody in from here",
    1146: "a table is missing",
    1236: "the source no longer has what is asked for",
    1593: "both servers have one server_id",
    2013: "connection lost",
    2003: "nobody answers",
}
_TABLE = re.compile(r"[A-Za-z0-9_$]{1,64}\.[A-Za-z0-9_$]{1,64}")

_KEYS = "@@auto_increment_increment AS step, @@auto_increment_offset AS start"
# In this order: what is applied is in the log by then.
_MARIADB = (
    f"SELECT {_KEYS}, @@gtid_slave_pos AS applied, @@gtid_binlog_pos AS logged,"
    " @@log_slave_updates AS relays"
)
_BEHIND = (
    "SELECT server_id, UNIX_TIMESTAMP(NOW(6)) - UNIX_TIMESTAMP(ts) AS age FROM {}"
    " WHERE server_id <> @@server_id"
)


class View(Struct, frozen=True):
    """What a server says.

    *sources* are rows with MariaDB's names.  *logs* is its binlog-do-db, None if that is not known.
    """

    state: Row
    sources: tuple[Row, ...]
    logs: frozenset[str] | None = None
    beats: tuple[Row, ...] | None = None


class Source(NamedTuple):
    """What became of one source; *lag* in seconds beyond the delay that is wanted."""

    verdict: Verdict
    text: str
    lag: float | None = None
    delay: float = 0.0


class Replication(Account, frozen=True, kw_only=True, tag="replication"):
    """Options.

    *channel*: the one source that counts, by its connection's name.  *pair*: the addresses of both
    sides, which are compared.  *heartbeat*: pt-heartbeat's table.  All others as in `checks._mysql`.
    """

    channel: str = ""
    pair: tuple[str, ...] = ()
    heartbeat: str = ""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is no pair, and no table."""
        yield from super().problems()
        sides = set(map(_canonical, self.pair))
        if self.pair and (len(self.pair) != 2 or None in sides):
            yield "pair", "expected the IP addresses of both sides"
        elif len(sides) == 1:
            yield "pair", f"expected two addresses (got {self.pair[0]} twice)"
        if self.heartbeat and not _TABLE.fullmatch(self.heartbeat):
            yield "heartbeat", 'expected a table, like "percona.heartbeat"'

    async def probe(self, target: Target, step: Step) -> Result:
        """Ask this side, and with *pair* the other one at the same time."""
        if not self.pair:
            return self.judge(await self.here(target, step), target)
        mine = _canonical(target.address)
        others = [each for each in self.pair if _canonical(each) != mine]
        if len(others) != 1:
            return unknown(f"{target.address} is not one of the pair")
        there = asyncio.create_task(self.there(target._replace(address=others[0], memory=None)))
        try:
            view = await self.here(target, step)
            step("pair")
            await asyncio.wait([there], timeout=PATIENCE)
            peer = there.result() if there.done() else "no answer"
        finally:
            there.cancel()
            await asyncio.wait([there])
        return self.judge(view, target, others[0], peer)

    async def here(self, target: Target, step: Step) -> View | Result:
        """Ask this side, by the other door if there is no room at the first."""
        try:
            return await ask(self, target, step, self.look)
        except Refused as refused:
            if refused.number != FULL or self.extra_port is None:
                return refused.result
        try:
            async with asyncio.timeout(DOOR):
                return await ask(self, target, step, self.look, port=self.extra_port)
        except (Refused, OSError, EOFError) as error:
            if isinstance(error, Refused) and error.number:  # the server's own word
                return error.result
            return fail(f"{FULL} too many connections; extra_port: {trouble(error)}")

    async def there(self, target: Target) -> View | Result | str:
        """Ask the other side; a text says why it gave no answer."""
        try:
            by_address = structs.replace(self, socket=None)
            return await by_address.here(target, lambda _name: None)
        except (OSError, EOFError) as error:
            return trouble(error)

    def look(self, session: Session) -> View:
        """Read all that a server says of its replication."""
        session.step("status")
        maria = session.mariadb
        state = session.rows(_MARIADB if maria else f"SELECT {_KEYS}")[0]
        words = ("ALL SLAVES",) if maria else ("REPLICA", "SLAVE")
        sources = tuple(map(named, _first(session, *(f"SHOW {word} STATUS" for word in words))))
        if skipped(state):  # since then the log may have got what was applied
            state |= session.rows("SELECT @@gtid_binlog_pos AS logged")[0]
        logs = beats = None
        if self.pair:
            logs = _logs(session, maria=maria)
        if self.heartbeat:
            session.step("heartbeat")
            beats = tuple(session.rows(_BEHIND.format(self.heartbeat)))
        return View(state, sources, logs, beats)

    # Judgement

    def judge(
        self,
        view: View | Result,
        target: Target,
        other: str = "",
        peer: View | Result | str | None = None,
    ) -> Result:
        """Judge this side, and what the *other* side, *peer*, says of it."""
        if isinstance(view, Result):
            return view
        rows = [row for row in view.sources if self.channel in ("", row.get("Connection_name"))]
        if not rows:
            return fail(f"no source{f' called {self.channel}' if self.channel else ''}: no replica")
        back = _from(rows, other) if isinstance(peer, View) else None
        found = [source(row, answers=row is back) for row in rows]
        worst = max((each.verdict for each in found), key=_WORST.index)
        names = [row.get("Connection_name") for row in rows]
        text = ", ".join(
            f"{quote((name or '').encode(), 20)}: {each.text}" if name else each.text
            for name, each in zip(names, found, strict=True)
        )
        measures: dict[str, float] = {"sources_count": len(rows)}
        if worst in (Verdict.FAIL, Verdict.UNKNOWN):
            return Result(worst, text, measures=measures)
        if isinstance(peer, str):  # until its timeout passes a replica of the dead claims no lag
            return Result(
                Verdict.UNKNOWN, f"the other side, {other}: {peer}; not believed: {text}", "",
                measures,
            )  # fmt: skip
        measures["lag_seconds"] = max(each.lag or 0.0 for each in found)
        measures["delay_seconds"] = max(each.delay for each in found)
        if view.beats is not None:
            age = beaten(view.beats, rows)
            if age is None:
                return unknown("heartbeat: none of the source's")
            measures["heartbeat_seconds"] = age
        finds = list(findings(view, rows, peer if isinstance(peer, View) else None, other))
        if any(find.startswith("diverged") for find in finds):
            target.note(diverged=target.at)
        elif target.noted("diverged"):
            ago = span(target.since("diverged"))
            finds.append(f"diverged: a transaction was skipped {ago} ago, and nobody has said since "
                         "that the data are the same (hactl reload)")  # fmt: skip
        if isinstance(peer, Result):
            text += f"; not compared with {other}: {peer.reason}"
        if finds:
            worst, text = Verdict.WARN, "; ".join((*finds, text))
        return Result(worst, text, measures=measures)


_WORST = [Verdict.OK, Verdict.WARN, Verdict.UNKNOWN, Verdict.FAIL]


def named(row: Row) -> Row:
    """Return a row of SHOW REPLICA STATUS with the names of SHOW SLAVE STATUS."""
    found = {
        key.replace("Source", "Master").replace("Replica_", "Slave_"): each
        for key, each in row.items()
    }
    if "Channel_Name" in found:
        found["Connection_name"] = found["Channel_Name"]
    return found


def source(row: Row, *, answers: bool = False) -> Source:
    """Judge one source; *answers*: it told us so itself."""
    io, sql = row.get("Slave_IO_Running"), row.get("Slave_SQL_Running")
    if io is None or sql is None:
        return Source(Verdict.UNKNOWN, "status without threads")
    if sql != "Yes":
        if io == "No" and not _number(row, "Last_SQL_Errno") and not _number(row, "Last_IO_Errno"):
            return Source(Verdict.FAIL, "stopped, without an error")
        return Source(Verdict.FAIL, f"sql thread stopped{_why(row, 'SQL')}")
    if io != "Yes":
        number = _number(row, "Last_IO_Errno")
        if number not in _AWAY and number in _MEANINGS:
            return Source(Verdict.FAIL, f"io thread {_doing(io)}{_why(row, 'IO')}")
        if io == "No" and (number not in _AWAY or not number):
            return Source(Verdict.FAIL, f"io thread {_doing(io)}{_why(row, 'IO')}")
        host = quote((row.get("Master_Host") or "").encode(), 60)
        told = f" ({number} {_MEANINGS.get(number, 'not reached')})" if number else ""
        if io == "No":  # master-retry-count; unlike one that connects it is no better later
            if answers:
                why = f"io thread gave up{told}, and the source answers: START SLAVE or REPLICA"
                return Source(Verdict.FAIL, why)
            why = f"lag is unknown: io thread gave up{told}: START SLAVE or REPLICA"
            return Source(Verdict.UNKNOWN, why)
        return Source(Verdict.UNKNOWN, f"lag is unknown: no connection to the source {host}{told}")
    behind = row.get("Seconds_Behind_Master")
    if behind is None or not behind.isdecimal():
        return Source(Verdict.UNKNOWN, "lag is unknown: the replica does not say")
    if len(behind) > DIGITS:
        shown = quote(behind.encode(), 20)
        return Source(Verdict.UNKNOWN, f"lag is unknown: {shown} is no number of seconds")
    delay = float(_number(row, "SQL_Delay"))
    lag = max(0.0, int(behind) - delay)
    text = f"lag {lag:.0f}s" + (f" beyond the wanted {delay:.0f}s" if delay else "")
    doing = row.get("Slave_SQL_Running_State") or row.get("Slave_SQL_State") or ""
    if lag and re.match(r"waiting for .*\block\b", doing, re.IGNORECASE):
        return Source(Verdict.WARN, f"{text}: {quote(doing.encode(), 60)}", lag, delay)
    return Source(Verdict.OK, text, lag, delay)


def _doing(io: str) -> str:
    return "stopped" if io == "No" else "cannot connect"


def _why(row: Row, thread: str) -> str:
    """Say the error of a thread in our words; the server's have what users wrote in them."""
    number = _number(row, f"Last_{thread}_Errno")
    if not number:
        return ", without an error"
    message = (row.get(f"Last_{thread}_Error") or "").encode()
    return f": {number} {_MEANINGS.get(number) or quote(message, 60)}"


def _number(row: Row, name: str) -> int:
    value = row.get(name) or "0"
    return int(value) if value.isdecimal() and len(value) <= DIGITS else 0


def beaten(beats: Iterable[Row], rows: Iterable[Row]) -> float | None:
    """Return how old the oldest heartbeat of our sources is; None if one has none."""
    ages = {beat.get("server_id"): beat.get("age") for beat in beats}
    found = []
    for row in rows:
        try:
            found.append(float(ages.get(row.get("Master_Server_Id")) or ""))
        except ValueError:
            return None
    return max(found)


# What looks well and is not


def findings(view: View, rows: list[Row], peer: View | None, other: str) -> Iterator[str]:
    """Yield what is found on this side, and by comparing it with the other."""
    if peer is None:
        if not any(map(_filters, rows)):
            yield from (f"diverged: skipped here: {each}" for each in skipped(view.state))
        return
    ours = _from(rows, other)
    dropped = sorted(apart(ours, peer.logs)) if ours is not None else []
    if dropped:
        shown = quote(", ".join(dropped).encode(), 80)
        yield f"filters: {shown}: in binlog-do-db there and not in replicate-do-db here, or reversed"
    elif ours is not None and whole(ours, peer.logs, view.logs):
        yield from (f"diverged: skipped here: {each}" for each in skipped(view.state))
    theirs = peer.sources[0] if len(peer.sources) == 1 else None
    if theirs is not None and whole(theirs, view.logs, peer.logs):
        yield from (f"diverged: skipped on {other}: {each}" for each in skipped(peer.state))
    keys = [(_number(each.state, "step"), _number(each.state, "start")) for each in (view, peer)]
    (step, start), (step_there, start_there) = keys
    if step != step_there or step < 2 or (start - start_there) % step == 0:
        yield (
            f"keys: both sides give out the same (auto_increment_increment {step} and {step_there}, "
            f"offset {start} and {start_there})"
        )


def skipped(state: Row) -> Iterable[str]:
    """Return positions that are behind us though the log, which has what was done, ends before.

    The log knows only the last of each domain, so the next transaction hides it.
    """
    if state.get("relays") not in ("1", "ON"):
        return []
    logged = dict(_positions(state.get("logged")))
    return [
        f"{domain}-*-{done} is done and {domain}-*-{logged[domain]} the last in the log"
        for domain, done in _positions(state.get("applied"))
        if logged.get(domain, done) < done
    ]


def _positions(text: str | None) -> Iterator[tuple[int, int]]:
    for each in (text or "").split(","):
        parts = each.strip().split("-")
        if len(parts) == 3 and all(part.isdecimal() and len(part) < 21 for part in parts):
            yield int(parts[0]), int(parts[2])


def apart(row: Row, logs: frozenset[str] | None) -> frozenset[str]:
    """Return the databases that only the source logs, or only the replica takes."""
    taken = _list(row.get("Replicate_Do_DB"))
    return taken ^ logs if taken and logs else frozenset()


def whole(row: Row, logs: frozenset[str] | None, own: frozenset[str] | None) -> bool:
    """Tell whether a replica takes all that its source *logs*, and has it in its *own* log."""
    taken = _list(row.get("Replicate_Do_DB"))
    if _filters(row, but="Replicate_Do_DB") or taken not in (frozenset(), logs):
        return False
    return not own or frozenset() < (logs or frozenset()) <= own


def _filters(row: Row, but: str = "") -> bool:
    return any(
        each
        for key, each in row.items()
        if key.startswith("Replicate_") and key != but and each != "0"
    )


def _list(text: str | None) -> frozenset[str]:
    return frozenset(filter(None, (each.strip() for each in (text or "").split(","))))


def _from(rows: list[Row], other: str) -> Row | None:
    """Return the source that *other* is."""
    if len(rows) == 1:
        return rows[0]
    here = _canonical(other)
    return next((row for row in rows if _canonical(row.get("Master_Host") or "") == here), None)


def _canonical(address: str) -> str | None:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return None


# Statements


def _logs(session: Session, *, maria: bool) -> frozenset[str] | None:
    """Return binlog-do-db, None if we may not know."""
    words = ("SHOW MASTER STATUS",) if maria else ("SHOW BINARY LOG STATUS", "SHOW MASTER STATUS")
    try:
        rows = _first(session, *words)
    except pymysql.MySQLError as error:
        if error.args and error.args[0] in (1227, 1044):
            return None
        raise
    return _list(rows[0].get("Binlog_Do_DB")) if rows else frozenset()


def _first(session: Session, *statements: str) -> list[Row]:
    """Return what the first statement finds that this server knows."""
    for statement in statements[:-1]:
        try:
            return session.rows(statement)
        except pymysql.MySQLError as error:
            if not error.args or error.args[0] != SYNTAX:
                raise
    return session.rows(statements[-1])
