"""The checkers that the benches compare, hactld among them, and what a process costs.

Each is started as its users would run it, on the targets of one farm, with the same interval,
timeout and fall.  Only those that take a command or a request for each look (check_smtp,
blackbox_exporter) are driven from here, and only their own CPU counts, not the driver's.

Run as a program it lists them, with their versions and what brings those that are missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from farm import Farm, address

import hactl

PATH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/lib/nagios/plugins",
     "/usr/lib/monitoring-plugins", "/usr/local/sbin", "/usr/local/libexec/nagios"]
)  # fmt: skip
STOLEN = 0.05  # a measurement with more of the machine's time stolen is dropped
INFLIGHT = 64  # plugins or requests at a time

# What relayctl and pfctl are to hactld while nothing happens: a child that prints a file and ends.
STAND_IN = r"""
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>
int main(int argc, char *argv[])
{
	static char buf[1 << 20];
	char path[1024];
	ssize_t n;
	int fd;
	snprintf(path, sizeof(path), "%s.%s", argv[0], argv[argc - 1]);
	if (argc < 2 || (fd = open(path, O_RDONLY)) == -1)
		return puts("command succeeded") < 0;
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		if (write(1, buf, n) != n)
			return 1;
	return 0;
}
"""

# The least that an asyncio program can do: the same words over the same sockets, in the same slots,
# and no thought about any of it.
FLOOR = r"""
import asyncio, socket, sys
slots, targets = round(float(sys.argv[1]) / 0.1), [(a, int(sys.argv[2])) for a in sys.argv[3:]]
loop = asyncio.new_event_loop()
def look(where):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.connect_ex(where)
    loop.add_reader(sock.fileno(), hear, sock, [b"QUIT\r\n", b"EHLO bench.example\r\n"])
def hear(sock, words):
    if sock.recv(4096):
        sock.send(words.pop())
        if words:
            return
    loop.remove_reader(sock.fileno())
    sock.close()
def slot(number, planned):
    loop.call_at(planned + 0.1, slot, (number + 1) % slots, planned + 0.1)
    for where in targets[number::slots]:
        look(where)
slot(0, loop.time())
loop.run_forever()
"""


class Setup(NamedTuple):
    """How everybody checks; seconds."""

    interval: float = 1.0
    timeout: float = 1.0
    fall: int = 3


# What a process costs


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of those children that it has waited for."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    children: float = times.children_user + times.children_system
    if sys.platform == "linux":  # the process's own clock: nanoseconds, ended threads included
        return time.clock_gettime(((~pid) << 3) | 2) + children
    own: float = times.user + times.system
    return own + children


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    resident: int = psutil.Process(pid).memory_info().rss
    return resident / 1e6


class Stolen:
    """Measures how much of the machine's time went to other machines."""

    def __init__(self) -> None:
        self._began = self._read()

    @staticmethod
    def _read() -> tuple[float, float]:
        times = psutil.cpu_times()
        return getattr(times, "steal", 0.0), sum(times[:8])

    def share(self) -> float:
        """Return the share since this was made."""
        stolen, total = self._read()
        return (stolen - self._began[0]) / max(0.01, total - self._began[1])


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value below which *share* of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


# The checkers


