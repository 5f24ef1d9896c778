"""What an agent tells, and to whom."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from checks.tcp import Tcp
from hactl.agent import Answer, serve
from hactl.agent.serve import REASON, Findings, Serving
from hactl.config import Agent, Check
from hactl.core.health import Health, State
from hactl.core.model import Checked, Probe, Result, Verdict, fail, ok
from hactl.core.units import Duration
from hactl.daemon import start

CHECK = Check(Tcp(port=25), Duration(2), Duration(1), Duration(0), Duration(0))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def findings(clock: Clock) -> Findings:
    return Findings("mx0", clock, {"smtp": CHECK, "imap": CHECK})


def feed(found: Findings, at: float, result: Result, state: State, name: str = "smtp") -> None:
    checked = Checked(Probe("mx0", name, "127.0.0.1"), at - 0.25, at, result)
    found.feed(checked, Health(state, at, last=result, reason=result.reason))


def told(found: Findings) -> Answer:
    return msgspec.json.decode(found.answer("word"), type=Answer)


def test_an_answer_has_every_check_and_the_ages_of_results() -> None:
    clock = Clock()
    found = findings(clock)
    feed(found, 100.0, ok("connected", connect_seconds=0.001), State.UP)
    clock.now = 101.5
    answer = told(found)
    assert (answer.node, answer.nonce, list(answer.checks)) == ("mx0", "word", ["smtp", "imap"])
    smtp = answer.checks["smtp"]
    assert (smtp.type, smtp.interval, smtp.age, smtp.took) == ("tcp", 2.0, 1.5, 0.25)
    assert smtp.result == ok("connected", connect_seconds=0.001)
    assert answer.checks["imap"].result is None


def test_stamps_grow_whatever_the_clock_does_and_two_starts_differ() -> None:
    found = findings(Clock())
    stamps = []
    for at in (100.0, 100.0, 99.0):
        feed(found, at, ok(""), State.UP)
        stamps.append(told(found).checks["smtp"].stamp)
    assert stamps == sorted(set(stamps))
    assert told(found).start != told(findings(Clock())).start


def test_one_odd_result_does_not_spoil_the_answer() -> None:
    found = findings(Clock())
    odd = Result(Verdict.OK, "\ud800" + "x" * 9999, measures={"a": float("inf"), "b": Duration(1)})
    feed(found, 100.0, odd, State.UP)
    result = told(found).checks["smtp"].result
    assert result is not None
    assert (len(result.reason), result.measures) == (400, {"b": 1.0})


def test_a_node_is_ready_unless_a_check_is_down() -> None:
    found = findings(Clock())
    assert (found.down(), found.line()) == (None, b"ready up\n")
    feed(found, 100.0, fail("421 no"), State.UP)  # one fail is not down
    assert found.down() is None
    feed(found, 101.0, fail("421 no"), State.DOWN)
    assert (found.down(), found.down("smtp"), found.down("imap")) == ("smtp: 421 no",) * 2 + (None,)
    with pytest.raises(KeyError):
        found.down("nfs")


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("421 no", b"ready down #smtp: 421 no\n"),
        ('a\nup, ready\r\n"#drain;\t\x00\u00fc', b"ready down #smtp: a up ready drain ?\n"),
        ("y" * 500, b"ready down #smtp: " + b"y" * (REASON - 6) + b"\n"),
    ],
)
def test_haproxy_is_told_in_one_line_of_its_own_words(reason: str, line: bytes) -> None:
    found = findings(Clock())
    feed(found, 100.0, fail(reason), State.DOWN)
    assert found.line() == line


def test_a_check_that_changed_is_forgotten() -> None:
    found = findings(Clock())
    feed(found, 100.0, ok("a"), State.UP)
    feed(found, 100.0, ok("b"), State.UP, "imap")
    other = msgspec.structs.replace(CHECK, option=Tcp(port=26))
    found.configure({"smtp": other, "imap": CHECK})
    assert {name: r.result for name, r in told(found).checks.items()} == {
        "smtp": None, "imap": ok("b"),
    }  # fmt: skip


async def asked(place: tuple[str, int], request: str) -> str:
    reader, writer = await asyncio.open_connection(*place)
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode()


def test_it_takes_questions_by_http_and_no_commands(tmp_path: Path) -> None:
    async def scene() -> None:
        found = findings(Clock())
        feed(found, 100.0, fail("421 no"), State.DOWN)
        serving = Serving(found)
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        (note,) = await serving.start(Agent(f"127.0.0.1:{port}", tmp_path))
        assert f"cannot listen at 127.0.0.1:{port}: " in note
        server.close()
        await server.wait_closed()
        await serving.stop()
        assert await serving.start(Agent(f"127.0.0.1:{port}", tmp_path)) == []
        (place,) = serving.places
        for line, status in {
            "GET /ready": 503, "GET /ready/imap": 200, "GET /ready/nfs": 404, "GET /": 404,
            "HEAD /ready": 503, "GET /results": 200, "POST /results": 405, "DELETE /ready": 405,
            "nonsense": 400,
        }.items():  # fmt: skip
            request = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = await asked(place, request)
            assert answer.startswith((f"HTTP/1.1 {status} ", f"HTTP/1.0 {status} ")), answer
            assert "Traceback" not in answer
        await serving.stop()

    asyncio.run(scene())


def test_haproxy_is_answered_whoever_holds_connections(tmp_path: Path) -> None:
    async def scene() -> None:
        serving = Serving(findings(Clock()))
        await serving.start(Agent("127.0.0.1:0", tmp_path, haproxy="127.0.0.1:0"))
        http, haproxy = serving.places
        held = [await asyncio.open_connection(*http) for _ in range(2 * serve.GUESTS)]
        idle = [await asyncio.open_connection(*haproxy) for _ in range(2 * serve.GUESTS)]
        assert [await reader.read() for reader, _ in idle] == [b"ready up\n"] * len(idle)
        assert await asked(haproxy, "") == "ready up\n"
        answer = await asked(http, "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith("HTTP/1.1 200 ")
        assert sum(not reader.at_eof() for reader, _ in held) <= serve.GUESTS
        for _, writer in held + idle:
            writer.close()
        await serving.stop()

    asyncio.run(scene())


def test_without_descriptors_it_says_so_once_in_a_while_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "AGAIN", 0.1, raising=False)
    said: list[dict[str, Any]] = []

    async def scene() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        serving = Serving(findings(Clock()))
        await serving.start(Agent("127.0.0.1:0", tmp_path, haproxy="127.0.0.1:0"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_connection(serving.places[1]) as client:
            client.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await asyncio.sleep(0.25)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            async with asyncio.timeout(10):
                line = await asyncio.get_running_loop().sock_recv(client, 99)
        assert line == b"ready up\n"
        await serving.stop()

    asyncio.run(scene())
    assert 1 <= len(said) <= 3


def test_what_the_event_loop_repeats_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start.logger, "propagate", True)
    complain = start._complainer()
    loop = asyncio.new_event_loop()
    loop.close()
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    full = {"message": "cannot accept", "exception": OSError(24, "Too many open files")}
    with caplog.at_level(logging.ERROR):
        for clock.now in (100.0, 100.1, 159.0, 160.0, 161.0):
            complain(loop, full)
        complain(loop, {"message": "another"})
    assert [record.getMessage() for record in caplog.records] == [
        "cannot accept: OSError(24, 'Too many open files')",
        "cannot accept: OSError(24, 'Too many open files')",
        "another: ''",
    ]
