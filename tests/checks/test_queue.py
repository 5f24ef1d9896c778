"""The queue check: what smtpctl and postqueue print, from strangers too, and what it comes to."""

from __future__ import annotations

import asyncio
import json
import os
import time
import tracemalloc
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from checks import NOBODY
from checks._process import Ended
from checks._tasks import Tasks, look
from checks.queue import Lines, Queue, Seen, envelope, message, paused, stats
from hactl.core.model import Result, Verdict
from tests.checks.peers import LONG, SHORT, summary

NOW = 1_700_000_000

# As OpenSMTPD 7.4 and Postfix 3.7 print them.
DEFERRED = (
    b"5a1b2c3d4e5f6071|inet4|mta||probe@example.org|bob@dead.test|bob@dead.test"
    b"|1699999000|1700345600|1699999100|1|pending|249|Network error on destination MXs"
)
HOLD = b"0123456789abcdef|local|mta|hold|@|b@dead.test|b@dead.test|1699999990|0|0|0|pending|-3|"
RUNS = b"0123456789abcdef|inet6|mda|auth|a@b|c@d|c@d|1699999995|0|1699999995|0|inflight|5|"
SUSPENDED = b"0123456789abcdef|inet4|mta|auth,suspend|a@b|c@d|c@d|1699000000|0|0|0|pending|0|"
POSTFIX = {
    "queue_name": "deferred",
    "queue_id": "4F2A91C0",
    "arrival_time": 1699999000,
    "message_size": 321,
    "forced_expire": False,
    "sender": "probe@example.org",
    "recipients": [
        {"address": "bob@dead.test", "delay_reason": "connect to 192.0.2.9[192.0.2.9]:25: refused"}
    ],
}


def test_reads_envelopes_of_opensmtpd() -> None:
    why = "Network error on destination MXs"
    assert envelope(DEFERRED) == ("deferred", 1699999000, why)
    assert envelope(HOLD) == ("untried", 1699999990, "")
    assert envelope(RUNS) == ("inflight", 1699999995, "")
    assert envelope(SUSPENDED) == ("held", 1699000000, "")


def test_reads_messages_of_postfix() -> None:
    why = "connect to 192.0.2.9[192.0.2.9]:25: refused"
    assert message(json.dumps(POSTFIX).encode()) == ("deferred", 1699999000, why)
    for name, state in (("hold", "held"), ("active", "inflight"), ("incoming", "untried")):
        line = json.dumps(POSTFIX | {"queue_name": name}).encode()
        assert message(line) == (state, 1699999000, "")
    strange = json.dumps(POSTFIX).encode().replace(b"refused", b"\xff\xfe")
    assert message(strange)[0] == "deferred"


@pytest.mark.parametrize(
    "address", [b"a|1|2|3|4|pending|5|x", b"|||||||||", b"1|1|1|1|inflight|1|"]
)
def test_a_strangers_address_or_error_cannot_pretend_to_be_figures(address: bytes) -> None:
    """At worst it is not known how old the message is; it is never taken for an older one."""
    line = DEFERRED.replace(b"probe", address)
    assert envelope(line) in [("waiting", 0.0, ""), envelope(DEFERRED)]
    line = DEFERRED.replace(b"Network error", address)
    assert envelope(line)[1] in (0.0, 1699999000)


@pytest.mark.parametrize(
    "line", [b"", b"garbage", b"|" * 20, b"{", b"[]", b'{"queue_name": 3}', b"\xff" * 50]
)
def test_what_is_no_listing_is_no_news_of_the_node(line: bytes) -> None:
    for read in (envelope, message):
        with pytest.raises(ValueError, match=r"^not a"):
            read(line)


@given(st.binary(max_size=200))
def test_no_line_breaks_a_parser(line: bytes) -> None:
    for read in (envelope, message):
        with suppress(ValueError):
            state, came, _why = read(line)
            assert state
            assert came >= 0


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=9).filter(lambda b: b"\n" not in b)), st.data())
def test_lines_are_the_same_however_they_come(lines: list[bytes], data: st.DataObject) -> None:
    text, got = b"".join(line + b"\n" for line in lines), []

    def each(line: bytes) -> bool:
        got.append(line)
        return True

    cutter = Lines(each)
    while text:
        size = data.draw(st.integers(1, len(text)))
        assert cutter.take(text[:size])
        text = text[size:]
    assert got == lines


