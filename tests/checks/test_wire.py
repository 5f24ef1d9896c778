from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

import pytest

from checks import Spoken
from checks._wire import LIMIT, THEIRS, Dialogue, Say, Wire, converse, line, quote
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from hactl.core.model import Result, Verdict, fail, ok
from tests.checks.peers import (
    GREETING,
    LONG,
    RCPT,
    SESSION,
    SHORT,
    Talk,
    hang,
    look,
    reset,
    says,
    serving,
    summary,
)  # fmt: skip

STEPS = ["greeting", "ehlo", "mail", "rcpt"]

# Good conversations


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_whole_session_names_its_steps_and_their_times(host: str) -> None:
    result = look(RCPT, says(*SESSION, then=hang), host=host)
    assert summary(result) == (Verdict.OK, "rcpt", "mx0 ESMTP")
    assert [step for step, _ in result.steps] == STEPS
    assert list(result.measures) == [*(f"{step}_seconds" for step in STEPS), "total_seconds"]
    assert (
        0 < sum(seconds for _, seconds in result.steps) <= result.measures["total_seconds"] < LONG
    )


def test_bytes_that_come_one_by_one_make_the_same_answers() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for answer in SESSION:
            for byte in answer:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            await reader.readline()

    assert summary(look(RCPT, dribble)) == (Verdict.OK, "rcpt", "mx0 ESMTP")


def test_answers_that_come_at_once_are_taken_one_after_another() -> None:
    assert summary(look(RCPT, says(b"".join(SESSION), then=hang)))[:2] == (Verdict.OK, "rcpt")


def test_takes_leave_and_does_not_wait_for_the_answer() -> None:
    async def main() -> tuple[Result, bytes]:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            heard.set_result(await reader.read())

        async with serving(says(GREETING, then=listen)) as port:
            result = await converse("127.0.0.1", port, Smtp(depth="greeting").talk(), LONG)
            return result, await heard

    result, heard = asyncio.run(main())
    assert (result.verdict, heard) == (Verdict.OK, b"QUIT\r\n")


def test_to_be_connected_is_enough_for_tcp() -> None:
    result = look(Tcp(port=1), hang)
    assert summary(result) == (Verdict.OK, "connect", "connected")
    assert list(result.measures) == ["connect_seconds", "total_seconds"]


