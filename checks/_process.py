"""Run a program for a look: no shell, nothing inherited, nothing left behind.

It gets a session and process group of its own and an environment that says next to nothing.  What
it prints is kept as far as it matters, and thrown away beyond.  When it has ended, says too much or
is cancelled, its group is killed; when cancelled, its descendants too, wherever they went.
A program that the kernel does not let go is waited for, by whoever cancelled us (see
`checks._tasks`); so is one that is *spared*, because its death would harm whom it asks.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

KEPT = 64 * 1024  # bytes of each stream that are kept
LIMIT = 16 << 20  # bytes of both after which the program is killed
LINGER = 0.5  # seconds that a pipe may stay open after the program: what left its group has it
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C",
    "LC_ALL": "C",
}


class Ended(NamedTuple):
    """How a program ended: *code* is negative if a signal killed it; what it printed, cut at KEPT."""

    code: int
    out: bytes
    err: bytes


class TooMuchError(Exception):
    """The program printed more than it may."""


# Between a spared program and us, who must not be its parent: asyncio kills its children.  It does not
# die of a pipe that nobody reads either.
_SPARED = ("/bin/sh", "-c", """trap '' PIPE; "$@" & wait "$!" """, "sh")


async def run(
    command: Sequence[str],
    *,
    take: Callable[[bytes], bool] | None = None,
    limit: int = LIMIT,
    spare: bool = False,
) -> Ended:
    """Run *command*, an absolute path with its arguments, to its end.

    With *take* its standard output is handed on in pieces instead of kept, until that returns that
    it wants no more.  With *spare* the program is never killed, and its output read to the end.
    Raise OSError if it cannot be started, TooMuchError beyond *limit* bytes.
    """
    if spare and not os.access(command[0], os.X_OK):  # the shell would only say so in words
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    loop = asyncio.get_running_loop()
    starting = loop.create_task(
        loop.subprocess_exec(
            lambda: _Child(loop, take, limit, spare),
            *(_SPARED if spare else ()),
            *command,
            stdin=DEVNULL,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
        )
    )
    whole = False
    try:
        await asyncio.wait([starting])  # goes on if we are cancelled: there is something to kill
        _, child = starting.result()
        await asyncio.wait([child.exited, child.enough], return_when=asyncio.FIRST_COMPLETED)
        whole = child.exited.done()
    finally:
        if not starting.done():
            loop.call_later(LINGER, _insist, starting)
        transport, child = await starting
        try:
            if not spare:
                _kill(transport.get_pid(), everywhere=not whole)
            await asyncio.wait([child.exited])
            if whole:
                await asyncio.wait([child.shut], timeout=LINGER)
        finally:
            transport.close()  # kills what is still there: we are cancelled again, as all ends
            if not child.exited.done():
                await asyncio.wait([child.exited], timeout=LINGER)
    if child.problem is not None:
        raise child.problem
    code = transport.get_returncode()
    return Ended(-1 if code is None else code, bytes(child.out), bytes(child.err))


def _insist(starting: asyncio.Task[Any]) -> None:
    """Cancel it until it ends.

    In Python 3.11 one that is cancelled while it connects the pipes kills the program, and then waits
    for ever to be told; a second time ends it.
    """
    if not starting.done():
        starting.cancel()
        starting.get_loop().call_later(LINGER, _insist, starting)


def _kill(pid: int, *, everywhere: bool) -> None:
    """Kill the process group of *pid*; *everywhere*: and descendants that have left it."""
    strays: list[psutil.Process] = []
    if everywhere:
        with suppress(psutil.Error):
            strays = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for stray in strays:
        with suppress(psutil.Error):
            stray.kill()


class _Child(asyncio.SubprocessProtocol):
    """Keeps what the program says, and tells when it has gone, said enough, and shut its pipes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[bytes], bool] | None,
        limit: int,
        drain: bool,
    ) -> None:
        self.out, self.err = bytearray(), bytearray()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.enough: asyncio.Future[None] = loop.create_future()
        self.shut: asyncio.Future[None] = loop.create_future()
        self.problem: Exception | None = None
        self._take = take
        self._left = limit
        self._drain = drain  # whatever it says, it is listened to
        self._deaf = False

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if self._deaf:
            return
        try:
            self._deaf = not self._heard(fd, data)
        except Exception as error:  # noqa: BLE001 - raised again by `run`
            self.problem, self._deaf = error, True
        if self._deaf and not self._drain:
            self.enough.set_result(None)

    def _heard(self, fd: int, data: bytes) -> bool:
        """Take *data*; tell whether more is wanted."""
        self._left -= len(data)
        if self._left < 0:
            raise TooMuchError
        if fd == 1 and self._take is not None:
            return self._take(data)
        kept = self.out if fd == 1 else self.err
        kept += data[: max(0, KEPT - len(kept))]
        return True

    def process_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.shut.done():
            self.shut.set_result(None)
