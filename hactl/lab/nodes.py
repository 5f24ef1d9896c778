"""Fake mail nodes: SMTP, IMAP and spamd on loopback, each in a mood that can change at any time.

A mood is what a mail administrator meets: the port that accepts and never speaks, the listener
that is gone, 421, a server that takes its time.  Plain sockets with callbacks, as in the checks:
one process plays a whole cluster and hundreds of sessions a second cost it little.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Mapping
from enum import StrEnum

GARBAGE = b"\x00\x1b]0;owned\x07\xff\xfe not what you expect\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class Mood(StrEnum):
    """How a service behaves; `Node.set` says how many seconds SLOW and DRIP take."""

    WELL = "well"
    HANG = "hang"  # accepts and never speaks
    REFUSE = "refuse"  # nobody listens, and open sessions end
    SAY421 = "say421"
    SAY550 = "say550"
    SLOW = "slow"  # each answer comes late
    DRIP = "drip"  # one byte at a time
    LIE = "lie"  # garbage instead of answers
    RESET = "reset"  # accepts and resets


class Node:
    """A mail node: `services` maps smtp, imap or spamd to an (address, port); port 0 picks one.

    `sessions` and `messages` count, by service, the connections and the messages accepted.
    """

    def __init__(self, name: str, services: Mapping[str, tuple[str, int]]) -> None:
        self.name = name
        self.sessions = dict.fromkeys(services, 0)
        self.messages = dict.fromkeys(services, 0)
        self._services = {
            kind: _Service(self, kind, address, port) for kind, (address, port) in services.items()
        }

    async def start(self) -> None:
        """Listen; raise OSError, and listen nowhere, if an address cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            for service in self._services.values():
                service.listen(loop)
        except OSError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all sessions and stop listening."""
        for service in self._services.values():
            service.shut()
            service.loop = None

    def set(self, service: str, mood: Mood, seconds: float = 1.0) -> None:
        """Put *service* into *mood*, its open sessions too."""
        self._services[service].turn(mood, seconds)

    def mood(self, service: str) -> Mood:
        """Return the mood *service* is in."""
        return self._services[service].mood

    def where(self, service: str) -> tuple[str, int]:
        """Return address and port of *service*."""
        return self._services[service].where


class _Service:
    """A listener, its mood and its sessions."""

    def __init__(self, node: Node, kind: str, address: str, port: int) -> None:
        self.node = node
        self.kind = kind
        self.where = (address, port)
        self.mood = Mood.WELL
        self.seconds = 1.0
        self.loop: asyncio.AbstractEventLoop | None = None  # None: not started
        self.sessions: set[_Session] = set()
        self._listener: socket.socket | None = None

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the listener, unless the mood is to refuse."""
        self.loop = loop
        if self.mood is Mood.REFUSE:
            return
        family = socket.AF_INET6 if ":" in self.where[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self.where)
            listener.listen(256)
        except OSError:
            listener.close()
            raise
        self.where = listener.getsockname()[:2]  # the same port again after REFUSE
        self._listener = listener
        loop.add_reader(listener.fileno(), self._accept, listener, loop)

    def shut(self) -> None:
        """Close the listener and every session."""
        if self.loop is not None and self._listener is not None:
            self.loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for session in tuple(self.sessions):
            session.close()

    def turn(self, mood: Mood, seconds: float) -> None:
        """Change the mood; what sessions held back is said in the new one."""
        self.mood, self.seconds = mood, seconds
        if mood is Mood.REFUSE:
            self.shut()
        elif self._listener is None and self.loop is not None:
            self.listen(self.loop)
        for session in tuple(self.sessions):
            session.wake()

    def _accept(self, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        for _ in range(64):
            try:
                sock, _peer = listener.accept()
            except OSError:  # nobody waits any more, or the client has gone
                return
            self.node.sessions[self.kind] += 1
            if self.mood is Mood.RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
                continue
            sock.setblocking(False)
            session = SESSIONS[self.kind](self, sock, loop)
            self.sessions.add(session)
            session.open()


class _Session:
    """One connection; a protocol says what it greets with and what it answers."""

    refusal = b"%d %s\r\n"
    half = False  # a client may shut down its sending side and still wait for the answer

    def __init__(
        self, service: _Service, sock: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.service = service
        self.name = service.node.name.encode()
        self._sock = sock
        self._loop = loop
        self._in = bytearray()
        self._out = bytearray()
        self._leaving = False  # close when all is said
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(sock.fileno(), self._read)

    def greet(self) -> bytes:
        """Return the first words, before the client has said anything."""
        return b""

    def answer(self, heard: bytearray) -> bytes:
        """Take one whole request from *heard* and return the answer, empty as long as none is."""
        raise NotImplementedError

    def open(self) -> None:
        """Greet, or turn the client away."""
        self.say(self.turn_away() or self.greet())

    def turn_away(self) -> bytes:
        """Return what the client is turned away with, in the words of the protocol, if it is."""
        match self.service.mood:
            case Mood.SAY421:
                self.leave()
                return self.refusal % (421, b"too many connections")
            case Mood.SAY550:
                self.leave()
                return self.refusal % (550, b"no rDNS available")
        return b""

    def leave(self) -> None:
        """Close as soon as everything is said."""
        self._leaving = True

    def say(self, data: bytes) -> None:
        """Say *data* as the mood has it."""
        self._out += GARBAGE if data and self.service.mood is Mood.LIE else data
        if self.service.mood is Mood.SLOW and self._timer is None:
            self._timer = self._loop.call_later(self.service.seconds, self.wake)
        else:
            self.flush()

    def flush(self) -> None:
        """Send what there is to say, as far as the mood allows."""
        mood = self.service.mood
        if mood is Mood.HANG or self._timer is not None:
            return
        if mood is Mood.RESET:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.close()
            return
        count = 1 if mood is Mood.DRIP else len(self._out)
        try:
            del self._out[: self._sock.send(self._out[:count])]
        except BlockingIOError:
            pass
        except OSError:  # the client has gone
            self.close()
            return
        if self._out:
            self._timer = self._loop.call_later(self.service.seconds, self.wake)
        elif self._leaving:
            self.close()

    def close(self) -> None:
        """End the connection."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self.service.sessions.discard(self)
        self._sock.close()

    def wake(self) -> None:
        """Wait no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

    def _read(self) -> None:
        try:
            data = self._sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self.half and self._out:
                self._loop.remove_reader(self._sock.fileno())
                self.leave()
            else:
                self.close()
            return
        self._in += data
        said = b""
        while self._in and not self._leaving and (answer := self.answer(self._in)):
            said += answer
        if said:
            self.say(said)


def _line(heard: bytearray) -> bytes | None:
    """Take one line from *heard*, None if it is not whole yet."""
    end = heard.find(b"\n")
    if end < 0:
        return None
    line = bytes(heard[:end]).rstrip(b"\r")
    del heard[: end + 1]
    return line


class _Smtp(_Session):
    """Enough of RFC 5321 for a client that sends mail."""

    def __init__(
        self, service: _Service, sock: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(service, sock, loop)
        self._sender = self._recipient = self._data = False

    def greet(self) -> bytes:
        return b"220 %s ESMTP hactl lab\r\n" % self.name

    def answer(self, heard: bytearray) -> bytes:
        if self._data:
            return self._message(heard)
        line = _line(heard)
        if line is None:
            return b""
        match line[:4].upper():
            case b"EHLO":
                return b"250-%s hello\r\n250-8BITMIME\r\n250 SIZE 36700160\r\n" % self.name
            case b"HELO":
                return b"250 %s hello\r\n" % self.name
            case b"MAIL":
                self._sender = True
                return b"250 2.0.0 Ok\r\n"
            case b"RCPT" if self._sender:
                self._recipient = True
                return b"250 2.1.5 Destination address valid\r\n"
            case b"DATA" if self._recipient:
                self._data = True
                return b'354 Enter mail, end with "." on a line by itself\r\n'
            case b"RCPT" | b"DATA":
                return b"503 5.5.1 Command not allowed at this point\r\n"
            case b"RSET" | b"NOOP":
                self._sender = self._recipient = False
                return b"250 2.0.0 Ok\r\n"
            case b"QUIT":
                self.leave()
                return b"221 2.0.0 Bye\r\n"
        return b"500 5.5.1 Command unrecognized\r\n"

    def _message(self, heard: bytearray) -> bytes:
        while (line := _line(heard)) is not None:
            if line == b".":
                self._sender = self._recipient = self._data = False
                self.service.node.messages["smtp"] += 1
                return b"250 2.0.0 Message accepted for delivery\r\n"
        return b""


class _Imap(_Session):
    """A greeting, and a way to leave."""

    refusal = b"* BYE %d %s\r\n"

    def greet(self) -> bytes:
        return b"* OK [CAPABILITY IMAP4rev1] %s ready\r\n" % self.name

    def answer(self, heard: bytearray) -> bytes:
        line = _line(heard)
        if line is None:
            return b""
        tag, _, command = line.partition(b" ")
        if command.upper() == b"LOGOUT":
            self.leave()
            return b"* BYE\r\n%s OK LOGOUT completed\r\n" % tag
        return b"%s BAD unknown command\r\n" % tag


class _Spamd(_Session):
    """PING and CHECK of spamd's protocol; each connection takes one request."""

    refusal = b"SPAMD/1.0 75 EX_TEMPFAIL %d %s\r\n"
    half = True

    def open(self) -> None:
        """Wait: the client speaks first."""

    def answer(self, heard: bytearray) -> bytes:
        end = heard.find(b"\r\n\r\n")
        if end < 0:
            return b""
        head = bytes(heard[:end])
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(heard) < size:
            return b""
        message = bytes(heard[end:size])
        del heard[:size]
        if turned := self.turn_away():
            return turned
        self.leave()
        if head.startswith(b"PING "):
            return b"SPAMD/1.5 0 PONG\r\n"
        if not head.startswith(b"CHECK "):
            return b"SPAMD/1.0 76 Bad header line: %s\r\n" % head.split(b"\r\n")[0]
        self.service.node.messages["spamd"] += 1
        verdict = (
            b"True ; 1000.0" if b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL" in message else b"False ; 0.5"
        )
        return b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: %s / 5.0\r\n\r\n" % verdict


SESSIONS: dict[str, type[_Session]] = {"smtp": _Smtp, "imap": _Imap, "spamd": _Spamd}
