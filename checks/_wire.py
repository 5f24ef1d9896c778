"""Run dialogues on plain non-blocking sockets: thousands at once, none with a task of its own.

A dialogue is a generator that yields what to say and what to wait for, and returns a Result; it
owns no socket, no clock and no deadline.  The driver owns those, times every step, bounds every
answer, and knows whose fault it was when a conversation ended early.
Callbacks on sockets, because asyncio's streams cost three to four times the CPU.  TLS gets its bytes
from here and not from the socket: there OpenSSL would go on reading for as long as a node sends what
is no answer, session tickets without end for example, and nobody else would be looked at.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

from checks import _tls
from checks._tls import Trust
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration

LIMIT = 64 * 1024  # bytes of one answer
SEALED = 2 * LIMIT  # bytes of one answer, or of a handshake, under TLS
CHUNK = 4096  # bytes of one read

# These speak of the node.  All others (EMFILE, ENOBUFS, EADDRNOTAVAIL, ENETUNREACH, EPERM, a name
# that is no address, ...) are trouble of our own.
THEIRS = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.EHOSTUNREACH, errno.ETIMEDOUT}
)

# A Unix socket's refusals: there is none, or its backlog is full.
_NOBODY = frozenset({errno.ENOENT, errno.EAGAIN})


class Say(NamedTuple):
    """Send *data*, then read until *complete* returns the length of the whole answer (0: not yet).

    *complete* raises ValueError for bytes that can never become an answer; what follows an answer
    stays in the buffer.  *step* names this exchange.  With *close* our sending side is shut down
    after *data*.
    """

    data: bytes
    complete: Callable[[bytes], int]
    step: str
    close: bool = False


class StartTLS(NamedTuple):
    """Go on under TLS; as the first turn: from the first byte.

    *name* is who the certificate must be for.  The answer to this turn is a text for people, the
    protocol with what became of the certificate.  If the certificate is refused the conversation is
    over; only to say exactly what is wrong with it the driver connects once more and begins the
    dialogue that *again* makes, which ends here as well.
    """

    trust: Trust
    name: str | None
    again: Callable[[], Dialogue]
    step: str = "tls"


Dialogue = Generator[Say | StartTLS, bytes, Result]
Done = Callable[[Result, float, float], None]  # the result, and when the look began and ended


# What a whole answer is


def line(buffer: bytes) -> int:
    """Complete at the first line feed."""
    return buffer.find(b"\n") + 1


_MORE = re.compile(rb"(?:([2-5][0-9][0-9])-[^\n]*+\n(?:\1-[^\n]*+\n)*)?")  # all the `250-` at once
_REPLY = re.compile(rb"[2-5][0-9][0-9](?:[ -].*)?\r?", re.DOTALL)


def reply(buffer: bytes) -> int:
    """Complete at the last line of an SMTP reply: `250-` goes on, `250 ` ends (RFC 5321, 4.2).

    Raise ValueError for a line without a code, or with another code than the first line's.
    """
    more = _MORE.match(buffer)
    start = more.end() if more is not None else 0
    end = buffer.find(b"\n", start) + 1
    if not end:
        return 0
    text = buffer[start : end - 1]
    if not _REPLY.fullmatch(text) or text[:3] != buffer[:3]:
        raise ValueError(f"not an SMTP reply: {quote(text)}")
    return end


def until_eof(_buffer: bytes) -> int:
    """Complete when the node closes; the driver asks for this function by name."""
    return 0


def nothing(_buffer: bytes) -> int:
    """Wait for no answer: the data is a parting word, and whether it arrives is no news."""
    return 0


_CONNECT = Say(b"", nothing, "connect")  # where each conversation stands at first
_UNSAFE = {n: f"\\x{n:02x}" for n in range(256) if not 0x20 <= n < 0x7F}


def quote(raw: bytes, limit: int = 80) -> str:
    r"""Make a stranger's bytes safe to show: printable ASCII, the rest as `\xNN`, cut at *limit*.

    Whatever a node sends gets into a reason through here and nowhere else.
    """
    text = raw.rstrip(b"\r\n")[: limit + 1].decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_UNSAFE)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def blame(error: OSError) -> Verdict:
    """Judge a failed system call: FAIL is the node's fault, UNKNOWN ours."""
    return Verdict.FAIL if error.errno in THEIRS else Verdict.UNKNOWN


