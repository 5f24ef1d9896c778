"""control: the socket that `hactl` talks to: a JSON object a line, one answer for each.

Bounded in every way: the length of a line, the number of clients, the time a slow reader may take.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from hactl import PROTOCOL

LINE = 64 * 1024  # bytes of a request
CLIENTS = 64
PATIENCE = 10.0  # seconds a client may take to read its answer
IDLE = 600.0  # seconds a client may say nothing


class Request(msgspec.Struct, frozen=True):
    """What a client asks: *words* are the verb's operands, *options* what goes with them."""

    verb: str
    protocol: int = PROTOCOL
    words: tuple[str, ...] = ()
    options: dict[str, str] = {}


class Answer(msgspec.Struct, frozen=True):
    """What it is told: *code* is hactl's exit code, *data* the verb's own, *text* for people."""

    code: int = 0
    text: str = ""
    data: Any = None
    protocol: int = PROTOCOL


Handle = Callable[[Request], Awaitable[Answer]]


def listen(path: Path, mode: int, user: int = -1, group: int = -1) -> socket.socket:
    """Make the socket, in place of what an earlier hactld left; -1 is whoever we are.

    Nobody gets in before owner and mode are right: nobody listens yet.  Raise OSError.
    """
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o777 & ~mode)
    try:
        listening.bind(os.fspath(path))
        os.chown(path, user, group, follow_symlinks=False)
        listening.listen(CLIENTS)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(mask)
    return listening


class Control:
    """Serves requests on a Unix socket with *handle*; *listening* is for it to close."""

    def __init__(
        self, listening: socket.socket, handle: Handle, *, patience: float = PATIENCE
    ) -> None:
        self._listening = listening
        self._handle = handle
        self._patience = patience
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take clients in from now on."""
        self._server = await asyncio.start_unix_server(
            self._accept, sock=self._listening, limit=LINE
        )

    async def stop(self) -> None:
        """Stop listening and send the clients away."""
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= CLIENTS:
            writer.close()
            return
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client is gone, or too slow, or we are
        finally:
            self._clients.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await asyncio.wait_for(reader.readuntil(b"\n"), IDLE)
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                answer, line = Answer(2, f"a request is one line of at most {LINE} bytes"), b""
            else:
                answer = await self._answer(line)
            writer.write(msgspec.json.encode(answer) + b"\n")
            await asyncio.wait_for(writer.drain(), self._patience)
            if not line:
                return

    async def _answer(self, line: bytes) -> Answer:
        try:
            protocol = msgspec.json.decode(line, type=dict[str, Any]).get("protocol", PROTOCOL)
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Answer(2, f"not a request: {error}")
        if protocol != PROTOCOL:
            return Answer(2, f"hactl speaks protocol {protocol}, this hactld {PROTOCOL}")
        return await self._handle(request)
