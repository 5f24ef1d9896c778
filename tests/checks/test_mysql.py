"""The mysql check: what is judged, and servers that lie, hang, drip, flood and ask for too much."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from checks import Target, _mysql
from checks._mysql import Row, grant, said
from checks._tasks import look
from checks.mysql import Mysql, Seen
from checks.replication import Replication
from hactl.core.model import Result, Verdict
from hactl.core.units import Secret
from tests.checks.peers import LONG, SHORT, Handler, hang, reset, serving, summary

SECRET = "s3cret"


@pytest.fixture
def login(tmp_path: Path) -> Secret:
    file = tmp_path / "login"
    file.write_text(f"probe\n{SECRET}\n")
    return Secret(str(file))


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    for sock, _ in _mysql._ungreeted.values():
        sock.close()
    _mysql._ungreeted.clear()


# A server, as far as it goes


def packet(number: int, payload: bytes) -> bytes:
    return struct.pack("<I", len(payload))[:3] + bytes([number]) + payload


def greeting(plugin: bytes = b"mysql_native_password") -> bytes:
    low, high = struct.pack("<H", 0x820A), struct.pack("<H", 0x0008)  # 4.1, secure, with plugins
    return packet(
        0,
        b"\x0a5.5.5-10.11.19-MariaDB\0" + b"\1\0\0\0" + b"12345678\0" + low + b"\x2d\2\0" + high
        + b"\x15" + bytes(10) + b"123456789012\0" + plugin + b"\0",
    )  # fmt: skip


def error(sequence: int, number: int, text: str) -> bytes:
    return packet(sequence, b"\xff" + struct.pack("<H", number) + b"#HY000" + text.encode())


OK = b"\0\0\0\2\0\0\0"
FULL = packet(0, b"\xff" + struct.pack("<H", 1040) + b"Too many connections")
BLOCKED = packet(0, b"\xff" + struct.pack("<H", 1129) + b"Host 'lb' is blocked")


async def heard(reader: Reader) -> bytes:
    size = int.from_bytes((await reader.readexactly(4))[:3], "little")
    return await reader.readexactly(size)


def table(columns: list[str], rows: list[list[str]]) -> bytes:
    """Return a result set."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    parts = [bytes([len(columns)])]
    for name in columns:
        head = text("def") + text("") + text("") + text("") + text(name) + text(name)
        parts.append(head + b"\x0c" + struct.pack("<HIBHB", 45, 64, 0xFD, 0, 0) + b"\0\0")
    eof = b"\xfe\0\0\2\0"
    parts += [eof, *(b"".join(map(text, row)) for row in rows), eof]
    return b"".join(packet(number, part) for number, part in enumerate(parts, 1))


def server(read_only: str = "0", asked: list[bytes] | None = None) -> Handler:
    """Let everybody in, and answer what the check asks."""

    async def handler(reader: Reader, writer: Writer) -> None:
        writer.write(greeting())
        await heard(reader)
        writer.write(packet(2, OK))
        while (query := await heard(reader))[:1] != b"\1":
            if asked is not None:
                asked.append(query[1:])
            if b"@@version" in query:
                answer = table(["version", "read_only", "most"], [["10.11", read_only, "20"]])
            elif b"Threads_connected" in query:
                answer = table(["Variable_name", "Value"], [["Threads_connected", "5"]])
            elif query.startswith(b"\3SET"):
                answer = packet(1, OK)
            else:
                answer = table(["n"], [["7"]])
            writer.write(answer)

    return handler


def says(*answers: bytes, then: Handler | None = None) -> Handler:
    """Give *answers*, each but the first when it has heard something, and *then* close."""

    async def handler(reader: Reader, writer: Writer) -> None:
        for number, answer in enumerate(answers):
            if number:
                await heard(reader)
            writer.write(answer)
        await writer.drain()
        if then is not None:
            await then(reader, writer)
        else:
            await reader.read()

    return handler


async def drip(_reader: Reader, writer: Writer) -> None:
    writer.write(greeting()[:20])
    while True:
        writer.write(b"2")
        await asyncio.sleep(0.02)


