"""What one look costs, by type of check: microseconds of CPU in a busy loop.

The driver alone, without engine or schedule: so many conversations at a time with fake servers in
another process, as fast as they go.  What comes on top in hactld is what cost.py measures.  Only
the CPU of this process counts, the kernel's share of our side of the connection included.  TLS is
1.3 with an EC certificate, verified against an authority of its own.

This is what types.py runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import ssl
import statistics
import struct
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import trustme

import checks
from checks import Probed, Spoken, Target
from checks._tasks import Tasks
from checks._wire import Wire
from checks.banner import Banner, Step
from checks.mysql import Mysql
from checks.nfs_rpc import NfsRpc
from checks.replication import Replication
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from checks.tls import Tls
from hactl.core.model import Result, Verdict
from hactl.core.units import Secret
from hactl.lab.nodes import Node

HOST = "127.1.99.1"
NAME = "mx.example"
INFLIGHT = 20
TIMEOUT = 10.0  # seconds of a look


async def session(
    context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Speak SMTP until QUIT, with STARTTLS."""
    with contextlib.suppress(OSError, ssl.SSLError):
        writer.write(b"220 mx.example ESMTP\r\n")
        while line := await reader.readline():
            verb = line.strip().upper()
            if verb == b"STARTTLS":
                writer.write(b"220 go on\r\n")
                await writer.start_tls(context)
            elif verb == b"QUIT":
                writer.write(b"221 bye\r\n")
                break
            elif verb.startswith(b"EHLO"):
                writer.write(b"250-mx.example\r\n250-STARTTLS\r\n250 HELP\r\n")
            else:
                writer.write(b"250 ok\r\n")
        writer.close()


def packets(*payloads: bytes, first: int = 1) -> bytes:
    """Return MySQL's packets: three bytes of length, a number, and what is said."""
    return b"".join(
        struct.pack("<I", len(payload))[:3] + bytes([number]) + payload
        for number, payload in enumerate(payloads, first)
    )


def table(row: Mapping[str, str]) -> bytes:
    """Return one row as MySQL sends it."""

    def text(word: str) -> bytes:
        return bytes([len(word)]) + word.encode()

    end = b"\xfe\0\0\2\0"
    kind = b"\x0c" + struct.pack("<HIBHB", 45, 64, 0xFD, 0, 0) + b"\0\0"
    columns = [text("def") + text("") * 3 + text(name) * 2 + kind for name in row]
    return packets(bytes([len(row)]), *columns, end, b"".join(map(text, row.values())), end)


OK = packets(b"\0\0\0\2\0\0\0")
HELLO = packets(
    b"\x0a5.5.5-10.11.19-MariaDB\0\1\0\0\0" + b"12345678\0\x0a\x82\x2d\2\0\x08\0\x15" + bytes(10)
    + b"123456789012\0mysql_native_password\0",
    first=0,
)  # fmt: skip
SOURCE = {  # and as many columns as MariaDB 10.11 has
    "Slave_IO_Running": "Yes", "Slave_SQL_Running": "Yes", "Seconds_Behind_Master": "0",
    **{f"Some_other_column_{number}": "some value" for number in range(59)},
}  # fmt: skip
ANSWERS = {
    b"@@read_only": table({"version": "10.11", "read_only": "0", "most": "100"}),
    b"Threads_connected": table({"Variable_name": "Threads_connected", "Value": "7"}),
    b"@@auto_increment": table(
        {"step": "2", "start": "1", "applied": "1-1-9", "logged": "1-1-9", "relays": "1"}
    ),
    b"SHOW ALL SLAVES": table(SOURCE),
}


