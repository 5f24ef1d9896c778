"""The emulator on real sockets: traffic moves as it does through relayd and pf."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hactl.lab.relayd import CHUNK, Emulator
from hactl.lab.tools import build_tools
from hactl.relayd.conf import ConfError

# Addresses of this run's own, so that runs side by side do not meet.
A, B, C, VIP = (
    f"127.{64 + (os.getpid() >> 8 & 63)}.{os.getpid() & 255}.{n}" for n in (4, 5, 6, 10)
)
PORT = 12525
REDIRECT = """interval 1
table <mx> {{ {hosts} }}
table <fb> {{ {fallback} }}
redirect smtp {{
	listen on {vip} port {port}
	{options}
	forward to <mx> {check}
	{more}
}}
"""


class Backend:
    """A host that says its address, then sends back all it gets.

    Plain sockets: a connection that a check opens and closes at once leaves nothing behind.
    """

    def __init__(self, address: str, port: int = PORT) -> None:
        self.address, self.port = address, port
        self.server: socket.socket | None = None
        self.clients: set[socket.socket] = set()

    def up(self) -> None:
        self.server = socket.create_server((self.address, self.port))
        self.server.setblocking(False)
        asyncio.get_running_loop().add_reader(self.server, self._accept, self.server)

    def down(self) -> None:
        if self.server is not None:
            asyncio.get_running_loop().remove_reader(self.server)
            self.server.close()
            self.server = None

    def end(self) -> None:
        self.down()
        for client in list(self.clients):
            self._close(client)

    def _accept(self, server: socket.socket) -> None:
        client, _ = server.accept()
        client.setblocking(False)
        self.clients.add(client)
        self._send(client, f"{self.address}\n".encode())

    def _read(self, client: socket.socket) -> None:
        try:
            data = client.recv(CHUNK)
        except ConnectionError:
            data = b""
        if data:
            self._send(client, data)
        else:
            self._close(client)

    def _send(self, client: socket.socket, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            data = data[client.send(data) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            self._close(client)
            return
        loop.remove_reader(client)
        loop.remove_writer(client)
        if data:
            loop.add_writer(client, self._send, client, data)
        else:
            loop.add_reader(client, self._read, client)

    def _close(self, client: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(client)
        asyncio.get_running_loop().remove_writer(client)
        self.clients.discard(client)
        client.close()


class Bench:
    """An emulator and its backends in a short-named directory (unix sockets have short names)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = directory / "relayd.conf"
        self.backends = {address: Backend(address) for address in (A, B, C)}
        self.emulator = Emulator(self.conf, directory, tick=0.1)

    def write(
        self,
        hosts: str = f"{A} {B}",
        *,
        check: str = "check tcp",
        options: str = "",
        backup: bool = False,
    ) -> None:
        more = f"forward to <fb> {check}" if backup else ""
        text = REDIRECT.format(
            hosts=hosts,
            fallback=C,
            vip=VIP,
            port=PORT,
            options=options,
            check=check,
            more=more,
        )
        self.conf.write_text(text)

    async def start(self, *backends: str) -> Emulator:
        for address in backends:
            self.backends[address].up()
        await self.emulator.start()
        return self.emulator

    def table(self) -> tuple[str, ...]:
        """What pf has for the redirect."""
        return self.emulator.pf.tables["smtp"]

    async def serving(self, *addresses: str) -> None:
        await self.emulator.until(lambda: self.emulator.pf.tables.get("smtp") == addresses)

    async def checked(self, times: int) -> None:
        """Wait until the first host has been checked so often: no check is then under way."""
        total = f"/{times} checks"
        await self.emulator.until(lambda: total in self.emulator.command("show hosts").stdout)

    async def run(self, *argv: str) -> tuple[str, str, int | None]:
        """Run a tool of the lab."""
        process = await asyncio.create_subprocess_exec(
            self.directory / argv[0],
            *argv[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(5):
            out, err = await process.communicate()
        return out.decode(), err.decode(), process.returncode


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="lab") as name:
        made = Bench(Path(name))
        try:
            yield made
        finally:
            await made.emulator.stop()
            for backend in made.backends.values():
                backend.end()
            await asyncio.sleep(0)  # what the tests closed closes in the next turn


def lab(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Run a test with a bench of its own."""

    async def within() -> None:
        async with asyncio.timeout(10), bench() as made:
            await test(made)

    def run() -> None:
        asyncio.run(within())

    run.__name__ = test.__name__
    return run


@asynccontextmanager
async def session(
    address: str = VIP, port: int = PORT
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def reached(address: str = VIP, port: int = PORT) -> str:
    """The backend that a new connection reaches; nothing when it is closed."""
    async with session(address, port) as (reader, _):
        return (await reader.readline()).decode().strip()


@lab
async def test_traffic_leaves_a_host_that_dies_and_comes_back(bench: Bench) -> None:
    bench.write()
    emulator = await bench.start(A, B)
    with pytest.raises(ConnectionRefusedError):  # up, and not yet in pf
        await reached()
    await bench.serving(A, B)
    assert {await reached(), await reached()} == {A, B}
    bench.backends[A].down()
    await bench.serving(B)
    assert [await reached(), await reached()] == [B, B]
    bench.backends[A].up()
    await bench.serving(A, B)
    assert emulator.table_changes == 3


@lab
async def test_a_host_that_refuses_resets_the_client(bench: Bench) -> None:
    bench.write(A)
    emulator = await bench.start(A)
    await bench.checked(2)
    bench.backends[A].down()
    with pytest.raises(ConnectionResetError):
        await reached()
    assert emulator.counts.refused == 1
    await emulator.until(lambda: not emulator.pf.rules)
    with pytest.raises(ConnectionRefusedError):
        await reached()


@lab
async def test_a_drain_leaves_established_sessions_alone(bench: Bench) -> None:
    bench.write()
    emulator = await bench.start(A, B)
    await bench.serving(A, B)
    async with session() as (reader, writer):
        old = (await reader.readline()).decode().strip()
        emulator.command(f"host disable {old}")
        other = B if old == A else A
        assert [await reached() for _ in range(3)] == [other] * 3
        writer.write(b"still here\n")
        assert await reader.readline() == b"still here\n"


@lab
async def test_the_backup_takes_over_at_once(bench: Bench) -> None:
    bench.write(A, backup=True)
    emulator = await bench.start(A, C)
    await bench.serving(A)
    emulator.command("host disable 1")
    assert await reached() == C
    assert "using backup table" in emulator.command("show summary").stdout


@lab
async def test_a_poll_pair_puts_a_host_back_within_an_interval(bench: Bench) -> None:
    bench.conf.write_text("")
    bench.write()
    bench.conf.write_text(bench.conf.read_text().replace("interval 1", "interval 1000"))
    emulator = await bench.start(A, B)
    await emulator.until(lambda: emulator.command("show summary").stdout.count("up\n") == 2)
    emulator.command("poll")
    await bench.serving(A, B)
    emulator.command("host disable 1")
    emulator.command("host enable 1")
    emulator.command("poll")
    await emulator.until(lambda: emulator.command("show summary").stdout.count("up\n") == 2)
    assert bench.table() == (B,)
    emulator.command("poll")
    assert bench.table() == (A, B)


@lab
async def test_a_reload_forgets_disables_and_holds_new_connections(bench: Bench) -> None:
    bench.write()
    emulator = await bench.start(A, B)
    await bench.serving(A, B)
    emulator.command("host disable 1")
    async with session() as (old, sending):
        assert await old.readline() == f"{B}\n".encode()
        await emulator.reload()
        assert emulator.pf.tables == {"smtp": ()}
        waiting = asyncio.create_task(reached())
        await emulator.until(lambda: emulator.counts.dropped == 1)
        assert not waiting.done()
        await bench.serving(A, B)
        assert await waiting in (A, B)
        sending.write(b"alive\n")
        assert await old.readline() == b"alive\n"
    assert "disabled" not in emulator.command("show summary").stdout


@lab
async def test_a_broken_file_leaves_everything_in_pf(bench: Bench) -> None:
    bench.write(A)
    emulator = await bench.start(A)
    await bench.serving(A)
    bench.conf.write_text("redirect {")
    assert await bench.run("relayctl", "reload") == ("", "", 0)
    assert emulator.command("show summary").stdout.count("\n") == 1
    bench.backends[A].down()
    with pytest.raises(ConnectionResetError):
        await reached()


@lab
async def test_a_sticky_client_stays_while_its_host_is_in(bench: Bench) -> None:
    bench.write(options="sticky-address")
    emulator = await bench.start(A, B)
    await bench.serving(A, B)
    first = await reached()
    assert {await reached() for _ in range(4)} == {first}
    emulator.command(f"host disable {first}")
    assert await reached() == (B if first == A else A)


@lab
async def test_script_checks_are_inverted(bench: Bench) -> None:
    script = bench.directory / "hook"
    script.write_text(f'#!/bin/sh\n[ "$1" = {A} ] && exit 0\nexit 1\n')
    script.chmod(0o755)
    bench.write(check=f'check script "{script}" timeout 900')
    emulator = await bench.start(B)
    await bench.serving(B)
    shown = emulator.command("show hosts").stdout
    assert "error: script failed" in shown
    assert [row.split("\t")[4] for row in shown.splitlines() if "host " in row] == ["down", "up"]


@lab
async def test_a_reload_during_scripts_waits_and_is_deadly(bench: Bench) -> None:
    here, go, script = (bench.directory / name for name in ("here", "go", "hook"))
    script.write_text(f"#!/bin/sh\necho > {here}\nread line < {go}\nexit 1\n")
    script.chmod(0o755)
    for fifo in (here, go):
        os.mkfifo(fifo)
    bench.write(check=f'check script "{script}" timeout 900')
    emulator = await bench.start()
    await emulator.reload()
    assert emulator.model is not None
    for _ in range(2):
        await asyncio.to_thread(here.read_text)
        await asyncio.to_thread(go.write_text, "go\n")
    await emulator.until(lambda: emulator.model is None)
    said = await bench.run("relayctl", "show", "summary")
    where = bench.directory / "relayd.sock"
    assert said == ("", f"relayctl: connect: {where}: Connection refused\n", 1)


@lab
async def test_a_relay_uses_a_host_as_soon_as_it_is_up(bench: Bench) -> None:
    bench.conf.write_text(
        f"interval 1000\ntable <mx> {{ {A} {B} }}\n"
        f"relay smtp {{\n\tlisten on {VIP} port {PORT}\n"
        f"\tforward to <mx> port {PORT} check tcp\n}}\n"
    )
    emulator = await bench.start(A, B)
    await emulator.until(lambda: emulator.command("show summary").stdout.count("up\n") == 2)
    assert {await reached(), await reached()} == {A, B}
    emulator.command("host disable 1")
    assert [await reached(), await reached()] == [B, B]
    emulator.command("host disable 2")
    assert await reached() == ""
    assert emulator.counts.closed == 1
    emulator.command("host enable 2")
    emulator.command("poll")
    await emulator.until(lambda: "up\n" in emulator.command("show summary").stdout)
    async with session() as (reader, _):
        await reader.readline()
        await emulator.reload()  # which ends a relay's sessions
        assert await reader.read() == b""
    emulator.kill()
    with pytest.raises(ConnectionRefusedError):
        await reached()
    await emulator.boot()
    await emulator.until(lambda: "up\n" in emulator.command("show summary").stdout)
    assert await reached() != ""


@lab
async def test_bytes_and_half_closes_go_through_both_ways(bench: Bench) -> None:
    bench.write(A)
    await bench.start(A)
    await bench.serving(A)
    data = bytes(range(256)) * 40_000

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    async with session() as (reader, writer):
        sending = asyncio.create_task(send(writer))
        assert await reader.readline() == f"{A}\n".encode()
        assert await reader.read(len(data) // 2) != b""
        await sending
        rest = await reader.read()
    assert rest.endswith(data[-1000:])


@lab
async def test_the_tools_print_what_relayd_and_pf_have(bench: Bench) -> None:
    bench.write(f"{B} {A}", options="sticky-address")
    await bench.start(A, B)
    await bench.serving(B, A)
    out, err, code = await bench.run("relayctl", "show", "summary")
    assert (out, err, code) == (
        "Id  \tType    \tName                    \tAvlblty\tStatus\n"
        "1   \tredirect\tsmtp                    \t       \tactive\n"
        "1   \ttable   \tmx:12525                \t       \tactive (2 hosts)\n"
        f"1   \thost    \t{B:24}\t100.00%\tup\n"
        f"2   \thost    \t{A:24}\t100.00%\tup\n",
        "",
        0,
    )
    anchor = ("-a", "relayd/smtp")
    assert await bench.run("pfctl", *anchor, "-t", "smtp", "-T", "show") == (
        f"   {A}\n   {B}\n",
        "",
        0,
    )
    assert await bench.run("pfctl", "-sr") == ('anchor "relayd/*" all\n', "", 0)
    rules, _, _ = await bench.run("pfctl", *anchor, "-sr")
    assert rules == (
        f"pass in quick inet proto tcp from any to {VIP} port = {PORT} flags S/SA"
        f" rdr-to <smtp> port {PORT} round-robin sticky-address\n"
    )
    assert await bench.run("relayctl", "host", "disable", "1") == ("command succeeded\n", "", 0)
    assert await bench.run("relayctl", "ho", "dis", "9") == ("command failed\n", "", 1)
    assert await bench.run("relayctl", "host", "disable", "") == ("command failed\n", "", 1)
    assert bench.table() == (A,)
    assert await bench.run("relayctl", "host", "disable", "1", "2") == (
        "",
        "superfluous argument: 2\n",
        1,
    )
    assert await bench.run("relayctl", "host", "disable", "-1") == (
        "",
        "relayctl: invalid option -- '1'\nusage: relayctl [-s socket] command [argument ...]\n",
        1,
    )
    where = bench.directory / "relayd.sock"
    assert stat.S_IMODE(where.stat().st_mode) == 0o660
    assert await bench.run("relayctl", "-s", str(where), "poll") == ("command succeeded\n", "", 0)


@lab
async def test_stop_cleans_pf_and_the_tool_says_that_the_pipe_closed(bench: Bench) -> None:
    bench.write(A)
    emulator = await bench.start(A)
    await bench.serving(A)
    assert await bench.run("relayctl", "stop") == ("", "relayctl: pipe closed\n", 1)
    assert (emulator.pf.tables, emulator.pf.rules, emulator.model) == ({}, {}, None)
    assert (await bench.run("pfctl", "-a", "relayd/smtp", "-sr"))[0] == ""
    await emulator.boot()
    await bench.serving(A)


@lab
async def test_a_killed_relayd_leaves_pf_serving(bench: Bench) -> None:
    bench.write(A)
    emulator = await bench.start(A)
    await bench.serving(A)
    emulator.kill()
    assert await reached() == A
    assert (await bench.run("relayctl", "poll"))[2] == 1
    await emulator.boot()
    assert emulator.pf.tables == {"smtp": ()}
    await bench.serving(A)


@lab
async def test_a_hung_relayd_carries_out_what_was_asked_in_the_end(bench: Bench) -> None:
    bench.write()
    emulator = await bench.start(A, B)
    await bench.serving(A, B)
    emulator.hang()
    asked = await asyncio.create_subprocess_exec(
        bench.directory / "relayctl", "host", "disable", "1", stdout=asyncio.subprocess.PIPE
    )
    await emulator.until(lambda: len(emulator._clients) == 1)
    asked.kill()
    await asked.communicate()
    emulator.resume()
    await bench.serving(B)


@lab
async def test_faults_of_the_control_socket(bench: Bench) -> None:
    bench.write()
    emulator = await bench.start(A, B)
    await bench.serving(A, B)
    whole, _, _ = await bench.run("relayctl", "show", "hosts")
    emulator.fault.cut = 150
    assert await bench.run("relayctl", "show", "hosts") == (whole[:150], "", 0)
    emulator.fault.garbage = "no table\n"
    assert await bench.run("relayctl", "show", "summary") == ("no table\n", "", 0)
    emulator.fault.garbage = emulator.fault.cut = None
    emulator.fault.fail = 1
    assert await bench.run("relayctl", "host", "disable", "1") == ("command failed\n", "", 1)
    assert await bench.run("relayctl", "host", "disable", "1") == ("command succeeded\n", "", 0)
    emulator.fault.die = 100
    out, err, code = await bench.run("relayctl", "show", "hosts")
    assert (out, err, code) == (whole[:100], "relayctl: pipe closed\n", 1)
    assert emulator.pf.tables == {"smtp": (B,)}


@lab
async def test_only_loopback(bench: Bench) -> None:
    bench.write("192.0.2.1")
    with pytest.raises(ConfError, match=r"192\.0\.2\.1: not on loopback"):
        await bench.start()


@lab
async def test_a_service_port_in_use_is_said_at_the_start(bench: Bench) -> None:
    bench.write(A)
    with socket.create_server((VIP, PORT)), pytest.raises(OSError, match="in use"):
        await bench.start()


@lab
async def test_relayd_n_tells_whether_a_file_would_be_loaded(bench: Bench) -> None:
    bench.write(A)
    await bench.start(A)
    assert await bench.run("relayd", "-n", "-f", str(bench.conf)) == ("", "configuration OK\n", 0)
    bench.conf.write_text("interval x\n")
    out, err, code = await bench.run("relayd", "-n", "-f", str(bench.conf))
    assert (out, code) == ("", 1)
    assert err.startswith(f"{bench.conf}:1:")
    assert (await bench.run("relayd", "-d"))[2] == 1


@lab
async def test_without_a_compiler_the_tools_are_python(bench: Bench) -> None:
    build_tools(bench.directory, compiler="no-such-compiler")
    bench.write(A)
    emulator = await bench.start(A)
    assert (bench.directory / "relayctl").read_bytes()[:2] == b"#!"
    await bench.serving(A)
    shown = emulator.command("show redirects").stdout
    assert await bench.run("relayctl", "show", "redirects") == (shown, "", 0)
    assert await bench.run("relayctl", "show", "x", "y") == (
        "",
        emulator.command("show x").stderr,
        1,
    )
    assert (await bench.run("pfctl", "-sr"))[0] == 'anchor "relayd/*" all\n'
    assert (await bench.run("relayd", "-n", "-f", str(bench.conf)))[2] == 0


@pytest.mark.long
@lab
async def test_serve_logs_reloads_and_ends(bench: Bench) -> None:
    bench.write(A)
    bench.backends[A].up()
    code = (
        "import asyncio, pathlib, sys; from hactl.lab.relayd import serve;"
        "asyncio.run(serve(*map(pathlib.Path, sys.argv[1:])))"
    )
    relayd = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, bench.conf, bench.directory, stderr=asyncio.subprocess.PIPE
    )
    assert relayd.stderr is not None
    up = rf"host {re.escape(A)}, check tcp \(\d+ms,tcp connect ok\), state unknown -> up, .* 100.00%\n"
    assert await relayd.stderr.readline() == b"startup\n"
    assert re.fullmatch(up, (await relayd.stderr.readline()).decode())
    assert (
        await relayd.stderr.readline() == b"table smtp: 1 added, 0 deleted, 0 changed, 0 killed\n"
    )
    relayd.send_signal(signal.SIGHUP)
    assert re.fullmatch(up, (await relayd.stderr.readline()).decode())
    relayd.terminate()
    assert (await relayd.stderr.read()).endswith(f"terminating, pid {relayd.pid}\n".encode())
    assert await relayd.wait() == 0
