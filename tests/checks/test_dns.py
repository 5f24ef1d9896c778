"""The dns check against name servers that answer by hand: right, wrong, and not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from dns.message import Message
from msgspec import structs

from checks import Target
from checks._tasks import look
from checks.dns import Dns
from hactl.core.model import Result, Verdict
from tests.checks.peers import LONG, SHORT, summary

ASK = Dns(ask="mx.example.org", expect=("192.0.2.1",))
Answer = Callable[[Message], Message | bytes | None]


class Server(asyncio.DatagramProtocol):
    """Answers each query with what *answer* makes of it."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._answer(dns.message.from_wire(data))
        if isinstance(answer, Message):
            answer = answer.to_wire()
        if answer is not None:
            self._transport.sendto(answer, addr)


def asked(check: Dns, answer: Answer, limit: float = LONG) -> Result:
    async def main() -> Result:
        loop = asyncio.get_running_loop()
        where = ("127.0.0.1", 0)
        transport, _ = await loop.create_datagram_endpoint(lambda: Server(answer), where)
        port = transport.get_extra_info("sockname")[1]
        try:
            target = Target("mx0", "127.0.0.1")
            return await look(structs.replace(check, port=port), target, limit)
        finally:
            transport.close()

    return asyncio.run(main())


def says(*records: str, rcode: str = "NOERROR", kind: str = "A") -> Answer:
    def answer(query: Message) -> Message:
        made = dns.message.make_response(query)
        made.set_rcode(dns.rcode.from_text(rcode))
        if records:
            made.answer.append(dns.rrset.from_text("mx.example.org.", 300, "IN", kind, *records))
        return made

    return answer


def question_lost(query: Message) -> Message:
    made = says("192.0.2.1", rcode="SERVFAIL")(query)
    assert isinstance(made, Message)
    made.question.clear()
    return made


@pytest.mark.parametrize(
    ("check", "answer", "verdict", "reason"),
    [
        (ASK, says("192.0.2.9", "192.0.2.1"), "ok", "NOERROR 192.0.2.1, 192.0.2.9"),
        (ASK, says("192.0.2.9"), "fail", "NOERROR 192.0.2.9, but not 192.0.2.1"),
        (ASK, says(), "fail", "NOERROR, but not 192.0.2.1"),
        (ASK, says(rcode="SERVFAIL"), "fail", "SERVFAIL"),
        (ASK, says(rcode="REFUSED"), "fail", "REFUSED"),
        (ASK, question_lost, "fail", "SERVFAIL 192.0.2.1"),
        (Dns(ask="mx.example.org"), says(), "fail", "no A record"),
        (Dns(ask="mx.example.org"), says('"\\027[2J"', kind="TXT"), "fail", "no A record"),
        (Dns(ask="mx.example.org", record="TXT"), says('"\\027[2J"', kind="TXT"), "ok",
         'NOERROR "\\027[2J"'),
        (Dns(ask="mx.example.org", rcode="NXDOMAIN"), says(rcode="NXDOMAIN"), "ok", "NXDOMAIN"),
        (Dns(ask="mx.example.org", rcode="NXDOMAIN"), says("192.0.2.1"), "fail",
         "NOERROR 192.0.2.1, not NXDOMAIN"),
        (ASK, says(*(f"192.0.2.{n}" for n in range(1, 9))), "ok",
         "NOERROR 192.0.2.1, 192.0.2.2, 192.0.2.3 ..."),
    ],
)  # fmt: skip
def test_judges_an_answer(check: Dns, answer: Answer, verdict: str, reason: str) -> None:
    result = asked(check, answer)
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)
    assert [name for name, _ in result.steps] == ["query"]


def test_counts_records_and_tells_how_long_they_last() -> None:
    measures = asked(ASK, says("192.0.2.1")).measures
    assert (measures["records_count"], measures["ttl_seconds"]) == (1, 300)


def test_silence_is_silence() -> None:
    result = asked(ASK, lambda _query: None, SHORT)
    assert summary(result) == (Verdict.FAIL, "query", "query: no answer in 100ms")


@pytest.mark.parametrize("garbage", [b"", b"\0", b"\xff" * 12, b"220 mx0 ESMTP\r\n", b"\0" * 600])
def test_garbage_is_no_answer(garbage: bytes) -> None:
    result = asked(ASK, lambda _query: garbage, SHORT)
    assert (result.verdict, result.step) == (Verdict.FAIL, "query")
    assert result.reason.isprintable()


def test_a_cut_answer_is_asked_for_again_over_tcp() -> None:
    """Nobody listens there: an answer that never comes whole is a failure."""

    def cut(query: Message) -> Message:
        made = dns.message.make_response(query)
        made.flags |= dns.flags.TC
        return made

    result = asked(ASK, cut)
    assert summary(result) == (Verdict.FAIL, "query", "query: connection refused")


def test_a_closed_port_is_refused() -> None:
    check = structs.replace(ASK, port=1)
    result = asyncio.run(look(check, Target("mx0", "127.0.0.1"), LONG))
    assert summary(result) == (Verdict.FAIL, "query", "query: connection refused")


def test_options_that_cannot_be_are_said_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(ASK.problems()) == []
    wrong = Dns(ask="a..b", record="nothing", rcode="FINE")
    assert [field for field, _ in wrong.problems()] == ["ask", "record", "rcode"]
    assert [field for field, _ in Dns(ask="x" * 64).problems()] == ["ask"]
    monkeypatch.setitem(sys.modules, "dns.asyncquery", None)
    assert list(ASK.problems()) == [("type", "dns needs dnspython: pip install 'hactl[dns]'")]
