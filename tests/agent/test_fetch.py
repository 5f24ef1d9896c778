"""Agents asked over real connections, and answers of every kind."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import Target
from checks._tasks import look
from checks.exec import Exec
from checks.tcp import Tcp
from hactl.agent import PROTOCOL, Answer, Report, fetch, keys
from hactl.agent.fetch import AgentError, Agents, judge, read
from hactl.agent.serve import Findings, Serving
from hactl.config import Agent, Check, FromAgent, Node
from hactl.core.health import Health, State
from hactl.core.model import FIGURES, Checked, Probe, Result, Verdict, fail, ok
from hactl.core.units import Duration

ASKED = Check(FromAgent(), Duration(5), Duration(2), Duration(0), Duration(0))
MADE = Check(Tcp(port=25), Duration(2), Duration(1), Duration(0), Duration(0))
PROBE = Probe("mx0", "smtp", "127.0.0.1")
WELL = Report("tcp", 2.0, 7.0, 1.0, 0.1, ok("220 hello", greeting_seconds=0.1))
GOOD = Answer(PROTOCOL, "0.1.0", "mx0", "start", "word", {"smtp": WELL})


# What an answer is worth


def body(answer: Answer, **changes: object) -> bytes:
    return json.dumps(msgspec.to_builtins(answer) | changes).encode()


def test_a_good_answer_is_a_result_with_its_age_and_stamp() -> None:
    sample = judge(read(body(GOOD), "mx0", "word"), "smtp", ASKED, 0.5)
    assert sample.result == WELL.result
    assert sample == (WELL.result, 1.6, 7.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"node": "mx1"}, "says it is mx1, not mx0"),
        ({"nonce": "older"}, "repeats an answer to another question"),
        ({"protocol": 2, "checks": 7, "version": "9.9"}, r"speaks protocol 2 \(hactl 9.9\)"),
        ({"checks": {"smtp": {}}}, "not an answer"),
        ({"checks": {"smtp": 10**400}}, "not an answer"),
        ({"protocol": "1"}, "not an answer"),
    ],
)
def test_a_strange_answer_says_what_is_strange(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AgentError, match=says):
        read(body(GOOD, **changes), "mx0", "word")


def reported(**changes: Any) -> Answer:
    return msgspec.structs.replace(GOOD, checks={"smtp": msgspec.structs.replace(WELL, **changes)})


def expecting(kind: str) -> Check:
    return msgspec.structs.replace(ASKED, option=FromAgent(kind=kind))


@pytest.mark.parametrize(
    ("answer", "name", "check", "says"),
    [
        (reported(age=10.1), "smtp", ASKED, "newest look ended 10s ago"),
        (reported(age=-1.0), "smtp", ASKED, "figures cannot be"),
        (reported(interval=1e18), "smtp", ASKED, "figures cannot be"),
        (reported(stamp=float("nan")), "smtp", ASKED, "figures cannot be"),
        (reported(result=ok("", **{f"m{i}": 0.0 for i in range(999)})), "smtp", ASKED, "figures"),
        (reported(result=None), "smtp", ASKED, "has not looked yet"),
        (GOOD, "imap", ASKED, "has no check imap; it has smtp"),
        (GOOD, "smtp", expecting("nfs"), "check smtp is of type tcp, not nfs"),
    ],
)
def test_what_proves_nothing_is_unknown(answer: Answer, name: str, check: Check, says: str) -> None:
    sample = judge(answer, name, check, 0.0)
    assert (sample.result.verdict, sample.stamp) == (Verdict.UNKNOWN, None)
    assert says in sample.result.reason


def test_an_agents_own_interval_says_what_is_old() -> None:
    slow = reported(age=50.0, interval=30.0)
    assert judge(slow, "smtp", ASKED, 0.0).result.verdict is Verdict.OK
    assert judge(slow, "smtp", ASKED, 11.0).result.verdict is Verdict.UNKNOWN


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
PATHS = [(), ("checks",), ("checks", "smtp"), ("checks", "smtp", "result"),
         ("checks", "smtp", "result", "measures")]  # fmt: skip


@given(st.sampled_from(PATHS), st.data(), ODD)
def test_no_answer_is_worse_than_unknown(
    path: tuple[str, ...], data: st.DataObject, odd: object
) -> None:
    tree = msgspec.to_builtins(GOOD)
    place = tree
    for key in path:
        place = place[key]
    place[data.draw(st.sampled_from([*place, "more"]))] = odd
    with suppress(AgentError):
        sample = judge(read(json.dumps(tree).encode(), "mx0", "word"), "smtp", ASKED, 0.0)
        assert sample.result.verdict in {Verdict.OK, Verdict.UNKNOWN} or odd in {"warn", "fail"}
        assert len(sample.result.reason) <= fetch.REASON


@given(st.binary(max_size=200))
def test_bytes_are_an_answer_or_an_error(data: bytes) -> None:
    with pytest.raises(AgentError):
        read(data, "mx0", "word")


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"a":' * 50_000, b'{"protocol":1,"node":"\xff"}']
)
def test_deep_and_broken_answers_are_errors(data: bytes) -> None:
    with pytest.raises(AgentError, match="not an answer"):
        read(data, "mx0", "word")


# Over real connections


class Lab:
    """A node's agent and a balancer that asks it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.get_running_loop()
        self.findings = Findings("mx0", self.loop.time, {"smtp": MADE, "imap": MADE})
        self.serving = Serving(self.findings)
        self.agents = Agents()

    def found(self, result: Result, state: State = State.UP) -> None:
        now = self.loop.time()
        health = Health(state, now, last=result, reason=result.reason)
        self.findings.feed(Checked(PROBE, now - 0.01, now, result), health)

    async def serve(self) -> int:
        agent = Agent("127.0.0.1:" + str(free_port()), self.directory / "node")
        assert await self.serving.start(agent) == []
        return self.serving.places[0][1]

    async def ask(self, url: str, directory: str = "lb") -> list[str]:
        nodes = {"mx0": Node(("127.0.0.1",), agent=url)}
        return await self.agents.configure(nodes, {"smtp": ASKED}, self.directory / directory)

    async def look(self, check: Check = ASKED) -> Checked:
        ended: asyncio.Future[Checked] = self.loop.create_future()
        self.agents.look(PROBE, check, ended.set_result)
        return await ended

    async def close(self) -> None:
        await self.agents.close()
        await self.serving.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def play(directory: Path, scene: Callable[[Lab], Awaitable[None]]) -> None:
    async def run() -> None:
        lab = Lab(directory)
        try:
            async with asyncio.timeout(20):
                await scene(lab)
        finally:
            await lab.close()

    asyncio.run(run())


