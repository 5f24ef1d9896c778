"""command: run a program that steers or reads relayd and pf, once and not for long.

One call, one child, one deadline, bounded output, no retry.  Callers name the program by a word
(`relayctl`, `pfctl`); which file that is, and which process runs it, is said in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

LIMIT = 16 << 20  # bytes of output; a thousand hosts are 51 kB
REAP = 1.0  # seconds a killed child may take to go; only the kernel can make it longer
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
        loop = asyncio.get_running_loop()
        try:
            transport, child = await loop.subprocess_exec(
                _Child, *argv, stdin=DEVNULL, env=ENVIRONMENT
            )
        except OSError as error:
            raise CommandError(Failure.NOT_RUN, f"{argv[0]}: {error.strerror}") from error
        try:
            async with asyncio.timeout(self._timeout):
                await child.ended
        except TimeoutError as error:
            text = f"no answer in {self._timeout:g}s, outcome unknown"
            raise CommandError(Failure.NO_END, text) from error
        finally:
            await _reap(transport, child)
        if child.overflows():
            raise CommandError(Failure.TOO_MUCH, f"more than {LIMIT >> 20} MiB of output")
        code = transport.get_returncode()
        out, err = (bytes(child.heard[fd]).decode(errors="surrogateescape") for fd in (1, 2))
        return Ended(-1 if code is None else code, out, err)


class _Child(asyncio.SubprocessProtocol):
    """Keeps what the child says: *ended* once it is gone and its pipes are shut, or says too much.

    Not `communicate`, which has no bound, nor streams, which wait for whoever holds the pipes.
    """

    def __init__(self) -> None:
        self.heard = {1: bytearray(), 2: bytearray()}
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def overflows(self) -> bool:
        return sum(map(len, self.heard.values())) > LIMIT

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if not self.overflows():
            self.heard[fd] += data
        elif not self.ended.done():
            self.ended.set_result(None)

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def _reap(transport: asyncio.SubprocessTransport, child: _Child) -> None:
    """Kill the child if it still runs, wait until it is gone, and shut its pipes."""
    try:
        if not child.exited.done():
            with contextlib.suppress(ProcessLookupError):
                transport.kill()
            await asyncio.wait([child.exited], timeout=REAP)
    finally:
        transport.close()
