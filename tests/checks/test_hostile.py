"""Peers that mean harm, and troubles of our own: verdict, step and reason, and memory stays flat."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import time
import tracemalloc
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable
from contextlib import closing

import pytest
from msgspec import structs

from checks import Spoken, Target, _tls
from checks._tls import Policy, Trust
from checks._wire import Dialogue, Say, StartTLS, Wire, line, reply
from checks.banner import Banner, Step
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tls import Tls
from hactl.core.model import Result, Verdict, ok
from hactl.core.units import Secret
from tests.checks.peers import (
    GREETING,
    LONG,
    RCPT,
    SESSION,
    SHORT,
    Handler,
    Talk,
    hang,
    look,
    reset,
    says,
    serving,
    summary,
    upgrades,
)  # fmt: skip
from tests.checks.pki import NAME, Pki

POP3 = Banner(port=1, expect="+OK", then=(Step(send="CAPA", expect="+OK"),))
STARTTLS = Smtp(tls="starttls", verify=False)
IMPLICIT = Smtp(tls="implicit", verify=False)
OFFER = [GREETING, b"250-mx0\r\n250 STARTTLS\r\n", b"220 go ahead\r\n"]


async def drip(_reader: Reader, writer: Writer) -> None:
    while True:
        writer.write(b"2")
        await asyncio.sleep(0.01)


async def half_close(reader: Reader, writer: Writer) -> None:
    writer.write_eof()
    await reader.read()


async def hear_and_reset(reader: Reader, writer: Writer) -> None:
    await reader.read(1)
    await reset(reader, writer)


def floods(piece: bytes) -> Handler:
    async def handler(_reader: Reader, writer: Writer) -> None:
        for _ in range(10_000_000 // len(piece)):
            writer.write(piece)
            await writer.drain()

    return handler


def hears_hello_and(*answers: bytes, then: Handler | None = None) -> Handler:
    """Take the first words, whatever they are, and answer with bytes of our own."""

    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.read(4096)
        for answer in answers:
            writer.write(answer)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return handler


RECORD = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76"  # the head of a ServerHello
ALERT = b"\x15\x03\x03\x00\x02\x02"  # and its number
SILENT = "no answer in 100ms"
CUT = "answer longer than 64 KiB"

PLAIN: list[tuple[str, Spoken, Handler, str, str]] = [
    ("silent", RCPT, hang, "greeting", SILENT),
    ("silent", POP3, hang, "greeting", SILENT),
    ("silent later", POP3, says(b"+OK\r\n", then=hang), "step1", SILENT),
    ("silent", Spamd(), hang, "scan", SILENT),
    ("drip", RCPT, drip, "greeting", SILENT),
    ("drip", POP3, drip, "greeting", SILENT),
    ("reset", POP3, reset, "greeting", "connection reset by peer"),
    ("reset", POP3, says(b"+OK\r\n", then=hear_and_reset), "step1", "connection reset by peer"),
    ("garbage", POP3, says(b"\x00\x1b[2J\xff\n"), "greeting", r"unexpected: \x00\x1b[2J\xff"),
    ("garbage", RCPT, says(b"\x00\x1b\n"), "greeting", r"not an SMTP reply: \x00\x1b"),
    ("10 MB without newline", RCPT, floods(b"x" * 65536), "greeting", CUT),
    ("10 MB without newline", POP3, floods(b"x" * 65536), "greeting", CUT),
    ("endless 250-", RCPT, floods(b"250-and on\r\n" * 100), "greeting", CUT),
    (
        "endless 250-",
        RCPT,
        says(GREETING, then=floods(b"250-and on\r\n" * 100)),
        "ehlo",
        CUT,
    ),
    (
        "endless lines to skip",
        Banner(port=1, expect="OK", skip="*"),
        floods(b"* more\r\n" * 100),
        "greeting",
        CUT,
    ),
    ("control characters", RCPT, says(b"421 \x00\x1b]0;x\x07\r\n"), "", r"greeting 421 \x00\x1b]0;x\x07"),
    ("half closed", RCPT, says(GREETING, then=half_close), "ehlo", "closed without an answer"),
    ("half closed", POP3, half_close, "greeting", "closed without an answer"),
]  # fmt: skip

TLS: list[tuple[str, Spoken, Handler, str, str]] = [
    ("silent", Tls(port=1), hang, "tls", SILENT),
    ("handshake that never ends", Tls(port=1), hears_hello_and(RECORD, then=hang), "tls", SILENT),
    ("handshake that never ends", STARTTLS, says(*OFFER, then=hang), "tls", SILENT),
    ("silent before TLS", STARTTLS, says(*OFFER[:2], then=hang), "starttls", SILENT),
    ("no TLS", STARTTLS, says(*OFFER[:2], b"454 4.7.0 no\r\n"), "", "STARTTLS 454 4.7.0 no"),
    ("no offer", STARTTLS, says(GREETING, b"250 mx0\r\n"), "", "offers no STARTTLS"),
    ("plain on TLS", Tls(port=1), hears_hello_and(GREETING), "tls", "not TLS"),
    ("plain on TLS", IMPLICIT, says(GREETING, then=hang), "tls", "not TLS"),
    (
        "plain on TLS",
        STARTTLS,
        says(*OFFER, b"220 and again\r\n", then=hang),
        "tls",
        "not TLS",
    ),
    (
        "bytes after STARTTLS",
        STARTTLS,
        says(*OFFER[:2], OFFER[2] + b"250 mx0\r\n", then=hang),
        "tls",
        "bytes after STARTTLS",
    ),
    (
        "garbage",
        Tls(port=1),
        hears_hello_and(b"\x00\x1b" * 100),
        "tls",
        "not TLS",
    ),
    (
        "alert",
        Tls(port=1),
        hears_hello_and(ALERT + b"\x50"),
        "tls",
        "the node sent an alert: internal error",
    ),
    ("alert", Tls(port=1), hears_hello_and(ALERT + b"\x46"), "tls", "no protocol in common"),
    ("reset", Tls(port=1), reset, "tls", "connection reset by peer"),
    ("reset", STARTTLS, says(*OFFER, then=reset), "tls", "connection reset by peer"),
    ("reset later", Tls(port=1), hear_and_reset, "tls", "connection reset by peer"),
    (
        "reset later",
        STARTTLS,
        says(*OFFER, then=hear_and_reset),
        "tls",
        "connection reset by peer",
    ),
    ("end", Tls(port=1), hears_hello_and(b""), "tls", "closed in the middle of TLS"),
    ("half closed", STARTTLS, says(*OFFER, then=half_close), "tls", "closed in the middle of TLS"),
    (
        "10 MB of handshake",
        Tls(port=1),
        hears_hello_and(then=floods(b"\x16\x03\x03\x40\x00" + b"\x0e" * 16384)),
        "tls",
        "TLS failed: ",
    ),
]  # fmt: skip


def ids(rows: list[tuple[str, Spoken, Handler, str, str]]) -> list[str]:
    return [f"{row[0]}, {row[1].__struct_config__.tag}" for row in rows]


@pytest.mark.parametrize(
    ("_name", "check", "peer", "step", "why"), PLAIN + TLS, ids=ids(PLAIN + TLS)
)
def test_a_hostile_peer_is_a_failure_at_its_step(
    _name: str, check: Spoken, peer: Handler, step: str, why: str
) -> None:
    result = look(check, peer, SHORT if why == SILENT else LONG)
    reason = f"{step}: {why}" if step else why
    assert result.verdict is Verdict.FAIL
    assert result.reason.startswith(reason)
    assert (result.reason == reason) or why.endswith(": ")
    assert result.reason.isascii()
    assert result.reason.isprintable()
    assert not step or result.step == step


@pytest.mark.parametrize("way", ["implicit", "starttls"])
def test_session_tickets_without_end_are_no_answer(pki: Pki, way: str) -> None:
    """OpenSSL reads such things by itself, and would for as long as they come."""
    server = pki.server()
    server.num_tickets = 3000
    if way == "implicit":
        result = look(IMPLICIT, hang, tls=server)
    else:
        result = look(STARTTLS, upgrades(server, then=hang))
    step = "greeting" if way == "implicit" else "ehlo_tls"
    why = f"{step}: more than 128 KiB of TLS without an answer"
    assert summary(result) == (Verdict.FAIL, step, why)
    server.num_tickets = 20
    assert look(IMPLICIT, says(*SESSION, then=hang), tls=server).verdict is Verdict.OK


@pytest.mark.parametrize("step", ["ehlo_tls", "auth"])
@pytest.mark.parametrize("how", [hang, reset, half_close], ids=["silent", "reset", "end"])
def test_a_peer_that_fails_under_tls_fails_at_its_step(pki: Pki, step: str, how: Handler) -> None:
    file = pki.directory / "login"
    file.write_text("probe\nsecret\n")
    check = structs.replace(STARTTLS, login=Secret(str(file)))
    answers = [] if step == "ehlo_tls" else [b"250-mx0\r\n250 AUTH PLAIN\r\n"]

    async def under(reader: Reader, writer: Writer) -> None:
        if how is half_close:
            await reader.readline()
            writer.close()
        else:
            await how(reader, writer)

    result = look(check, upgrades(pki.server(), *answers, then=under), 0.3 if how is hang else LONG)
    assert (result.verdict, result.step) == (Verdict.FAIL, step)
    assert result.reason in {
        f"{step}: no answer in 300ms",
        f"{step}: connection reset by peer",
        f"{step}: closed without an answer",
        f"{step}: closed in the middle of TLS",
    }


def test_escape_sequences_in_a_certificate_never_reach_a_reason(pki: Pki) -> None:
    result = look(Tls(port=1, ca=pki.ca), hang, tls=pki.odd("\x1b[2J.example"))
    why = rf"tls: certificate is for \x1b[2J.example, not {NAME}"
    assert summary(result) == (Verdict.FAIL, "tls", why)


def test_tls_on_plain_is_silence(pki: Pki) -> None:
    result = look(RCPT, hang, SHORT, tls=pki.server())
    assert summary(result) == (Verdict.FAIL, "greeting", f"greeting: {SILENT}")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_peer_that_never_reads_stops_us_at_the_deadline(pki: Pki, tls: bool) -> None:
    def dialogue() -> Dialogue:
        if tls:
            yield StartTLS(_tls.get(Policy(verify=False)), None, dialogue)
        yield Say(b"x" * 16_000_000, line, "send")
        return ok("")

    result = look(Talk(dialogue=dialogue), hang, 0.3, tls=pki.server() if tls else None)
    assert summary(result) == (Verdict.FAIL, "send", "send: no answer in 300ms")


def test_what_does_not_fit_at_once_is_sent_in_parts_under_tls(pki: Pki) -> None:
    size = 2_000_000

    def dialogue() -> Dialogue:
        yield StartTLS(_tls.get(Policy(verify=False)), None, dialogue)
        answer = yield Say(b"x" * (size - 1) + b"\n", line, "send")
        return ok(answer.decode().strip())

    async def count(reader: Reader, writer: Writer) -> None:
        heard = 0
        while heard < size:
            heard += len(await reader.read(65536))
        writer.write(b"%d\n" % heard)
        await writer.drain()

    assert look(Talk(dialogue=dialogue), count, tls=pki.server()).reason == str(size)


@pytest.mark.parametrize(
    ("check", "peer", "tls"),
    [
        (RCPT, floods(b"x" * 65536), False),
        (RCPT, floods(b"250-and on\r\n" * 100), False),
        (IMPLICIT, floods(b"x" * 16384), True),
        (Banner(port=1, expect="OK", skip="/^/"), floods(b"\n" * 4096), False),
    ],
)
def test_memory_stays_flat(pki: Pki, check: Spoken, peer: Handler, tls: bool) -> None:
    server = pki.server() if tls else None
    tracemalloc.start()
    try:
        assert look(check, peer, tls=server).reason == f"greeting: {CUT}"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2_000_000  # the peer's own buffers are in it


def test_lines_in_packets_of_their_own_cost_no_more_than_their_length() -> None:
    """An answer is looked at for each packet; a peer must not make that a square of its lines."""
    lines = [b"250-x\r\n"] * 9000
    buffer = b"".join(lines)
    start = time.process_time()
    for _ in range(200):
        assert reply(buffer) == 0
    assert time.process_time() - start < 0.5  # line by line in Python it was 0.9


def test_a_crowd_of_peers_that_never_answer_delays_nobody(pki: Pki) -> None:
    async def main() -> list[Result]:
        loop = asyncio.get_running_loop()
        ends: list[Result] = []
        over = asyncio.Event()

        def done(result: Result, _began: float, _ended: float) -> None:
            ends.append(result)
            if len(ends) == 10:
                over.set()

        def ignored(*_: object) -> None:
            return

        listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        with closing(listener):
            wire = Wire(loop, cap=400, excuse=lambda _began: None)
            where = listener.getsockname()
            for check in (RCPT, STARTTLS, Tls(port=1)):
                for _ in range(100):
                    wire.start(where[0], where[1], check.talk(Target(NAME)), LONG, ignored)
            async with serving(says(*SESSION, then=hang)) as port:
                for _ in range(10):
                    wire.start("127.0.0.1", port, RCPT.talk(), 1.0, done)
                await over.wait()
            assert len(wire.live) == 300
            wire.close()
        return ends

    assert {result.verdict for result in asyncio.run(main())} == {Verdict.OK}


# Our own troubles


class NoPort(socket.socket):
    def connect_ex(self, _address: object) -> int:
        return errno.EADDRNOTAVAIL


class NoRoute(socket.socket):
    def connect_ex(self, _address: object) -> int:
        return errno.ENETUNREACH


def no_descriptor(_family: int, _kind: int) -> socket.socket:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (no_descriptor, "too many open files"),
        (NoPort, "cannot assign requested address"),
        (NoRoute, "network is unreachable"),
    ],
)
@pytest.mark.parametrize("check", [RCPT, Tls(port=1), POP3, Spamd()])
def test_what_we_lack_is_no_news_of_the_node(
    check: Spoken, make: Callable[[int, int], socket.socket], why: str
) -> None:
    async def main() -> Result:
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Result] = loop.create_future()
        wire = Wire(loop, cap=9, excuse=lambda _began: None, make_socket=make)
        talk = check.talk(Target(NAME))
        wire.start("127.0.0.1", 9, talk, LONG, lambda result, *_: end.set_result(result))
        return await end

    assert summary(asyncio.run(main())) == (Verdict.UNKNOWN, "connect", f"connect: {why}")


class NoMemory(ssl.SSLContext):
    def wrap_bio(self, *_: object, **__: object) -> ssl.SSLObject:
        raise MemoryError


def test_no_memory_for_tls_is_no_news_of_the_node() -> None:
    def dialogue() -> Dialogue:
        yield StartTLS(Trust(NoMemory(ssl.PROTOCOL_TLS_CLIENT)), None, dialogue)
        return ok("")

    result = look(Talk(dialogue=dialogue), hang)
    assert summary(result) == (Verdict.UNKNOWN, "tls", "tls: out of memory")


def test_no_memory_for_a_context_is_no_news_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(_protocol: int) -> ssl.SSLContext:
        raise MemoryError

    monkeypatch.setattr(_tls, "_made", {})
    monkeypatch.setattr(ssl, "SSLContext", make)
    result = look(Tls(port=1), hang)
    assert summary(result) == (Verdict.UNKNOWN, "connect", "connect: out of memory")