# So that an answer is asked for at once, and a silent agent is given up soon.
EAGER = msgspec.structs.replace(ASKED, interval=Duration(0.02), timeout=Duration(0.2))


def paired(directory: Path, *nodes: str) -> None:
    """Make keys for a balancer and nodes that trust each other."""
    keys.keygen(directory / "lb", "lb0")
    for name in nodes:
        place = directory / ("node" if name == "mx0" else name)
        keys.keygen(place, name)
        keys.trust(place, keys.own(directory / "lb")[0])
        keys.trust(directory / "lb", keys.own(place)[0])


def test_results_come_over_one_kept_connection(tmp_path: Path) -> None:
    paired(tmp_path, "mx0")

    async def scene(lab: Lab) -> None:
        port = await lab.serve()
        assert await lab.ask(f"https://127.0.0.1:{port}") == []
        lab.found(fail("421 busy"))
        first = await lab.look()
        again = await lab.look()  # from the same answer
        assert (first.result, first.stamp) == (fail("421 busy"), again.stamp)
        assert first.started < first.ended
        await asyncio.sleep(0.02)
        lab.found(ok("220"))
        newer = await lab.look(EAGER)
        assert newer.result == ok("220")
        assert newer.stamp is not None
        assert first.stamp is not None
        assert newer.stamp > first.stamp
        runner = lab.serving._runner
        assert runner is not None
        assert runner.server is not None
        assert runner.server.requests_count == 2
        assert len(runner.server.connections) == 1

    play(tmp_path, scene)


