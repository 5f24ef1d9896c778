from __future__ import annotations

import asyncio
import calendar
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import Target
from checks._wire import converse
from checks.clamd import SAMPLE, TEXT, Clamd, describe, load, stream
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration
from tests.checks.feeding import feed, split

PONG = b"1: PONG\0"
STATS = b"""2: POOLS: 1

STATE: VALID PRIMARY
THREADS: live 2  idle 1 max 12 idle-timeout 30
QUEUE: 4 items
\tINSTREAM 0.000123

MEMSTATS: heap 9.082M mmap 0.000M used 6.902M free 2.184M
END\0"""
VERSION = b"3: ClamAV 1.4.3/27800/Sun Nov 22 08:30:11 2026\0"
CLEAN = b"4: stream: OK\0"
FOUND = b"4: stream: Eicar-Test-Signature FOUND\0"
NOON = calendar.timegm((2026, 11, 22, 20, 30, 11))

WELL = PONG + VERSION + STATS  # as clamd answers: a thread gives STATS


def test_asks_for_everything_in_one_session() -> None:
    result, said, step = feed(Clamd().talk(Target(at=NOON)), WELL + CLEAN)
    assert (result.verdict, step) == (Verdict.OK, "scan")
    assert result.reason == "ClamAV 1.4.3, signatures 27800"
    assert result.measures == {
        "signatures_age_days": 0.5,
        "queue_items": 4,
        "threads": 2,
        "threads_busy": 1,
        "threads_max": 12,
    }
    assert said == b"zIDSESSION\0zPING\0zSTATS\0zVERSION\0" + stream(TEXT) + b"zEND\0"
    assert stream(b"abc") == b"zINSTREAM\0\0\0\0\3abc\0\0\0\0"


def test_scans_the_sample_now_and_then() -> None:
    memory: dict[str, float] = {}

    def look(now: float, answer: bytes) -> tuple[Verdict, str, bool]:
        talk = Clamd().talk(Target("mx0", "10.0.0.4", now, memory))
        result, said, step = feed(talk, WELL + answer)
        return result.verdict, step, SAMPLE in said

    assert look(0.0, CLEAN) == (Verdict.FAIL, "sample", True)
    assert look(10.0, FOUND) == (Verdict.OK, "sample", True)
    assert look(20.0, CLEAN) == (Verdict.OK, "scan", False)
    assert look(609.0, CLEAN) == (Verdict.OK, "scan", False)
    assert look(610.0, FOUND) == (Verdict.OK, "sample", True)
    result, said, _ = feed(Clamd(sample=Duration(0)).talk(Target(memory={})), WELL + CLEAN)
    assert (result.verdict, SAMPLE in said) == (Verdict.OK, False)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b"UNKNOWN COMMAND\0", "not a PONG: UNKNOWN COMMAND"),
        (b"220 mx ESMTP\r\n", "closed"),
        (PONG + b"2: \x1bno\0" + VERSION, r"not STATS: \x1bno"),
        (WELL + b"4: stream: Oops FOUND\0", "harmless text: stream: Oops FOUND"),
        (
            WELL + b"4: INSTREAM size limit exceeded. ERROR\0",
            "harmless text: INSTREAM size limit exceeded. ERROR",
        ),
        (WELL, "closed"),
    ],
)
def test_says_what_was_wrong(server: bytes, reason: str) -> None:
    result, _, _ = feed(Clamd().talk(), server)
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_a_sample_that_is_not_found_is_a_fail() -> None:
    result, _, _ = feed(Clamd().talk(Target(memory={})), WELL + CLEAN)
    assert result.reason == "the EICAR sample is not found: stream: OK"


@pytest.mark.parametrize(
    ("version", "text", "measures"),
    [
        (b"ClamAV 1.4.6", "ClamAV 1.4.6", {}),
        (b"ClamAV 1.4.6/1/Sun Nov 99 08:30:11 2026", "ClamAV 1.4.6/1/Sun Nov 99 08:30:11 2026", {}),
        (b"\x00odd", r"\x00odd", {}),
        (
            b"ClamAV 1.4.6/1/Sat Nov  7 20:30:11 2026",
            "ClamAV 1.4.6, signatures 1",
            {"signatures_age_days": 15.0},
        ),
    ],
)
def test_the_age_of_signatures_is_known_where_it_is_said(
    version: bytes, text: str, measures: dict[str, float]
) -> None:
    assert describe(version, NOON) == (text, measures)


def test_the_order_of_answers_does_not_matter() -> None:
    result, _, _ = feed(Clamd().talk(), PONG + STATS + VERSION + CLEAN)
    assert (result.verdict, result.reason) == (Verdict.OK, "ClamAV 1.4.3, signatures 27800")


def test_stats_without_numbers_are_none() -> None:
    assert load(b"QUEUE: 4 items\n") == {}


def look(path: Path) -> Result:
    """Look at what listens on a Unix socket."""
    check = Clamd(socket=path)
    return asyncio.run(converse(*check.where("10.0.0.4"), check.talk(), 5.0))


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    path = tmp_path / "clamd.sock"

    async def scene() -> Result:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in (b"", PONG, STATS, VERSION):
                await reader.readuntil(b"\0")
                writer.write(answer)
            await reader.readexactly(len(stream(TEXT)))
            writer.write(CLEAN)
            await reader.read()
            writer.transport.abort()
            ended.set()

        server = await asyncio.start_unix_server(serve, path)
        async with server:
            check = Clamd(socket=path)
            result = await converse(*check.where("10.0.0.4"), check.talk(), 5.0)
            await ended.wait()
            await asyncio.sleep(0)  # the aborted transport closes in the loop's next turn
            return result

    result = asyncio.run(scene())
    assert (result.verdict, result.reason) == (Verdict.OK, "ClamAV 1.4.3, signatures 27800")


def test_a_unix_socket_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = look(tmp_path / "clamd.sock")
    assert (result.verdict, result.reason) == (Verdict.FAIL, "connect: connection refused")


def test_a_path_that_is_too_long_is_named() -> None:
    assert [f for f, _ in Clamd(socket=Path("/" + "x" * 100)).problems()] == ["socket"]
    assert list(Clamd(socket=Path("/var/run/clamav/clamd.sock")).problems()) == []


PIECES = [PONG, STATS, VERSION, CLEAN, FOUND, b"\0", b"5: ", b"noise\n", b"QUEUE: 1 items\n"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    whole = feed(Clamd().talk(), PONG + server)
    assert feed(Clamd().talk(), *split(PONG + server, data)) == whole
