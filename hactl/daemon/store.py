"""store: what must survive a restart: overrides, ownership and the decision counter.

Ownership is kept in a second place, a marker in run_dir.  A reboot empties that directory and
relayd's memory of disables together; without a marker, what the database says of disables is not
true any more.

SQLite in WAL mode with one writer thread; nothing in the decision path waits for it but a
removal's intent, and that only for a moment.  A store that fails costs memory over restarts, never
a failover: what could not be written is counted and shown.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import Member, Override, Owned

VERSION = 1
BLOCK = 1024  # decision ids reserved at once, so that a kill never makes one appear twice
BACKLOG = 10_000  # writes that may wait

_TABLES = """
create table if not exists meta (name text primary key, value integer not null) strict;
create table if not exists overrides (key text primary key, target text not null,
    kind text not null,
    who text not null, reason text not null, since real not null, until real) strict;
create table if not exists owned (service text, place integer, host text,
    decision integer not null, cause text not null, primary key (service, place, host)) strict;
create table if not exists memories (service text primary key, memory text not null) strict;
"""

Job = Callable[[sqlite3.Connection], object]


class StoreError(Exception):
    """The store cannot be written; the text says why and where.

    *stored* is what could be read all the same, None if nothing could.
    """

    def __init__(self, text: str, stored: Stored | None = None) -> None:
        super().__init__(text)
        self.stored = stored


class HoldRow(Struct, frozen=True):
    """A member's hold; times are Unix seconds."""

    place: int
    host: str
    level: int
    removals: tuple[float, ...]
    until: float | None
    graced: float | None
    decision: int | None = None  # of a store that did not have it


class GuardRow(Struct, frozen=True):
    """A preferred check's load guard; *removed* and *until* are Unix seconds."""

    check: str
    removed: float
    until: float | None
    span: float


class Lasting(Struct, frozen=True):
    """What policy must remember of a service, members as (place, host).

    *owner* is an exclusive service's, *latched* are those whom a freeze keeps in.
    """

    holds: tuple[HoldRow, ...] = ()
    owner: tuple[int, str] | None = None
    latched: tuple[tuple[int, str], ...] | None = None
    guards: tuple[GuardRow, ...] = ()


class Stored(Struct, frozen=True):
    """What was read at the start; *counter* is above every decision id ever given."""

    overrides: tuple[Override, ...] = ()
    owned: dict[Member, Owned] = {}
    memories: dict[str, Lasting] = {}
    counter: int = 0


class Store:
    """One file, one writer thread.  *problem* says what last went wrong, "" if nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.Queue[tuple[Job, Callable[[bool], None]] | None] = queue.Queue(BACKLOG)
        self._ready: queue.Queue[Stored | StoreError] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self.problem = ""

    def open(self) -> Stored:
        """Read what was stored.  Raise StoreError; the store then drops what it is given."""
        self._thread.start()
        found = self._ready.get()
        if isinstance(found, StoreError):
            self.problem = str(found)
            raise found
        return found

    def close(self) -> None:
        """Write what waits, for a second at most."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._jobs.put_nowait(None)
            self._thread.join(1.0)

    def own(self, member: Member, owned: Owned | None) -> asyncio.Future[bool]:
        """Write that a disable is ours, or (None) no more.

        The future says whether it is on disk; while the disk hangs it says nothing.
        """
        if owned is None:
            return self._put(
                lambda db: db.execute(
                    "delete from owned where service = ? and place = ? and host = ?", member
                )
            )
        row = (*member, owned.decision, owned.cause)
        return self._put(lambda db: db.execute("replace into owned values (?, ?, ?, ?, ?)", row))

    def override(self, key: str, override: Override | None) -> asyncio.Future[bool]:
        """Write an operator's word by its key, or (None) that it has ended."""
        if override is None:
            return self._put(lambda db: db.execute("delete from overrides where key = ?", (key,)))
        o = override
        row = (key, o.target, o.kind, o.who, o.reason, o.since, o.until)
        return self._put(
            lambda db: db.execute("replace into overrides values (?, ?, ?, ?, ?, ?, ?)", row)
        )

    def remember(self, service: str, memory: Lasting) -> asyncio.Future[bool]:
        """Write what policy must remember of a service."""
        text = msgspec.json.encode(memory).decode()
        return self._put(
            lambda db: db.execute("replace into memories values (?, ?)", (service, text))
        )

    def reserve(self, counter: int) -> None:
        """Write that decision ids up to *counter* and a block more may have been given."""
        self._put(
            lambda db: db.execute("replace into meta values ('counter', ?)", (counter + BLOCK,))
        )

    def _put(self, job: Job) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()

        def done(well: bool) -> None:
            loop.call_soon_threadsafe(_end, written, well)

        if not self._thread.is_alive():
            _end(written, False)
            return written
        try:
            self._jobs.put_nowait((job, done))
        except queue.Full:
            self.problem = f"{self._path}: {BACKLOG} writes wait already"
            _end(written, False)
        return written

    def _work(self) -> None:
        """Run in the writer thread: open, then write whatever comes."""
        try:
            db = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
        except sqlite3.Error as error:
            self._ready.put(StoreError(f"{self._path}: {error}"))
            return
        try:
            self._ready.put(_read(db, self._path))
        except (sqlite3.Error, StoreError, ValueError, TypeError, msgspec.MsgspecError) as error:
            db.close()
            where = "" if isinstance(error, StoreError) else f"{self._path}: "
            self._ready.put(StoreError(f"{where}{error}", _salvage(self._path)))
            return
        while (item := self._jobs.get()) is not None:
            job, done = item
            try:
                job(db)
                self.problem = ""
            except sqlite3.Error as error:
                self.problem = f"{self._path}: {error}"
            try:
                done(not self.problem)
            except RuntimeError:
                break  # the loop is closed: hactld has ended
        db.close()


