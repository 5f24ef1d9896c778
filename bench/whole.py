"""What becomes of a whole mail cluster that loses one part after another.

Two nodes, each of them OpenSMTPD with its tables in MariaDB and a filter that asks spamd and clamd,
Dovecot with its mailboxes on a mount, and a hactld as the agent; the two MariaDB replicate from each
other.  Before them two emulated relayds, which forward every session: one is steered by hactld,
its twin is alone with `check tcp`.  At each a client sends a message and another opens a mailbox,
every second, and give up after 5 seconds.  A part of the first node is broken, stays so for some
seconds, and is mended.  Root and the servers of tests/services/install are needed.

--soak goes through the faults again and again with one hactld for so long, and tells what the three
hactlds hold after each: descriptors, threads, children, memory.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.cluster import PATIENCE, Client, deliver
from checks.imap import Imap
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from hactl.agent import keys
from hactl.core.units import Secret
from hactl.lab.demo import Hactld
from hactl.lab.relayd import Emulator
from tests.services import clamd, dovecot, opensmtpd, relay, spamd
from tests.services.mariadb import TABLES
from tests.services.mount import SOURCE, TYPE, Mount
from tests.services.pair import Pair, Side
from tests.services.servers import Server, free_port
from tests.services.syslog import syslog

NODES = {"mx0": "127.0.43.4", "mx1": "127.0.43.5"}
VIRTUAL = {"hactl": "127.0.43.1", "check tcp": "127.0.43.2"}
SERVICES = ("mx-smtp", "mx-imap")
EVERY = 1.0  # seconds from one session of a client to its next
WARM = 6.0  # seconds of traffic before a fault
CALM = 180.0  # seconds until all is as it was, at most
SHORT = 14.0  # seconds that a fault stays in a soak
STEP = 0.05  # seconds from look to look at what goes on

SMTPD = """\
pki it cert "{directory}/good.pem"
pki it key "{directory}/good.key"
filter "scan" proc-exec "/usr/bin/python3 -I -S {directory}/scan.py {host} {spamd} {clamd}"
table domains mysql:{directory}/mysql.conf
table users mysql:{directory}/mysql.conf
table base {{ "box" = "65534:65534:/nonexistent" }}
listen on {host} port {port} tls pki it filter "scan" hostname mx.example.org
action "store" lmtp "{host}:{lmtp}" virtual <users> userbase <base>
match from any for domain <domains> action "store"
"""
# All that spamd knows here: with the rules that it brings its scans would take most of two cores.
RULES = {
    "rules.pre": "loadplugin Mail::SpamAssassin::Plugin::Check\nutil_rb_tld org test\n",
    "rules.cf": r"""
body GTUBE /XJS\*C4JDBQADN1\.NSBN3\*2IDNEN\*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL\*C\.34X/
score GTUBE 1000
""",
}
USERS = (
    "UPDATE mail.users SET destination='box'",
    "INSERT INTO mail.users VALUES ('user@example.org', 'box')",
    "GRANT SELECT ON mail.* TO hactl@'127.%'",
)
# Of smtpd-filters(7), as filter-spamassassin and filter-clamav are: a message is held until both
# have read it; it passes where one of them refuses to.
SCAN = """\
import socket, struct, sys, threading
host, spamd, clamd = sys.argv[1:]
texts, lock = {}, threading.Lock()

def ask(port, question):
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(question)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass

def scan(session, token, lines):
    text = "\\r\\n".join(lines[:-1]).encode() + b"\\r\\n"
    head = f"CHECK SPAMC/1.5\\r\\nContent-length: {len(text)}\\r\\n\\r\\n".encode()
    size = struct.pack(">I", len(text))
    for port, question in (spamd, head + text), (clamd, b"zINSTREAM\\0" + size + text + bytes(4)):
        try:
            ask(port, question)
        except OSError:
            pass
    with lock:
        for line in lines:
            print(f"filter-dataline|{session}|{token}|{line}")
        sys.stdout.flush()

