"""nfs_rpc: an NFS server's programs answer calls that do nothing, on its own ports.

It needs no mount, so it is asked from the balancer; a server whose exports are gone answers as well.
Source: RFC 5531 (the call, and records over TCP), RFC 1833 (the portmapper), RFC 1813 and 7530.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import Iterable
from typing import ClassVar, Literal

from checks import Probed, Step, Target, Timing
from checks._wire import endpoint
from hactl.core.model import Result, Verdict, fail

Program = Literal["nfs", "mountd", "portmapper"]
PROGRAMS: dict[str, tuple[int, int, int]] = {  # number, version, port
    "nfs": (100003, 3, 2049),
    "mountd": (100005, 3, 0),
    "portmapper": (100000, 2, 111),
}
NULL, GETPORT, TCP = 0, 3, 6
LIMIT = 64 * 1024  # bytes of an answer
FRAGMENTS = 64  # of an answer

_STATES = ("", "program unavailable", "", "procedure unavailable", "garbage arguments",
           "system error")  # fmt: skip


class NfsRpc(Probed, frozen=True, kw_only=True, tag="nfs_rpc"):
    """Options.

    *program*: who is called.  *version*: of its protocol; 0: 3, and 2 of the portmapper.  *port*:
    None: where the program always is, mountd where the portmapper says.
    """

    program: Program = "nfs"
    version: int = 0
    port: int | None = None

    timing: ClassVar[Timing] = Timing(interval=2.0, timeout=1.0, fast=0.2)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is no port, and no version."""
        if self.port is not None and not 1 <= self.port <= 65535:
            yield "port", f"expected a port, 1 to 65535 (got {self.port})"
        if not 0 <= self.version <= 9:
            yield "version", f"expected a version, 0 to 9 (got {self.version})"

    async def probe(self, target: Target, step: Step) -> Result:
        """Find the program, and call its procedure 0."""
        number, version, port = PROGRAMS[self.program]
        version = self.version or version
        try:
            port = self.port or port or await found(target.address, number, version, step)
            step("connect")
            sock = await connected(target.address, port)
            with sock:
                step("null")
                await called(sock, number, version, NULL)
        except _Refused as refused:
            return refused.result
        return Result(Verdict.OK, f"{self.program} v{version} answers on port {port}")


class _Refused(Exception):  # noqa: N818 - it carries a result
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.result = fail(why)


async def found(address: str, number: int, version: int, step: Step) -> int:
    """Ask the portmapper for a program's port."""
    step("portmapper")
    with await connected(address, PROGRAMS["portmapper"][2]) as sock:
        wanted = struct.pack(">4I", number, version, TCP, 0)
        answer = await called(sock, *PROGRAMS["portmapper"][:2], GETPORT, wanted)
    port = struct.unpack(">I", answer)[0] if len(answer) == 4 else 0
    if not 0 < port < 65536:
        raise _Refused("portmapper: not registered over TCP")
    return int(port)


async def connected(address: str, port: int) -> socket.socket:
    """Return a connection."""
    family, where = endpoint(address, port)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


async def called(
    sock: socket.socket, number: int, version: int, procedure: int, arguments: bytes = b""
) -> bytes:
    """Call a procedure; return its results."""
    xid = secrets.randbits(32)
    await asyncio.get_running_loop().sock_sendall(
        sock, call(xid, number, version, procedure, arguments)
    )
    answer = b""
    for _ in range(FRAGMENTS):
        head: int = struct.unpack(">I", await read(sock, 4))[0]
        size = head & 0x7FFF_FFFF
        if len(answer) + size > LIMIT:
            break
        answer += await read(sock, size)
        if head >> 31:
            return results(xid, version, answer)
    raise _Refused("not an answer of RPC (too long)")


async def read(sock: socket.socket, size: int) -> bytes:
    """Return so many bytes; raise EOFError if there are not as many."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def call(xid: int, number: int, version: int, procedure: int, arguments: bytes = b"") -> bytes:
    """Return the record of a call, in one fragment and with nobody's name under it."""
    body = struct.pack(">10I", xid, 0, 2, number, version, procedure, 0, 0, 0, 0) + arguments
    return struct.pack(">I", 0x8000_0000 | len(body)) + body


def results(xid: int, version: int, answer: bytes) -> bytes:
    """Return the results that *answer* has; raise what `NfsRpc.probe` takes if it has none."""
    try:
        theirs, kind, denied = struct.unpack_from(">3I", answer)
        if (theirs, kind) != (xid, 1):
            raise _Refused("not an answer to our call")
        if denied:
            raise _Refused("call denied")
        size: int = struct.unpack_from(">I", answer, 16)[0]
        start = 20 + (size + 3) // 4 * 4
        state: int = struct.unpack_from(">I", answer, start)[0]
        if state == 2:
            low, high = struct.unpack_from(">2I", answer, start + 4)
            raise _Refused(f"version {version} is not spoken, but {low} to {high}")
    except struct.error:
        raise _Refused("not an answer of RPC (too short)") from None
    if state:
        raise _Refused(
            _STATES[state] if state < len(_STATES) else f"not an answer of RPC ({state})"
        )
    return answer[start + 4 :]
