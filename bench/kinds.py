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
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import trustme

import checks
from checks import Spoken, Target
from checks._wire import Wire
from checks.banner import Banner, Step
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from checks.tls import Tls
from hactl.core.model import Result, Verdict
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
        for name, server in (("starttls", plain), ("implicit", secure)):
            ports[name] = server.sockets[0].getsockname()[1]
        told.send(ports)
        with contextlib.suppress(EOFError):
            await asyncio.to_thread(told.recv)

    asyncio.run(play())


def options(ports: Mapping[str, int], ca: Path) -> dict[str, Spoken]:
    """Return the checks to measure, by the name they are shown with."""
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
    }


async def busy(option: Spoken, seconds: float) -> tuple[int, float]:
    """Look for so long, without a pause; return how often, and the CPU microseconds of one look.

    Raise RuntimeError if a look does not succeed.
    """
    loop = asyncio.get_running_loop()
    wire = Wire(loop, cap=INFLIGHT + 1, excuse=lambda began: None)
    over: asyncio.Future[None] = loop.create_future()
    target = Target(NAME, HOST)
    looks = 0
    end = time.monotonic() + seconds

    def again() -> None:
        wire.start(HOST, option.port, option.talk(target), TIMEOUT, done)

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