for line in sys.stdin:
    words = line.rstrip("\\n").split("|", 7)
    if words[:2] == ["config", "ready"]:
        print("register|filter|smtp-in|data-line\\nregister|ready", flush=True)
    elif words[0] == "filter":
        session, token, text = words[5:]
        texts.setdefault(session, []).append(text)
        if text == ".":
            message = session, token, texts.pop(session)
            threading.Thread(target=scan, args=message, daemon=True).start()
"""
RELAYD = """\
interval 10
timeout 200
table <mx> {{ {nodes} }}
redirect mx-smtp {{
	listen on $virtual port {smtp}
	forward to <mx> port {smtp} check tcp
}}
redirect mx-imap {{
	listen on $virtual port {imap}
	forward to <mx> port {imap} check tcp
}}
"""
# Looks that say more, or say it sooner, than the defaults of their types would.
AGENT = """\
mode: observe
user: root
node: {name}
nodes: {{{name}: {host}}}
agent: {{listen: {host}:8325, keys: {directory}/keys}}
run_dir: {directory}/run
state_dir: {directory}/state
defaults: {{check: {{interval: 2s, timeout: 2s}}}}
checks:
  store: {{type: nfs, path: {mount}, source: "{source}", fstype: [{fstype}]}}
  queue: {{type: queue, command: [{directory}/smtpctl]}}
  log: {{type: maillog, file: {log}, window: 30s, least: 10}}
  machine: {{type: host}}
  spamd: {{type: spamd, port: {spamd}}}
  clamd: {{type: clamd, port: {clamd}}}
  database: {{type: mysql, login: {login}, query: SELECT COUNT(*) FROM mail.users, rows: 1}}
  replica: {{type: replication, login: {login}, pair: [{pair}]}}
"""
HACTL = """\
mode: relayctl
user: root
nodes:
  mx0: {{address: {mx0}, agent: true}}
  mx1: {{address: {mx1}, agent: true}}
agent: {{keys: {keys}}}
checks:
  smtp: {{type: smtp, port: {smtp}, depth: rcpt, mail_to: probe@example.org, tls: starttls, verify: false}}
  imap: {{type: imap, port: {imap}, tls: starttls, verify: false, login: {login}, interval: 2s, timeout: 2s}}
  store: &agent {{from: agent, interval: 2s, timeout: 2s}}
  database: *agent
  replica: *agent
  spamd: *agent
  clamd: *agent
  log: {{<<: *agent, limits: {{tempfail_percent: {{warn: 20, fail: 60, clear: 10}}}}}}
  queue: {{<<: *agent, limits: {{untried_seconds: {{warn: 4, fail: 60}}}}}}
  machine: *agent
services:
  mx-smtp:
    require: [smtp, store]
    prefer: [database, replica, spamd, clamd, log, queue]
    watch: [machine]
  mx-imap:
    require: [imap, store]
relayd:
  conf: {directory}/relayd.conf
  relayctl: {directory}/hactl/relayctl
  pfctl: {directory}/hactl/pfctl
  socket: {directory}/hactl/relayd.sock
