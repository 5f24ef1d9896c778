"""The nfs check: the mount table, what a worker says, and workers that do not end."""

from __future__ import annotations

import asyncio
import errno
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from checks import NOBODY, Probed, Step, Target, _mount, _process, _worker
from checks._process import Ended
from checks._tasks import look
from checks.nfs import Mounted, Nfs, Said
from hactl.core.model import Result, Verdict, ok
from tests.checks.peers import LONG, SHORT, summary

MAIL = Nfs(path=Path("/srv/mail"), source="10.0.0.9:/mail")
TABLE = [
    Mounted("/dev/sd0a", "/", "ffs", "rw"),
    Mounted("10.0.0.9:/mail", "/srv/mail", "nfs", "rw,soft"),
]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], None),
        ([Mounted("", "/srv", "tmpfs", "ro")], None),
        ([Mounted("10.0.0.9:/mail", "/srv/mail/", "nfs4", "rw")], None),
        ([Mounted("10.0.0.9:/mail", "/srv/mail", "nfs", "rw,ro")], "mounted read-only"),
        ([Mounted("tmpfs", "/srv/mail", "tmpfs", "rw")], "of type tmpfs, not nfs or nfs4"),
        ([Mounted("\x1b:/x", "/srv/mail", "nfs", "rw")], r"from \x1b:/x, not 10.0.0.9:/mail"),
    ],
)
def test_judges_the_last_line_of_the_mount_table(lines: list[Mounted], reason: str | None) -> None:
    result = MAIL.judge_mount([*TABLE, *lines])
    assert (result and result.reason) == (reason and f"mount: {reason}")


def test_options_widen_what_may_be_mounted() -> None:
    table = [Mounted("x", "/srv/mail", "tmpfs", "ro")]
    assert Nfs(path=MAIL.path, fstype=("tmpfs",), writable=False).judge_mount(table) is None
    missing = MAIL.judge_mount(TABLE[:1])
    assert missing is not None
    assert (missing.verdict, missing.reason) == (Verdict.FAIL, "mount: not mounted")


def said(*lines: str) -> Said:
    heard = Said()
    for line in lines:
        heard.hear(line.encode())
    return heard


ROOM = "figures 4000000 2000000 100 90"
BEGUN = "step statvfs 10.0"


@pytest.mark.parametrize(
    ("lines", "verdict", "reason"),
    [
        ([ROOM], "ok", "1.9M free of 3.8M"),
        (["figures 4000000 0 100 90"], "fail", "full: 0 free of 3.8M"),
        (["figures 4000000 -4096 100 90"], "fail", "full: -4.0K free of 3.8M"),
        (["figures 4000000 5 100 0"], "fail", "full: no inode free, 5 free of 3.8M"),
        (["figures 0 0 0 0"], "ok", "0 free"),
        ([f"error {errno.ESTALE}"], "fail", "statvfs: stale file handle"),
        ([ROOM, "step stat 10.5", f"error {errno.ENOENT}"], "fail",
         "stat: no such file or directory"),
        ([ROOM, "step stat 10.5", f"error {errno.EACCES}"], "unknown", "stat: permission denied"),
        ([f"error {errno.EMFILE}"], "unknown", "statvfs: too many open files"),
        ([ROOM, "step write 10.5", f"error {errno.EROFS}"], "fail",
         "write: read-only file system"),
        ([ROOM, "step write 10.5", f"error {errno.ENOSPC}"], "fail",
         "write: no space left on device"),
        ([ROOM, "differs"], "fail", "read: not what was written"),
    ],
)  # fmt: skip
def test_judges_what_a_worker_says(lines: list[str], verdict: str, reason: str) -> None:
    result = MAIL.judge(said(BEGUN, *lines))
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)


def test_measures_room_and_the_seconds_of_each_step() -> None:
    heard = said(BEGUN, ROOM, "step stat 10.5", "step end 10.75")
    assert MAIL.judge(heard).measures == {
        "statvfs_seconds": 0.5, "stat_seconds": 0.25, "free_bytes": 2_000_000, "free_percent": 50,
        "free_inodes": 90, "free_inodes_percent": 90,
    }  # fmt: skip
    for wrong in (b"what", b"step x", b"error x", b"figures 1", b"\xff"):
        with pytest.raises((ValueError, LookupError, TypeError)):
            Said().hear(wrong)


