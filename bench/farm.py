"""A farm of fake SMTP targets on loopback, in one process: what the other benches check.

Target N listens on 127.1.X.Y, all on one port, and speaks as much SMTP as a health check needs.
The farm counts conversations and notes when each began.  `Farm` starts one in a process of its own
and talks to it over its standard input, a JSON object a line; it ends when that is closed.

Run as a program it serves for a moment, and says what came.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

PER_NET = 250
FAULTS = ("well", "refuse", "silent", "421", "dead")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset
BANNER = b"220 farm.example ESMTP ready\r\n"
HELLO = b"250-farm.example hello\r\n250-8BITMIME\r\n250-SIZE 36700160\r\n250 HELP\r\n"
BUSY = b"421 farm.example service not available\r\n"


def address(target: int) -> str:
    """Return the address of a target."""
    return f"127.1.{target // PER_NET}.{target % PER_NET + 1}"


def more_files() -> None:
    """Allow ourselves and our children as many descriptors as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Server:
    """The targets."""

    def __init__(self, count: int) -> None:
        self.poll = select.epoll()
        self.faults = ["well"] * count
        self.listeners: dict[int, tuple[socket.socket, int]] = {}
        self.sessions: dict[int, tuple[socket.socket, int]] = {}
        self.port = 0
        self.reset()
        for target in range(count):
            self.listen(target)

    def reset(self) -> None:
        self.began = time.monotonic()
        self.cpu = time.process_time()
        self.conversations = self.hellos = self.quits = 0
        self.arrivals: list[list[float]] = [[] for _ in self.faults]

    def listen(self, target: int) -> None:
        """Listen again; the first target takes a port, the others take the same one."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address(target), self.port))
        self.port = listener.getsockname()[1]
        listener.listen(128)
        listener.setblocking(False)
        self.listeners[listener.fileno()] = (listener, target)
        self.poll.register(listener.fileno(), select.EPOLLIN)

    def fault(self, targets: list[int], fault: str) -> None:
        """Break targets, or heal them."""
        listening = {target: fd for fd, (_, target) in self.listeners.items()}
        for target in targets:
            self.faults[target] = fault
            if fault in ("refuse", "dead"):
                if target in listening:
                    self.listeners.pop(listening[target])[0].close()
            elif target not in listening:
                self.listen(target)
        if fault == "dead":
            broken = set(targets)
            for fd, (session, target) in list(self.sessions.items()):
                if target in broken:
                    session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    self.close(fd)

    def close(self, fd: int) -> None:
        self.sessions.pop(fd)[0].close()

    def accept(self, fd: int) -> None:
        listener, target = self.listeners[fd]
        try:
            session, _ = listener.accept()
        except OSError:
            return
        self.conversations += 1
        self.arrivals[target].append(time.monotonic())
        session.setblocking(False)
        fault = self.faults[target]
        with suppress(OSError):
            if fault == "well":
                session.send(BANNER)
            elif fault == "421":
                session.send(BUSY)
                session.close()
                return
        self.sessions[session.fileno()] = (session, target)
        self.poll.register(session.fileno(), select.EPOLLIN)

    def hear(self, fd: int) -> None:
        session, target = self.sessions[fd]
        try:
            data = session.recv(4096)
        except OSError:
            data = b""
        if not data:
            return self.close(fd)
        if self.faults[target] == "silent":
            return None
        answer = b""
        for line in data.split(b"\n")[:-1]:
            verb = line[:4].upper()
            if verb in (b"EHLO", b"HELO"):
                self.hellos += 1
                answer += HELLO if verb == b"EHLO" else b"250 farm.example\r\n"
            elif verb == b"QUIT":
                self.quits += 1
                answer += b"221 bye\r\n"
            else:
                answer += b"250 ok\r\n"
        with suppress(OSError):
            session.send(answer)
        if answer.endswith(b"221 bye\r\n"):
            self.close(fd)
        return None

    def command(self, request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"at": time.time()}
        match request["do"]:
            case "fault":
                self.fault(request["targets"], request["fault"])
            case "reset":
                self.reset()
            case "count":
                answer |= {
                    "seconds": time.monotonic() - self.began,
                    "cpu": time.process_time() - self.cpu,
                    "conversations": self.conversations,
                    "hellos": self.hellos,
                    "quits": self.quits,
                    "seen": sum(map(bool, self.arrivals)),
                }
                if request.get("arrivals"):
                    answer["arrivals"] = self.arrivals
        return answer

    def run(self, control: int, seconds: float) -> None:
        """Serve until *control* is closed or the time is over."""
        end = time.monotonic() + seconds
        heard = b""
        if control >= 0:
            self.poll.register(control, select.EPOLLIN)
        while (left := end - time.monotonic()) > 0:
            for fd, _ in self.poll.poll(left):
                if fd in self.sessions:
                    self.hear(fd)
                elif fd in self.listeners:
                    self.accept(fd)
                elif fd == control:
                    data = os.read(control, 1 << 16)
                    if not data:
                        return
                    *lines, heard = (heard + data).split(b"\n")
                    for line in lines:
                        print(json.dumps(self.command(json.loads(line))), flush=True)


class Farm:
    """A farm of *count* targets in a process of its own."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--targets", str(count), "--seconds", "7200", "--control"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def fault(self, targets: list[int], fault: str) -> float:
        """Put targets into a fault of FAULTS; return the wall clock just before it was so."""
        at: float = self._ask(do="fault", targets=targets, fault=fault)["at"]
        return at

    def reset(self) -> None:
        """Count from nothing."""
        self._ask(do="reset")

    def count_up(self, *, arrivals: bool = False) -> dict[str, Any]:
        """Return what came since the last reset."""
        return self._ask(do="count", arrivals=arrivals)

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="end by itself after so long")
    parser.add_argument("--control", action="store_true", help="take commands on standard input")
    parser.add_argument("--json", action="store_true", help="print what came as JSON")
    options = parser.parse_args()
    more_files()
    for attempt in range(20):  # the port may be taken on one of the other addresses
        try:
            server = _Server(options.targets)
            break
        except OSError:
            if attempt == 19:
                raise
    if options.control:
        print(server.port, flush=True)
    elif not options.json:
        last = address(options.targets - 1)
        print(f"{address(0)} to {last}, port {server.port}, {options.seconds:g}s", flush=True)
    with suppress(KeyboardInterrupt):
        server.run(0 if options.control else -1, options.seconds)
    if options.json:
        print(json.dumps(server.command({"do": "count"})))
    elif not options.control:
        print(f"{server.conversations} conversations")


if __name__ == "__main__":
    main()
