"""command: run a program that steers or reads relayd and pf, once and not for long.

One call, one child, one deadline, bounded output, no retry.  Callers name the program by a word
(`relayctl`, `pfctl`); which file that is, and which process runs it, is said in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

LIMIT = 16 << 20  # bytes of output; a thousand hosts are 51 kB
REAP = 1.0  # seconds a killed child may take to go; only the kernel can make it longer
RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, its children should not
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}


class Ended(NamedTuple):
    """How a program ended by itself; *code* is negative for a signal."""

    code: int
    out: str
    err: str


class Failure(StrEnum):
    """Why there is no Ended.  Only after NOT_RUN is it certain that nothing was done."""

    NOT_RUN = "not run"
    NO_END = "no end"
    TOO_MUCH = "too much"


class CommandError(Exception):
    """A call that did not end by itself; the text is for people and names no arguments."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


class Programs(Protocol):
    """Runs a program by its word.  Calls may run side by side."""

    async def run(self, program: str, arguments: Sequence[str]) -> Ended:
        """Run *program* to its end.  Raise CommandError if it has none of its own."""
        ...


class Local:
    """Runs children of this process: *commands* maps each word to its argv, *timeout* in seconds."""

    def __init__(self, commands: Mapping[str, Sequence[str]], timeout: float) -> None:
        self._commands = commands
        self._timeout = timeout

    async def run(self, program: str, arguments: Sequence[str]) -> Ended:
        """Run a child that never outlives the call.  Raise CommandError."""
        argv = (*self._commands[program], *arguments)
        try:
            child = _Child(argv)
        except OSError as error:
            raise CommandError(Failure.NOT_RUN, f"{argv[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._timeout):
                await child.ended
        except TimeoutError as error:
            text = f"no answer in {self._timeout:g}s, outcome unknown"
            raise CommandError(Failure.NO_END, text) from error
        finally:
            await child.reap()
        if child.overflows():
            raise CommandError(Failure.TOO_MUCH, f"more than {LIMIT >> 20} MiB of output")
        out, err = (bytes(said).decode(errors="surrogateescape") for said in child.heard)
        return Ended(-1 if child.code is None else child.code, out, err)


class _Child:
    """A child and what it says: *ended* once it is gone and its pipes are shut, or says too much.

    Not asyncio's, which costs twice the CPU and starts a thread to wait for the exit.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard = bytearray(), bytearray()
        self.code: int | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._pipes: list[int] = []
        theirs: list[int] = []
        try:
            for _ in self.heard:
                ours, its = os.pipe()
                self._pipes.append(ours)
                theirs.append(its)
            actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
            ]
            actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(theirs, 1)]
            self._pid = os.posix_spawnp(
                argv[0], list(argv), ENVIRONMENT, file_actions=actions, setsigdef=RESTORED
            )
        except OSError:
            self._shut()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for fd, said in zip(tuple(self._pipes), self.heard, strict=True):
            os.set_blocking(fd, False)
            self._loop.add_reader(fd, self._hear, fd, said)

    def overflows(self) -> bool:
        return sum(map(len, self.heard)) > LIMIT

    def _hear(self, fd: int, said: bytearray) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        said += data
        if not data:
            self._loop.remove_reader(fd)
            self._pipes.remove(fd)
            os.close(fd)
            if not self._pipes:
                self._wait(0.0)
        elif self.overflows():
            self._shut()
            if not self.ended.done():
                self.ended.set_result(None)

    def _wait(self, pause: float) -> None:
        """See whether the child is gone, which it is soon after its pipes; nobody calls us then."""
        if self._exited.done():
            return
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has its exit code
            pid, status = self._pid, -1
        if not pid:
            self._loop.call_later(pause, self._wait, min(0.05, 2 * pause or 0.001))
            return
        self.code = os.waitstatus_to_exitcode(status) if status >= 0 else None
        for future in (self._exited, self.ended):
            if not future.done():
                future.set_result(None)

    def _shut(self) -> None:
        while self._pipes:
            fd = self._pipes.pop()
            self._loop.remove_reader(fd)
            os.close(fd)

    async def reap(self) -> None:
        """Kill the child if it still runs, and wait until it is gone, but not for ever."""
        self._shut()
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._wait(0.0)
            await asyncio.wait([self._exited], timeout=REAP)
