"""Checks that are coroutines: one deadline from outside, whatever they do, and nothing piles up."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Hashable

import pytest

from checks import NOBODY, Probed, Step, Target
from checks._tasks import Tasks, look
from hactl.core.model import Result, Verdict, fail, ok
from tests.checks.peers import LONG, SHORT, summary

Scene = Callable[[Step], Awaitable[object]]


class Made(Probed, frozen=True, kw_only=True, tag="made"):
    """A check that a test makes up."""

    scene: Scene

    async def probe(self, target: Target, step: Step) -> Result:
        return await self.scene(step)  # type: ignore[return-value]


def once(scene: Scene, limit: float = LONG) -> Result:
    return asyncio.run(look(Made(scene=scene), NOBODY, limit))


async def forever(step: Step) -> Result:
    step("connect")
    step("answer")
    await asyncio.Event().wait()
    return ok("never")


def test_a_result_has_its_steps_and_their_times() -> None:
    async def scene(step: Step) -> Result:
        step("connect")
        await asyncio.sleep(0.01)
        step("answer")
        return ok("fine", messages=3)

    result = once(scene)
    assert summary(result) == (Verdict.OK, "answer", "fine")
    assert [name for name, _ in result.steps] == ["connect", "answer"]
    assert result.steps[0][1] >= 0.01 > 0 <= result.steps[1][1]
    assert result.measures.keys() == {
        "connect_seconds",
        "answer_seconds",
        "messages",
        "total_seconds",
    }


def test_silence_is_cut_at_the_deadline_and_at_its_step() -> None:
    result = once(forever, SHORT)
    assert summary(result) == (Verdict.FAIL, "answer", "answer: no answer in 100ms")
    assert [name for name, _ in result.steps] == ["connect"]
    assert result.measures["total_seconds"] >= SHORT


@pytest.mark.parametrize(
    ("error", "verdict", "why"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed"), "fail", "connection refused"),
        (OSError(errno.ETIMEDOUT, ""), "fail", "connection timed out"),
        (asyncio.IncompleteReadError(b"", 9), "fail", "closed in mid-answer"),
        (OSError(errno.EMFILE, "Too many open files"), "unknown", "too many open files"),
        (socket.gaierror(-2, "Name or service not known"), "unknown", "name or service not known"),
        (TimeoutError(), "fail", f"no answer in {LONG:g}s"),
        (ssl.SSLEOFError(8, "EOF occurred"), "fail", "closed in the middle of TLS"),
        (ValueError("\x1b[31m"), "unknown", r"check broke: ValueError('\x1b[31m')"),
        (SystemExit(3), "unknown", "check broke: SystemExit(3)"),
        (asyncio.CancelledError(), "unknown", "check broke: it was cancelled"),
        (None, "unknown", "check broke: returned None"),
    ],
)
def test_whose_fault_an_error_is(error: BaseException | None, verdict: str, why: str) -> None:
    async def scene(step: Step) -> object:
        step("connect")
        if error is not None:
            raise error
        return None

    result = once(scene)
    assert summary(result) == (Verdict(verdict), "connect", f"connect: {why}")
    assert result.steps == ()


class Stage:
    """A driver, and what was told of each look, in order."""

    def __init__(self, cap: int = 8, excuse: str | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.tasks = Tasks(loop, cap=cap, excuse=lambda _started: excuse)
        self.told: list[tuple[Hashable, Result]] = []
        self.heard = asyncio.Event()

    def start(self, key: Hashable, scene: Scene, limit: float = LONG) -> None:
        def done(result: Result, began: float, ended: float) -> None:
            self.told.append((key, result))
            self.heard.set()

        self.tasks.start(key, Made(scene=scene).scene, limit, done)  # type: ignore[arg-type]

    async def hear(self, count: int) -> None:
        """Wait until *count* looks have been told of."""
        async with asyncio.timeout(LONG):
            while len(self.told) < count:
                self.heard.clear()
                await self.heard.wait()

    async def end(self) -> None:
        """End what still runs, however it clings to life."""
        self.tasks.close()
        async with asyncio.timeout(LONG):
            while self.tasks.live:
                await asyncio.sleep(0)
                self.tasks.close()


def test_silence_proves_nothing_while_we_were_late_ourselves() -> None:
    async def main() -> None:
        stage = Stage(excuse="hactld itself was late by 2.0s")
        stage.start("a", forever, SHORT)
        await stage.hear(1)
        await stage.end()
        why = "answer: hactld itself was late by 2.0s"
        assert summary(stage.told[0][1]) == (Verdict.UNKNOWN, "answer", why)

    asyncio.run(main())


def test_what_does_not_let_go_is_waited_for_and_never_piled_up() -> None:
    async def main() -> None:
        stage, release, running = Stage(), asyncio.Event(), 0

        async def stuck(step: Step) -> Result:
            nonlocal running
            running += 1
            step("stat")
            try:
                await asyncio.Event().wait()
            finally:  # as for a process in the kernel: cancelled, and not gone
                await release.wait()
                running -= 1
            return ok("never")

        async def fine(step: Step) -> Result:
            assert not running
            return ok("fine")

        stage.start("a", stuck, SHORT)
        await stage.hear(1)
        assert stage.told[0][1].reason == "stat: no answer in 100ms"
        stage.start("a", fine, SHORT)  # waits, and is silent for as long
        await stage.hear(2)
        verdict, step, reason = summary(stage.told[1][1])
        assert (verdict, step) == (Verdict.FAIL, "stat")
        assert reason.startswith("stat: no answer for 0.")
        stage.start("a", fine)
        stage.start("b", forever, SHORT)  # another check of another node waits for nobody
        await stage.hear(3)
        assert stage.told[2][0] == "b"
        assert running == 1
        release.set()
        await stage.hear(4)
        assert summary(stage.told[3][1]) == (Verdict.OK, "before", "fine")
        await stage.end()
        assert not stage.tasks.overdue

    asyncio.run(main())


def test_only_so_many_run_at_a_time() -> None:
    async def main() -> None:
        stage = Stage(cap=2)
        for name in "abc":
            stage.start(name, forever)
        await stage.hear(1)
        key, result = stage.told[0]
        assert (key, result) == (
            "c",
            Result(
                Verdict.UNKNOWN,
                "too many looks at a time (cap 2)",
                measures={"total_seconds": result.measures["total_seconds"]},
            ),
        )
        await stage.end()
        assert len(stage.told) == 1  # what is closed is told to nobody

    asyncio.run(main())


def test_what_a_look_says_after_its_deadline_is_not_heard() -> None:
    async def main() -> None:
        stage = Stage()

        async def deaf(step: Step) -> Result:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return fail("too late")
            return ok("never")

        stage.start("a", deaf, SHORT)
        await stage.hear(1)
        await stage.end()
        assert [result.reason for _, result in stage.told] == ["no answer in 100ms"]

    asyncio.run(main())


ENDING = """\
import asyncio, sys
from checks import _process
from checks._tasks import Tasks

async def main(turns):
    tasks = Tasks(asyncio.get_running_loop(), cap=1, excuse=lambda _: None)
    tasks.start(None, lambda _: _process.run(["/bin/sleep", "60"]), 60, print)
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks.close()
    await tasks.ended()

for turns in range(12):
    asyncio.run(main(turns))
"""


def test_all_ends_while_a_program_is_being_started() -> None:
    """In a process of its own, which would not end otherwise."""
    command = [sys.executable, "-c", ENDING]
    assert subprocess.run(command, timeout=LONG, check=True, capture_output=True).stdout == b""