run_dir: {directory}/run
state_dir: {directory}/state
"""


class Node:
    """All that runs on a mail server."""

    def __init__(self, name: str, home: Path, side: Side, pair: Pair, smtp: int, imap: int) -> None:
        self.side = side
        self._stack = ExitStack()
        try:
            self._start(name, home, pair, smtp, imap)
        except BaseException:
            self.stop()
            raise

    def _start(self, name: str, home: Path, pair: Pair, smtp: int, imap: int) -> None:
        host = NODES[name]
        for each in ("store", "imap", "spam", "virus", "mta", "agent"):
            (home / each).mkdir(parents=True)
        log = self._stack.enter_context(syslog(home))
        self.mount = Mount(home / "store")
        self._stack.callback(self.mount.stop)
        self.imap = self._run(dovecot.run(home / "imap", host, self.mount.path, imap))
        with (home / "imap" / "users").open("a") as file:
            file.write("box:{PLAIN}secret::::::\n")
        rules = home / "rules"
        rules.mkdir()
        for file, text in RULES.items():
            (rules / file).write_text(text)
        self.spamd = spamd.launch(home / "spam", Spamd(scan=False), host, log.within, rules)
        self._stack.callback(self.spamd.stop)
        self.clamd = self._run(clamd.run(home / "virus", host))
        ports = {"spamd": self.spamd.check.port, "clamd": self.clamd.check.port}

        mta = home / "mta"
        opensmtpd.certificates(mta)
        opensmtpd.mysql_table(mta, self.side.host)
        (mta / "scan.py").write_text(SCAN)
        lmtp = self.imap.checks["lmtp"].port
        conf = SMTPD.format(directory=mta, host=host, port=smtp, lmtp=lmtp, **ports)
        check = Smtp(port=smtp, depth="rcpt", mail_to="probe@example.org")
        self._agent = home / "agent"
        self.smtpd = opensmtpd.start(
            mta, conf, check, opensmtpd.newer(), host=host, within=log.within
        )
        self._stack.callback(self.smtpd.stop)
        self._tell()

        text = AGENT.format(
            name=name, host=host, directory=self._agent, mount=self.mount.path, source=SOURCE,
            fstype=TYPE, log=log.file, login=pair.login(), pair=", ".join(pair.addresses), **ports,
        )  # fmt: skip
        (self._agent / "hactl.yaml").write_text(text)
        self._command = [sys.executable, "-m", "hactl.daemon.main", "-d"]

    def _run(self, started: Iterator[Any]) -> Any:
        """Return what a generator yields, and let it end what it began at our own end."""
        found = next(started)
        self._stack.callback(next, started, None)
        return found

    def _tell(self) -> None:
        """Write how the agent asks smtpd for its queue: it stands in a namespace of its own."""
        command = self._agent / "smtpctl"
        command.write_text(f'#!/bin/sh\nexec {shlex.join(relay.smtpctl(self.smtpd))} "$@"\n')
        command.chmod(0o755)

    def begin(self) -> None:
        """Start the agent; its keys have been made by now."""
        command = [*self._command, "-f", str(self._agent / "hactl.yaml")]
        host = self.smtpd.host
        self.agent = Server(command, self._agent, Tcp(port=8325), host=host)
        self._stack.callback(self.agent.stop)

    @contextmanager
    def dead(self) -> Iterator[None]:
        """End OpenSMTPD, and start it again afterwards."""
        with self.smtpd.ended():
            yield
        self._tell()

    @contextmanager
    def unreplicated(self) -> Iterator[None]:
        """Stop a thread of the replica, as an error would."""
        self.side.sql("STOP SLAVE SQL_THREAD")
        try:
            yield
        finally:
            self.side.sql("START SLAVE SQL_THREAD")

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop all of it at once."""
        with ExitStack() as stack:
            for server in (self.smtpd, self.imap.server, self.spamd, self.clamd, self.agent):
                stack.enter_context(whole(server))
            stack.enter_context(whole(self.side.server))
            yield

    def stop(self) -> None:
        """End all of it."""
        with suppress(AttributeError):
            self.mount.say("ok")
        self._stack.close()


def whole(server: Server) -> AbstractContextManager[None]:
    """Stop a server with all its children."""
    return server.stopped([server.process, *server.process.children(recursive=True)])


def part(server: Server, title: str) -> AbstractContextManager[None]:
    """Stop one process of a server."""
    return server.stopped(server.children(title))


@contextmanager
def three(node: Node) -> Iterator[None]:
    """Have three hang at once that hactld must not wait for."""
    with node.mount.being("hang"), whole(node.side.server), whole(node.agent):
        yield


FAULTS: dict[str, Callable[[Node], AbstractContextManager[None]]] = {
    "OpenSMTPD hung": lambda node: part(node.smtpd, "smtpd: dispatcher"),
    "OpenSMTPD dead": lambda node: node.dead(),
    "its scheduler hung": lambda node: part(node.smtpd, "smtpd: scheduler"),
    "MariaDB hung": lambda node: whole(node.side.server),
    "MariaDB dead": lambda node: node.side.dead(),
    "replica stopped": lambda node: node.unreplicated(),
    "spamd hung": lambda node: whole(node.spamd),
    "spamd dead": lambda node: node.spamd.ended(),
    "clamd hung": lambda node: whole(node.clamd),
    "clamd dead": lambda node: node.clamd.ended(),
    "Dovecot hung": lambda node: part(node.imap.server, "/auth"),
    "Dovecot dead": lambda node: node.imap.server.ended(),
    "mount hung": lambda node: node.mount.being("hang"),
    "mount stale": lambda node: node.mount.being("estale"),
    "agent hung": lambda node: whole(node.agent),
    "agent dead": lambda node: node.agent.ended(),
    "mount, MariaDB and agent hung": three,
    "all of it hung": lambda node: node.hung(),
}