async def flood(reader: Reader, writer: Writer) -> None:
    await heard(reader)
    whole = table(["n"], [])
    writer.write(whole[:-9])  # without its end
    number = 4
    while True:
        writer.write(packet(number % 256, b"\xfd" + struct.pack("<I", 60_000)[:3] + b"x" * 60_000))
        number += 1
        await writer.drain()


async def slam(_reader: Reader, writer: Writer) -> None:
    writer.close()


def looked(check: Mysql, handler: Handler, limit: float = LONG, memory: Any = None) -> Result:
    async def main() -> Result:
        async with serving(handler) as port:
            target = Target("mx0", "127.0.0.1", 1000.0, memory)
            return await look(structs.replace(check, port=port), target, limit)

    return asyncio.run(main())


SWITCH = b"\xfe{}\0" + b"x" * 20 + b"\0"


@pytest.mark.parametrize(
    ("handler", "verdict", "step", "reason"),
    [
        (hang, "fail", "greeting", "greeting: no answer in 100ms"),
        (drip, "fail", "login", "login: no answer in 100ms"),
        (says(greeting(), then=hang), "fail", "login", "login: no answer in 100ms"),
    ],
)  # fmt: skip
def test_silence_is_cut_at_its_step(
    login: Secret, handler: Handler, verdict: str, step: str, reason: str
) -> None:
    assert summary(looked(Mysql(login=login), handler, SHORT)) == (Verdict(verdict), step, reason)


@pytest.mark.parametrize(
    ("handler", "verdict", "reason"),
    [
        (slam, "fail", "greeting: closed without a word"),
        (reset, "fail", "greeting: connection reset by peer"),
        (says(greeting()[:9], then=slam), "fail", "login: closed in mid-answer"),
        (says(greeting(), then=slam), "fail", "login: closed in mid-answer"),
        (says(b"220 mx0 ESMTP\r\n", then=slam), "fail", "not an answer of MySQL (Packet seq"),
        (says(packet(0, b"")), "fail", "not an answer of MySQL ("),
        (says(packet(0, b"\x0a")), "fail", "not an answer of MySQL ("),
        (says(packet(0, b"\xff" * 100)), "fail", "not an answer of MySQL ("),
        (says(greeting(), packet(2, b"\x07what")), "fail", "not an answer of MySQL (unexpected"),
        (says(FULL), "fail", "1040 too many connections"),
        (says(BLOCKED), "fail", "1129 our address is blocked: on the server FLUSH HOSTS, and"),
        (says(greeting(), error(2, 1045, "Access denied")), "fail", "login refused (1045 Access"),
        (says(greeting(), packet(2, b"\xfemysql_clear_password\0")), "unknown",
         "login: the server wants the password in clear, which is not sent"),
        (says(greeting(), packet(2, b"\xfedialog\0\4Password: ")), "unknown",
         "login: the server wants the password in clear, which is not sent"),
        (says(greeting(), packet(2, b"\xfbetc/passwd")), "fail", "not an answer of MySQL ("),
        (says(greeting(), packet(2, OK), then=flood), "fail", "more than 1 MiB of answers"),
    ],
)  # fmt: skip
def test_a_hostile_server_is_judged(
    login: Secret, handler: Handler, verdict: str, reason: str
) -> None:
    result = looked(Mysql(login=login), handler)
    assert (result.verdict, result.reason[: len(reason)]) == (Verdict(verdict), reason)
    assert result.reason.isascii()
    assert result.reason.isprintable()
    assert SECRET not in result.reason


WHOLE = packet(2, b"\1\4")  # what caching_sha2_password says to who has not logged in of late
SHA2 = greeting(b"caching_sha2_password")


