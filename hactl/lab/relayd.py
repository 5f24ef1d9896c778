"""relayd in one process on loopback: checks, forwards TCP, and answers relayctl and pfctl.

The model decides; here are the sockets.  What differs from the real ones:

- pf takes part: a redirect is a listener that exists while the rule does, so without a rule new
  connections are refused.  With a rule and an empty table they are accepted and held without a
  byte until the table is filled again, as a client that repeats its SYN would be.  A host that
  refuses gives the client a reset after the connect.  Every mode is round robin.
- Checks of tcp, icmp, http, tls, send and expect are all a connect, with its reasons; TLS is not
  spoken by relays either.  Scripts run one after another, their results come together, and a
  reload waits for them, as in relayd's parent; only the end does not.
- A file that cannot be read at a reload leaves an empty configuration; relayd keeps what it could
  read.  `monitor` says nothing.

Host names and listeners must be on loopback.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
import struct
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from hactl.core.model import Kind
from hactl.lab.model import Check, Model, Pf, Reply, Service
from hactl.lab.tools import build_tools
from hactl.relayd.conf import ConfError, Listen, RelaydConf, read

CHUNK = 1 << 16  # bytes read at once, and the most that is kept for a slow reader
HELD = 1024  # connections held for an empty table
BATCH = 49  # script requests that fit one read of relayd's parent
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
SWITCHED = ("host", "table", "redirect")


class Fault(Struct):
    """What goes wrong on the control socket, until it is taken back.

    *garbage* is shown instead of any table; *cut* ends what `show` prints after so many characters;
    *die* ends relayd there; *fail* is how many switches to come are refused.
    """

    garbage: str | None = None
    cut: int | None = None
    die: int | None = None
    fail: int = 0


class Counts(Struct):
    """Sessions so far: *forwarded* by service and address, and those that came to nothing.

    *refused*: by the host; *dropped*: pf's table was empty; *closed*: the relay had no host.
    """

    forwarded: Counter[tuple[str, str]]
    refused: int = 0
    dropped: int = 0
    closed: int = 0


class Emulator:
    """One machine with relayd and pf.

    Tools and sockets are made in *directory*; relayctl's is *socket*, or what the file says, or
    relayd.sock there.  *tick* is how many seconds one of relayd's lasts; *transit* is the model's.
    """

    def __init__(
        self,
        conf: Path,
        directory: Path,
        macros: Mapping[str, str] = {},
        socket: Path | None = None,
        variant: Literal["2019", "later"] = "later",
        *,
        tick: float = 1.0,
        transit: float = 0.0,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.pf = Pf()
        self.deaths: list[str] = []  # what ended relayd when nobody asked for it
        self.counts = Counts(Counter())
        self.switches = 0  # hosts, tables and redirects that relayctl was told to switch
        self.reads = 0  # times that pfctl was run
        self.fault = Fault()
        self.model: Model | None = None
        self.socket = socket
        self._conf = conf
        self._directory = directory
        self._macros = macros
        self._variant = variant
        self._tick = tick
        self._transit = transit
        self._log = log
        self._loads = 0
        self._read = RelaydConf(10.0, 0.2, (), None, ())
        self._timer: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._control: asyncio.Server | None = None
        self._pf_socket: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._checks: dict[socket_t, asyncio.TimerHandle] = {}
        self._queue: deque[Check] = deque()
        self._parent: asyncio.Task[None] | None = None
        self._rdr: dict[tuple[str, Listen], _Listener] = {}
        self._relays: list[_Listener] = []
        self._sessions: dict[_Session, bool] = {}  # and whether it is a relay's
        self._held: list[tuple[str, socket_t, str]] = []
        self._turns: Counter[str] = Counter()
        self._sources: dict[tuple[str, str], str] = {}

    @property
    def table_changes(self) -> int:
        """How often a table of pf got other addresses."""
        return self.pf.changes

    # Life

    async def start(self) -> None:
        """Make the tools, start pf and relayd.  Raise ConfError or OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(build_tools, self._directory)
        self._pf_socket = await _serve_unix(self._directory / "pf.sock", self._pfctl)
        try:
            await self.boot()
        except BaseException:
            await self.stop()
            raise

    async def boot(self) -> None:
        """Start relayd, again if need be, on the pf that the last one left."""
        if self._parent is not None:
            await asyncio.wait([self._parent])
        self._read = conf = read(self._conf, self._macros)
        addresses = _addresses(conf)
        for service in conf.services:
            for listen in service.listens:
                if (service.name, listen) not in self._rdr:
                    _listening(listen).close()
        if self.socket is None:
            self.socket = Path(conf.socket or self._directory / "relayd.sock")
        self._control = await _serve_unix(self.socket, self._relayctl)
        self.model = Model(self._variant, pf=self.pf, log=self._log, transit=self._transit)
        self._log("startup")
        self.model.load(conf, self._now(), addresses)
        self._step()

    async def stop(self) -> None:
        """End relayd and pf, with every session."""
        if self.model is not None:
            self.model.stop()
        self._end()
        for listener in self._rdr.values():
            listener.close()
        self._rdr.clear()
        for _, client, _ in self._held:
            client.close()
        self._held.clear()
        for session in list(self._sessions):
            session.reset()
        if self._pf_socket is not None:
            self._pf_socket.close()
            self._pf_socket = None
            (self._directory / "pf.sock").unlink(missing_ok=True)
        if self._parent is not None:
            await asyncio.wait([self._parent])
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def hup(self) -> None:
        """Read the file again, as SIGHUP does."""
        self._reload(self._conf)

    async def reload(self) -> None:
        """Read the file again."""
        self.hup()

    def kill(self, reason: str = "pfe: killed") -> None:
        """End relayd with nobody left to clean pf, unless *reason* blames another process."""
        if self.model is not None:
            self.model.crash(reason)
            self._end()

    def hang(self) -> None:
        """Answer nobody until `resume`; what was asked is then carried out all the same."""
        self._awake.clear()

    def resume(self) -> None:
        """Answer again."""
        self._awake.set()

    async def until(self, condition: Callable[[], bool], limit: float | None = 5.0) -> None:
        """Wait until *condition* holds.  Raise TimeoutError after *limit* seconds, if any."""
        async with asyncio.timeout(limit):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def command(self, words: str) -> Reply:
        """Do a relayctl command without a socket.  Raise RuntimeError when relayd has ended."""
        if self.model is None:
            raise RuntimeError("relayd is not running")
        return self._command(words.split())

    # The model's time

    def _now(self) -> float:
        return asyncio.get_running_loop().time() / self._tick

    def _step(self) -> None:
        """Do what is due."""
        if self.model is not None:
            for check in self.model.advance(self._now()):
                if check.kind == "script":
                    self._queue.append(check)
                else:
                    self._connect(check)
            if self._queue and self._parent is None:
                self._parent = asyncio.create_task(self._scripts(self.model))
        self._settle()

    def _settle(self) -> None:
        """Follow the model: its crash, its rules and relays, its next event."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        model = self.model
        if model is not None:
            if model.crashed is not None:
                self.deaths += [model.crashed] * (model.crashed not in self.deaths)
                loop.call_soon(self._end)
            if (due := model.next_event_time) is not None:
                self._timer = loop.call_at(due * self._tick, self._step)
            if model.loads != self._loads:
                self._loads = model.loads
                self._follow_relays(model)
        self._follow_rules()
        self._changed.set()

    def _end(self) -> None:
        """Nothing is left of relayd but its socket file, and what pf has."""
        if self.model is None:
            return
        clean = self.model.crashed is None
        self.model = None
        self._loads = 0
        if self._control is not None:
            self._control.close()
            self._control = None
        for writer in self._clients:
            writer.close()
        for sock in list(self._checks):
            self._forget(sock)
        self._queue.clear()
        if self._parent is not None:
            self._parent.cancel()
        self._end_relays()
        if clean and self._variant == "2019" and self.socket is not None:
            self.socket.unlink(missing_ok=True)
        self._settle()

    def _reload(self, path: Path) -> None:
        if self.model is None:
            return
        try:
            conf = read(path, self._macros)
            addresses = _addresses(conf)
            self._read = conf
        except ConfError as error:
            self._log(str(error))
            conf, addresses = replace(self._read, services=()), {}
        self.model.load(conf, self._now(), addresses)
        self._settle()

    # Checks

    def _connect(self, check: Check) -> None:
        """Check a host by connecting to it."""
        family = socket.AF_INET6 if ":" in check.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        failed = sock.connect_ex((check.address, check.port))
        loop = asyncio.get_running_loop()
        limit = max((check.deadline - check.started) * self._tick, 0.05)
        self._checks[sock] = loop.call_later(limit, self._silent, sock, check)
        loop.add_writer(sock, self._connected, sock, check, failed)

    def _connected(self, sock: socket_t, check: Check, failed: int) -> None:
        up = _connect_error(sock, failed) == 0
        self._forget(sock)
        self._done(self.model, [(check, up, "")])

    def _silent(self, sock: socket_t, check: Check) -> None:
        self._forget(sock)
        self._done(self.model, [(check, False, "tcp connect timeout")])

    def _forget(self, sock: socket_t) -> None:
        self._checks.pop(sock).cancel()
        asyncio.get_running_loop().remove_writer(sock)
        sock.close()

    def _done(self, model: Model | None, results: list[tuple[Check, bool | None, str]]) -> None:
        """Hand in results that belong together."""
        if model is None or model is not self.model:
            return
        for check, up, reason in results:
            model.check_done(check, up, self._now(), reason)
        self._settle()

    async def _scripts(self, model: Model) -> None:
        """Run what was asked for, one at a time; answer when the batch is done."""
        try:
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                results = [(check, await _script(check), "") for check in batch]
                self._done(model, results)
        finally:
            self._parent = None

    # Forwarding

    def _follow_rules(self) -> None:
        """Listen where pf has a rule, and let held connections go where they can."""
        wanted = {
            (name, listen): rule for name, rule in self.pf.rules.items() for listen in rule.listens
        }
        for key in self._rdr.keys() - wanted.keys():
            self._rdr.pop(key).close()
        for key in wanted.keys() - self._rdr.keys():
            name, listen = key
            try:
                sock = _listening(listen)
            except OSError as error:
                self._log(f"redirect {name}: {listen.address}:{listen.port}: {error}")
                continue
            self._rdr[key] = _Listener(sock, partial(self._redirect, name))
        held, self._held = self._held, []
        for name, client, source in held:
            if name in self.pf.rules:
                self._redirect(name, client, source, again=True)
            else:
                _reset(client)

    def _redirect(self, name: str, client: socket_t, source: str, again: bool = False) -> None:
        """Send a new connection to an address in pf's table; a sticky client stays with its own."""
        rule, addresses = self.pf.rules[name], self.pf.tables.get(name, ())
        if not addresses:
            self.counts.dropped += not again
            if len(self._held) < HELD:
                self._held.append((name, client, source))
            else:
                client.close()
            return
        address = self._sources.get((name, source), "")
        if not rule.sticky or address not in addresses:
            address = addresses[self._turn(name) % len(addresses)]
            if rule.sticky:
                self._sources[name, source] = address
        self._forward(name, client, (address, rule.port), relay=False)

    def _follow_relays(self, model: Model) -> None:
        """Listen for the relays of a new configuration; sessions of the old one end."""
        self._end_relays()
        for service in model.services:
            if service.conf.kind is Kind.RELAY and not service.off:
                for listen in service.conf.listens:
                    try:
                        sock = _listening(listen)
                    except OSError as error:
                        self._log(f"relay {service.conf.name}: {listen.address}: {error}")
                        continue
                    self._relays.append(_Listener(sock, partial(self._relay, service)))

    def _end_relays(self) -> None:
        for listener in self._relays:
            listener.close()
        self._relays.clear()
        for session, relay in list(self._sessions.items()):
            if relay:
                session.close()

    def _relay(self, service: Service, client: socket_t, source: str) -> None:
        targets = self.model.targets(service) if self.model is not None else []
        if not targets:
            self.counts.closed += 1
            client.close()
            self._changed.set()
            return
        name = service.conf.name
        self._forward(name, client, targets[self._turn(name) % len(targets)], relay=True)

    def _turn(self, name: str) -> int:
        self._turns[name] += 1
        return self._turns[name] - 1

    def _forward(self, name: str, client: socket_t, to: tuple[str, int], relay: bool) -> None:
        def ready() -> None:
            self.counts.forwarded[name, to[0]] += 1
            self._changed.set()

        def ended(established: bool) -> None:
            self.counts.refused += not established
            self._sessions.pop(session, None)
            self._changed.set()

        session = _Session(client, to, ready, ended)
        self._sessions[session] = relay
        session.begin()

    # Control

    async def _relayctl(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry out one command, and answer in frames; see client.c."""
        self._clients.add(writer)
        try:
            words = (await reader.read(-1)).decode(errors="replace").split("\0")[1:]
            await self._awake.wait()
            if self.model is None:
                return
            reply = self._command(words)
            if reply.wants == ("monitor",):
                await self.until(lambda: self.model is None, limit=None)
            elif reply.wants != ("stop",):
                self._answer(writer, words, reply)
                await writer.drain()
        except (ConnectionError, TimeoutError):
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, words: list[str], reply: Reply) -> None:
        fault, text = self.fault, reply.stdout
        if words[:1] == ["show"]:
            if fault.garbage is not None:
                text = fault.garbage
            if fault.die is not None:
                writer.write(_frame(b"o", text[: fault.die].encode()))
                fault.die = None
                self.kill()
                return
            text = text[: fault.cut]
        writer.write(_frame(b"o", text.encode()) + _frame(b"e", reply.stderr.encode()))
        writer.write(_frame(b"x", bytes([reply.exit])))

    def _command(self, words: list[str]) -> Reply:
        assert self.model is not None
        if words[:1] and words[0] in SWITCHED:
            self.switches += 1
            if self.fault.fail:
                self.fault.fail -= 1
                return Reply("command failed\n", exit=1)
        reply = self.model.command(words, self._now())
        match reply.wants:
            case ("reload",):
                self._reload(self._conf)
            case ("load", path):
                self._reload(Path(path))
            case ("stop",):
                self.model.stop()
                self._end()
        self._step()
        return reply

    async def _pfctl(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            program, *words = (await reader.read(-1)).decode(errors="replace").split("\0")
            reply = self._tested(words) if program == "relayd" else self._pf_reply(words)
            writer.write(_frame(b"o", reply.stdout.encode()) + _frame(b"e", reply.stderr.encode()))
            writer.write(_frame(b"x", bytes([reply.exit])))
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _tested(self, words: list[str]) -> Reply:
        """Answer `relayd -n -f FILE`, on stderr as relayd does."""
        if words[:2] != ["-n", "-f"] or len(words) != 3:
            return Reply(stderr="relayd: the lab knows no more than relayd -n -f FILE\n", exit=1)
        try:
            _addresses(read(Path(words[2]), self._macros))
        except ConfError as error:
            return Reply(stderr=f"{error}\n", exit=1)
        return Reply(stderr="configuration OK\n")

    def _pf_reply(self, words: list[str]) -> Reply:
        """Answer a pfctl; source entries and states are those of sessions that came through here."""
        self.reads += 1
        match words:
            case ["-sS"]:
                rows = (
                    f"{source} rdr-to {address} ( states 0, connections 0, rate 0.0/0s )\n"
                    for (_, source), address in sorted(self._sources.items())
                )
                return Reply("".join(rows))
            case ["-K", "0.0.0.0/0" | "::/0", "-K", host]:
                found = [key for key, address in self._sources.items() if address == host]
                for key in found:
                    del self._sources[key]
                what = f"{len(found)} src nodes"
            case ["-a", anchor, "-F", "all"]:
                name = anchor.removeprefix("relayd/")
                self.pf.rules.pop(name, None)
                self.pf.tables.pop(name, None)
                self._settle()
                return Reply(stderr="rules cleared\n1 tables deleted.\n")
            case ["-k", "0.0.0.0/0" | "::/0", "-k", host]:
                sessions = [session for session in self._sessions if session.to[0] == host]
                for session in sessions:
                    session.reset()
                what = f"{len(sessions)} states"
            case _:
                return _pfctl(self.pf, words)
        return Reply(stderr=f"killed {what} from 1 sources and 1 destinations\n")


def _pfctl(pf: Pf, words: list[str]) -> Reply:
    """Answer what hactl asks of pf's rules and tables."""
    match words:
        case ["-s", "info"]:
            return Reply("Status: Enabled for 0 days 00:00:01             Debug: err\n")
        case ["-a", "relayd", "-s", "Anchors"]:
            return Reply("".join(f"  relayd/{name}\n" for name in pf.rules))
        case ["-sr"]:
            return Reply('anchor "relayd/*" all\n' if pf.anchored else "")
        case ["-a", anchor, "-sr"]:
            return Reply("".join(_rules(pf, anchor.removeprefix("relayd/"))))
        case ["-a", anchor, "-t", name, "-T", "show"]:
            if anchor != f"relayd/{name}" or name not in pf.tables:
                return Reply(stderr="pfctl: Table does not exist.\n", exit=255)
            addresses = sorted(map(ipaddress.ip_address, pf.tables[name]), key=lambda a: a.packed)
            return Reply("".join(f"   {address}\n" for address in addresses))
    return Reply(stderr=f"pfctl: the lab does not know: {' '.join(words)}\n", exit=1)


def _rules(pf: Pf, name: str) -> list[str]:
    rule = pf.rules.get(name)
    if rule is None:
        return []
    sticky = " sticky-address" if rule.sticky else ""
    return [
        f"pass in quick inet{'6' if ':' in listen.address else ''} proto {listen.proto} from any"
        f" to {listen.address} port = {listen.port} flags S/SA"
        f" rdr-to <{name}> port {rule.port} round-robin{sticky}\n"
        for listen in rule.listens
    ]


def _frame(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "big") + data


async def _serve_unix(
    path: Path,
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> asyncio.Server:
    """Listen on a unix socket that its group may open; the file stays when the server ends."""
    sock = _bound(path)
    try:
        return await asyncio.start_server(handler, sock=sock, backlog=128)
    except BaseException:
        sock.close()
        raise


def _bound(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        path.chmod(0o660)
    except OSError:
        sock.close()
        raise
    return sock


# Hosts


def _addresses(conf: RelaydConf) -> dict[str, str]:
    """Find the address of every host.  Raise ConfError for one that is not on loopback."""
    names = {host.name for each in conf.services for table in each.tables for host in table.hosts}
    wrong = [f"{name}: not on loopback" for name in names if not _is_loopback(_address(name))]
    for service in conf.services:
        wrong += [
            f"{service.name}: listens on {listen.address}, which is not on loopback"
            for listen in service.listens
            if not _is_loopback(listen.address)
        ]
    if wrong:
        raise ConfError(sorted(wrong))
    return {name: _address(name) for name in names}


def _address(name: str) -> str:
    """The first address of a host; nothing for a name that is not known."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(name))
    with suppress(OSError):
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    return ""


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


async def _script(check: Check) -> bool | None:
    """Run a check script: exit 0 is down, any other is up, a signal or no program is down."""
    try:
        process = await asyncio.create_subprocess_exec(
            check.argument,
            check.name,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
        )
    except BlockingIOError:
        return None
    except OSError:
        return False
    try:
        async with asyncio.timeout(check.deadline - check.started):
            return await process.wait() > 0
    except TimeoutError:
        return False
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# Sockets

socket_t = socket.socket


def _listening(listen: Listen) -> socket_t:
    """Open a listener.  Raise OSError."""
    family = socket.AF_INET6 if ":" in listen.address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((listen.address, listen.port))
        sock.listen(1024)
    except OSError:
        sock.close()
        raise
    return sock


def _reset(sock: socket_t) -> None:
    """Close a connection so that the other side sees a reset."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def _connect_error(sock: socket_t, at_once: int) -> int:
    """The errno of a connect that is over; *at_once* is what connect_ex returned."""
    if at_once not in (0, errno.EINPROGRESS):
        return at_once
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _send(sock: socket_t, data: bytes | memoryview) -> int:
    """Send what the socket takes now."""
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


class _Listener:
    """Hands each new connection with its client's address to *accepted* until it is closed."""

    def __init__(self, sock: socket_t, accepted: Callable[[socket_t, str], None]) -> None:
        self._sock = sock
        self._accepted = accepted
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def _readable(self) -> None:
        try:
            client, source = self._sock.accept()
        except OSError:  # gone again, or out of descriptors: the next turn asks again
            return
        client.setblocking(False)
        self._accepted(client, source[0])

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()


class _Session:
    """One connection carried to a host.  *ended* hears whether the host was reached."""

    def __init__(
        self,
        client: socket_t,
        to: tuple[str, int],
        ready: Callable[[], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self.to = to
        self._ready = ready
        self._ended = ended
        self._established = False
        self._open = True
        self._streams = 2
        family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
        self._host = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def begin(self) -> None:
        """Connect to the host; bytes flow from then on."""
        failed = self._host.connect_ex(self.to)
        self._loop.add_writer(self._host, self._connected, failed)

    def _connected(self, failed: int) -> None:
        self._loop.remove_writer(self._host)
        if _connect_error(self._host, failed):
            self.reset()
            return
        self._established = True
        self._ready()
        for source, sink in ((self._client, self._host), (self._host, self._client)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._loop.add_reader(source, self._pump, source, sink)

    def _pump(self, source: socket_t, sink: socket_t) -> None:
        """Pass on what came; what the other side does not take now is kept, and nothing read."""
        try:
            data = source.recv(CHUNK)
            sent = _send(sink, data) if data else 0
        except BlockingIOError:
            return
        except OSError:
            self.reset()
            return
        if not data:
            self._loop.remove_reader(source)
            self._half_close(sink)
        elif sent < len(data):
            self._loop.remove_reader(source)
            self._loop.add_writer(sink, self._drain, source, sink, memoryview(data)[sent:])

    def _drain(self, source: socket_t, sink: socket_t, rest: memoryview) -> None:
        try:
            sent = _send(sink, rest)
        except OSError:
            self.reset()
            return
        if sent < len(rest):
            self._loop.add_writer(sink, self._drain, source, sink, rest[sent:])
        else:
            self._loop.remove_writer(sink)
            self._loop.add_reader(source, self._pump, source, sink)

    def _half_close(self, sink: socket_t) -> None:
        self._streams -= 1
        if self._streams == 0:
            self.close()
            return
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End the session."""
        self._finish(socket_t.close)

    def reset(self) -> None:
        """End the session with a reset to both sides."""
        self._finish(_reset)

    def _finish(self, close: Callable[[socket_t], None]) -> None:
        if not self._open:
            return
        self._open = False
        for sock in (self._client, self._host):
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            close(sock)
        self._ended(self._established)


# In the foreground


async def serve(conf: Path, directory: Path, macros: Mapping[str, str] = {}) -> None:
    """Run until TERM, INT or `relayctl stop`; HUP reloads; the log goes to stderr.

    Raise ConfError or OSError when it cannot start.
    """

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    emulator = Emulator(conf, directory, macros, log=log)
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    await emulator.start()
    loop.add_signal_handler(signal.SIGHUP, emulator.hup)
    ends = [
        loop.create_task(told.wait()),
        loop.create_task(emulator.until(lambda: emulator.model is None, limit=None)),
    ]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await emulator.stop()
    log(f"parent terminating, pid {os.getpid()}")