class Cluster:
    """Both nodes, and what stands before them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = {"smtp": free_port(), "imap": free_port()}
        self.nodes: list[Node] = []
        (home / "pair").mkdir()
        self._pair = Pair(home / "pair", list(NODES.values()))
        try:
            for (name, _), side in zip(NODES.items(), self._pair.sides, strict=True):
                side.sql("SET SESSION sql_log_bin=0", *TABLES.format(hash="").splitlines(), *USERS)
                self.nodes.append(Node(name, home / name, side, self._pair, *self.ports.values()))
            self.login = opensmtpd.logins(home)[0]
            self._acquaint()
            for node in self.nodes:
                node.begin()
        except BaseException:
            self.stop()
            raise

    def _acquaint(self) -> None:
        """Make keys on all sides, and have the balancer and each node trust the other's."""
        for name in NODES:
            keys.keygen(self.home / name / "agent" / "keys", name)
        keys.keygen(self.home / "keys", "lb0")
        for name in NODES:
            theirs = self.home / name / "agent" / "keys"
            keys.trust(self.home / "keys", keys.own(theirs)[0])
            keys.trust(theirs, keys.own(self.home / "keys")[0])

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.stop()
        self._pair.stop()


class Balancers:
    """hactld, the relayd that it steers, and the twin."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        conf = directory / "relayd.conf"
        conf.write_text(RELAYD.format(nodes=" ".join(NODES.values()), **cluster.ports))
        text = HACTL.format(
            **NODES,
            **cluster.ports,
            keys=cluster.home / "keys",
            login=cluster.login,
            directory=directory,
        )
        (directory / "hactl.yaml").write_text(text)
        self.relayds = {
            name: Emulator(conf, directory / name.split()[0], {"virtual": address})
            for name, address in VIRTUAL.items()
        }
        self.hactld = Hactld(directory)
        self.log = directory / "hactld.log"

    async def __aenter__(self) -> Balancers:
        for relayd in self.relayds.values():
            await relayd.start()
        await self.until_used(CALM)
        await self.hactld.start()
        await self.until_well()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hactld.stop()
        for relayd in self.relayds.values():
            await relayd.stop()

    def used(self, by: str, service: str) -> tuple[str, ...]:
        """Return the addresses to which pf sends sessions."""
        return tuple(self.relayds[by].pf.tables.get(service, ()))

    async def until_used(self, limit: float) -> None:
        """Wait until every node is used by both for everything."""
        for by, relayd in self.relayds.items():
            for service in SERVICES:
                await relayd.until(lambda b=by, s=service: len(self.used(b, s)) == 2, limit)  # type: ignore[misc]

    async def until_well(self) -> None:
        """Wait until every probe is up."""
        end = time.monotonic() + CALM
        while True:
            bad = [p for p in await self.probes() if p["state"] != "up"]
            if not bad:
                return
            if time.monotonic() > end:
                raise RuntimeError(
                    f"not well: {[(p['node'], p['check'], p['reason']) for p in bad]}"
                )
            await asyncio.sleep(0.2)

    async def status(self) -> dict[str, Any]:
        """Return hactld's status."""
        answer: dict[str, Any] = await self.hactld.ask("status")
        found: dict[str, Any] = answer["data"]
        return found

    async def probes(self) -> list[dict[str, Any]]:
        """Return the state of every probe."""
        found: list[dict[str, Any]] = (await self.status())["probes"]
        return found

    async def late(self) -> int:
        """Return in how many slots hactld was late by one or more."""
        count: int = (await self.status())["counts"]["own_lag"]
        return count