def test_a_whole_password_is_not_sent_without_tls(
    login: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no cryptography, which is not one of our packages."""
    monkeypatch.setattr("pymysql._auth._have_cryptography", False)
    result = looked(Mysql(login=login), says(SHA2, WHOLE, packet(4, b"\1a public key")))
    assert (result.verdict, result.reason) == (
        Verdict.UNKNOWN,
        "login: the server wants the whole password, which wants TLS (tls: starttls)",
    )


def test_a_whole_password_goes_through_a_unix_socket(login: Secret, tmp_path: Path) -> None:
    said: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        writer.write(SHA2)
        await heard(reader)
        writer.write(WHOLE)
        said.append(await heard(reader))
        writer.write(error(4, 1045, "Access denied"))
        writer.close()

    async def main() -> Result:
        path = tmp_path / "sock"
        async with await asyncio.start_unix_server(handler, path):
            return await look(Mysql(login=login, socket=path), Target("db", at=1000.0), LONG)

    assert asyncio.run(main()).verdict is Verdict.FAIL
    assert said == [SECRET.encode() + b"\0"]


def test_an_ordinary_server_is_asked_within_bounds(login: Secret) -> None:
    asked: list[bytes] = []
    check = Mysql(login=login, query="SELECT 7 AS n", measure="n_count", rows=1)
    result = looked(check, server(asked=asked))
    assert summary(result) == (Verdict.OK, "query", "10.11, 5 of 20 connections, 1 row")
    assert [name for name, _ in result.steps] == ["connect", "greeting", "login", "status", "query"]
    assert result.measures["n_count"] == 7
    assert (result.measures["connections_count"], result.measures["connections_percent"]) == (5, 25)
    assert asked[0].startswith(b"SET SESSION lock_wait_timeout=10 ")


def test_after_a_refused_login_none_is_tried_for_a_while(login: Secret) -> None:
    memory: dict[str, float] = {}
    refusing = says(greeting(), error(2, 1045, "Access denied"))
    assert looked(Mysql(login=login), refusing, memory=memory).verdict is Verdict.FAIL
    result = looked(Mysql(login=login), slam, memory=memory)
    assert result == structs.replace(
        result, verdict=Verdict.UNKNOWN, step="",
        reason="not logged in: refused 0.0s ago, tried again in 30s",
    )  # fmt: skip


def test_a_connection_that_was_not_greeted_is_kept_for_the_next_look(login: Secret) -> None:
    """Each that is given up counts in max_connect_errors once the server goes on."""
    going_on = asyncio.Event()
    connections = []

    async def hung(reader: Reader, writer: Writer) -> None:
        connections.append(writer)
        await going_on.wait()
        await server()(reader, writer)

    async def main() -> list[Result]:
        async with serving(hung) as port:
            check, target = Mysql(login=login, port=port), Target("mx0", "127.0.0.1")
            results = [await look(check, target, SHORT) for _ in range(3)]
            going_on.set()
            return [*results, await look(check, target, LONG)]

    *silent, well = asyncio.run(main())
    assert {result.reason for result in silent} == {"greeting: no answer in 100ms"}
    assert (well.verdict, len(connections)) == (Verdict.OK, 1)


def test_a_kept_connection_that_ends_is_made_anew(login: Secret) -> None:
    handlers = iter((hang, server()))

    async def first_hung(reader: Reader, writer: Writer) -> None:
        await next(handlers)(reader, writer)

    async def main() -> tuple[Result, Result]:
        async with serving(first_hung) as port:
            check, target = Mysql(login=login, port=port), Target("mx0", "127.0.0.1")
            silent = await look(check, target, SHORT)
            (kept,) = _mysql._ungreeted.values()
            kept[0].shutdown(2)
            return silent, await look(check, target, LONG)

    silent, well = asyncio.run(main())
    assert (silent.verdict, well.verdict) == (Verdict.FAIL, Verdict.OK)


@pytest.mark.parametrize(
    ("door", "reason"),
    [
        (None, "connection refused"),
        (hang, "no answer"),
        (slam, "greeting: closed without a word"),
        (says(greeting(), then=slam), "closed in mid-answer"),
        (says(b"220 mx0 ESMTP\r\n", then=slam), "not an answer of MySQL (Packet seq"),
    ],
)
@pytest.mark.parametrize("kind", [Mysql, Replication])
def test_the_other_door_does_not_hide_that_the_first_is_full(
    login: Secret, monkeypatch: pytest.MonkeyPatch, kind: type[Mysql | Replication],
    door: Handler | None, reason: str,
) -> None:  # fmt: skip
    for module in ("mysql", "replication"):
        monkeypatch.setattr(f"checks.{module}.DOOR", SHORT if door is hang else LONG)

    async def main() -> Result:
        with socket.socket() as closed:  # bound, and nobody listens
            closed.bind(("127.0.0.1", 0))
            async with serving(says(FULL)) as port, serving(door or hang) as extra_port:
                if door is None:
                    extra_port = closed.getsockname()[1]
                check = kind(login=login, port=port, extra_port=extra_port)
                return await look(check, Target("mx0", "127.0.0.1", 1000.0), LONG)

    result = asyncio.run(main())
    reason = f"1040 too many connections; extra_port: {reason}"
    assert (result.verdict, result.reason[: len(reason)]) == (Verdict.FAIL, reason)


def test_threads_for_databases_have_an_end(login: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mysql, "_working", threading.BoundedSemaphore(1))

    async def main() -> list[Result]:
        async with serving(says(greeting(), then=hang)) as port:
            check, target = Mysql(login=login, port=port), Target("mx0", "127.0.0.1")
            return await asyncio.gather(*(look(check, target, SHORT) for _ in range(2)))

    verdicts = sorted(result.verdict for result in asyncio.run(main()))
    assert verdicts == [Verdict.FAIL, Verdict.UNKNOWN]


# Judgement


def seen(read_only: str = "0", rows: list[Row] | None = None, used: str = "5") -> Seen:
    state: Row = {"version": "10.11", "read_only": read_only, "most": "20"}
    return Seen(state, {"Value": used}, rows)


@pytest.mark.parametrize(
    ("options", "what", "verdict", "reason"),
    [
        ({}, seen(), "ok", "10.11, 5 of 20 connections"),
        ({}, seen("1"), "fail", "read_only: writes get error 1290"),
        ({}, seen("ON"), "fail", "read_only: writes get error 1290"),
        ({"writable": False}, seen("1"), "ok", "10.11, 5 of 20 connections"),
        ({}, seen(used="many"), "unknown", "status: no figures of connections"),
        ({"rows": 2}, seen(rows=[{"n": "1"}]), "fail", "query: 1 row, not 2"),
        ({"rows": 0}, seen(rows=[]), "ok", "10.11, 5 of 20 connections, 0 rows"),
        ({"measure": "n_count"}, seen(rows=[]), "fail", "query: None is no figure"),
        ({"measure": "n_count"}, seen(rows=[{"n": "\x1b"}]), "fail", r"query: \x1b is no figure"),
        ({"measure": "n_count"}, seen(rows=[{"n": "inf"}]), "fail", "query: inf is no figure"),
        ({"measure": "n_count"}, seen(rows=[{"n": "1.5"}]), "ok",
         "10.11, 5 of 20 connections, 1 row"),
    ],
)  # fmt: skip
def test_judges_what_a_server_says(
    login: Secret, options: dict[str, Any], what: Seen, verdict: str, reason: str
) -> None:
    result = Mysql(login=login, query="SELECT 1", **options).judge(what)
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)


@pytest.mark.parametrize(
    ("number", "message", "verdict", "reason"),
    [
        (1227, "Access denied; you need (at least one of) the SUPER, SLAVE MONITOR privilege(s) "
         "for this operation", "unknown", "missing grant: SUPER or SLAVE MONITOR"),
        (1142, "SELECT command denied to user 'a'@'b' for table `mail`.`users`", "unknown",
         "missing grant: SELECT on `mail`.`users`"),
        (1064, "You have an error", "unknown", "1064 You have an error"),
        (1146, "Table 'a.b' doesn't exist", "fail", "1146 Table 'a.b' doesn't exist"),
        (1969, "Query execution was interrupted", "fail", "1969 Query execution was interrupted"),
    ],
)  # fmt: skip
def test_errors_of_a_server_are_whose_fault(
    number: int, message: str, verdict: str, reason: str
) -> None:
    result = said(number, message)
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)
    assert grant("what?") == "what?"


def test_options_that_cannot_be_are_said_at_load(login: Secret, tmp_path: Path) -> None:
    assert list(Mysql(login=login).problems()) == []
    wrong = Mysql(
        login=Secret(str(tmp_path / "none")), rows=-1, measure="Users", extra_port=0,
        socket=Path("/" + "x" * 200), tls="starttls", ca=tmp_path / "none.pem",
    )  # fmt: skip
    assert {field for field, _ in wrong.problems()} == {
        "login", "rows", "measure", "extra_port", "socket", "ca"
    }  # fmt: skip
