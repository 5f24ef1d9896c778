"""What mail a client loses while one of two real OpenSMTPD nodes is at fault.

The nodes stand behind the emulated relayd, which forwards each session to one of them; a client
sends a message every 200 ms, under STARTTLS with a certificate that it wants to believe.  Each fault
is put into the first node, stays for some seconds, and is taken out; then both nodes are waited for.
Once hactld steers relayd by a check of type smtp with the times of its type, and once relayd is alone
with its own `check tcp`.  Lost is a message that is not taken within 5 seconds; seconds are those
from the fault to when the last one that was lost had been begun.  The faults of a database take
nodes with a MariaDB each.  Root and the servers of tests/services/install are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from checks import Target
from checks._wire import Dialogue, Say, Wire, nothing, reply
from checks.smtp import Smtp, refused
from hactl.core.model import Result, Verdict, ok
from hactl.lab.demo import Hactld
from hactl.lab.relayd import Emulator
from tests.services import opensmtpd
from tests.services.mariadb import Database
from tests.services.opensmtpd import NAME, Resolver
from tests.services.servers import HOST, Server, free_port

VIRTUAL, *NODES = "127.0.41.1", "127.0.41.4", "127.0.41.5"
EVERY = 0.2  # seconds from one message to the next
PATIENCE = 5.0  # seconds that a client has for a message
WARM = 4.0  # seconds of traffic before a fault
CALM = 60.0  # seconds until both nodes are in use again, at most
FEW = 40  # files that may be open at a node that is to run out of sessions: 15 of them

SMTPD = """\
{pki}
{filters}
table domains {domains}
table users {users}
listen on {host} port {ready} tls pki good hostname mx0.example.org
listen on {node} port {port} tls pki good filter "all" hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain <domains> action "store"
"""
RELAYD = """\
interval 10
timeout 200
table <mx> {{ {nodes} }}
redirect mx-smtp {{
	listen on {virtual} port {port}
	forward to <mx> port {port} check tcp
}}
"""
HACTL = """\
mode: relayctl
nodes: {{mx0: {mx0}, mx1: {mx1}}}
checks:
  smtp:
    type: smtp
    port: {port}
    depth: rcpt
    mail_to: probe@example.org
    tls: starttls
    name: {name}
    ca: {ca}
services:
  mx-smtp: {{require: [smtp]}}
relayd:
  conf: {directory}/relayd.conf
  relayctl: {directory}/relayd/relayctl
  pfctl: {directory}/relayd/pfctl
  socket: {directory}/relayd/relayd.sock
run_dir: {directory}/run
state_dir: {directory}/state
user: root
"""


class Kind(NamedTuple):
    """What the nodes are like: with tables in a *database* each, or with *files* for few sessions."""

    database: bool = False
    files: int | None = None


class Node:
    """A server that can be broken, with its files in *home*."""

    def __init__(self, home: Path, address: str, port: int, kind: Kind, dns: Resolver) -> None:
        self.home, self.address, self.port = home, address, port
        ready = free_port()
        opensmtpd.breakable(home, dns)
        self.database: Database | None = None
        domains, users = '{ "example.org" }', '{ "@example.org" = "nobody" }'
        if kind.database:
            (home / "database").mkdir()
            self.database = Database(home / "database")
            domains = users = f"mysql:{opensmtpd.mysql_table(home, self.database.host)}"
        conf = SMTPD.format(
            pki=opensmtpd.PKI.format(name="good", directory=home),
            filters=opensmtpd.FILTERS.format(directory=home),
            domains=domains, users=users, host=HOST, ready=ready, node=address, port=port,
        )  # fmt: skip
        self.smtpd = opensmtpd.Certified(home, conf, Smtp(port=ready), kind.files)

    @property
    def server(self) -> Server:
        """Return the mail server."""
        return self.smtpd.server

    def stop(self) -> None:
        """End it, and its database."""
        self.server.stop()
        if self.database is not None:
            self.database.server.stop()


Fault = Callable[[Node], AbstractContextManager[object]]


def hung(*titles: str) -> Fault:
    """Stop its processes with these titles."""
    return lambda node: node.server.stopped(node.server.children(*titles))


def filtering(fault: str) -> Fault:
    """Have its filter do something."""
    return lambda node: opensmtpd.written(node.home / "fault", fault + "\n")


def known_as(line: str) -> Fault:
    """Have it find something else for the client's address."""
    return lambda node: opensmtpd.written(node.home / "hosts", line)


