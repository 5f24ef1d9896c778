"""What mail a client loses while one of two real OpenSMTPD nodes is at fault.

The nodes stand behind the emulated relayd, which forwards each session to one of them; a client
sends a message every 200 ms, under STARTTLS.  Each fault is put into the first node, stays for some
seconds, and is taken out; then both nodes are waited for.  Once hactld steers relayd by a check of
type smtp with the times of its type, and once relayd is alone with its own `check tcp`.  Lost is a
message that is not taken within 5 seconds; seconds are those from the fault to when the last one
that was lost had been begun.  Root and the servers of tests/services/install are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from checks import Target
from checks._wire import Dialogue, Say, Wire, nothing, reply
from checks.smtp import Smtp, refused
from hactl.core.model import Result, Verdict, ok
from hactl.lab.demo import Hactld
from hactl.lab.relayd import Emulator
from tests.services import opensmtpd
from tests.services.servers import HOST, Server, free_port

VIRTUAL, *NODES = "127.0.41.1", "127.0.41.4", "127.0.41.5"
EVERY = 0.2  # seconds from one message to the next
PATIENCE = 5.0  # seconds that a client has for a message
WARM = 4.0  # seconds of traffic before a fault
CALM = 40.0  # seconds until both nodes are in use again, at most

SMTPD = """\
pki it cert "{directory}/good.pem"
pki it key "{directory}/good.key"
table users {{ "@example.org" = "nobody" }}
listen on {host} port {ready} tls pki it hostname mx.example.org
listen on {node} port {port} tls pki it hostname mx.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain "example.org" action "store"
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
  smtp: {{type: smtp, port: {port}, depth: rcpt, mail_to: probe@example.org, tls: starttls, verify: false}}
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


class Node(NamedTuple):
    """A server, and smtpctl where its socket is."""

    server: Server

    def hung(self, *titles: str) -> Any:
        """Stop its processes with these titles."""
        return self.server.stopped(self.server.children(*titles))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have it take no connections, as an operator does."""
        opensmtpd.smtpctl(self.server, "pause", "smtp")
        try:
            yield
        finally:
            opensmtpd.smtpctl(self.server, "resume", "smtp")


FAULTS = {
    "paused": lambda node: node.paused(),
    "dispatcher hung": lambda node: node.hung("smtpd: dispatcher", "smtpd: pony express"),
    "lookup hung": lambda node: node.hung("smtpd: lookup"),
    "queue hung": lambda node: node.hung("smtpd: queue"),
    "crypto hung": lambda node: node.hung("smtpd: crypto"),
}


def deliver(port: int) -> Dialogue:
    """Hand over a message as a client does."""
    client = Smtp(port=port, depth="rcpt", mail_to="user@example.org", tls="starttls", verify=False)
    result = yield from client.look(Target())
    if result.verdict is not Verdict.OK:
        return result
    answer = yield Say(b"DATA\r\n", reply, "data")
    if answer[:1] == b"3":
        answer = yield Say(b"Subject: x\r\n\r\nx\r\n.\r\n", reply, "end")
    yield Say(b"QUIT\r\n", nothing, "quit")
    return ok("taken") if answer[:1] == b"2" else refused("DATA", answer)


class Client:
    """Sends messages, and notes when those that were lost had begun."""

    def __init__(
        self,
        port: int,
        address: str = VIRTUAL,
        talk: Callable[[int], Dialogue] = deliver,
        every: float = EVERY,
    ) -> None:
        self.sent = 0
        self.lost: list[float] = []
        self.reasons: dict[str, int] = {}
        self._port, self._address, self._talk, self._every = port, address, talk, every
        self._wire = Wire(asyncio.get_running_loop(), cap=1000, excuse=lambda _began: None)
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(1 << 30):
            await asyncio.sleep(start + number * self._every - loop.time())
            talk = self._talk(self._port)
            self._wire.start(self._address, self._port, talk, PATIENCE, self._ended)

    def _ended(self, result: Result, began: float, _ended: float) -> None:
        self.sent += 1
        if result.verdict is not Verdict.OK:
            self.lost.append(began)
            self.reasons[result.reason] = self.reasons.get(result.reason, 0) + 1

    async def stop(self) -> None:
        """Begin no more, and wait for those that are on their way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        end = asyncio.get_running_loop().time() + PATIENCE + 1
        while self._wire.live and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._wire.close()


async def suffer(
    nodes: list[Node], port: int, fault: str, steered: bool, seconds: float
) -> dict[str, Any]:
    """Return what a client lost to *fault*."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="hactl-cluster-") as name:
        directory = Path(name)
        conf = directory / "relayd.conf"
        conf.write_text(RELAYD.format(virtual=VIRTUAL, nodes=" ".join(NODES), port=port))
        text = HACTL.format(mx0=NODES[0], mx1=NODES[1], port=port, directory=directory)
        (directory / "hactl.yaml").write_text(text)
        relayd = Emulator(conf, directory / "relayd")
        await relayd.start()
        hactld = Hactld(directory) if steered else None
        client = None
        try:
            await relayd.until(lambda: in_use(relayd) == 2, CALM)
            if hactld is not None:
                await hactld.start()
            client = Client(port)
            await asyncio.sleep(WARM)
            began = loop.time()
            with FAULTS[fault](nodes[0]):
                await asyncio.sleep(seconds)
            healed = loop.time()
            await relayd.until(lambda: in_use(relayd) == 2, CALM)
            back = loop.time() - healed
            await asyncio.sleep(1.0)
            await client.stop()
        finally:
            if hactld is not None:
                await hactld.stop()
            await relayd.stop()
        lost = [moment for moment in client.lost if moment >= began - PATIENCE]
        return {
            "fault": fault,
            "steered": steered,
            "sent": client.sent,
            "lost": len(lost),
            "seconds": max(0.0, max(lost, default=began) - began),
            "back_seconds": back,
            "reasons": client.reasons,
        }


def in_use(relayd: Emulator) -> int:
    """Return how many addresses pf sends sessions to."""
    return len(relayd.pf.tables.get("mx-smtp", ()))


@contextmanager
def running(directory: Path, port: int) -> Iterator[list[Node]]:
    """Run both nodes."""
    with ExitStack() as stack:
        nodes = []
        for address in NODES:
            home = directory / address
            home.mkdir()
            opensmtpd.certificates(home)
            ready = free_port()
            conf = SMTPD.format(directory=home, host=HOST, node=address, port=port, ready=ready)
            server = opensmtpd.start(home, conf, Smtp(port=ready), opensmtpd.newer())
            stack.callback(server.stop)
            nodes.append(Node(server))
        yield nodes


def measured(faults: list[str], seconds: float, ways: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Return what each fault costs, steered by hactld or with relayd alone."""
    with tempfile.TemporaryDirectory(prefix="hactl-cluster-") as name:
        Path(name).chmod(0o755)
        port = free_port()
        with running(Path(name), port) as nodes:
            rows = []
            for fault in faults:
                for steered in ways:
                    rows.append(asyncio.run(suffer(nodes, port, fault, steered, seconds)))
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
    rows = measured(options.faults, options.seconds, ways)
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
