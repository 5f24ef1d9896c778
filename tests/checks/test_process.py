"""Programs that a look runs: bounded in what they say, and gone afterwards with all they began."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from checks._process import ENVIRONMENT, KEPT, Ended, TooMuchError, run
from tests.checks.peers import LONG


def sh(script: str, *words: str) -> list[str]:
    return ["/bin/sh", "-c", script, *words]


def ran(script: str, *words: str, limit: int = 1 << 20) -> Ended:
    return asyncio.run(asyncio.wait_for(run(sh(script, *words), limit=limit), LONG))


def gone(pid: int) -> bool:
    """Tell whether a process goes away; a zombie has."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.005)
    return False


def written(path: Path) -> None:
    """Return once *path* has been written to."""
    until = time.monotonic() + LONG
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, path
        time.sleep(0.005)


def test_it_returns_how_the_program_ended_and_what_it_said() -> None:
    assert ran("echo out; echo err >&2; exit 3") == Ended(3, b"out\n", b"err\n")
    assert ran("kill -9 $$").code == -9


def test_words_are_no_shell() -> None:
    assert ran('printf "%s" "$0"', "$(id) ; *").out == b"$(id) ; *"


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HACTL_TEST_SECRET", "hunter2")
    script = (
        "import os, sys; print(sorted(os.environ.items()), os.getsid(0) == os.getpid(),"
        " os.getcwd(), os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd') else '')"
    )
    ended = asyncio.run(run([sys.executable, "-I", "-c", script]))
    assert b"hunter2" not in ended.out
    assert ended.out.startswith(f"{sorted(ENVIRONMENT.items())} True / ".encode())


def test_of_much_output_only_the_beginning_is_kept() -> None:
    ended = ran("echo OK; yes | head -c 300000", limit=1 << 20)
    assert (ended.code, len(ended.out), ended.out[:5]) == (0, KEPT, b"OK\ny\n")


def test_too_much_output_ends_it() -> None:
    with pytest.raises(TooMuchError):
        ran("yes", limit=1 << 20)


def test_output_is_handed_on_until_it_is_enough() -> None:
    heard = bytearray()

    def take(data: bytes) -> bool:
        heard.extend(data)
        return len(heard) < 1000

    asyncio.run(asyncio.wait_for(run(sh("yes"), take=take), LONG))
    assert 1000 <= len(heard) < 1000 + 2 * KEPT * 4


def test_an_error_of_the_taker_is_raised() -> None:
    def take(data: bytes) -> bool:
        raise ValueError("not a queue")

    with pytest.raises(ValueError, match="not a queue"):
        asyncio.run(asyncio.wait_for(run(sh("yes"), take=take), LONG))


def test_a_program_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(run(["/nonexistent/plugin"]))


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM; echo $$ > {0}/pids; sleep 600",
        "sleep 600 & echo $! > {0}/pids; sleep 601 & echo $! >> {0}/pids; wait",
        "setsid sleep 600 & echo $! > {0}/pids; wait",  # has left the group, and is ours still
    ],
    ids=["ignores TERM", "forks", "leaves its group"],
)
def test_a_cancelled_program_is_gone_with_its_children(script: str, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    async def main() -> None:
        task = asyncio.create_task(run(sh(script.format(tmp_path))))
        async with asyncio.timeout(LONG):
            while not (pids.exists() and pids.read_text().endswith("\n")):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.02)  # the second one's number, and setsid
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, LONG)

    asyncio.run(main())
    begun = [int(pid) for pid in pids.read_text().split()]
    assert begun
    assert all(map(gone, begun))


@pytest.mark.long
@pytest.mark.parametrize("turns", range(8))
def test_a_loop_ends_whatever_a_program_has_come_to(turns: int) -> None:
    """When all is cancelled while the program's pipes are connected, asyncio forgets to wake up."""
    code = f"""
import asyncio
from checks._process import run
async def main():
    looking = asyncio.create_task(run(["/bin/sleep", "60"]))
    for _ in range({turns}):
        await asyncio.sleep(0)
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=LONG * 3)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_who_is_left_behind_is_killed_and_not_waited_for() -> None:
    before = time.monotonic()
    ended = ran("sleep 600 & echo $!; exit 1")
    assert ended.code == 1
    assert gone(int(ended.out))
    assert time.monotonic() - before < LONG


def test_a_program_that_is_spared_goes_on_and_its_end_is_waited_for(tmp_path: Path) -> None:
    """Nor does it die of us: when hactld ends it goes on to write, to nobody."""
    fifo, begun, end = tmp_path / "fifo", tmp_path / "begun", tmp_path / "end"
    os.mkfifo(fifo)
    script = f"echo begun > {begun}; read x < {fifo}; seq 100000 && echo ended; echo $? > {end}"

    async def main(patient: bool) -> None:
        task = asyncio.create_task(run(sh(script), spare=True, limit=1000))
        await asyncio.to_thread(written, begun)
        await asyncio.sleep(0.05)  # the loop, too, has to hear that it runs
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        if patient:
            await asyncio.to_thread(fifo.write_text, "go on\n")
        else:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, LONG)

    asyncio.run(main(True))
    assert end.read_text() == "0\n"
    begun.unlink()
    end.unlink()
    asyncio.run(main(False))
    fifo.write_text("go on\n")
    written(end)