def test_what_was_never_counted_is_zero() -> None:
    out = b"uptime=12\nscheduler.envelope=3\nuptime.human=12s\nx=\xb2\nrubbish\n"
    assert stats(out) == {"uptime": 12, "scheduler.envelope": 3}
    assert paused(b"MDA running\nMTA paused\nSMTP running\n") == ("MTA",)


def seen(*lines: bytes, most: int = 1000) -> Seen:
    found = Seen(NOW, 600.0, most)
    for line in lines:
        if not found.add(*envelope(line)):
            break
    return found


def test_an_empty_queue_is_fine() -> None:
    result = seen().judge(())
    assert (result.verdict, result.reason) == (Verdict.OK, "empty")
    assert set(result.measures.values()) == {0.0}


def test_tells_depth_age_and_reasons() -> None:
    other = DEFERRED.replace(b"Network error on destination MXs", b"450 <x@y>: full")
    result = seen(DEFERRED, DEFERRED, other, HOLD, RUNS, SUSPENDED).judge(())
    assert (result.verdict, result.reason) == (
        Verdict.OK,
        "6 messages, oldest 16m40s, 3 stuck, "
        "3 deferred (2: Network error on destination MXs; 1: 450 ...: full)",
    )
    assert result.measures == {
        "messages": 6,
        "deferred_messages": 3,
        "inflight_messages": 1,
        "held_messages": 1,
        "stuck_messages": 3,
        "oldest_seconds": 1000,
        "untried_seconds": 10,
    }


def test_what_an_operator_paused_is_a_warning() -> None:
    result = seen(HOLD).judge(("MTA",))
    assert (result.verdict, result.reason) == (Verdict.WARN, "MTA paused, 1 message, oldest 10s")


def test_a_listing_is_read_up_to_a_number() -> None:
    found = seen(*[HOLD] * 9, most=5)
    assert found.judge(()).reason == "at least 5 messages, oldest 10s"


def test_a_hundred_thousand_entries_take_no_memory() -> None:
    found = Seen(NOW, 600.0, 100_000)
    lines = Lines(lambda line: found.add(*envelope(line)))
    page = b"".join(DEFERRED.replace(b"Network", b"%d" % n) + b"\n" for n in range(100))
    tracemalloc.start()
    for n in range(20):  # a fiftieth of it, each with reasons of their own
        lines.take(page.replace(b" error", b" %d" % n))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20
    assert found.judge(()).measures["messages"] == 2000
    assert ": other reasons" in found.judge(()).reason


# Through a program


def fake(directory: Path, script: str) -> Queue:
    """Return a check whose smtpctl or postqueue is *script*."""
    program = directory / "program"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return Queue(command=(str(program),), server="postfix" if "-j" in script else "opensmtpd")


SMTPCTL = r"""
case "$*" in
"show stats") echo scheduler.envelope=2 ;;
"show status") printf 'MDA running\nMTA running\nSMTP running\n' ;;
"show queue") %s ;;
esac
"""


def asked(check: Queue, limit: float = LONG) -> Result:
    return asyncio.run(look(check, NOBODY, limit))


def test_asks_smtpctl_three_times(tmp_path: Path) -> None:
    now = int(time.time())
    line = f"0123456789abcdef|inet4|mta|hold|a@b|c@d|c@d|{now - 50}|0|0|0|pending|0|"
    result = asked(fake(tmp_path, SMTPCTL % f"echo '{line}'; echo '{line}'"))
    assert (result.verdict, result.reason[:10]) == (Verdict.OK, "2 messages")
    assert [name for name, _ in result.steps] == ["stats", "status", "queue"]
    assert 50 <= result.measures["oldest_seconds"] < 60


def test_a_queue_too_long_to_read_is_not_asked_for(tmp_path: Path) -> None:
    check = structs.replace(fake(tmp_path, SMTPCTL % "sleep 1"), most=1)
    result = asked(check)
    assert (result.verdict, result.reason) == (Verdict.OK, "2 messages, too many to read")
    assert result.measures["messages"] == 2