def test_all_the_figures_that_a_program_may_say_come_through(tmp_path: Path) -> None:
    said = " ".join(f"'{i} {'long ' * 100}'={i}" for i in range(FIGURES + 9))
    program = Exec(command=("/bin/sh", "-c", f'echo "dead|{said}"; exit 2'))

    async def scene(lab: Lab) -> None:
        port = await lab.serve()
        await lab.ask(f"http://127.0.0.1:{port}")
        found = await look(program, Target("mx0", "127.0.0.1"), 10.0)
        assert found.verdict is Verdict.FAIL
        assert len(found.measures) == FIGURES + 2  # of its step and of the whole
        lab.found(found)
        assert (await lab.look()).result == found

    play(tmp_path, scene)


def test_strangers_who_hold_connections_keep_nobody_out(tmp_path: Path) -> None:
    paired(tmp_path, "mx0")

    async def scene(lab: Lab) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        try:
            port = await lab.serve()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await lab.ask(f"https://127.0.0.1:{port}")
        lab.found(ok("220"))
        assert (await lab.look()).result == ok("220")
        strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(130)]
        ended = [asyncio.create_task(reader.read()) for reader, _ in strangers]
        _, held = await asyncio.wait(ended, timeout=0.2)
        assert 0 < len(held) <= 32
        await asyncio.sleep(0.02)
        assert (await lab.look(EAGER)).result == ok("220")
        runner = lab.serving._runner
        assert runner is not None
        assert runner.server is not None
        assert (runner.server.requests_count, len(runner.server.connections)) == (2, 1)
        await lab.agents.close()
        await lab.ask(f"https://127.0.0.1:{port}")  # by a new connection
        assert (await lab.look()).result == ok("220")
        for _, writer in strangers:
            writer.close()
        await asyncio.wait(ended)

    play(tmp_path, scene)


def test_keys_cannot_be_swapped_between_nodes(tmp_path: Path) -> None:
    paired(tmp_path, "mx0", "mx1")
    for mine, others in zip(keys.own(tmp_path / "node"), keys.own(tmp_path / "mx1"), strict=True):
        mine.write_bytes(others.read_bytes())  # of the same modes

    async def scene(lab: Lab) -> None:
        port = await lab.serve()
        await lab.ask(f"https://127.0.0.1:{port}")
        lab.found(fail("421 busy"))
        found = await lab.look()
        assert found.result.verdict is Verdict.UNKNOWN
        assert "another certificate than the one that is trusted" in found.result.reason

    play(tmp_path, scene)


def test_a_node_may_not_ask_another_with_its_own_key(tmp_path: Path) -> None:
    paired(tmp_path, "mx0", "mx1")
    keys.trust(tmp_path / "mx1", keys.own(tmp_path / "node")[0])

    async def scene(lab: Lab) -> None:
        port = await lab.serve()
        await lab.ask(f"https://127.0.0.1:{port}", "mx1")
        lab.found(fail("421 busy"))
        found = await lab.look()
        assert found.result.verdict is Verdict.UNKNOWN
        assert "does not trust us" in found.result.reason

    play(tmp_path, scene)


def test_without_the_nodes_certificate_it_is_not_even_asked(tmp_path: Path) -> None:
    keys.keygen(tmp_path / "lb", "lb0")

    async def scene(lab: Lab) -> None:
        (note,) = await lab.ask("https://127.0.0.1:9")
        assert "no certificate of mx0" in note
        found = await lab.look()
        assert "no certificate of mx0" in found.result.reason

    play(tmp_path, scene)


