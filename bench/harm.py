"""What one look costs the server: sessions, log lines, CPU, and what it leaves behind.

Each probe looks a hundred times, one look after another, at a real server of its own (those of the
tests, as tests/services/install installs them; root is needed).  CPU is that of all processes of the
server, those included that it starts for a session; the kernel counts it in steps of 10 ms, which
is 0.1 ms a look.  Log lines are those of the server's usual log level.  What is left are files in
the server's directories that were not there before the looks, logs not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from msgspec import structs

sys.path.insert(0, str(Path(__file__).parents[1]))

from checks import Probed, Spoken, Target, delivery
from checks._tasks import Tasks
from checks._wire import Wire
from checks.banner import Banner
from checks.clamd import Clamd
from checks.delivery import Delivery
from checks.http import Http
from checks.queue import Queue
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from checks.tls import Tls
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration
from tests.services import clamd, dnsmasq, dovecot, opensmtpd, postfix, relay, spamd
from tests.services.servers import HOST, Server, free_port, need

LIMIT = 30.0  # seconds of a look
QUIET = 0.3  # seconds without a new line, after which the log is complete


class Bed(NamedTuple):
    """A server and the probes that look at it."""

    server: Server
    probes: Mapping[str, Spoken | Probed]
    session: str = "smtp connected"  # what the log has for each


@contextmanager
def opensmtpd_bed(directory: Path) -> Iterator[Bed]:
    """Run OpenSMTPD."""
    for faulty in opensmtpd.faulty(directory):
        smtp = faulty.checks["smtp"]
        probes: dict[str, Spoken] = {"tcp": Tcp(port=smtp.port)}
        for depth in ("greeting", "ehlo", "mail", "rcpt"):
            probes[f"smtp, depth {depth}"] = structs.replace(smtp, depth=depth)
        smtps = faulty.checks["smtps"]
        probes["banner"] = Banner(port=smtp.port, expect="220 ")
        probes["tls"] = Tls(port=smtps.port, name=smtps.name, ca=smtps.ca)
        probes["smtp, starttls"] = faulty.checks["starttls"]
        probes["smtp, login"] = faulty.checks["submission"]
        yield Bed(faulty.server, probes)


@contextmanager
def relay_bed(directory: Path) -> Iterator[Bed]:
    """Run OpenSMTPD that delivers into a Maildir."""
    for found in relay.run(directory):
        way = Delivery(port=found.plain, mail_to="probe@example.org", maildir=found.maildir)
        yield Bed(found.server, {"queue": found.queue, "delivery": way})


@contextmanager
def postfix_bed(directory: Path) -> Iterator[Bed]:
    """Run Postfix."""
    for found in postfix.run(directory):
        probes: dict[str, Spoken | Probed] = {"tcp": Tcp(port=found.check.port)}
        for depth in ("greeting", "ehlo", "mail", "rcpt"):
            probes[f"smtp, depth {depth}"] = structs.replace(found.check, depth=depth)
        probes["queue (empty)"] = Queue(server="postfix", command=(str(found.postqueue),))
        tls = Smtp(port=found.check.port, tls="starttls", name=opensmtpd.NAME, ca=found.ca)
        probes["smtp, starttls"] = tls
        yield Bed(found.server, probes, ": connect from")


@contextmanager
def dovecot_bed(directory: Path) -> Iterator[Bed]:
    """Run Dovecot."""
    for found in dovecot.run(directory):
        probes: dict[str, Spoken] = {}
        for name in ("imap", "pop3", "sieve"):
            check = found.checks[name]
            probes[f"{name}, no tls"] = structs.replace(check, tls="off", login=None)
            probes[f"{name}, starttls"] = structs.replace(check, login=None)
            probes[f"{name}, login"] = check
        yield Bed(found.server, probes | {"lmtp, depth rcpt": found.checks["lmtp"]})


@contextmanager
def spamd_bed(directory: Path) -> Iterator[Bed]:
    """Run spamd."""
    server = spamd.launch(directory, Spamd(scan=False))
    scan = Spamd(port=server.check.port, gtube=Duration(0))
    gtube = structs.replace(scan, gtube=Duration(1e-6))
    try:
        yield Bed(server, {"spamd, ping": server.check, "spamd, scan": scan, "spamd, gtube": gtube})
    finally:
        server.stop()


@contextmanager
def clamd_bed(directory: Path) -> Iterator[Bed]:
    """Run clamd."""
    for server in clamd.run(directory):
        scan = Clamd(port=server.check.port, sample=Duration(0))
        sample = structs.replace(scan, sample=Duration(1e-6))
        yield Bed(server, {"clamd, text": scan, "clamd, sample": sample})


@contextmanager
def dnsmasq_bed(directory: Path) -> Iterator[Bed]:
    """Run dnsmasq, which logs queries here."""
    for server in dnsmasq.run(directory / "dnsmasq"):
        yield Bed(server, {"dns": server.dns}, ": query[")


HAPROXY = """\
global
    log stdout format raw local0
defaults
    mode http
    log global
    option httplog
    timeout client 10s
frontend page
    bind {host}:{port}
    http-request return status 200 content-type text/plain string pong