def test_a_full_or_read_only_mount_is_well_where_nothing_is_written() -> None:
    reader = Nfs(path=MAIL.path, writable=False)
    assert reader.judge(said(BEGUN, "figures 4000000 0 100 0")).verdict is Verdict.OK


def test_the_worker_itself_works_on_any_directory(tmp_path: Path) -> None:
    """Its words are those that the check understands."""

    async def main(canary: Path) -> Said:
        heard = Said()
        command = [
            sys.executable,
            "-I",
            "-S",
            _mount.__file__,
            str(tmp_path),
            str(tmp_path),
            str(canary),
        ]
        await _worker.run("x", command, lambda name: None, heard.hear)
        return heard

    heard = asyncio.run(main(tmp_path))
    assert MAIL.judge(heard).verdict is Verdict.OK
    assert heard.seconds.keys() == {
        f"{step}_seconds" for step in ("statvfs", "stat", "write", "read", "delete")
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    lost = asyncio.run(main(tmp_path / "none"))
    assert (lost.step, lost.error) == ("write", errno.ENOENT)


# Workers


class Working(Probed, frozen=True, kw_only=True, tag="working"):
    """A check that has a worker run a shell's words."""

    words: str

    async def probe(self, target: Target, step: Step) -> Result:
        def heard(line: bytes) -> str:
            return line.decode()

        try:
            await _worker.run("thing", ["/bin/sh", "-c", self.words], step, heard)
        except _worker.StuckError as stuck:
            return Result(
                Verdict.FAIL, f"{stuck.step} hangs", measures={"stuck_seconds": stuck.age}
            )
        return ok("done")


async def gone() -> None:
    """Return when the loop has heard of the worker's end."""
    async with asyncio.timeout(LONG):
        while "thing" in _worker._at_work:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_a_worker_is_killed_at_the_end_of_its_look() -> None:
    async def main() -> tuple[Result, Result]:
        silent = await look(Working(words="echo deep; sleep 600"), NOBODY, SHORT * 3)
        await gone()
        return silent, await look(Working(words="echo well"), NOBODY, LONG)

    silent, well = asyncio.run(main())
    assert summary(silent) == (Verdict.FAIL, "deep", "deep: no answer in 300ms")
    assert summary(well) == (Verdict.OK, "well", "done")


def test_a_worker_that_cannot_be_killed_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    release: list[asyncio.Event] = []

    async def unkillable(command: list[str], take: Any) -> Ended:
        started.append(command[-1])
        take(b"deep\n")
        release.append(asyncio.Event())
        while not release[0].is_set():
            try:
                await release[0].wait()
            except asyncio.CancelledError:
                continue  # as the kernel does
        return Ended(0, b"", b"")

    monkeypatch.setattr(_process, "run", unkillable)

    async def main() -> list[Result]:
        check = Working(words="x")
        results = [await look(check, NOBODY, SHORT) for _ in range(3)]
        release[0].set()
        await gone()
        return [*results, await look(check, NOBODY, LONG)]

    first, second, third, last = asyncio.run(main())
    assert summary(first) == (Verdict.FAIL, "deep", "deep: no answer in 100ms")
    assert [second.reason, third.reason] == ["deep hangs", "deep hangs"]
    assert third.measures["stuck_seconds"] >= second.measures["stuck_seconds"] >= SHORT
    assert (last.verdict, len(started)) == (Verdict.OK, 2)


def test_two_looks_at_one_thing_come_one_after_the_other() -> None:
    async def main() -> list[Result]:
        check = Working(words="echo busy; sleep 0.05")
        return await asyncio.gather(*(look(check, NOBODY, LONG) for _ in range(2)))

    first, second = asyncio.run(main())
    assert (first.verdict, second.verdict) == (Verdict.OK, Verdict.OK)
    assert [name for name, _ in second.steps] == ["before", "busy"]


def test_options_that_cannot_be_are_said_at_load() -> None:
    below = structs.replace(MAIL, file=MAIL.path / "a", canary=MAIL.path)
    assert list(below.problems()) == []
    for field in ("file", "canary"):
        for path in ("/srv/mailbox", "/srv/mail/../x"):
            wrong = structs.replace(MAIL, **{field: Path(path)})
            assert list(wrong.problems()) == [(field, "expected a path below /srv/mail")]
    reader = structs.replace(below, writable=False)
    assert [field for field, _ in reader.problems()] == ["canary"]