class _Marked(Struct, frozen=True):
    version: int
    owned: tuple[tuple[str, int, str, int, str], ...]  # a member, then decision and cause


class Marker:
    """A file that a reboot removes; it has what the table `owned` has.

    *problem* says why the newest could not be written, "" if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[Member, Owned] | None = None
        self.problem = ""

    def read(self) -> dict[Member, Owned] | None:
        """Return what the marker has; None without one.  A broken one is there, and has nothing."""
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_Marked)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            self.problem = f"{self._path}: {error}"
            return {}
        rows = found.owned if found.version == VERSION else ()
        return {Member(*row[:3]): Owned(row[3], row[4]) for row in rows}

    def write(self, owned: Mapping[Member, Owned]) -> bool:
        """Write the whole marker anew if it differs; return whether it is there."""
        if owned == self._written:
            return True
        rows = tuple((*member, o.decision, o.cause) for member, o in owned.items())
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_bytes(msgspec.json.encode(_Marked(VERSION, rows)))
            os.replace(fresh, self._path)  # noqa: PTH105 - atomic, and its name says so
        except OSError as error:
            self.problem = f"{self._path}: {error.strerror or error}"
            return False
        self._written = dict(owned)
        self.problem = ""
        return True


def _end(written: asyncio.Future[bool], well: bool) -> None:
    if not written.done():  # whoever waited may have given up
        written.set_result(well)


def _read(db: sqlite3.Connection, path: Path) -> Stored:
    """Make the store ready to be written, and read it."""
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = full")
    db.execute("begin immediate")
    db.executescript(_TABLES)
    stored = _load(db, path)
    db.executemany(
        "replace into meta values (?, ?)",
        [("version", VERSION), ("counter", stored.counter + BLOCK)],
    )
    return stored


def _salvage(path: Path) -> Stored | None:
    """Read what can only be read: with what is still in its log, else without."""
    for how in ("mode=ro", "immutable=1"):
        with suppress(sqlite3.Error, StoreError, ValueError, TypeError, msgspec.MsgspecError):
            db = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True)
            with closing(db):
                stored = _load(db, path)
                return replace(stored, counter=stored.counter + BLOCK)
    return None


def _load(db: sqlite3.Connection, path: Path) -> Stored:
    meta = dict(db.execute("select name, value from meta"))
    version = meta.get("version", VERSION)
    if version != VERSION:
        raise StoreError(f"{path}: version {version}, and this hactld writes version {VERSION}")
    counter = meta.get("counter", 0)
    overrides = tuple(
        Override(*row)
        for row in db.execute("select target, kind, who, reason, since, until from overrides")
    )
    owned = {
        Member(service, place, host): Owned(decision, cause)
        for service, place, host, decision, cause in db.execute(
            "select service, place, host, decision, cause from owned"
        )
    }
    memories = {
        service: msgspec.json.decode(memory, type=Lasting)
        for service, memory in db.execute("select service, memory from memories")
    }
    return Stored(overrides, owned, memories, counter)