async def database(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak MySQL: let everybody in, and answer with rows that were made before."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(HELLO)
        answer = packets(OK[4:], first=2)
        while True:
            size = int.from_bytes((await reader.readexactly(4))[:3], "little")
            asked = await reader.readexactly(size)
            if asked == b"\1":
                break
            writer.write(answer if asked[:1] != b"\3" else _rows(asked))
    writer.close()


def _rows(asked: bytes) -> bytes:
    return next((rows for words, rows in ANSWERS.items() if words in asked), OK)


async def null(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a call over RPC, which is 44 bytes long."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        xid = (await reader.readexactly(44))[4:8]
        writer.write(struct.pack(">I", 0x8000_0018) + xid + struct.pack(">5I", 1, 0, 0, 0, 0))
        await reader.read()
    writer.close()


def serve(directory: str, told: Connection) -> None:
    """Play the servers until the other side of *told* is closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/server.pem")

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, trouble: None)
        node = Node("mx", dict.fromkeys(("smtp", "imap", "spamd"), (HOST, 0)))
        await node.start()
        talk = partial(session, context)
        plain = await asyncio.start_server(talk, HOST, 0, backlog=256)
        secure = await asyncio.start_server(talk, HOST, 0, ssl=context, backlog=256)
        ports = {kind: node.where(kind)[1] for kind in ("smtp", "imap", "spamd")}
        mysql = await asyncio.start_server(database, HOST, 0, backlog=256)
        nfs = await asyncio.start_server(null, HOST, 0, backlog=256)
        servers = (("starttls", plain), ("implicit", secure), ("mysql", mysql), ("nfs_rpc", nfs))
        for name, server in servers:
            ports[name] = server.sockets[0].getsockname()[1]
        told.send(ports)
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(told.recv)

    asyncio.run(play())


def options(ports: Mapping[str, int], ca: Path) -> dict[str, Spoken | Probed]:
    """Return the checks to measure, by the name they are shown with."""
    login = Secret(str(ca.with_name("login")))
    return {
        "tcp": Tcp(port=ports["smtp"]),
        "banner, greeting": Banner(port=ports["imap"], expect="* OK"),
        "banner, one step": Banner(
            port=ports["smtp"],
            expect="220",
            then=(Step(send="NOOP", expect="250"), Step(send="QUIT")),
        ),
        "smtp, greeting": Smtp(port=ports["smtp"], depth="greeting"),
        "smtp, ehlo": Smtp(port=ports["smtp"]),
        "smtp, rcpt": Smtp(port=ports["smtp"], depth="rcpt", mail_to="probe@mx.example"),
        "smtp, starttls": Smtp(port=ports["starttls"], tls="starttls", name=NAME, ca=ca),
        "smtp, implicit tls": Smtp(port=ports["implicit"], tls="implicit", name=NAME, ca=ca),
        "spamd, ping": Spamd(port=ports["spamd"], scan=False),
        "spamd, scan": Spamd(port=ports["spamd"]),
        "tls": Tls(port=ports["implicit"], name=NAME, ca=ca),
        "mysql": Mysql(port=ports["mysql"], login=login),
        "replication": Replication(port=ports["mysql"], login=login),
        "nfs_rpc": NfsRpc(port=ports["nfs_rpc"]),
    }


async def busy(option: Spoken | Probed, seconds: float) -> tuple[int, float]:
    """Look for so long, without a pause; return how often, and the CPU microseconds of one look.

    Raise RuntimeError if a look does not succeed.
    """
    loop = asyncio.get_running_loop()
    wire = Wire(loop, cap=INFLIGHT + 1, excuse=lambda began: None)
    tasks = Tasks(loop, cap=2 * INFLIGHT, excuse=lambda began: None)
    over: asyncio.Future[None] = loop.create_future()
    target = Target(NAME, HOST)
    looks = 0
    end = time.monotonic() + seconds

    def again() -> None:
        if isinstance(option, Spoken):
            wire.start(HOST, option.port, option.talk(target), TIMEOUT, done)
        else:
            tasks.start(None, partial(option.probe, target), TIMEOUT, done)

    def done(result: Result, began: float, ended: float) -> None:
        nonlocal looks
        looks += 1
        if over.done():
            return
        if result.verdict is not Verdict.OK:
            over.set_exception(RuntimeError(result.reason))
        elif time.monotonic() > end:
            over.set_result(None)
        else:
            again()

    before = time.process_time()
    for _ in range(INFLIGHT):
        again()
    try:
        await over
    finally:
        wire.close()
        left = [look.task for look in tasks.live]
        tasks.close()
        await asyncio.gather(*left, return_exceptions=True)
    return looks, (time.process_time() - before) / looks * 1e6


def measure(seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return microseconds by check, one figure a round."""
    found: dict[str, list[float]] = {}
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as name:
        authority = trustme.CA()
        ca = Path(name) / "ca.pem"
        authority.cert_pem.write_to_path(str(ca))
        server = authority.issue_cert(NAME)
        (Path(name) / "login").write_text("probe\nsecret\n")
        server.private_key_and_cert_chain_pem.write_to_path(f"{name}/server.pem")
        ours, theirs = fork.Pipe()
        process = fork.Process(target=serve, args=(name, theirs), daemon=True)
        process.start()
        try:
            if not ours.poll(20):
                raise RuntimeError("the fake servers do not start")
            ports = ours.recv()
            for _ in range(rounds):
                for kind, option in options(ports, ca).items():
                    list(option.problems())  # what is made at load is made here
                    asyncio.run(busy(option, seconds / 5))
                    figures = found.setdefault(kind, [])
                    figures.append(asyncio.run(busy(option, seconds))[1])
        finally:
            ours.close()
            process.terminate()
            process.join(5)
    return found


def main() -> None:
    """Measure, and print the table or JSON."""
    parser = argparse.ArgumentParser(
        "types.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each type and round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = measure(chosen.seconds, chosen.rounds)
    other = sorted(set(checks.names()) - {kind.partition(",")[0] for kind in found})
    if chosen.json:
        rows = [
            {"check": kind, "us": statistics.median(us), "min": min(us), "max": max(us)}
            for kind, us in found.items()
        ]
        print(json.dumps({"rows": rows, "not_measured": other}))
        return
    print("check                 us/look    min    max  looks per CPU second")
    for kind, us in found.items():
        middle = statistics.median(us)
        print(f"{kind:20}{middle:9.0f}{min(us):7.0f}{max(us):7.0f}{1e6 / middle:22.0f}")
    if other:
        print(f"not measured: {', '.join(other)}")
