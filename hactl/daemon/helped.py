"""helped: hactld's side of the helper: what it has done as root, and its signs of life."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hactl.config import Config
from hactl.core.units import Duration
from hactl.daemon.helper import BEAT, LINE, REAP, Answer, End
from hactl.relayd import conf as conf_
from hactl.relayd.command import CommandError, Ended, Failure
from hactl.relayd.conf import RelaydConf

log = logging.getLogger("hactld")

MARGIN = REAP + 1.0  # seconds the helper may need beyond a program's deadline

_WORDS = re.compile(r"[!-~]+( [!-~]+){0,15}")


class Inherited(NamedTuple):
    """What the helper starts hactld with: its own pid, sockets, and the lock to hold."""

    helper: int
    beats: socket.socket
    lanes: tuple[socket.socket, socket.socket]
    listening: socket.socket
    lock: int

    @classmethod
    def parse(cls, text: str) -> Inherited:
        """Read what the helper put on the command line, and keep it from every program that we run.

        Raise ValueError or OSError.
        """
        helper, *fds = map(int, text.split(","))
        for fd in fds:
            os.set_inheritable(fd, False)
        beats, first, second, listening, lock = fds
        return cls(
            helper,
            socket.socket(fileno=beats),
            (socket.socket(fileno=first), socket.socket(fileno=second)),
            socket.socket(fileno=listening),
            lock,
        )


class Fixed(Struct, frozen=True):
    """What was made, or is done, as the file said when root loaded it, whatever it says later."""

    run_dir: str
    state_dir: str
    control: str
    conf: str
    relayctl: str
    pfctl: str
    socket: str | None
    timeout: float

    @classmethod
    def of(cls, config: Config) -> str:
        """Return what to tell every hactld that is started."""
        where = config.relayd
        fixed = cls(
            str(config.run_dir),
            str(config.state_dir),
            str(config.control.path),
            str(where.conf),
            str(where.relayctl),
            str(where.pfctl),
            None if where.socket is None else str(where.socket),
            float(where.timeout),
        )
        return msgspec.json.encode(fixed).decode()

    @classmethod
    def parse(cls, text: str) -> Fixed:
        """Read it again.  Raise ValueError."""
        return msgspec.json.decode(text, type=cls)

    def keep(self, config: Config) -> Config:
        """Return the configuration with what is fixed."""
        where = replace(
            config.relayd,
            conf=Path(self.conf),
            relayctl=Path(self.relayctl),
            pfctl=Path(self.pfctl),
            socket=None if self.socket is None else Path(self.socket),
            timeout=Duration(self.timeout),
        )
        return replace(
            config,
            run_dir=Path(self.run_dir),
            state_dir=Path(self.state_dir),
            control=replace(config.control, path=Path(self.control)),
            relayd=where,
        )


class Helped:
    """Runs programs through the helper; a `Programs`.  Made by `join`."""

    def __init__(self, beats: socket.socket, limit: float) -> None:
        self._beats = beats
        self._lanes: list[Lane] = []
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._alone = False

    @classmethod
    async def join(cls, inherited: Inherited, limit: float) -> Helped:
        """Take up the lanes; *limit* is what a program may take, seconds."""
        inherited.beats.setblocking(False)
        helped = cls(inherited.beats, limit)
        for sock in inherited.lanes:
            streams = await asyncio.open_connection(sock=sock)
            helped._lanes.append(Lane(*streams, helped._gone))
        return helped

    async def run(self, program: str, arguments: Sequence[str]) -> Ended:
        """Have *program* run.  Raise CommandError.  Calls of one program wait for each other."""
        lane = self._lanes[0 if program == "relayctl" else 1]
        answer = await lane.ask(" ".join((program, *arguments)), self._limit + MARGIN)
        match answer.end:
            case End.ENDED:
                out, err = (text.decode(errors="surrogateescape") for text in answer[2:])
                return Ended(answer.code, out, err)
            case End.LATE:
                what = f"no answer in {self._limit:g}s, outcome unknown"
                raise CommandError(Failure.NO_END, what)
            case End.FLOOD:
                raise CommandError(Failure.TOO_MUCH, "more output than is believable")
            case End.NOT_RUN:
                raise CommandError(Failure.NOT_RUN, answer.err.decode(errors="replace"))
            case End.REFUSED:
                raise CommandError(Failure.NOT_RUN, "the helper refuses to do that")

    async def conf(self, path: Path) -> RelaydConf:
        """Read relayd.conf as it is for root.  Raise ConfError or OSError."""
        try:
            answer = await self._lanes[1].ask("conf", self._limit + MARGIN)
        except CommandError as error:
            raise OSError(f"cannot be read: {error}") from None
        texts = json.loads(answer.out)  # which may hold what is no UTF-8

        def load(path: Path) -> str:
            text, problem = texts.get(str(path), ("", "changed while it was read"))
            if problem:
                raise OSError(problem)
            return str(text)

        return conf_.read(path, load=load)

    def started(self) -> None:
        """Give the first sign of life, and one a second from now on."""
        with suppress(OSError):  # a helper that does not listen is no reason to do worse
            self._beats.send(b".")
        self._loop.call_later(BEAT, self.started)

    def _gone(self) -> None:
        """End: nothing can be done, and another hactld may be waiting for our place."""
        if not self._alone:
            self._alone = True
            log.error("the helper is gone; hactld ends")
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Let go of the helper."""
        for lane in self._lanes:
            lane.close()


class Lane:
    """One request at a time, and its answer; *gone* is called when there is nobody to ask."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gone: Callable[[], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._gone = gone
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Answer] | None = None
        self._reading = asyncio.create_task(self._read())

    async def ask(self, line: str, patience: float) -> Answer:
        """Send a request and return its answer.  Raise CommandError.

        Who waited in vain for his turn has asked nothing.  Who asked keeps the lane until the
        answer is there, even if he does not wait for it any longer.
        """
        if len(line) >= LINE or not _WORDS.fullmatch(line):
            raise CommandError(Failure.NOT_RUN, "the helper would refuse to do that")
        try:
            async with asyncio.timeout(patience):
                await self._turn.acquire()
        except TimeoutError:
            raise CommandError(Failure.NOT_RUN, "the helper is busy") from None
        if self._reading.done():
            self._turn.release()
            raise CommandError(Failure.NOT_RUN, "the helper is gone")
        answer = self._answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._turn.release())
        self._writer.write(line.encode() + b"\n")
        try:
            return await asyncio.wait_for(asyncio.shield(answer), patience)
        except TimeoutError:
            what = "no answer of the helper, outcome unknown"
            raise CommandError(Failure.NO_END, what) from None

    def close(self) -> None:
        """Hear no more."""
        self._reading.cancel()
        self._writer.close()

    async def _read(self) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await self._reader.readline():
                end, code, out, err = head.decode().split()
                texts = [await self._reader.readexactly(int(size)) for size in (out, err)]
                assert self._answer is not None
                self._answer.set_result(Answer(End(end), int(code), *texts))
        self._gone()
        if self._answer is not None and not self._answer.done():
            error = CommandError(Failure.NO_END, "the helper is gone, outcome unknown")
            self._answer.set_exception(error)
            self._answer.exception()  # whoever asked may have gone
