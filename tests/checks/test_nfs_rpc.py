"""The nfs_rpc check: calls, answers in any number of pieces, and answers that are none."""

from __future__ import annotations

import asyncio
import struct
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checks import Target, nfs_rpc
from checks._tasks import look
from checks.nfs_rpc import NfsRpc, call, results
from hactl.core.model import Result, Verdict
from tests.checks.peers import LONG, SHORT, Handler, hang, reset, serving, summary

Answer = Callable[[bytes], bytes]


def accepted(state: int, more: bytes = b"", verifier: bytes = b"") -> Answer:
    """Answer with the state of an accepted call, and what follows it."""

    def answer(asked: bytes) -> bytes:
        head = asked[:4] + struct.pack(">4I", 1, 0, 0, len(verifier))
        return head + verifier + bytes(-len(verifier) % 4) + struct.pack(">I", state) + more

    return answer


def record(body: bytes, pieces: int = 1) -> bytes:
    size = -(-len(body) // pieces) or 1
    parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    heads = [len(part) | (0x8000_0000 if part is parts[-1] else 0) for part in parts]
    return b"".join(struct.pack(">I", head) + part for head, part in zip(heads, parts, strict=True))


def server(answer: Answer, pieces: int = 1) -> Handler:
    async def handler(reader: Reader, writer: Writer) -> None:
        size = struct.unpack(">I", await reader.readexactly(4))[0] & 0x7FFF_FFFF
        writer.write(record(answer(await reader.readexactly(size)), pieces))
        await writer.drain()
        await reader.read()

    return handler


def says(raw: bytes) -> Handler:
    async def handler(reader: Reader, writer: Writer) -> None:
        await reader.read(44)
        writer.write(raw)
        await writer.drain()
        writer.close()

    return handler


def looked(handler: Handler, limit: float = LONG) -> Result:
    async def main() -> Result:
        async with serving(handler) as port:
            return await look(NfsRpc(port=port), Target("mx0", "127.0.0.1"), limit)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("handler", "verdict", "reason"),
    [
        (server(accepted(0), 5), "ok", "nfs v3 answers on port "),
        (server(accepted(0, b"more", b"verified")), "ok", "nfs v3 answers on port "),
        (server(accepted(1)), "fail", "program unavailable"),
        (server(accepted(2, struct.pack(">2I", 4, 4))), "fail",
         "version 3 is not spoken, but 4 to 4"),
        (server(accepted(2)), "fail", "not an answer of RPC (too short)"),
        (server(accepted(5)), "fail", "system error"),
        (server(accepted(99)), "fail", "not an answer of RPC (99)"),
        (server(lambda asked: asked[:4] + struct.pack(">2I", 1, 1)), "fail", "call denied"),
        (server(lambda asked: bytes(24)), "fail", "not an answer to our call"),
        (server(lambda asked: b""), "fail", "not an answer of RPC (too short)"),
        (says(b"220 mx0 ESMTP ready to do nothing\r\n"), "fail", "not an answer of RPC (too long)"),
        (says(b"\x7f\xff\xff\xff"), "fail", "not an answer of RPC (too long)"),
        (says(bytes(4) * 100), "fail", "not an answer of RPC (too long)"),
        (says(b"\x80\0"), "fail", "null: closed in mid-answer"),
        (reset, "fail", "null: connection reset by peer"),
    ],
)  # fmt: skip
def test_judges_an_answer(handler: Handler, verdict: str, reason: str) -> None:
    result = looked(handler)
    assert (result.verdict, result.reason[: len(reason)]) == (Verdict(verdict), reason)


def test_silence_is_silence() -> None:
    result = looked(hang, SHORT)
    assert summary(result) == (Verdict.FAIL, "null", "null: no answer in 100ms")


@pytest.mark.parametrize(
    ("registered", "verdict", "reason"),
    [(True, "ok", "mountd v3 answers on port "),
     (False, "fail", "portmapper: not registered over TCP")],
)  # fmt: skip
def test_mountd_is_where_the_portmapper_says(
    monkeypatch: pytest.MonkeyPatch, registered: bool, verdict: str, reason: str
) -> None:
    async def main() -> Result:
        async with serving(server(accepted(0))) as port:
            told = struct.pack(">I", port if registered else 0)
            async with serving(server(accepted(0, told))) as mapper:
                known = nfs_rpc.PROGRAMS | {"portmapper": (100000, 2, mapper)}
                monkeypatch.setattr(nfs_rpc, "PROGRAMS", known)
                return await look(NfsRpc(program="mountd"), Target("mx0", "127.0.0.1"), LONG)

    result = asyncio.run(main())
    assert (result.verdict, result.reason[: len(reason)]) == (Verdict(verdict), reason)


def test_a_call_is_one_record_without_a_name() -> None:
    assert call(7, 100003, 3, 0) == struct.pack(
        ">11I", 0x8000_0028, 7, 0, 2, 100003, 3, 0, 0, 0, 0, 0
    )


@settings(max_examples=50)
@given(st.binary(max_size=60))
def test_no_answer_is_too_strange(answer: bytes) -> None:
    with suppress(nfs_rpc._Refused):
        assert isinstance(results(1, 3, answer), bytes)


def test_options_that_cannot_be_are_said_at_load() -> None:
    assert list(NfsRpc().problems()) == []
    assert [field for field, _ in NfsRpc(port=0, version=10).problems()] == ["port", "version"]
