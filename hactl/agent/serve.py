"""serve: tells what this hactld found on its own node, and takes no commands.

`/results` is for balancers' hactlds, `/ready` and `/ready/CHECK` for whoever can ask by HTTP (200 or
503), and a line in the words of HAProxy's agent-check for HAProxy.  Nobody but those whose
certificates are trusted is answered over HTTPS; without a key of our own only this machine is.
Source: HAProxy's configuration manual, agent-check, and src/tcpcheck.c: "ready" goes with each word
because an earlier "drain" or "maint" would stay in force without it, and "down#" without the blank
is no word that it knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import resource
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

import hactl
from hactl.agent import NONCE, PATH, PROTOCOL, Answer, Report, keys
from hactl.config import Agent, Check, endpoint, is_loopback
from hactl.core.health import Health, State
from hactl.core.model import Checked, Result

if TYPE_CHECKING:
    from aiohttp import web

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NONCE_LIMIT = 64
HANDSHAKE = 5.0  # seconds
IDLE = 600.0  # seconds a client may keep a connection and ask nothing
GUESTS = 64  # connections at a place, if they are at most a quarter of our descriptors
AGAIN = 1.0  # seconds until the next try to accept when there was no descriptor for it
LONGEST = 400  # characters of a reason
REASON = 80  # characters for HAProxy, which shows them in a table

_encode = msgspec.json.Encoder().encode
_mute = logging.getLogger("hactld.agent")  # what strangers send is no news
_mute.addHandler(logging.NullHandler())
_mute.propagate = False


class _Seen(msgspec.Struct, frozen=True):
    """The newest result of a check, when it was had, and what it came to."""

    stamp: float
    ended: float
    took: float
    result: Result
    state: State
    reason: str


def _tellable(result: Result) -> Result:
    """Return what JSON can carry, so that one odd result does not spoil an answer."""
    measures = {n: float(v) for n, v in result.measures.items() if math.isfinite(v)}
    reason = result.reason[:LONGEST].encode("utf-8", "replace").decode()
    return replace(result, reason=reason, measures=measures)


class Findings:
    """What was found on *node*, told at *clock*'s time."""

    def __init__(self, node: str, clock: Callable[[], float], checks: Mapping[str, Check]) -> None:
        self.node = node
        self._clock = clock
        self._start = secrets.token_hex(8)
        self._checks: Mapping[str, Check] = checks
        self._seen: dict[str, _Seen] = {}

    def configure(self, checks: Mapping[str, Check]) -> None:
        """Tell of these checks from now on; what was seen by one that changed is forgotten."""
        self._seen = {
            name: seen
            for name, seen in self._seen.items()
            if name in checks and checks[name].option == self._checks[name].option
        }
        self._checks = checks

    def feed(self, checked: Checked, health: Health) -> None:
        """Take a result with the health that it led to."""
        name = checked.probe.check
        before = self._seen.get(name)
        stamp = checked.ended
        if before is not None and stamp <= before.stamp:
            stamp = math.nextafter(before.stamp, math.inf)
        self._seen[name] = _Seen(
            stamp,
            checked.ended,
            checked.ended - checked.started,
            _tellable(health.last or checked.result),  # judged by the limits of our file
            health.state,
            health.reason,
        )

    def answer(self, nonce: str) -> bytes:
        """Return all results, as JSON."""
        now = self._clock()
        reports = {}
        for name, check in self._checks.items():
            kind = str(check.option.__struct_config__.tag)
            seen = self._seen.get(name)
            reports[name] = (
                Report(kind, float(check.interval))
                if seen is None
                else Report(
                    kind,
                    float(check.interval),
                    seen.stamp,
                    now - seen.ended,
                    seen.took,
                    seen.result,
                )
            )
        return _encode(Answer(PROTOCOL, hactl.__version__, self.node, self._start, nonce, reports))

    def down(self, name: str | None = None) -> str | None:
        """Say why the node is not ready, by one check or by all; None if it is.

        A check that has found nothing out is neutral.  Raise KeyError if there is no such check.
        """
        names = self._checks if name is None else [name]
        for each in names:
            seen = self._seen.get(each) if each in self._checks else self._seen[each]
            if seen is not None and seen.state is State.DOWN:
                return f"{each}: {seen.reason}"
        return None

    def line(self) -> bytes:
        """Return what HAProxy is told."""
        why = self.down()
        if why is None:
            return b"ready up\n"
        safe = "".join(c if c.isalnum() or c in " .:/_=+-()[]<>@%" else " " for c in why)
        return b"ready down #" + " ".join(safe.split())[:REASON].encode("ascii", "replace") + b"\n"

    def names(self) -> str:
        """Name the checks."""
        return ", ".join(self._checks)


