from __future__ import annotations

import pytest

from checks import Target
from checks.spamd import Spamd, judge_gtube, judge_pong, judge_scan
from hactl.core.model import Verdict
from hactl.core.units import Duration
from tests.checks.feeding import feed

SCANNED = b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; -1.0 / 5.0\r\n\r\n"
SPAM = b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 999.9 / 5.0\r\n\r\n"


@pytest.mark.parametrize(
    ("pong", "verdict", "reason"),
    [
        (b"SPAMD/1.5 0 PONG\r\n", Verdict.OK, "PONG"),
        (b"SPAMD/1.5 0 EX_OK\r\n", Verdict.FAIL, "not a PONG: SPAMD/1.5 0 EX_OK"),
        (b"220 mx ESMTP\r\n", Verdict.FAIL, "not a PONG: 220 mx ESMTP"),
        (
            b"SPAMD/1.0 76 Bad header line: PING\r\n",
            Verdict.FAIL,
            "PING 76 EX_PROTOCOL Bad header line: PING",
        ),
    ],
)
def test_judge_pong(pong: bytes, verdict: Verdict, reason: str) -> None:
    result = judge_pong(pong)
    assert (result.verdict, result.reason) == (verdict, reason)


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (SCANNED, Verdict.OK, "scanned, score -1.0 / 5.0"),
        (
            b"SPAMD/1.1 0 EX_OK\r\nContent-length: 7\r\nSpam: True ; 1000.0 / 5.0\r\n\r\n",
            Verdict.OK,
            "scanned, score 1000.0 / 5.0",
        ),
        (b"SPAMD/1.1 0 EX_OK\r\n\r\n", Verdict.FAIL, "scanned, but no verdict in the answer"),
        (b"SPAMD/1.0 79 EX_TIMEOUT\r\n\r\n", Verdict.FAIL, "scan 79 EX_TIMEOUT"),
        (b"SPAMD/1.0 74 broken\x1b\r\n\r\n", Verdict.FAIL, r"scan 74 EX_IOERR broken\x1b"),
        (b"SPAMD/1.0 99 odd\r\n\r\n", Verdict.FAIL, "scan 99 unnamed odd"),
        (b"", Verdict.FAIL, "not an answer of spamd: "),
        (
            b"Spam: False ; -1.0 / 5.0\r\n",
            Verdict.FAIL,
            "not an answer of spamd: Spam: False ; -1.0 / 5.0",
        ),
    ],
)
def test_judge_scan(answer: bytes, verdict: Verdict, reason: str) -> None:
    result = judge_scan(answer)
    assert (result.verdict, result.reason) == (verdict, reason)


def test_asks_for_a_scan_and_waits_for_the_end() -> None:
    result, said, step = feed(Spamd().talk(), *(SCANNED[n : n + 1] for n in range(len(SCANNED))))
    head, body = said.split(b"\r\n\r\n", 1)
    assert (result.verdict, step) == (Verdict.OK, "scan")
    assert head == b"CHECK SPAMC/1.5\r\nContent-length: %d" % len(body)


def test_asks_for_pong_alone_when_told_so() -> None:
    result, said, step = feed(Spamd(scan=False).talk(), b"SPAMD/1.5 0 PONG\r\n")
    assert (result.verdict, said, step) == (Verdict.OK, b"PING SPAMC/1.5\r\n\r\n", "ping")


def test_the_score_is_a_measure() -> None:
    assert judge_scan(SCANNED).measures == {"score": -1.0}
    assert judge_gtube(SPAM).measures == {}


@pytest.mark.parametrize(
    ("answer", "verdict", "reason"),
    [
        (SPAM, Verdict.OK, "GTUBE is spam"),
        (
            SCANNED,
            Verdict.FAIL,
            "GTUBE is no spam (scanned, score -1.0 / 5.0): are rules loaded?",
        ),
        (b"SPAMD/1.0 79 EX_TIMEOUT\r\n\r\n", Verdict.FAIL, "scan 79 EX_TIMEOUT"),
    ],
)
def test_judge_gtube(answer: bytes, verdict: Verdict, reason: str) -> None:
    result = judge_gtube(answer)
    assert (result.verdict, result.reason) == (verdict, reason)


def test_the_message_is_gtube_now_and_then() -> None:
    memory: dict[str, float] = {}

    def look(now: float, answer: bytes) -> tuple[Verdict, str, bool]:
        result, said, step = feed(Spamd().talk(Target("mx0", "", now, memory)), answer)
        return result.verdict, step, b"GTUBE-STANDARD" in said

    assert look(0.0, SCANNED) == (Verdict.FAIL, "gtube", True)
    assert look(1.0, SPAM) == (Verdict.OK, "gtube", True)
    assert look(11.0, SCANNED) == (Verdict.OK, "scan", False)
    assert look(600.0, SCANNED) == (Verdict.OK, "scan", False)
    assert look(601.0, SPAM) == (Verdict.OK, "gtube", True)
    result, _, step = feed(Spamd(gtube=Duration(0)).talk(Target(memory={})), SCANNED)
    assert (result.verdict, step) == (Verdict.OK, "scan")