@contextmanager
def backlog_full(node: Node) -> Iterator[None]:
    """Hang, and have more connections wait than the kernel keeps."""
    with hung("smtpd: dispatcher")(node), opensmtpd.crowded(node.address, node.port):
        yield


@contextmanager
def database_hung(node: Node) -> Iterator[None]:
    """Stop its database, which greets when it goes on."""
    assert node.database is not None
    with node.database.server.frozen([node.database.server.process]):
        yield


@contextmanager
def database_dead(node: Node) -> Iterator[None]:
    """Kill its database, and start it again."""
    assert node.database is not None
    node.database.server.process.kill()
    with node.database.dead():
        yield


PLAIN, TABLES, SMALL = Kind(), Kind(database=True), Kind(files=FEW)
FAULTS: dict[str, tuple[Kind, Fault]] = {
    "paused": (PLAIN, lambda node: opensmtpd.paused(node.server)),
    "dispatcher hung": (PLAIN, hung("smtpd: dispatcher")),
    "lookup hung": (PLAIN, hung("smtpd: lookup")),
    "queue hung": (PLAIN, hung("smtpd: queue")),
    "crypto hung": (PLAIN, hung("smtpd: crypto")),
    "backlog full": (PLAIN, backlog_full),
    "filter slow": (PLAIN, filtering("connect delay 6")),
    "filter hung": (PLAIN, filtering("mail-from hang")),
    "filter 421": (PLAIN, filtering("connect disconnect 421 4.3.2 too busy")),
    "no rdns": (PLAIN, known_as("")),
    "dynamic rdns": (PLAIN, known_as(opensmtpd.DYNAMIC)),
    "certificate expired": (PLAIN, lambda node: node.smtpd.by("expired")),
    "certificate of another": (PLAIN, lambda node: node.smtpd.by("other")),
    "no more sessions": (SMALL, lambda node: opensmtpd.sessions(node.address, node.port)),
    "database dead": (TABLES, database_dead),
    "database hung": (TABLES, database_hung),
}


def client(port: int, ca: Path) -> Smtp:
    """Return how a client begins."""
    return Smtp(
        port=port, depth="rcpt", mail_to="probe@example.org", tls="starttls", name=NAME, ca=ca
    )


def deliver(begins: Smtp) -> Dialogue:
    """Hand over a message as a client does."""
    result = yield from begins.look(Target())
    if result.verdict is not Verdict.OK:
        return result
    answer = yield Say(b"DATA\r\n", reply, "data")
    if answer[:1] == b"3":
        answer = yield Say(b"Subject: x\r\n\r\nx\r\n.\r\n", reply, "end")
    yield Say(b"QUIT\r\n", nothing, "quit")
    return ok("taken") if answer[:1] == b"2" else refused("DATA", answer)


def only_one() -> Callable[[int, int], socket.socket]:
    """Return what makes one socket: a client does not come again to look at a bad certificate."""
    left = [socket.socket]

    def make(family: int, kind: int) -> socket.socket:
        if not left:
            raise ConnectionRefusedError
        return left.pop()(family, kind)

    return make


