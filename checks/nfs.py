"""nfs: a file system is mounted as it should be, answers, and has room.

The mount table is read without touching a mount; all else is done by a worker that may hang (see
`checks._worker`).  statvfs comes first, as NFS clients may answer the rest from what they remember.
Nothing is ever unmounted: umount(8) of a dead mount hangs as well.
Source: mount_nfs(8) of OpenBSD, nfs(5) of Linux; psutil reads the mount table.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import psutil

from checks import LOGIN, Probed, Step, Target, Timing, _mount, _worker
from checks._wire import quote
from checks._worker import StuckError
from hactl.core.model import Result, Verdict, fail, unknown
from hactl.core.units import span

TYPES = ("nfs", "nfs4")  # as BSD and Linux call it

# What keeps us from looking, and says nothing of the mount.
_OURS = frozenset({0, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Mounted(NamedTuple):
    """A line of the mount table."""

    device: str
    mountpoint: str
    fstype: str
    opts: str


class Nfs(Probed, frozen=True, kw_only=True, tag="nfs"):
    """Options.

    *path*: where it is mounted.  *source* and *fstype*: what must be mounted there, NFS by default.  *file*: what
    must be there, below *path*.  *canary*: a directory in which a file is written, read and removed.
    *writable*: to be mounted read-only, or full, is a failure.
    """

    path: Path
    source: str = ""
    fstype: tuple[str, ...] = ()
    file: Path | None = None
    canary: Path | None = None
    writable: bool = True

    timing: ClassVar[Timing] = LOGIN

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield paths that are not below the mount, without touching it."""
        for field in ("file", "canary"):
            below: Path | None = getattr(self, field)
            if below is None:
                continue
            if ".." in below.parts or not below.is_relative_to(self.path):
                yield field, f"expected a path below {self.path}"
        if self.canary is not None and not self.writable:
            yield "canary", "means nothing with writable: false"

    async def probe(self, target: Target, step: Step) -> Result:
        """Look at the mount table, and have a worker look at the mount."""
        step("mount")
        table = [Mounted(*line[:4]) for line in psutil.disk_partitions(all=True)]
        found = self.judge_mount(table)
        if found is not None:
            return found
        said = Said()
        words = [str(each or "") for each in (self.path, self.file, self.canary)]
        command = [sys.executable, "-I", "-S", _mount.__file__, *words]
        try:
            ended = await _worker.run(str(self.path), command, step, said.hear)
        except StuckError as stuck:
            where = stuck.step or "start"
            return Result(
                Verdict.FAIL, f"{where}: hangs for {span(stuck.age)}", where,
                {"stuck_seconds": stuck.age},
            )  # fmt: skip
        if said.error is None and (ended.code or said.figures is None):
            why = quote(ended.err.strip().rpartition(b"\n")[2], 120) or f"exit {ended.code}"
            return unknown(f"worker: {why}")
        return self.judge(said)

    def judge_mount(self, table: Sequence[Mounted]) -> Result | None:
        """Judge what the mount table has for the path; None: it is as it should be."""
        mounted = [each for each in table if Path(each.mountpoint) == self.path]
        if not mounted:
            return fail("mount: not mounted")
        last = mounted[-1]  # covers those before it
        source, kind = (
            quote(each.encode("utf-8", "replace"), 80) for each in (last.device, last.fstype)
        )
        wanted = self.fstype or TYPES
        if last.fstype not in wanted:
            return fail(f"mount: of type {kind}, not {' or '.join(wanted)}")
        if self.source and last.device != self.source:
            return fail(f"mount: from {source}, not {self.source}")
        if self.writable and "ro" in last.opts.split(","):
            return fail("mount: mounted read-only")
        return None

    def judge(self, said: Said) -> Result:
        """Judge what a worker said."""
        measures = dict(said.seconds)
        if said.error is not None:
            word = os.strerror(said.error).lower() if said.error else "no error given"
            verdict = Verdict.UNKNOWN if said.error in _OURS else Verdict.FAIL
            return Result(verdict, f"{said.step}: {word}", said.step, measures)
        assert said.figures is not None
        size, free, inodes, spare = said.figures
        measures["free_bytes"] = free
        text = f"{_size(free)} free"
        if size > 0:
            measures["free_percent"] = 100 * free / size
            text += f" of {_size(size)}"
        if inodes > 0:  # some file systems have none to count
            measures["free_inodes"] = spare
            measures["free_inodes_percent"] = 100 * spare / inodes
        verdict = Verdict.OK
        if said.differs:
            verdict, text = Verdict.FAIL, "read: not what was written"
        elif self.writable and size > 0 and free <= 0:
            verdict, text = Verdict.FAIL, f"full: {text}"
        elif self.writable and inodes > 0 and spare <= 0:
            verdict, text = Verdict.FAIL, f"full: no inode free, {text}"
        return Result(verdict, text, measures=measures)


class Space(NamedTuple):
    """Bytes and inodes, and how many of them we may still use."""

    size: float
    free: float
    inodes: float
    spare: float


class Said:
    """What a worker has said so far."""

    def __init__(self) -> None:
        self.step = ""
        self.seconds: dict[str, float] = {}
        self.figures: Space | None = None
        self.error: int | None = None
        self.differs = False
        self._since = 0.0

    def hear(self, line: bytes) -> str | None:
        """Take a line; return the step that it names.  Raise ValueError for what none says."""
        word, *rest = line.decode("ascii", "replace").split(" ")
        if word == "step":
            name, now = rest[0], float(rest[1])
            if self.step:
                self.seconds[f"{self.step}_seconds"] = now - self._since
            self.step, self._since = name, now
            return None if name == "end" else name
        if word == "figures":
            self.figures = Space(*map(float, rest))
        elif word == "error":
            self.error = int(rest[0])
        elif word == "differs":
            self.differs = True
        else:
            raise ValueError(f"not a worker's word: {quote(line)}")
        return None


def _size(count: float) -> str:
    """Write bytes as people read them: 3.8G."""
    for unit in ("", "K", "M", "G"):
        if abs(count) < 1024:
            return f"{count:.1f}{unit}" if unit and count < 10 else f"{count:.0f}{unit}"
        count /= 1024
    return f"{count:.1f}T"