class Clients:
    """One that sends and one that reads, at each relayd."""

    def __init__(self, cluster: Cluster) -> None:
        login = Secret(str(cluster.login))
        look = Imap(tls="starttls", verify=False, login=login)
        list(look.problems())  # reads the login

        begins = Smtp(depth="rcpt", mail_to="user@example.org", tls="starttls", verify=False)
        smtp, imap = cluster.ports["smtp"], cluster.ports["imap"]
        self.all = {
            by: {
                "mx-smtp": Client(smtp, partial(deliver, begins), address, EVERY),
                "mx-imap": Client(imap, look.talk, address, EVERY),
            }
            for by, address in VIRTUAL.items()
        }

    async def stop(self) -> None:
        """Begin no more, and wait for those that are on their way."""
        await asyncio.gather(*(each.stop() for both in self.all.values() for each in both.values()))


_DOWN = re.compile(r" state node=mx0 check=(\S+) from=\S+ to=(down|degraded) ")


async def suffer(cluster: Cluster, fault: str, seconds: float) -> dict[str, Any]:
    """Return what came of *fault*."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="hactl-whole-") as name:
        async with Balancers(cluster, Path(name)) as balancers:
            clients = Clients(cluster)
            await asyncio.sleep(WARM)
            lag = await balancers.late()
            told = len(balancers.log.read_text())
            seen: dict[str, float] = {}
            out: dict[str, dict[str, float]] = {by: {} for by in VIRTUAL}
            began = loop.time()

            async def watch(until: Callable[[], bool], limit: float) -> None:
                while loop.time() < limit and not until():
                    now = loop.time() - began
                    for found in _DOWN.finditer(balancers.log.read_text(), told):
                        seen.setdefault(found[1], now)
                    for by in VIRTUAL:
                        for service in SERVICES:
                            if NODES["mx0"] not in balancers.used(by, service):
                                out[by].setdefault(service, now)
                    await asyncio.sleep(STEP)

            def all_used(by: str) -> bool:
                return all(len(balancers.used(by, service)) == 2 for service in SERVICES)

            async def back(by: str) -> float | None:
                """Return the seconds until *by* uses both nodes for everything, None if it does not."""
                while not all_used(by):
                    if loop.time() > healed + CALM:
                        return None
                    await asyncio.sleep(STEP)
                return loop.time() - healed

            with ExitStack() as stack:
                await asyncio.to_thread(stack.enter_context, FAULTS[fault](cluster.nodes[0]))
                await watch(lambda: False, began + seconds)
                lag = await balancers.late() - lag
                healed = loop.time()
                ways = [asyncio.create_task(back(by)) for by in VIRTUAL]
                await asyncio.to_thread(stack.close)
            returned = dict(zip(VIRTUAL, await asyncio.gather(*ways), strict=True))
            await asyncio.sleep(1.0)
            await clients.stop()
            log = balancers.log.read_text()[told:]
    return {
        "fault": fault,
        "seen": seen,
        "late_slots": lag,
        "acts": re.findall(r" acted (\S+ .*?) took=\S+ reason=(.*)", log),
        "alerts": sorted(set(re.findall(r" (agent silent node=\S+)", log))),
        "by": {
            by: {
                "out": out[by],
                "back": returned[by],
                **{service: lost(client, began) for service, client in clients.all[by].items()},
            }
            for by in VIRTUAL
        },
    }


def lost(client: Client, began: float) -> dict[str, Any]:
    """Return what a client lost by a fault that began then."""
    moments = [moment for moment in client.lost if moment >= began - PATIENCE]
    return {
        "sent": client.sent,
        "lost": len(moments),
        "seconds": max(0.0, max(moments, default=began) - began),
        "reasons": client.reasons,
    }


async def held(processes: dict[str, psutil.Process]) -> dict[str, dict[str, int]]:
    """Return the least of what each process holds in two seconds: looks come and go."""
    seen: dict[str, list[dict[str, int]]] = {who: [] for who in processes}
    for _ in range(20):
        for who, process in processes.items():
            with process.oneshot():
                counts = {
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                    "children": len(process.children()),
                    "KiB": process.memory_info().rss >> 10,
                }
            seen[who].append(counts)
        await asyncio.sleep(0.1)
    return {
        who: {what: min(one[what] for one in all_) for what in all_[0]}
        for who, all_ in seen.items()
    }


async def soak(cluster: Cluster, faults: list[str], whole_time: float) -> list[dict[str, Any]]:
    """Break and mend again and again, one fault at least; return what each hactld holds after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hactl-whole-") as name:
        async with Balancers(cluster, Path(name)) as balancers:
            clients = Clients(cluster)
            assert balancers.hactld.process is not None
            balancer = psutil.Process(balancers.hactld.process.pid)
            await asyncio.sleep(WARM)
            end = time.monotonic() + whole_time
            for fault in itertools.chain([None], itertools.cycle(faults)):
                row: dict[str, Any] = {"fault": fault}
                if fault is not None:
                    row |= await one(cluster, balancers, fault)
                agents = {
                    name: node.agent.process
                    for name, node in zip(NODES, cluster.nodes, strict=True)
                }
                row["held"] = await held({"balancer": balancer, **agents})
                rows.append(row)
                print(f"whole.py: {row}", file=sys.stderr)
                if fault is not None and time.monotonic() > end:
                    break
            await clients.stop()
    return rows