@lru_cache(4096)
def endpoint(
    address: str, port: int
) -> tuple[int, str | tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]]:
    """Return family and socket address of a literal.  Raise OSError for a name: no DNS in here.

    A path is a Unix socket's, whatever *port* says.
    """
    if address.startswith("/"):
        return socket.AF_UNIX, address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=flags)
    return found[0][0], found[0][4]


# The driver


class Wire:
    """Starts conversations, and holds what they share.

    *cap* is how many sockets may be open at once; *capped* counts what was not begun because of
    that.  *excuse* is asked at a deadline, with the time
    the look began: a text says that we were late ourselves, so silence proves nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        cap: int,
        excuse: Callable[[float], str | None],
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
    ) -> None:
        self.loop = loop
        self.cap = cap
        self.capped = 0
        self.excuse = excuse
        self.make_socket = make_socket
        self.live: set[Conversation | Tripwire] = set()

    def string(self, address: str, port: int, cut: Callable[[bool], None]) -> Tripwire:
        """Keep one idle connection; *cut* hears of its end, and whether it had been made."""
        return Tripwire(self, address, port, cut)

    def start(
        self, address: str, port: int, talk: Dialogue, timeout: float, done: Done
    ) -> Conversation:
        """Begin *talk*; *done* is called once, and never before this returns."""
        return Conversation(self, address, port, talk, timeout, done)

    def full(self) -> bool:
        """Tell, and count, whether one that is in *live* already is one too many."""
        if len(self.live) <= self.cap:
            return False
        self.capped += 1
        return True

    def close(self) -> None:
        """Cancel whatever still goes on."""
        for conversation in tuple(self.live):
            conversation.cancel()


class Tripwire:
    """One idle connection to a node; made by `Wire.string`.

    Its end is a suspicion, never a verdict: a server may close an idle client for reasons of its
    own.  What the node says is read and forgotten.
    """

    __slots__ = ("_cut", "_made", "_sock", "_wire")

    def __init__(self, wire: Wire, address: str, port: int, cut: Callable[[bool], None]) -> None:
        self._wire = wire
        self._cut = cut
        self._made = False
        self._sock: socket.socket | None = None
        wire.live.add(self)
        try:
            opened = self._open(address, port)
        except OSError:
            opened = False
        if not opened:
            wire.loop.call_soon(self._ended)

    def _open(self, address: str, port: int) -> bool:
        wire = self._wire
        if wire.full():
            return False
        family, where = endpoint(address, port)
        self._sock = wire.make_socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if self._sock.connect_ex(where) not in (0, errno.EINPROGRESS):
            return False
        wire.loop.add_reader(self._sock, self._read)
        return True

    def cancel(self) -> None:
        """End it without a word to anybody."""
        self._wire.live.discard(self)
        if self._sock is not None:
            self._wire.loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _read(self) -> None:
        assert self._sock is not None
        try:
            heard = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if heard:
            self._made = True
        else:
            self._ended()

    def _ended(self) -> None:
        if self in self._wire.live:
            self.cancel()
            self._cut(self._made)


class Conversation:
    """One dialogue over one socket; made by `Wire.start`."""

    __slots__ = (
        "_buffer", "_code", "_connected", "_done", "_doubt", "_end", "_fd", "_heard", "_hello",
        "_left", "_loop", "_mark", "_opened", "_say", "_sealed", "_sock", "_started", "_steps",
        "_talk", "_timeout", "_timer", "_tls", "_unsent", "_where", "_wire", "_writing",
    )  # fmt: skip

    def __init__(
        self, wire: Wire, address: str, port: int, talk: Dialogue, timeout: float, done: Done
    ) -> None:
        self._wire = wire
        self._loop = loop = wire.loop
        self._talk = talk
        self._timeout = timeout
        self._done = done
        self._sock: socket.socket
        self._fd = -1  # as long as there is no socket
        self._say = _CONNECT
        self._end: Result | None = None  # of a dialogue that has nothing to say
        self._hello: StartTLS | None = None  # while we shake hands
        self._tls: ssl.SSLObject | None = None
        self._sealed: ssl.MemoryBIO  # what came and TLS has not read yet
        self._opened: ssl.MemoryBIO  # what TLS wants to be sent
        self._heard = 0  # bytes of the present answer, as they came
        self._left: float | None = None  # days until the certificate expires
        self._code = 0  # why a certificate was refused, when we look at it again
        self._doubt: Result | None = None  # the result, unless the second look says more
        self._buffer = b""
        self._unsent = b""
        self._connected = False
        self._writing = False
        self._steps: list[tuple[str, float]] = []
        self._started = self._mark = loop.time()
        self._timer: asyncio.Handle
        wire.live.add(self)
        self._where = address, port
        result = self._outcome(self._open)
        if result is None:
            self._timer = loop.call_at(self._started + timeout, self._late)
        else:
            self._timer = loop.call_soon(self._finish, result)

    def cancel(self) -> None:
        """End it without a word to anybody."""
        self._timer.cancel()
        self._wire.live.discard(self)
        if self._fd >= 0:
            self._hang_up()

    # Parts of the conversation: each returns the result, or None while it goes on

    def _outcome(self, part: Callable[[], Result | None]) -> Result | None:
        """Run *part*; make a result of whatever it raises."""
        try:
            return part()
        except StopIteration as stop:
            return self._returned(stop.value)
        except ssl.SSLError as error:
            return self._cut(*_tls.trouble(error))
        except OSError as error:
            return self._cut(blame(error), (error.strerror or str(error)).lower())
        except MemoryError:
            return self._cut(Verdict.UNKNOWN, "out of memory")
        except Exception as error:  # noqa: BLE001 - a bug in a check is no news of the node
            return self._cut(Verdict.UNKNOWN, f"check broke: {quote(repr(error).encode())}")

    def _open(self) -> Result | None:
        wire = self._wire
        if wire.full():
            return self._cut(Verdict.UNKNOWN, f"too many open sockets (cap {wire.cap})")
        try:
            turn = next(self._talk)
            if isinstance(turn, StartTLS):
                self._hello = turn
            else:
                self._say = turn
        except StopIteration as stop:  # to be connected is all
            self._end = self._returned(stop.value)
        family, where = endpoint(*self._where)
        # SOCK_NONBLOCK here saves the system call of setblocking
        self._sock = sock = wire.make_socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._fd = sock.fileno()
        problem = sock.connect_ex(where)
        if family == socket.AF_UNIX and problem in _NOBODY:
            problem = errno.ECONNREFUSED
        if problem and problem != errno.EINPROGRESS:
            raise OSError(problem, os.strerror(problem))
        if self._end is not None or self._hello is not None or self._say.data:
            self._await_room(self._write)
        else:  # the node speaks first: its first bytes say as well that we are connected
            self._loop.add_reader(self._fd, self._event, self._read)
        return None

    def _write(self) -> Result | None:
        """Go on now that we are connected, or that there is room for more."""
        self._loop.remove_writer(self._fd)
        self._writing = False
        if self._connected:
            self._send(b"")
            return None
        self._raise_error()
        self._connected = True
        self._lap("connect")
        if self._end is not None:
            return self._end
        self._loop.add_reader(self._fd, self._event, self._read)
        if self._hello is not None:
            return self._secure(self._hello)
        self._send(self._say.data)
        return None

    def _read(self) -> Result | None:
        """Take what came, and go on with it."""
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except ConnectionResetError:  # somebody was there to do that
            self._connected = True
            raise
        self._connected = True
        if self._tls is None:
            return self._hear(data, ended=not data)
        self._heard += len(data)
        if self._heard > SEALED:
            return self._cut(Verdict.FAIL, "more than 128 KiB of TLS without an answer")
        if data:
            self._sealed.write(data)
        else:
            self._sealed.write_eof()
        return self._unseal() if self._hello is None else self._shake()

    def _hear(self, data: bytes, *, ended: bool) -> Result | None:
        """Let the dialogue go on for each whole answer; *ended*: no more will come."""
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            say = self._say
            whole = ended and say.complete is until_eof
            try:
                size = len(self._buffer) if whole else say.complete(self._buffer)
            except ValueError as error:
                return self._cut(Verdict.FAIL, str(error))
            if size > LIMIT or (not size and len(self._buffer) > LIMIT):
                return self._cut(Verdict.FAIL, "answer longer than 64 KiB")
            if not size and not whole:
                if ended:
                    return self._cut(
                        Verdict.FAIL,
                        "closed in mid-answer" if self._buffer else "closed without an answer",
                    )
                return None
            answer, self._buffer = self._buffer[:size], self._buffer[size:]
            self._lap(say.step)
            result = self._resume(answer)
            if result is not None or self._hello is not None:
                return result

    def _resume(self, answer: bytes) -> Result | None:
        """Give the dialogue its *answer*, and say what it wants to say next."""
        turn = self._talk.send(answer)
        while not isinstance(turn, StartTLS):
            if turn.complete is not nothing:
                self._say = turn
                self._send(turn.data)
                return None
            with suppress(OSError):
                self._send(turn.data)
            turn = self._talk.send(b"")
        return self._secure(turn)

    def _secure(self, turn: StartTLS) -> Result | None:
        """Begin to shake hands."""
        self._hello = turn
        self._say = Say(b"", nothing, turn.step)
        if self._buffer:  # said in plain, it would count as said under TLS
            return self._cut(Verdict.FAIL, "bytes after STARTTLS")
        self._raise_error()  # or what we write would fail for it, with less to tell
        trust = turn.trust
        context = trust.strict if self._doubt is None else trust.again(self._code)
        self._sealed, self._opened = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._sealed, self._opened, server_hostname=turn.name)
        return self._shake()

    def _shake(self) -> Result | None:
        """Go on with the handshake, and after it with the dialogue."""
        turn, tls = self._hello, self._tls
        assert turn is not None
        assert tls is not None
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send(b"")
            return None
        except ssl.SSLError as error:
            with suppress(OSError):
                self._send(b"")  # the alert, so that the node's log can say why
            if isinstance(error, ssl.SSLCertVerificationError):
                return self._refuse(turn, error)
            raise
        self._send(b"")
        self._lap(turn.step)
        text = tls.version() or "TLS"
        found = _tls.certificate(tls)
        if found is not None:
            now = time.time()
            self._left = found.left_days(now)
            text += f", certificate {found.dated(now) or f'ends in {int(self._left)} days'}"
        if self._doubt is not None:
            if found is not None:
                first = self._doubt.reason.removeprefix(f"{turn.step}: ")
                why = _tls.details(self._code, first, found, turn.name or "", now)
                self._doubt = self._cut(Verdict.FAIL, quote(why.encode(), 160))
            return self._doubt
        self._hello = None
        result = self._resume(text.encode())
        return self._unseal() if result is None and self._hello is None else result

    def _unseal(self) -> Result | None:
        """Read all that TLS makes of what came: no event tells of it again."""
        assert self._tls is not None
        data, ended = b"", False
        try:
            while not ended:
                part = self._tls.read(CHUNK)
                data += part
                ended = not part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:  # many servers close without a word; a cut answer shows as such
            ended = True
        if self._opened.pending:  # TLS has something of its own to say
            self._send(b"")
        return self._hear(data, ended=ended) if data or ended else None

    def _refuse(self, turn: StartTLS, error: ssl.SSLCertVerificationError) -> Result | None:
        """Look at a refused certificate once more, to say exactly why and how old it is."""
        if self._doubt is not None:
            return self._doubt
        self._doubt = self._cut(Verdict.FAIL, _tls.distrust(error, turn.name))
        self._code = error.verify_code
        self._lap(turn.step)
        self._hang_up()
        self._say, self._hello, self._tls = _CONNECT, None, None
        self._buffer = self._unsent = b""
        self._connected = False
        self._talk = turn.again()
        return self._open()

    # Helpers

    def _event(self, part: Callable[[], Result | None]) -> None:
        result = self._outcome(part)
        if result is not None:
            self._finish(result)

    def _send(self, data: bytes) -> None:
        """Send what is left over and *data*, as far as there is room."""
        if self._tls is not None:
            if data:
                self._tls.write(data)
            data = self._opened.read()
        data = self._unsent + data
        try:
            sent = self._sock.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        self._unsent = data[sent:]
        if self._unsent:
            self._await_room(self._write)
        elif self._say.close:
            with suppress(OSError):  # the node has gone already: reading tells how
                self._sock.shutdown(socket.SHUT_WR)

    def _raise_error(self) -> None:
        """Raise what has happened to the socket while nobody looked."""
        problem = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            raise OSError(problem, os.strerror(problem))

    def _await_room(self, part: Callable[[], Result | None]) -> None:
        self._writing = True
        self._loop.add_writer(self._fd, self._event, part)

    def _hang_up(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False
        self._sock.close()
        self._fd = -1

    def _lap(self, step: str) -> None:
        """Note that *step* is done, and its seconds."""
        now = self._loop.time()
        self._steps.append((step, now - self._mark))
        self._mark, self._heard = now, 0

    def _step(self) -> str:
        """Return where the conversation stands."""
        return self._say.step if self._connected else _CONNECT.step

    def _cut(self, verdict: Verdict, why: str) -> Result:
        """Return the result of a conversation that ended early, here."""
        step = self._step()
        return Result(verdict, f"{step}: {why}", step)

    def _returned(self, value: object) -> Result:
        """Take what the dialogue returned; a stranger's check may well forget the result."""
        if isinstance(value, Result):
            return value
        return self._cut(Verdict.UNKNOWN, f"check broke: returned {quote(repr(value).encode())}")

    def _late(self) -> None:
        """Give up at the deadline."""
        if not self._connected:
            with suppress(OSError):  # it fails as long as there is nobody at the other end
                self._sock.getpeername()
                self._connected = True
        excuse = self._wire.excuse(self._started)
        if excuse is None:
            self._finish(self._cut(Verdict.FAIL, f"no answer in {Duration(self._timeout)}"))
        else:
            self._finish(self._cut(Verdict.UNKNOWN, excuse))

    def _finish(self, result: Result) -> None:
        """Close, and report *result* with the times of its steps."""
        self.cancel()
        step = self._step()
        if self._doubt is not None:  # however far the second look came
            result, step = self._doubt, self._doubt.step
        ended = self._loop.time()
        measures = {f"{step}_seconds": seconds for step, seconds in self._steps}
        if self._left is not None:
            measures["left_days"] = self._left
        measures.update(result.measures)
        measures["total_seconds"] = ended - self._started
        self._done(
            Result(result.verdict, result.reason, step, measures, tuple(self._steps)),
            self._started,
            ended,
        )


async def converse(address: str, port: int, talk: Dialogue, limit: float) -> Result:
    """Run one conversation by itself, within *limit* seconds."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()
    wire = Wire(loop, cap=1, excuse=lambda _started: None)
    wire.start(address, port, talk, limit, lambda result, *_times: answer.set_result(result))
    try:
        return await answer
    finally:
        wire.close()
