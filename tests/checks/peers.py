"""Servers on loopback that behave and misbehave, and a look at one of them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from checks import NOBODY, Spoken, Target
from checks._wire import Dialogue, converse
from checks.smtp import Smtp
from hactl.core.model import Result, Verdict
from tests.checks.pki import NAME

SHORT = 0.1  # a deadline that is meant to pass
LONG = 20.0  # one that is not, however busy the machine is

GREETING = b"220 mx0 ESMTP\r\n"
SESSION = [GREETING, b"250-mx0\r\n250 HELP\r\n", b"250 Ok\r\n", b"250 Ok\r\n"]
RCPT = Smtp(depth="rcpt", mail_to="probe@example.org")


class Talk(Spoken, frozen=True, kw_only=True, tag="talk"):
    """A check that a test makes up."""

    port: int = 0
    dialogue: Callable[[], Dialogue]

    def talk(self, target: Target = NOBODY) -> Dialogue:
        return self.dialogue()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(
    handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve on a free port until the block ends, whatever the sessions are doing then."""
    sessions: set[asyncio.Task[Any]] = set()

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        sessions.add(task)
        try:
            with suppress(ConnectionError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(session, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in sessions:
            task.cancel()
        await asyncio.gather(*sessions)
        await server.wait_closed()
        await asyncio.sleep(0)  # the aborted transports close in the loop's next turn


def look(
    check: Spoken,
    handler: Handler,
    limit: float = LONG,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
) -> Result:
    """Run *check* once against a server that does what *handler* does, under *tls* if it is given."""

    async def main() -> Result:
        async with serving(handler, host, tls) as port:
            return await converse(host, port, check.talk(Target(NAME, host)), limit)

    return asyncio.run(main())


def summary(result: Result) -> tuple[Verdict, str, str]:
    return result.verdict, result.step, result.reason


def says(*answers: bytes, then: Handler | None = None) -> Handler:
    """Greet with the first of *answers*, give the others for a line each, and *then* close."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for n, answer in enumerate(answers):
            if n:
                await reader.readline()
            writer.write(answer)
            await writer.drain()
        if then is not None:
            await then(reader, writer)
        else:
            writer.close()

    return handler


async def hang(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def upgrades(context: ssl.SSLContext, *answers: bytes, then: Handler | None = None) -> Handler:
    """Offer STARTTLS and shake hands; afterwards give *answers* and *then* close."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (GREETING, b"250-mx0\r\n250 STARTTLS\r\n", b"220 go ahead\r\n"):
            if answer is not GREETING:
                await reader.readline()
            writer.write(answer)
        with suppress(ssl.SSLError):
            await writer.start_tls(context)
            for answer in answers:
                await reader.readline()
                writer.write(answer)
            if then is not None:
                await then(reader, writer)

    return handler