async def one(cluster: Cluster, balancers: Balancers, fault: str) -> dict[str, Any]:
    """Break and mend; return where the node was out, and in how many slots hactld was late.

    What was out often has to wait for pace when it fails once more, and for a hold when it is well:
    so a soak tells of the first time alone who is taken out, and waits for nobody's return.
    """
    late = await balancers.late()
    with ExitStack() as stack:
        await asyncio.to_thread(stack.enter_context, FAULTS[fault](cluster.nodes[0]))
        await asyncio.sleep(SHORT)
        late = await balancers.late() - late
        out = {
            by: [s for s in SERVICES if NODES["mx0"] not in balancers.used(by, s)] for by in VIRTUAL
        }
        await asyncio.to_thread(stack.close)
    await balancers.until_well()
    return {"out": out, "late_slots": late}


@contextmanager
def running() -> Iterator[Cluster]:
    """Run the cluster."""
    with tempfile.TemporaryDirectory(prefix="hactl-whole-") as name:
        Path(name).chmod(0o755)
        cluster = Cluster(Path(name))
        try:
            yield cluster
        finally:
            cluster.stop()


def shown(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    hactl, twin = (row["by"][by] for by in VIRTUAL)

    def outs(side: dict[str, Any]) -> str:
        return (
            ", ".join(f"{s[3:]} {side['out'][s]:.1f}" for s in SERVICES if s in side["out"]) or "-"
        )

    def losses(side: dict[str, Any], service: str) -> str:
        found = side[service]
        seconds = f" ({found['seconds']:.1f})" if found["lost"] else ""
        return f"{found['lost']} of {found['sent']}{seconds}"

    def back(side: dict[str, Any]) -> str:
        if not side["out"]:
            return "-"
        return "never" if side["back"] is None else f"{side['back']:.1f}"

    seen = ", ".join(f"{check} {at:.1f}" for check, at in row["seen"].items()) or "-"
    cells = [row["fault"], seen]
    for side in (hactl, twin):
        cells += [outs(side), *(losses(side, service) for service in SERVICES), back(side)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME",
                        help=f"which of {', '.join(FAULTS)} [all]")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=25.0, help="that a fault stays [25]")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="go on for so long instead")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with running() as cluster:
        if options.soak is not None:
            found = asyncio.run(soak(cluster, options.faults, options.soak))
            print(json.dumps({"rows": found}, indent=1))
            return
        rows = []
        for fault in options.faults:
            rows.append(asyncio.run(suffer(cluster, fault, options.seconds)))
            print(f"whole.py: {rows[-1]}", file=sys.stderr)
    if options.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    side = "out | messages lost | mailboxes lost | back"
    print(f"| part of one node | hactl saw | {side} | check tcp: {side} |")
    print("|---" * 10 + "|")
    print("\n".join(map(shown, rows)))


if __name__ == "__main__":
    main()