"""


@contextmanager
def haproxy_bed(directory: Path) -> Iterator[Bed]:
    """Run HAProxy, which has a page of its own."""
    need("haproxy")
    page = Http(port=free_port(), text="pong")
    file = directory / "haproxy.cfg"
    file.write_text(HAPROXY.format(host=HOST, port=page.port))
    server = Server(["haproxy", "-db", "-f", str(file)], directory, Tcp(port=page.port))
    try:
        yield Bed(server, {"http": page}, '"GET ')
    finally:
        server.stop()


BEDS: dict[str, Callable[[Path], Any]] = {
    "OpenSMTPD": opensmtpd_bed,
    "OpenSMTPD, its queue": relay_bed,
    "Postfix": postfix_bed,
    "Dovecot": dovecot_bed,
    "spamd": spamd_bed,
    "clamd": clamd_bed,
    "dnsmasq": dnsmasq_bed,
    "HAProxy": haproxy_bed,
}


# Measuring


def cpu(server: Server) -> float:
    """Return the seconds of CPU of all the server's processes, those that have ended included."""
    total = 0.0
    for process in [server.process, *server.process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def files(directory: Path) -> set[str]:
    """Return the files below *directory*, sockets and pipes not counted."""
    return {str(path) for path in directory.rglob("*") if path.is_file()}


def settled(server: Server) -> str:
    """Return the log as soon as nothing more is written."""
    log = server.log
    while True:
        time.sleep(QUIET)
        log, before = server.log, log
        if log == before:
            return log


class Looks(NamedTuple):
    """How many sockets so many looks took, and the seconds of each."""

    sockets: int
    seconds: list[float]


async def look(check: Spoken | Probed, count: int) -> Looks:
    """Look *count* times, one after another.  Raise RuntimeError at one that is not ok."""
    loop = asyncio.get_running_loop()
    opened: list[int] = []

    def make(family: int, kind: int) -> socket.socket:
        opened.append(family)
        return socket.socket(family, kind)

    wire = Wire(loop, cap=4, excuse=lambda _began: None, make_socket=make)
    tasks = Tasks(loop, cap=4, excuse=lambda _began: None)
    seconds: list[float] = []
    memory: dict[str, float] = {}
    for _ in range(count):
        ended: asyncio.Future[Result] = loop.create_future()
        target = Target(opensmtpd.NAME, HOST, time.time(), memory)
        began = loop.time()

        def done(result: Result, *_: object, e: asyncio.Future[Result] = ended) -> None:
            e.set_result(result)

        if isinstance(check, Spoken):
            wire.start(*check.where(HOST), check.talk(target), LIMIT, done)
        else:
            tasks.start(None, partial(check.probe, target), LIMIT, done)
        result = await ended
        seconds.append(loop.time() - began)
        if result.verdict is not Verdict.OK:
            raise RuntimeError(f"{check.__struct_config__.tag}: {result.reason}")
    return Looks(len(opened), seconds)


def measure(bed: Bed, name: str, count: int) -> dict[str, Any]:
    """Return what a look by the probe called *name* costs."""
    server, check = bed.server, bed.probes[name]
    asyncio.run(look(check, 3))  # processes start, caches fill
    log, left = settled(server), files(server.directory)
    spent = cpu(server)
    looks = asyncio.run(look(check, count))
    after = settled(server)
    sessions = looks.sockets  # of a coroutine the server knows
    if isinstance(check, Probed):
        sessions = after.count(bed.session) - log.count(bed.session)
    return {
        "probe": name,
        "looks": count,
        "sessions": sessions / count,
        "log_lines": (after.count("\n") - log.count("\n")) / count,
        "cpu_ms": 1000 * (cpu(server) - spent) / count,
        "took_ms": 1000 * statistics.median(looks.seconds),
        "files_left": len(files(server.directory) - left),
        "password_logged": "secret" in after[len(log) :],
    }


def found(name: str, count: int) -> list[dict[str, Any]]:
    """Return what each probe costs the server called *name*; none where it is not installed."""
    with tempfile.TemporaryDirectory(prefix="hactl-harm-") as directory:
        Path(directory).chmod(0o755)
        try:
            with BEDS[name](Path(directory)) as bed:
                return [{"server": name} | measure(bed, probe, count) for probe in bed.probes]
        except pytest.skip.Exception as missing:
            print(f"harm.py: {missing}", file=sys.stderr)
            return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--servers", nargs="+", choices=BEDS, default=list(BEDS), metavar="NAME",
                        help=f"which of {', '.join(BEDS)} [all]")  # fmt: skip
    parser.add_argument("--looks", type=int, default=100, help="by each probe [100]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    delivery.RATE = 0.0  # one look after another
    rows = [row for name in options.servers for row in found(name, options.looks)]
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    print("| server | probe | sessions | log lines | CPU, ms | took, ms | files left |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {server} | {probe} | {sessions:g} | {log_lines:.1f} | {cpu_ms:.1f} | {took_ms:.1f}"
              " | {files_left} |".format(**row))  # fmt: skip
    logged = [f"{row['server']}, {row['probe']}" for row in rows if row["password_logged"]]
    print(f"Passwords in a log: {'; '.join(logged) or 'none'}.")


if __name__ == "__main__":
    main()