def test_without_keys_only_this_machine_is_served(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        agent = Agent(f"0.0.0.0:{free_port()}", tmp_path / "none")
        (note,) = await lab.serving.start(agent)
        assert "so only 127.0.0.1:" in note
        assert [host for host, _ in lab.serving.places] == ["127.0.0.1"]
        lab.found(ok("220"))
        await lab.ask(f"http://127.0.0.1:{lab.serving.places[0][1]}")
        assert (await lab.look()).result == ok("220")

    play(tmp_path, scene)


def test_a_silent_agent_is_unknown_told_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SILENT", 0.0)
    monkeypatch.setattr(fetch, "PAUSE", 0.05)

    async def scene(lab: Lab) -> None:
        port = await lab.serve()
        await lab.ask(f"http://127.0.0.1:{port}")
        lab.found(ok("220"))
        assert (await lab.look()).result.verdict is Verdict.OK
        await lab.serving.stop()
        await asyncio.sleep(0.02)
        found = await lab.look(EAGER)
        assert (found.result.verdict, found.stamp) == (Verdict.UNKNOWN, None)
        (alert,) = lab.agents.alerts()
        assert "the agent of mx0 is silent for" in alert
        agent = Agent(f"127.0.0.1:{port}", tmp_path / "node")
        assert await lab.serving.start(agent) == []
        for _ in range(100):  # a look ends with the next try, which may have begun before
            found = await lab.look(EAGER)
            if found.result.verdict is Verdict.OK:
                break
        assert (found.result, lab.agents.alerts()) == (ok("220"), [])

    play(tmp_path, scene)


def test_a_long_timeout_of_a_check_hides_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "SILENT", 0.1)
    monkeypatch.setattr(fetch, "DEADLINE", 0.15)
    slow = msgspec.structs.replace(ASKED, interval=Duration(60), timeout=Duration(40))

    async def scene(lab: Lab) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:  # connects, and never answers
            url = f"http://127.0.0.1:{mute.getsockname()[1]}"
            nodes = {"mx0": Node(("127.0.0.1",), agent=url)}
            await lab.agents.configure(nodes, {"smtp": ASKED, "queue": slow}, tmp_path)
            found = await lab.look(slow)
            assert found.result.reason.startswith("agent: no answer in 0.1")
            (alert,) = lab.agents.alerts()  # by its first question, which was asked before SILENT
            assert "the agent of mx0 is silent for" in alert
            await lab.agents.close()

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "speaks protocol 0"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b", "not an"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b" " * 900_000, "more than 256 KiB"),
        (b"220 mx ESMTP\r\n", "expected http|bad|invalid|400"),
        (b"", "hung up|reset"),
    ],
)  # fmt: skip
def test_whoever_is_no_agent_is_unknown(tmp_path: Path, said: bytes, why: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
        writer.close()

    async def scene(lab: Lab) -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        await lab.ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        found = (await lab.look()).result
        server.close()
        assert found.verdict is Verdict.UNKNOWN
        assert any(word in found.reason.lower() for word in why.lower().split("|")), found.reason

    play(tmp_path, scene)


def test_an_older_result_than_the_one_before_is_unknown(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        stamp = 8.0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal stamp
            with suppress(asyncio.IncompleteReadError):
                while question := await reader.readuntil(b"\r\n\r\n"):
                    nonce = question.partition(b"Hactl-Nonce: ")[2][:16].decode()
                    report = msgspec.structs.replace(WELL, stamp=stamp)
                    text = body(GOOD, nonce=nonce, checks={"smtp": msgspec.to_builtins(report)})
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n"
                    writer.write(head.encode() + text)
                    stamp -= 1
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        await lab.ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await lab.look()).stamp == 8.0
        await asyncio.sleep(0.02)
        found = await lab.look(EAGER)
        assert "older result" in found.result.reason
        await lab.agents.close()
        server.close()

    play(tmp_path, scene)


def test_a_node_without_an_agent_is_unknown(tmp_path: Path) -> None:
    async def scene(lab: Lab) -> None:
        await lab.agents.configure({"mx0": Node(("127.0.0.1",))}, {"smtp": ASKED}, tmp_path)
        assert "has none in hactl.yaml" in (await lab.look()).result.reason

    play(tmp_path, scene)