def test_smtpctl_is_left_alone_when_it_is_late_and_waited_for(tmp_path: Path) -> None:
    """OpenSMTPD ends when somebody goes away in the middle of an answer."""
    fifo, gone = tmp_path / "fifo", tmp_path / "gone"
    os.mkfifo(fifo)
    script = f"read x < {fifo}; seq 20000 && echo ended > {gone}"
    check = fake(tmp_path, SMTPCTL % script)

    async def main() -> None:
        tasks = Tasks(asyncio.get_running_loop(), cap=9, excuse=lambda _: None)
        told: asyncio.Queue[Result] = asyncio.Queue()
        for _ in range(2):
            tasks.start(
                "queue", partial(check.probe, NOBODY), 5 * SHORT, lambda r, *_: told.put_nowait(r)
            )
            result = await asyncio.wait_for(told.get(), LONG)
            assert result.verdict is Verdict.FAIL
        assert result.reason.startswith("queue: no answer for ")
        assert not gone.exists()
        fifo.write_text("go on\n")
        async with asyncio.timeout(LONG):
            while tasks.live:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert gone.read_text() == "ended\n"

    asyncio.run(main())


def test_a_hung_part_shows_at_its_step(tmp_path: Path) -> None:
    result = asked(fake(tmp_path, SMTPCTL % "sleep 0.4"), 2 * SHORT)
    assert result.verdict is Verdict.FAIL
    assert result.reason == f"{result.step}: no answer in 200ms"


def test_what_is_read_no_further_is_killed(tmp_path: Path) -> None:
    line = json.dumps(POSTFIX | {"arrival_time": int(time.time())})
    check = fake(tmp_path, f"[ $1 = -j ] && yes '{line}'")
    result = asked(Queue(server="postfix", command=check.command, most=300))
    assert result.verdict is Verdict.OK
    assert result.reason.startswith("at least 300 messages")


@pytest.mark.parametrize(
    ("script", "verdict", "reason"),
    [
        ("echo 'smtpctl: need root privileges' >&2; exit 1", "unknown", "smtpctl: need root"),
        ("echo 'smtpctl: connect: Connection refused' >&2; exit 1", "fail", "smtpctl: connect"),
        ("exit 75", "unknown", "exit 75"),
        ("exit 0", "unknown", "stats: said nothing"),
        ("[ $1 = -j ]", "ok", "empty"),
        (SMTPCTL % "echo nonsense", "unknown", "queue: not an envelope: nonsense"),
        ("[ $1 = -j ] && echo '{}'", "unknown", "queue: not a message: {}"),
        (
            "[ $1 = -j ]; echo 'postqueue: warning: Mail system is down -- accessing' >&2",
            "fail",
            "postqueue: warning: Mail system is down",
        ),
        ("[ $1 = -j ]; echo 'postqueue: fatal: not allowed' >&2; exit 1", "unknown", "postqueue:"),
    ],
)
def test_what_the_program_complains_of(
    tmp_path: Path, script: str, verdict: str, reason: str
) -> None:
    result = asked(fake(tmp_path, script))
    assert result.verdict == verdict
    assert result.reason.startswith(reason)


def test_a_program_that_is_missing_is_no_news_of_the_node() -> None:
    result = asked(Queue(command=("/nonexistent/smtpctl",)))
    assert summary(result) == (Verdict.UNKNOWN, "stats", "stats: no such file or directory")


def test_options_that_cannot_be_are_said_at_load() -> None:
    assert list(Queue().problems()) == []
    assert [field for field, _ in Queue(command=("smtpctl",), most=0).problems()] == [
        "command",
        "most",
    ]


def test_a_server_that_is_gone_is_told_from_one_that_may_not_be_asked() -> None:
    refused = Queue().refused
    assert (
        refused(Ended(1, b"", b"smtpctl: smtpd doesn't seem to be running\n")).verdict
        is Verdict.FAIL
    )
    assert refused(Ended(1, b"", b"doas: Operation not permitted\n")).verdict is Verdict.UNKNOWN
