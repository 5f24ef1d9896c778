"""mysql: a database lets us in, answers a statement, takes writes, and has room for more clients.

A port that accepts says nothing: a server without room accepts too, and one that hangs.  To connect
and leave is worse than nothing, as the server counts it, and blocks the address that it comes from.
Source: MariaDB's server system variables; MySQL 8.4's.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterable

from msgspec import Struct

from checks import Step, Target
from checks._mysql import DOOR, FULL, Account, Refused, Row, Session, ask, trouble
from checks._wire import quote
from hactl.core.model import Result, Verdict, fail, unknown

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
STATE = "SELECT @@version AS version, @@read_only AS read_only, @@max_connections AS most"
USED = "SHOW GLOBAL STATUS LIKE 'Threads_connected'"


class Seen(Struct, frozen=True):
    """What a server says of itself, and to our statement."""

    state: Row
    used: Row
    rows: list[Row] | None = None


class Mysql(Account, frozen=True, kw_only=True, tag="mysql"):
    """Options.

    *writable*: read_only is a failure.  *query*: a statement; *rows*: how many it finds at least;
    *measure*: what the figure in its first column is called.  All others as in `checks._mysql`.
    """

    writable: bool = True
    query: str = ""
    rows: int | None = None
    measure: str = ""

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what cannot be asked for without a query, and names that are none."""
        yield from super().problems()
        for field in ("rows", "measure"):
            if getattr(self, field) and not self.query:
                yield field, "means nothing without a query"
        if self.rows is not None and self.rows < 0:
            yield "rows", f"expected a number of rows (got {self.rows})"
        if self.measure and not _NAME.fullmatch(self.measure):
            yield "measure", 'expected a name with its unit, like "users_count"'

    async def probe(self, target: Target, step: Step) -> Result:
        """Log in, and ask; if there is no room, by the other door how many are in."""
        try:
            return self.judge(await ask(self, target, step, self.look))
        except Refused as refused:
            if refused.number != FULL or self.extra_port is None:
                return refused.result
        try:
            async with asyncio.timeout(DOOR):
                seen = await ask(self, target, step, _state, port=self.extra_port)
        except (Refused, OSError, EOFError) as error:
            return fail(f"{FULL} too many connections; extra_port: {trouble(error)}")
        return self.judge(seen, full=True)

    def look(self, session: Session) -> Seen:
        """Ask for what the server says of itself, and then our own statement."""
        seen = _state(session)
        if not self.query:
            return seen
        session.step("query")
        return Seen(seen.state, seen.used, session.rows(self.query))

    def judge(self, seen: Seen, *, full: bool = False) -> Result:
        """Judge figures, and what the statement found; *full*: there was no room for us."""
        try:
            used, most = float(seen.used["Value"] or ""), float(seen.state["most"] or "")
        except (KeyError, ValueError):
            return unknown("status: no figures of connections")
        measures = {
            "connections_count": used,
            "connections_max": most,
            "connections_percent": 100 * used / most if most > 0 else math.inf,
        }
        version = quote((seen.state.get("version") or "").encode(), 40)
        text = f"{version}, {used:.0f} of {most:.0f} connections"
        verdict = Verdict.OK
        if full:
            verdict, text = Verdict.FAIL, f"{FULL} too many connections: {used:.0f} of {most:.0f}"
        elif self.writable and seen.state.get("read_only") not in ("0", "OFF"):
            verdict, text = Verdict.FAIL, "read_only: writes get error 1290"
        elif seen.rows is not None:
            verdict, text = self.judge_rows(seen.rows, text, measures)
        return Result(verdict, text, measures=measures)

    def judge_rows(
        self, rows: list[Row], text: str, measures: dict[str, float]
    ) -> tuple[Verdict, str]:
        """Judge what our statement found, and add its figure to *measures*."""
        count = f"{len(rows)} row{'' if len(rows) == 1 else 's'}"
        if self.rows is not None and len(rows) < self.rows:
            return Verdict.FAIL, f"query: {count}, not {self.rows}"
        if self.measure:
            value = next(iter(rows[0].values()), None) if rows else None
            try:
                measures[self.measure] = figure = float(value or "")
            except ValueError:
                return Verdict.FAIL, f"query: {quote(str(value).encode(), 60)} is no figure"
            if not math.isfinite(figure):
                del measures[self.measure]
                return Verdict.FAIL, f"query: {figure} is no figure"
        return Verdict.OK, f"{text}, {count}"


def _state(session: Session) -> Seen:
    session.step("status")
    return Seen((session.rows(STATE) or [{}])[0], (session.rows(USED) or [{}])[0])
