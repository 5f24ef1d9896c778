"""host: the machine has what its servers need: processors, memory, disks, processes, descriptors.

It looks at the machine that hactld runs on, so it is a check for the agent there.  What the system
does not tell is left out.  Disks are asked by a process of its own, for one that hangs holds whoever
asks it.
Source: psutil; statvfs(3).
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple

import psutil

from checks import Probed, Step, Target, Timing, _process
from checks._wire import quote
from hactl.core.model import Result, Verdict

BATCH = 50  # processes that are looked at before others get their turn
SHOWN = 3  # missing processes that are told

# What a file system says that is broken; a path that is missing is no news of the node.
_BROKEN = frozenset({errno.EIO, errno.ENXIO, errno.ESTALE})

# Prints blocks, free and available ones, their size, inodes, and those free and available; or an errno.
_STATVFS = """\
import os, sys
for path in sys.argv[1:]:
    try:
        s = os.statvfs(path)
    except OSError as error:
        print(error.errno)
        continue
    print(s.f_blocks, s.f_bfree, s.f_bavail, s.f_frsize, s.f_files, s.f_ffree, s.f_favail)
"""


class Host(Probed, frozen=True, kw_only=True, tag="host"):
    """Options.

    *disks*: paths on the file systems to look at, none: the root's.  *processes*: names of those that must run.
    """

    disks: tuple[Path, ...] = ()
    processes: tuple[str, ...] = ()

    timing: ClassVar[Timing] = Timing(interval=10.0, timeout=5.0, fast=0.0)

    async def probe(self, target: Target, step: Step) -> Result:
        """Ask the system, then the disks, then for processes."""
        step("system")
        words, measures = system()
        step("disks")
        found = await ask(self.disks or (Path("/"),))
        words += found.words
        measures |= found.measures
        verdict, why = found.verdict, found.why
        where = "disks" if why else ""
        if self.processes:
            step("processes")
            missing, counts = await processes(self.processes)
            measures |= counts
            if missing:
                more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
                gone = f"not running: {', '.join(missing[:SHOWN])}{more}"
                verdict, why, where = Verdict.FAIL, f"{gone}; {why}" if why else gone, ""
        return Result(verdict, why or ", ".join(words), where, measures)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is no process's name."""
        if not all(self.processes):
            yield "processes", "expected names"


def system() -> tuple[list[str], dict[str, float]]:
    """Return load, memory and swap, in words and as measures."""
    words: list[str] = []
    measures: dict[str, float] = {}
    with suppress(OSError, psutil.Error):
        measures["uptime_seconds"] = max(0.0, time.time() - psutil.boot_time())
    with suppress(OSError):
        measures["load_per_core"] = psutil.getloadavg()[0] / (psutil.cpu_count() or 1)
        words.append(f"load {measures['load_per_core']:.2f} per core")
    with suppress(OSError, psutil.Error):
        memory = psutil.virtual_memory()
        if memory.total:
            measures["memory_available_bytes"] = memory.available
            measures["memory_available_percent"] = 100 * memory.available / memory.total
            words.append(f"memory {measures['memory_available_percent']:.0f} % available")
    with suppress(OSError, psutil.Error, RuntimeError):
        swap = psutil.swap_memory()
        measures["swap_used_percent"] = swap.percent if swap.total else 0.0
    return words, measures


class Disks(NamedTuple):
    """What is known of disks: the fullest in words, measures, and *why* of some it is not."""

    words: list[str]
    measures: dict[str, float]
    verdict: Verdict = Verdict.OK
    why: str = ""


async def ask(paths: Iterable[Path]) -> Disks:
    """Have a process look at *paths*."""
    command = [sys.executable, "-I", "-S", "-c", _STATVFS, *map(os.fspath, paths)]
    try:
        answer = await _process.run(command)
    except OSError as error:  # no reason not to look at processes
        return Disks([], {}, Verdict.UNKNOWN, f"disks: {(error.strerror or str(error)).lower()}")
    if answer.code:
        why = quote(answer.err.strip().rpartition(b"\n")[2], 120) or f"exit {answer.code}"
        return Disks([], {}, Verdict.UNKNOWN, f"disks: {why}")
    return disks(answer.out, paths)


def disks(out: bytes, paths: Iterable[Path]) -> Disks:
    """Find the fullest disk, and the least free space and inodes."""
    space: list[tuple[float, str]] = []
    inodes: list[float] = []
    free: list[int] = []
    errors: list[tuple[bool, str]] = []
    for line, path in zip(out.splitlines(), paths, strict=True):
        figures = [int(word) for word in line.split()]
        if len(figures) == 1:
            errors.append((figures[0] not in _BROKEN, f"{path}: {os.strerror(figures[0]).lower()}"))
            continue
        blocks, unused, available, size, files, ffree, favail = figures
        space.append((_percent(blocks, unused, available), str(path)))
        free.append(available * size)
        if files:  # some file systems have no fixed number of them
            inodes.append(_percent(files, ffree, favail))
    words: list[str] = []
    measures: dict[str, float] = {}
    if space:
        least, where = min(space)
        measures |= {"disk_free_percent": least, "disk_free_bytes": min(free)}
        words.append(f"{where} {least:.0f} % free")
    if inodes:
        measures["inodes_free_percent"] = min(inodes)
    if not errors:
        return Disks(words, measures)
    errors.sort()  # those of what is broken first
    verdict = Verdict.UNKNOWN if errors[0][0] else Verdict.FAIL
    return Disks(words, measures, verdict, f"disks: {', '.join(why for _, why in errors)}")


def _percent(whole: int, free: int, available: int) -> float:
    """Return what is left of what others than root can have, as df(1) counts it."""
    usable = whole - free + available
    return 100 * available / usable if usable > 0 else 100.0


async def processes(names: Iterable[str]) -> tuple[list[str], dict[str, float]]:
    """Return which of *names* do not run, and how many processes and descriptors the others have."""
    wanted = dict.fromkeys(names, 0)
    most, share = -1, -1.0
    for number, process in enumerate(psutil.process_iter(["name", "status"])):
        if number % BATCH == BATCH - 1:
            await asyncio.sleep(0)
        name = process.info["name"]
        if name not in wanted or process.info["status"] == psutil.STATUS_ZOMBIE:
            continue
        wanted[name] += 1
        with suppress(psutil.Error, OSError):
            used = process.num_fds()
            most = max(most, used)
            rlimit = getattr(process, "rlimit", None)  # Linux and FreeBSD have it
            if rlimit is not None:
                soft, _ = rlimit(psutil.RLIMIT_NOFILE)
                if soft > 0:
                    share = max(share, 100 * used / soft)
    counts: dict[str, float] = {"processes_count": sum(wanted.values())}
    if most >= 0:
        counts["descriptors_count"] = most
    if share >= 0:
        counts["descriptors_used_percent"] = share
    return [name for name, count in wanted.items() if not count], counts