class Serving:
    """Listens, and answers with *findings*."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._runner: web.AppRunner | None = None
        self._doors: list[_Door] = []
        self._may: frozenset[bytes] | None = None  # whose certificates; None: no TLS
        self.places: list[tuple[str, int]] = []  # where it listens

    async def start(self, config: Agent) -> list[str]:
        """Listen as *config* says; return what cannot be."""
        notes = []
        place, context = config.listen, None
        self._may = None
        if keys.has_own(config.keys):
            try:
                context, self._may, unusable = await asyncio.to_thread(keys.answering, config.keys)
            except keys.KeysError as error:
                notes.append(f"agent: {error}; nobody is answered over HTTPS")
                place = ""
            else:
                notes += [f"agent: {text}; who it is of is not answered" for text in unusable]
                if not self._may:
                    notes.append(
                        f"agent: nobody is trusted in {config.keys / 'trusted'}, so nobody is"
                        " answered; use hactl agent trust on the balancer's cert.pem"
                    )
        elif not is_loopback(place):
            host, port = endpoint(place)
            place = f"[::1]:{port}" if ":" in host else f"127.0.0.1:{port}"
            notes.append(
                f"agent: there is no key in {config.keys}, so only {place} is served;"
                " make one with hactl agent keygen"
            )
        if place:
            notes += await self._http(place, context)
        if config.haproxy is not None:
            notes += self._listen(config.haproxy, lambda: _Line(self._findings.line), None)
        return notes

    async def stop(self) -> None:
        """Stop listening, and send everybody away."""
        for door in self._doors:
            door.close()
        self._doors.clear()
        self.places.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _http(self, place: str, context: ssl.SSLContext | None) -> list[str]:
        from aiohttp import web

        @web.middleware
        async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
            if self._admits(request):
                return await handler(request)
            return web.Response(status=403, text="not trusted here\n")

        app = web.Application(middlewares=[admit])
        app.on_response_prepare.append(_sign)
        app.router.add_get(PATH, self._results)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/ready/{check}", self._ready)
        self._runner = web.AppRunner(
            app, access_log=None, logger=_mute, handle_signals=False,
            keepalive_timeout=IDLE, shutdown_timeout=1.0,
        )  # fmt: skip
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        return self._listen(place, server, context)

    def _listen(
        self,
        place: str,
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
    ) -> list[str]:
        host, port = endpoint(place)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listening = socket.create_server((host, port), family=family, backlog=100)
        except OSError as error:
            return [f"agent: cannot listen at {place}: {error.strerror or error}"]
        self._doors.append(_Door(listening, factory, context))
        self.places.append(listening.getsockname()[:2])
        return []

    def _admits(self, request: web.Request) -> bool:
        """Tell whether a certificate is one that is trusted itself."""
        if self._may is None:
            return True
        transport = request.transport
        secure = None if transport is None else transport.get_extra_info("ssl_object")
        shown = None if secure is None else secure.getpeercert(True)
        return shown is not None and hashlib.sha256(shown).digest() in self._may

    async def _results(self, request: web.Request) -> web.Response:
        from aiohttp import web

        nonce = request.headers.get(NONCE, "")[:NONCE_LIMIT]
        return web.Response(
            body=self._findings.answer(nonce), content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )  # fmt: skip

    async def _ready(self, request: web.Request) -> web.Response:
        from aiohttp import web

        try:
            why = self._findings.down(request.match_info.get("check"))
        except KeyError:
            return web.Response(status=404, text=f"there are {self._findings.names()}\n")
        if why is None:
            return web.Response(text="ready\n")
        return web.Response(status=503, text=f"{why}\n")


async def _sign(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = f"hactl/{hactl.__version__}"


class _Door:
    """Lets in who connects to *listening*, and no more than there is room for.

    Half the room is for those whose handshake is not over.  They give way to newer ones, from their
    own address first; so strangers keep nobody out, and cost none with a certificate his place.
    """

    def __init__(
        self,
        listening: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        context: ssl.SSLContext | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening, self._factory, self._context = listening, factory, context
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = GUESTS if soft == resource.RLIM_INFINITY else min(GUESTS, soft // 4)
        self._half = max(4, room // 2)
        self._coming: dict[socket.socket, tuple[str, asyncio.Task[None]]] = {}
        self._inside: dict[socket.socket, asyncio.Transport] = {}
        self._again: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Let nobody in any more."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for _, entering in self._coming.values():
            entering.cancel()

    def _open(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Take one connection, so that those that end at once are gone before the next."""
        try:
            sock, (address, *_) = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._loop.remove_reader(self._listening)
            self._again = self._loop.call_later(AGAIN, self._open)
            self._loop.call_exception_handler(
                {"message": "agent: cannot accept", "exception": error}
            )
            return
        same = [each for each, (whose, _) in self._coming.items() if whose == address]
        if len(same) >= self._half // 4:
            self._coming.pop(same[0])[1].cancel()
        elif len(self._coming) >= self._half:
            self._coming.pop(next(iter(self._coming)))[1].cancel()
        self._coming[sock] = address, self._loop.create_task(self._enter(sock))

    async def _enter(self, sock: socket.socket) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                self._factory, sock, ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else HANDSHAKE,
            )  # fmt: skip
        except OSError:
            return
        finally:
            self._coming.pop(sock, None)
        self._inside = {s: t for s, t in self._inside.items() if s.fileno() >= 0}
        if len(self._inside) >= self._half:
            next(iter(self._inside.values())).abort()
        self._inside[sock] = transport


class _Line(asyncio.Protocol):
    """Says a line and hangs up."""

    def __init__(self, line: Callable[[], bytes]) -> None:
        self._line = line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._line())
        transport.close()