class Peer:
    """A checker on the targets of *farm*, with its files in *directory*.

    *down* is called with a target and the wall clock when the checker says that it is down.
    """

    name = ""
    package = ""
    program = ""
    version: tuple[str, ...] = ("-v",)

    def __init__(
        self,
        farm: Farm,
        directory: Path,
        setup: Setup,
        down: Callable[[int, float], None] = lambda target, at: None,
    ) -> None:
        self.farm = farm
        self.directory = directory
        self.setup = setup
        self.down = down
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def found(cls) -> str | None:
        """Return its program, if it is installed."""
        return shutil.which(cls.program, path=PATH)

    @classmethod
    def which_version(cls) -> str:
        """Return its version."""
        said = subprocess.run([cls.found() or "", *cls.version], capture_output=True, text=True)
        found = re.search(r"\d+\.\d+(\.\d+)?", said.stdout + said.stderr)
        return found[0] if found else "?"

    def spawn(self, *arguments: str | Path) -> None:
        """Start its process; what it says goes to a file."""
        with (self.directory / f"{self.name}.out").open("wb") as out:
            self.process = subprocess.Popen(
                list(map(str, arguments)), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    async def start(self) -> None:
        """Begin to check."""
        raise NotImplementedError

    async def ready(self, limit: float) -> None:
        """Wait until every target was looked at, or *limit* seconds.

        Raise RuntimeError if it does not run.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end and self.farm.count_up()["seen"] < self.farm.count:  # noqa: ASYNC110
            await asyncio.sleep(0.25)
        ended = self.process is not None and self.process.poll() is not None
        if ended or not self.farm.count_up()["seen"]:
            said = (self.directory / f"{self.name}.out").read_text(errors="replace")
            raise RuntimeError(f"{self.name} does not check: {said[-2000:]}")

    def cpu(self) -> float:
        """Return the CPU seconds it has spent."""
        assert self.process is not None
        return cpu(self.process.pid)

    def memory(self) -> float | None:
        """Return its resident memory in MB."""
        assert self.process is not None
        return memory(self.process.pid)

    async def stop(self) -> None:
        """End what was started."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                await asyncio.to_thread(self.process.wait, 8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Hactl(Peer):
    """The real hactld; the farm is one table of relayd's, and its only check is smtp.

    relayctl and pfctl are stand-ins that show all hosts up, unless *relayctl* and *conf* are given.
    """

    name = "hactl"
    relayctl: Path | None = None
    conf: Path | None = None
    checks: tuple[str, ...] = ("smtp",)
    check: str = ""  # more keys of each check
    service: str = ""  # more keys of the service
    members: int | None = None  # so many are in the table, the others only watched

    @classmethod
    def found(cls) -> str | None:
        """Return ourselves: we are always there."""
        return sys.executable

    @classmethod
    def which_version(cls) -> str:
        """Return ours."""
        return hactl.__version__

    @property
    def control(self) -> Path:
        """Return the control socket."""
        return self.directory / "hactl.sock"

    @property
    def log(self) -> Path:
        """Return the log."""
        return self.directory / f"{self.name}.out"

    async def start(self) -> None:
        """Write hactl.yaml, and run hactld on it."""
        here, setup = self.directory, self.setup
        members = range(self.farm.count if self.members is None else self.members)
        conf = self.conf or _relayd_conf(here / "relayd.conf", members, self.farm.port)
        relayctl, pfctl = self.relayctl, here / "none"
        if relayctl is None:
            relayctl, pfctl = _stand_in(here, members, self.farm.port)
        lines = ["mode: relayctl", "nodes:"]
        lines += [f"  t{n}: {address(n)}" for n in range(self.farm.count)]
        lines += ["checks:"]
        lines += [
            f"  {check}: {{type: smtp, port: {self.farm.port}, interval: {ms(setup.interval)},"
            f" timeout: {ms(setup.timeout)}, fall: {setup.fall}{self.check}}}"
            for check in self.checks
        ]
        names = ", ".join(self.checks)
        lines += ["services:", f"  farm: {{require: [{names}]{self.service}}}"]
        if len(members) < self.farm.count:
            lines += ["watch:"]
            lines += [f"  t{n}: [{names}]" for n in range(len(members), self.farm.count)]
        lines += [
            f"relayd: {{conf: {conf}, relayctl: {relayctl}, pfctl: {pfctl}}}",
            f"run_dir: {here}/run",
            f"state_dir: {here}/state",
            f"control: {{path: {self.control}}}",
            "user: root",
        ]
        config = here / "hactl.yaml"
        config.write_text("\n".join(lines) + "\n")
        self.launch(config)

    def launch(self, config: Path) -> None:
        """Start hactld."""
        self.spawn(sys.executable, "-m", "hactl.daemon.main", "-d", "-f", config)

    def said(self, event: str) -> int:
        """Return how often its log has an event."""
        return self.log.read_text().count(f" {event} ")

    def ask(self, verb: str) -> bytes:
        """Ask hactld as `hactl` does; return its answer."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(str(self.control))
            request = {"protocol": 1, "verb": verb, "words": [], "options": {}}
            control.sendall(json.dumps(request).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n") and (data := control.recv(1 << 20)):
                answer += data
        return answer


def ms(seconds: float) -> str:
    """Write seconds as a time of hactl's and HAProxy's."""
    return f"{round(seconds * 1000)}ms"


def _relayd_conf(path: Path, members: range, port: int) -> Path:
    hosts = " ".join(address(n) for n in members)
    path.write_text(
        f"interval 600\ntable <farm> {{ {hosts} }}\nredirect farm {{\n"
        f"\tlisten on 127.0.0.1 port 2526\n\tforward to <farm> port {port} check tcp\n}}\n"
    )
    return path


def _stand_in(directory: Path, members: range, port: int) -> tuple[Path, Path]:
    """Make a relayctl that shows every host up and says yes to the rest, and the pfctl to it."""
    head = "Id  \tType    \tName                    \tAvlblty\tStatus"
    redirect = "1   \tredirect\tfarm                    \t       \tactive"
    table = f"1   \ttable   \tfarm:{port}             \t       \tactive ({len(members)} hosts)"
    hosts = [f"{n + 1:<4}\thost    \t{address(n):24}\t100.00%\tup" for n in members]
    checked = [line for host in hosts for line in (host, "\t\ttotal: 9/9 checks")]
    said = {  # by the last word
        "relayctl.summary": [head, redirect, table, *hosts],
        "relayctl.hosts": [head, table, *checked],
        "pfctl.show": [f"   {address(n)}" for n in members],
        "pfctl.-sr": ['anchor "relayd/*" all', "pass in quick on lo0 all flags S/SA keep state"],
        "pfctl.-sS": [],
    }
    for name, lines in said.items():
        (directory / name).write_text("".join(f"{line}\n" for line in lines))
    programs = directory / "relayctl", directory / "pfctl"
    if compiler := shutil.which("cc"):
        source = directory / "stand-in.c"
        source.write_text(STAND_IN)
        subprocess.run([compiler, "-O2", "-o", programs[0], source], check=True)
        shutil.copy(*programs)
    else:  # dearer by a cat
        for program in programs:
            program.write_text(
                '#!/bin/sh\nfor last; do :; done\n[ -e "$0.$last" ] && exec cat "$0.$last"\n'
                "echo command succeeded\n"
            )
            program.chmod(0o755)
    return programs


class Haproxy(Peer):
    """HAProxy with one thread; it tells of changes by syslog."""

    name = "haproxy"
    package = "haproxy"
    program = "haproxy"
    fast = ""

    async def start(self) -> None:
        """Write haproxy.cfg, and run HAProxy on it."""
        self._syslog = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._syslog.bind(("127.0.0.1", 0))
        self._syslog.setblocking(False)
        asyncio.get_running_loop().add_reader(self._syslog.fileno(), self._hear)
        timeout = ms(self.setup.timeout)
        lines = ["global", " nbthread 1", " maxconn 4000",
                 f" log 127.0.0.1:{self._syslog.getsockname()[1]} local0 notice",
                 "defaults", " mode tcp", " log global", " timeout client 5s", " timeout server 5s",
                 f" timeout connect {timeout}", f" timeout check {timeout}",
                 "listen farm", f" bind {self.directory}/{self.name}.sock",
                 " option smtpchk EHLO bench.example",
                 f" default-server check inter {ms(self.setup.interval)} {self.fast}"
                 f" fall {self.setup.fall} rise 2"]  # fmt: skip
        lines += [f" server t{n} {address(n)}:{self.farm.port}" for n in range(self.farm.count)]
        config = self.directory / f"{self.name}.cfg"
        config.write_text("\n".join(lines) + "\n")
        self.spawn(self.found() or "", "-db", "-f", config)

    def _hear(self) -> None:
        now = time.time()
        with suppress(BlockingIOError):
            while True:
                said = self._syslog.recv(4096).decode("latin-1")
                if found := re.search(r"Server farm/t(\d+) is DOWN", said):
                    self.down(int(found[1]), now)

    async def stop(self) -> None:
        """End it."""
        await super().stop()
        asyncio.get_running_loop().remove_reader(self._syslog.fileno())
        self._syslog.close()


class HaproxyFast(Haproxy):
    """The same, checking each 100 ms while a server changes its state."""

    name = "haproxy-fastinter"
    fast = "fastinter 100ms"


class Monit(Peer):
    """monit: one host entry a target, checked one after another."""

    name = "monit"
    package = "monit"
    program = "monit"
    version = ("-V",)

    async def start(self) -> None:
        """Write monitrc, and run monit on it."""
        here = self.directory
        lines = [f"set daemon {max(1, round(self.setup.interval))}", f"set log {here}/monit.log",
                 f"set idfile {here}/id", f"set statefile {here}/state", f"set pidfile {here}/pid",
                 "set onreboot start"]  # fmt: skip
        for n in range(self.farm.count):
            lines += [f"check host t{n} with address {address(n)}",
                      f" if failed port {self.farm.port} protocol smtp with timeout"
                      f" {max(1, round(self.setup.timeout))} seconds"
                      f" for {self.setup.fall} cycles then alert"]  # fmt: skip
        config = here / "monitrc"
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        self.spawn(self.found() or "", "-I", "-c", config)


class _Driven(Peer):
    """A checker that looks when it is told to: its driver has a fixed rate, evenly spread."""

    async def start(self) -> None:
        """Begin to tell it."""
        self._ready: asyncio.Queue[int] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._clock())]
        self._tasks += [asyncio.create_task(self._work()) for _ in range(INFLIGHT)]

    async def _clock(self) -> None:
        loop = asyncio.get_running_loop()
        began, started = loop.time(), 0
        while True:
            due = int((loop.time() - began) * self.farm.count / self.setup.interval)
            if self._ready.qsize() > self.farm.count:  # too slow: missed looks are not made up
                started = due
            for number in range(started, due):
                self._ready.put_nowait(number % self.farm.count)
            started = due
            await asyncio.sleep(0.005)

    async def _work(self) -> None:
        while True:
            await self.look(await self._ready.get())

    async def look(self, target: int) -> None:
        """Look at a target once."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End the driver and what was started."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().stop()


class CheckSmtp(_Driven):
    """check_smtp, a process for each look; the CPU is that of the processes."""

    name = "check_smtp"
    package = "monitoring-plugins-basic"
    program = "check_smtp"
    version = ("-V",)

    async def start(self) -> None:
        """Begin to start processes."""
        self._running: dict[int, asyncio.Future[None]] = {}
        null = os.open(os.devnull, os.O_RDWR)
        self._null = null
        self._actions = [(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)]
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        await super().start()

    def _reap(self) -> None:
        for pid, ended in list(self._running.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._running[pid]
                if not ended.done():
                    ended.set_result(None)

    async def look(self, target: int) -> None:
        """Run the plugin once."""
        program = self.found() or ""
        arguments = [program, "-H", address(target), "-p", str(self.farm.port), "-e", "220",
                     "-t", str(max(1, round(self.setup.timeout)))]  # fmt: skip
        pid = os.posix_spawn(program, arguments, {"PATH": PATH}, file_actions=self._actions)  # noqa: ASYNC221
        self._running[pid] = ended = asyncio.get_running_loop().create_future()
        await ended

    def cpu(self) -> float:
        """Return the CPU seconds of the plugins that have ended."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def memory(self) -> float | None:
        """Return nothing: it has no process that stays."""
        return None

    async def stop(self) -> None:
        """Wait for the last plugins."""
        await super().stop()
        for _ in range(100):
            if not self._running:
                break
            await asyncio.sleep(0.05)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        os.close(self._null)


class Blackbox(_Driven):
    """blackbox_exporter's tcp prober, driven over kept HTTP connections."""

    name = "blackbox"
    package = "prometheus-blackbox-exporter"
    program = "prometheus-blackbox-exporter"
    version = ("--version",)

    async def start(self) -> None:
        """Run the exporter, and begin to ask it."""
        config = self.directory / "blackbox.yml"
        config.write_text(
            f"modules:\n  smtp:\n    prober: tcp\n    timeout: {self.setup.timeout:g}s\n"
            '    tcp:\n      query_response:\n        - expect: "^220 "\n'
            '        - send: "EHLO bench.example\\r"\n        - expect: "^250 "\n'
            '        - send: "QUIT\\r"\n        - expect: "^221"\n'
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._http = probe.getsockname()[1]
        self.spawn(self.found() or "", f"--config.file={config}", "--log.level=error",
                   f"--web.listen-address=127.0.0.1:{self._http}")  # fmt: skip
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for _ in range(100):
            with suppress(OSError):
                self._idle.append(await asyncio.open_connection("127.0.0.1", self._http))
                break
            await asyncio.sleep(0.05)
        await super().start()

    async def look(self, target: int) -> None:
        """Ask for one probe."""
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._http)
        where = f"{address(target)}:{self.farm.port}"
        writer.write(f"GET /probe?module=smtp&target={where} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if length := re.search(rb"content-length: (\d+)", head):
            await reader.readexactly(int(length[1]))
        else:
            await reader.readuntil(b"0\r\n\r\n")
        self._idle.append((reader, writer))

    async def stop(self) -> None:
        """End it and the connections to it."""
        await super().stop()
        for _, writer in self._idle:
            writer.close()


class Floor(Peer):
    """No checker: what the sockets and the loop alone cost in Python."""

    name = "floor"

    @classmethod
    def found(cls) -> str | None:
        """Return Python."""
        return sys.executable

    @classmethod
    def which_version(cls) -> str:
        """Return Python's version."""
        return sys.version.split()[0]

    async def start(self) -> None:
        """Begin to exchange words."""
        targets = [address(n) for n in range(self.farm.count)]
        interval, port = str(self.setup.interval), str(self.farm.port)
        self.spawn(sys.executable, "-c", FLOOR, interval, port, *targets)


PEERS: tuple[type[Peer], ...] = (Hactl, Floor, Haproxy, Blackbox, CheckSmtp, Monit)


def missing() -> list[str]:
    """Say which peers are not installed, and what brings them."""
    return [
        f"{p.name} is not installed: apt-get install {p.package}" for p in PEERS if not p.found()
    ]


def main() -> None:
    """List the peers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    versions = {p.name: p.which_version() if p.found() else None for p in PEERS}
    if options.json:
        print(json.dumps(versions))
        return
    for name, version in versions.items():
        print(f"{name:12}{version or 'not installed'}")
    for line in missing():
        print(line)


if __name__ == "__main__":
    main()
