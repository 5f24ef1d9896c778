from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from checks import Spoken, Target
from checks._wire import converse
from checks.smtp import Smtp
from checks.spamd import Spamd
from hactl.core.model import Result, Verdict
from hactl.lab.nodes import Mood, Node

SMTP = Smtp(depth="rcpt", mail_to="probe@example.org")
KINDS = ("smtp", "imap", "spamd")


@asynccontextmanager
async def running(host: str = "127.0.0.1") -> AsyncIterator[Node]:
    node = Node("mx0", dict.fromkeys(KINDS, (host, 0)))
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


async def look(node: Node, kind: str, check: Spoken, limit: float = 0.1) -> Result:
    return await converse(*node.where(kind), check.talk(), limit)


async def chat(node: Node, kind: str, said: bytes) -> bytes:
    """Say everything at once and return all that comes until the node closes."""
    reader, writer = await asyncio.open_connection(*node.where(kind))
    writer.write(said)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_well_node_passes_every_check(host: str) -> None:
    async def main() -> None:
        async with running(host) as node:
            for kind, check in [("smtp", SMTP), ("spamd", Spamd()), ("spamd", Spamd(scan=False))]:
                assert (await look(node, kind, check, 5.0)).verdict is Verdict.OK
            assert node.sessions == {"smtp": 1, "imap": 0, "spamd": 2}
            talk = Spamd().talk(Target(memory={}))  # a first look scans GTUBE
            gtube = await converse(*node.where("spamd"), talk, 5.0)
            assert gtube.reason == "GTUBE is spam"

    asyncio.run(main())


SILENT = "greeting: no answer in 100ms"
LIE = r"greeting: not an SMTP reply: \x00\x1b]0;owned\x07\xff\xfe not what you expect"


@pytest.mark.parametrize(
    ("mood", "verdict", "reason"),
    [
        (Mood.WELL, Verdict.OK, "mx0 ESMTP hactl lab"),
        (Mood.HANG, Verdict.FAIL, SILENT),
        (Mood.REFUSE, Verdict.FAIL, "connect: connection refused"),
        (Mood.SAY421, Verdict.FAIL, "greeting 421 too many connections"),
        (Mood.SAY550, Verdict.FAIL, "refuses us (550 no rDNS available)"),
        (Mood.SLOW, Verdict.FAIL, SILENT),
        (Mood.DRIP, Verdict.FAIL, SILENT),
        (Mood.LIE, Verdict.FAIL, LIE),
        (Mood.RESET, Verdict.FAIL, "greeting: connection reset by peer"),
    ],
)
def test_each_mood_of_smtp_has_its_reason_and_passes(
    mood: Mood, verdict: Verdict, reason: str
) -> None:
    async def main() -> None:
        async with running() as node:
            node.set("smtp", mood, 30.0)
            result = await look(node, "smtp", SMTP, 0.1)
            assert (node.mood("smtp"), result.verdict, result.reason) == (mood, verdict, reason)
            node.set("smtp", Mood.WELL)
            assert (await look(node, "smtp", SMTP, 5.0)).verdict is Verdict.OK

    asyncio.run(main())


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        (Mood.HANG, "scan: no answer in 100ms"),
        (Mood.SLOW, "scan: no answer in 100ms"),
        (Mood.DRIP, "scan: no answer in 100ms"),
        (Mood.SAY421, "scan 75 EX_TEMPFAIL 421 too many connections"),
        (Mood.LIE, r"not an answer of spamd: \x00\x1b]0;owned\x07\xff\xfe not what you expect"),
    ],
)
def test_each_mood_of_spamd_has_its_reason(mood: Mood, reason: str) -> None:
    async def main() -> None:
        async with running() as node:
            node.set("spamd", mood, 30.0)
            result = await look(node, "spamd", Spamd(), 0.1)
            assert (result.verdict, result.reason) == (Verdict.FAIL, reason)

    asyncio.run(main())


@pytest.mark.parametrize("mood", [Mood.HANG, Mood.SLOW, Mood.DRIP])
def test_what_a_service_owes_it_says_when_it_is_well_again(mood: Mood) -> None:
    async def main() -> None:
        async with running() as node:
            node.set("smtp", mood, 30.0)
            looking = asyncio.create_task(look(node, "smtp", SMTP, 5.0))
            while not node.sessions["smtp"]:  # noqa: ASYNC110 - a count has no event
                await asyncio.sleep(0)
            node.set("smtp", Mood.WELL)
            assert (await looking).verdict is Verdict.OK

    asyncio.run(main())


def test_a_slow_service_answers_in_its_time() -> None:
    async def main() -> Result:
        async with running() as node:
            node.set("smtp", Mood.SLOW, 0.02)
            return await look(node, "smtp", SMTP, 5.0)

    result = asyncio.run(main())
    assert result.verdict is Verdict.OK
    assert all(seconds > 0.015 for _, seconds in result.steps)


def test_a_client_can_send_mail() -> None:
    said = (
        b"EHLO me\r\nDATA\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
        b"Subject: x\r\n\r\n..\r\n.\r\nRSET\r\nRCPT TO:<c@d>\r\nNONSENSE\r\nQUIT\r\nMAIL\r\n"
    )

    async def main() -> None:
        async with running() as node:
            answer = await chat(node, "smtp", said)
            codes = [line[:3] for line in answer.splitlines() if line[3:4] == b" "]
            assert b" ".join(codes) == b"220 250 503 250 250 354 250 250 503 500 221"
            assert node.messages["smtp"] == 1

    asyncio.run(main())


def test_imap_greets_and_lets_go() -> None:
    async def main() -> None:
        async with running() as node:
            assert await chat(node, "imap", b"a NOOP\r\nb LOGOUT\r\n") == (
                b"* OK [CAPABILITY IMAP4rev1] mx0 ready\r\na BAD unknown command\r\n"
                b"* BYE\r\nb OK LOGOUT completed\r\n"
            )
            node.set("imap", Mood.SAY421)
            assert await chat(node, "imap", b"") == b"* BYE 421 too many connections\r\n"

    asyncio.run(main())


def test_a_mood_set_before_the_start_holds_after_it_and_none_opens_a_stopped_node() -> None:
    async def main() -> None:
        node = Node("mx0", {"smtp": ("127.0.0.1", 0)})
        node.set("smtp", Mood.REFUSE)
        await node.start()
        node.set("smtp", Mood.WELL)
        assert (await look(node, "smtp", SMTP, 5.0)).verdict is Verdict.OK
        await node.stop()
        node.set("smtp", Mood.WELL)
        assert (await look(node, "smtp", SMTP, 5.0)).reason == "connect: connection refused"

    asyncio.run(main())


def test_a_taken_port_is_an_error() -> None:
    async def main() -> None:
        async with running() as node:
            twin = Node("mx1", {"imap": ("127.0.0.1", 0), "smtp": node.where("smtp")})
            with pytest.raises(OSError, match="in use"):
                await twin.start()
            result = await look(twin, "imap", Smtp(), 5.0)
            assert result.reason == "connect: connection refused"

    asyncio.run(main())


def test_a_drip_is_a_byte_at_a_time() -> None:
    async def main() -> Result:
        async with running() as node:
            node.set("smtp", Mood.DRIP, 0.001)
            return await look(node, "smtp", SMTP, 5.0)

    assert asyncio.run(main()).verdict is Verdict.OK