class Client:
    """Sends messages, and notes when those that were lost had begun."""

    def __init__(
        self,
        port: int,
        talk: Callable[[], Dialogue],
        address: str = VIRTUAL,
        every: float = EVERY,
    ) -> None:
        self.sent = 0
        self.lost: list[float] = []
        self.reasons: dict[str, int] = {}
        self._port, self._talk, self._address, self._every = port, talk, address, every
        self._wires: set[Wire] = set()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(1 << 30):
            await asyncio.sleep(start + number * self._every - loop.time())
            wire = Wire(loop, cap=1, excuse=lambda _began: None, make_socket=only_one())
            self._wires.add(wire)
            done = partial(self._ended, wire)
            wire.start(self._address, self._port, self._talk(), PATIENCE, done)

    def _ended(self, wire: Wire, result: Result, began: float, _ended: float) -> None:
        self._wires.discard(wire)
        self.sent += 1
        if result.verdict is not Verdict.OK:
            self.lost.append(began)
            self.reasons[result.reason] = self.reasons.get(result.reason, 0) + 1

    async def stop(self) -> None:
        """Begin no more, and wait for those that are on their way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while self._wires:  # noqa: ASYNC110 - each ends within its patience
            await asyncio.sleep(0.05)


async def suffer(nodes: list[Node], fault: str, steered: bool, seconds: float) -> dict[str, Any]:
    """Return what a client lost to *fault*."""
    loop = asyncio.get_running_loop()
    port, ca = nodes[0].port, nodes[0].home.parent / "ca.pem"
    with tempfile.TemporaryDirectory(prefix="hactl-cluster-") as name:
        directory = Path(name)
        conf = directory / "relayd.conf"
        conf.write_text(RELAYD.format(virtual=VIRTUAL, nodes=" ".join(NODES), port=port))
        mx0, mx1 = NODES
        text = HACTL.format(mx0=mx0, mx1=mx1, port=port, name=NAME, ca=ca, directory=directory)
        (directory / "hactl.yaml").write_text(text)
        relayd = Emulator(conf, directory / "relayd")
        await relayd.start()
        hactld = Hactld(directory) if steered else None
        try:
            await relayd.until(lambda: in_use(relayd) == 2, CALM)
            if hactld is not None:
                await hactld.start()
            begins = client(port, ca)
            sender = Client(port, partial(deliver, begins))
            await asyncio.sleep(WARM)
            began = loop.time()
            suffered = FAULTS[fault][1](nodes[0])
            await asyncio.to_thread(suffered.__enter__)  # some take a while
            try:
                await asyncio.sleep(seconds)
            finally:
                await asyncio.to_thread(suffered.__exit__, None, None, None)
            healed = loop.time()
            await relayd.until(lambda: in_use(relayd) == 2, CALM)
            back = loop.time() - healed
            await asyncio.sleep(1.0)
            await sender.stop()
        finally:
            if hactld is not None:
                await hactld.stop()
            await relayd.stop()
        lost = [moment for moment in sender.lost if moment >= began - PATIENCE]
        return {
            "fault": fault,
            "steered": steered,
            "sent": sender.sent,
            "lost": len(lost),
            "seconds": max(0.0, max(lost, default=began) - began),
            "back_seconds": back,
            "reasons": sender.reasons,
            "load": os.getloadavg()[0],
        }


def in_use(relayd: Emulator) -> int:
    """Return how many addresses pf sends sessions to."""
    return len(relayd.pf.tables.get("mx-smtp", ()))


@contextmanager
def running(directory: Path, kind: Kind) -> Iterator[list[Node]]:
    """Run both nodes, which have the same authority."""
    opensmtpd.certificates(directory)
    port = free_port()
    with ExitStack() as stack:
        dns = stack.enter_context(opensmtpd.resolver())
        nodes = []
        for address in NODES:
            home = directory / address
            home.mkdir()
            for pair in directory.glob("*.*"):
                if pair.is_file():
                    shutil.copy(pair, home)  # with its mode
            nodes.append(Node(home, address, port, kind, dns))
            stack.callback(nodes[-1].stop)
        yield nodes


def measured(faults: list[str], seconds: float, ways: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Return what each fault costs, steered by hactld or with relayd alone."""
    rows = []
    for kind in dict.fromkeys(FAULTS[fault][0] for fault in faults):
        with tempfile.TemporaryDirectory(prefix="hactl-cluster-") as name:
            Path(name).chmod(0o755)
            with running(Path(name), kind) as nodes:
                for fault in (fault for fault in faults if FAULTS[fault][0] == kind):
                    for steered in ways:
                        rows.append(asyncio.run(suffer(nodes, fault, steered, seconds)))
                        print(f"cluster.py: {rows[-1]}", file=sys.stderr)
                        nodes[0].server.await_ready()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME",
                        help=f"which of {', '.join(FAULTS)} [all]")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=20.0, help="that a fault stays [20]")
    parser.add_argument("--steered", action="store_true", help="leave out relayd alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    ways = (True,) if options.steered else (True, False)
    try:
        rows = measured(options.faults, options.seconds, ways)
    except pytest.skip.Exception as missing:
        sys.exit(f"cluster.py: {missing}")
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    print("| fault of one node | steered by | sent | lost | for seconds | back after |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        by = "hactl" if row["steered"] else "check tcp"
        print(f"| {row['fault']} | {by} | {row['sent']} | {row['lost']} | {row['seconds']:.1f}"
              f" | {row['back_seconds']:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