def test_a_scan_ends_with_the_connection() -> None:
    async def scan(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # our side is shut down, so this ends
        writer.write(b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 0.5 / 5.0\r\n\r\n")
        await writer.drain()
        writer.close()

    result = look(Spamd(), scan)
    assert summary(result) == (Verdict.OK, "scan", "scanned, score 0.5 / 5.0")
    assert list(result.measures) == ["connect_seconds", "scan_seconds", "score", "total_seconds"]


def test_what_does_not_fit_at_once_is_sent_in_parts() -> None:
    size = 8_000_000

    def dialogue() -> Dialogue:
        answer = yield Say(b"x" * size, line, "send", close=True)
        return ok(answer.decode().strip())

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d\n" % len(await reader.read()))
        await writer.drain()

    assert look(Talk(dialogue=dialogue), count).reason == str(size)


# Servers that misbehave


@pytest.mark.parametrize("step", range(4))
def test_silence_is_a_failure_at_its_step(step: int) -> None:
    result = look(RCPT, says(*SESSION[:step], then=hang) if step else hang, SHORT)
    assert summary(result) == (
        Verdict.FAIL,
        STEPS[step],
        f"{STEPS[step]}: no answer in 100ms",
    )
    assert result.measures["total_seconds"] == pytest.approx(SHORT, abs=0.09)


@pytest.mark.parametrize("step", range(4))
def test_a_reset_is_a_failure_at_its_step(step: int) -> None:
    async def read_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await reset(reader, writer)

    result = look(RCPT, says(*SESSION[:step], then=read_and_reset) if step else reset)
    assert summary(result) == (
        Verdict.FAIL,
        STEPS[step],
        f"{STEPS[step]}: connection reset by peer",
    )


@pytest.mark.parametrize("answer", [b"", b"SPAMD/1.0 76 Bad header line\r\n"])
def test_a_server_that_does_not_hear_us_out_is_a_failure(answer: bytes) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reset(reader, writer)

    assert look(Spamd(), rude).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("answers", "step", "reason"),
    [
        ([b""], "greeting", "closed without an answer"),
        ([b"220 mx0 ES"], "greeting", "closed in mid-answer"),
        ([b"220-mx0\r\n"], "greeting", "closed in mid-answer"),
        ([GREETING, b"250-mx0\r\n250"], "ehlo", "closed in mid-answer"),
        ([b"\x16\x03\x01\x00\x1b[2J\r\n"], "greeting", None),
    ],
)
def test_an_end_or_nonsense_is_a_failure_at_its_step(
    answers: list[bytes], step: str, reason: str | None
) -> None:
    why = reason or r"not an SMTP reply: \x16\x03\x01\x00\x1b[2J"
    assert summary(look(RCPT, says(*answers))) == (Verdict.FAIL, step, f"{step}: {why}")


@pytest.mark.parametrize("piece", [b"x" * 65536, b"250-and on\r\n" * 1000], ids=["line", "reply"])
def test_an_endless_answer_is_cut(piece: bytes) -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < 10_000_000:
            writer.write(piece)
            sent += len(piece)
            await writer.drain()

    result = look(RCPT, flood)
    assert summary(result) == (Verdict.FAIL, "greeting", "greeting: answer longer than 64 KiB")
    assert sent < 10_000_000


def test_control_characters_never_reach_a_reason() -> None:
    result = look(
        RCPT, says(b"220 \x00\x1b]0;owned\x07 \xff\r\n" + b"".join(SESSION[1:]), then=hang)
    )
    assert summary(result) == (Verdict.OK, "rcpt", r"\x00\x1b]0;owned\x07 \xff")


def test_a_dripping_answer_does_not_move_the_deadline() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in GREETING * 10:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    result = look(RCPT, says(b"220-", then=drip), 0.05)
    assert summary(result) == (Verdict.FAIL, "greeting", "greeting: no answer in 50ms")


@pytest.mark.parametrize("check", [RCPT, Tcp(port=1), Spamd()], ids=["smtp", "tcp", "spamd"])
def test_a_closed_port_is_a_failure_to_connect(check: Spoken) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        port = bound.getsockname()[1]
        result = asyncio.run(converse("127.0.0.1", port, check.talk(), LONG))
    assert summary(result) == (Verdict.FAIL, "connect", "connect: connection refused")


@pytest.mark.parametrize("check", [RCPT, Tcp(port=1)], ids=["smtp", "tcp"])
def test_a_full_backlog_is_silence_at_connect(check: Spoken) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        where = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(where)
        result = asyncio.run(converse(where[0], where[1], check.talk(), SHORT))
        for sock in waiting:
            sock.close()
    assert summary(result) == (Verdict.FAIL, "connect", "connect: no answer in 100ms")


# Our own troubles


class Broken(socket.socket):
    """A socket that cannot connect, for the reason its class says."""

    problem = 0

    def connect_ex(self, _address: object) -> int:
        return self.problem


OURS = ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL", "ENETUNREACH", "ENETDOWN"]
OURS += ["EPERM", "EACCES", "EAFNOSUPPORT"]


def test_the_errnos_that_speak_of_the_node() -> None:
    assert {errno.errorcode[code] for code in THEIRS} == {
        "ECONNREFUSED", "ECONNRESET", "EPIPE", "EHOSTUNREACH", "ETIMEDOUT",
    }  # fmt: skip


async def attempt(
    address: str = "127.0.0.1",
    port: int = 9,
    *,
    cap: int = 9,
    excuse: str | None = None,
    make_socket: Callable[[int, int], socket.socket] = socket.socket,
    talk: Dialogue | None = None,
) -> Result:
    """Run one conversation on a wire of its own; its end is no earlier than `start` returns."""
    loop = asyncio.get_running_loop()
    ends: list[Result] = []
    over = asyncio.Event()

    def done(result: Result, started: float, ended: float) -> None:
        assert started <= ended
        ends.append(result)
        over.set()

    wire = Wire(loop, cap=cap, excuse=lambda _started: excuse, make_socket=make_socket)
    wire.start(address, port, talk or Smtp().talk(), SHORT, done)
    assert not ends
    await over.wait()
    assert (len(ends), wire.live) == (1, set())
    return ends[0]


@pytest.mark.parametrize("name", [*OURS, *(errno.errorcode[code] for code in THEIRS)])
@pytest.mark.parametrize("call", ["socket", "connect"])
def test_an_errno_is_the_fault_of_the_node_or_ours(name: str, call: str) -> None:
    code = getattr(errno, name)

    def make(family: int, kind: int) -> socket.socket:
        if call == "socket":
            raise OSError(code, os.strerror(code))
        broken = Broken(family, kind)
        broken.problem = code
        return broken

    verdict = Verdict.UNKNOWN if name in OURS else Verdict.FAIL
    result = asyncio.run(attempt(make_socket=make))
    assert summary(result) == (verdict, "connect", f"connect: {os.strerror(code).lower()}")


def test_a_name_is_not_looked_up() -> None:
    result = asyncio.run(attempt("localhost"))
    assert (result.verdict, result.step) == (Verdict.UNKNOWN, "connect")


def test_no_more_sockets_than_the_cap() -> None:
    result = asyncio.run(attempt(cap=0))
    assert summary(result) == (
        Verdict.UNKNOWN,
        "connect",
        "connect: too many open sockets (cap 0)",
    )


def test_silence_proves_nothing_while_we_are_late() -> None:
    async def main() -> Result:
        async with serving(hang) as port:
            return await attempt(port=port, excuse="we were 0.3s late")

    assert summary(asyncio.run(main())) == (
        Verdict.UNKNOWN,
        "greeting",
        "greeting: we were 0.3s late",
    )


def raises(error: Exception) -> Dialogue:
    yield Say(b"", line, "greeting")
    raise error


def forgets() -> Dialogue:
    yield Say(b"", line, "greeting")
    return None  # type: ignore[return-value]


def forgets_at_once() -> Dialogue:
    yield from ()
    return None  # type: ignore[return-value]


def counts_wrong() -> Dialogue:
    yield Say(b"", lambda _buffer: 1 // 0, "greeting")
    return fail("never")


@pytest.mark.parametrize(
    ("talk", "step", "reason"),
    [
        (raises(KeyError("\x1b")), "greeting", r"check broke: KeyError('\x1b')"),
        (raises(ValueError("bad")), "greeting", "check broke: ValueError('bad')"),
        (forgets(), "greeting", "check broke: returned None"),
        (forgets_at_once(), "connect", "check broke: returned None"),
        (counts_wrong(), "greeting", None),
    ],
)
def test_a_bug_in_a_check_is_no_news_of_the_node(
    talk: Dialogue, step: str, reason: str | None
) -> None:
    async def main() -> Result:
        async with serving(says(GREETING, then=hang)) as port:
            return await attempt(port=port, talk=talk)

    why = reason or "check broke: ZeroDivisionError('integer division or modulo by zero')"
    assert summary(asyncio.run(main())) == (Verdict.UNKNOWN, step, f"{step}: {why}")


def test_nobody_hears_of_a_cancelled_conversation_again() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def listen(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
            await reader.read()
            closed.set()

        def done(*_: object) -> None:
            raise AssertionError("cancelled, and done all the same")

        async with serving(listen) as port:
            wire = Wire(asyncio.get_running_loop(), cap=9, excuse=lambda _started: None)
            wire.start("127.0.0.1", port, Smtp().talk(), LONG, done)
            wire.start("not an address", port, Smtp().talk(), LONG, done).cancel()
            await asyncio.sleep(0)
            wire.close()
            assert wire.live == set()
            await closed.wait()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain text\r\n", "plain text"),
        (b"a\tb\x1b[0m\x7f\x80\xff", r"a\x09b\x1b[0m\x7f\x80\xff"),
        (b"x" * 80, "x" * 80),
        (b"x" * 81, "x" * 77 + "..."),
        (b"\x00" * (LIMIT * 2), r"\x00" * 19 + r"\..."),
    ],
)
def test_a_strangers_bytes_are_quoted(raw: bytes, text: str) -> None:
    assert quote(raw) == text
