"""The nfs check on mounts that hang in the kernel, break, fill up and come back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec import structs

from checks import Target, _mount
from checks._tasks import look
from checks.nfs import Nfs
from checks.tcp import Tcp
from hactl.core.health import State
from hactl.core.model import Result
from tests.services.mount import SOURCE, TYPE, Mount
from tests.services.servers import PATIENCE
from tests.services.watching import Watch, timed

pytestmark = pytest.mark.service

LIMIT = 0.5
PACE = 2.0  # seconds from look to look: a worker may take a while to begin on a busy machine


def workers() -> list[psutil.Process]:
    """Return the workers of this process."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if _mount.__file__ in each.cmdline() or each.status() == psutil.STATUS_DISK_SLEEP:
                found.append(each)
    return found


@pytest.fixture
def mount(directory: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    place = directory / request.node.name.replace("/", "_")
    place.mkdir()
    mount = Mount(place)
    yield mount
    mount.stop()
    psutil.wait_procs(workers(), timeout=PATIENCE)


def once(check: Nfs, limit: float = PATIENCE) -> Result:
    return asyncio.run(look(check, Target("mx0"), limit))


def test_a_good_mount_has_measures_and_no_file_left(mount: Mount) -> None:
    check = Nfs(path=mount.path, fstype=(TYPE,), source=SOURCE, file=mount.path, canary=mount.path)
    result = once(check)
    assert (result.verdict, result.reason) == ("ok", "1.9G free of 3.8G")
    assert [name for name, _ in result.steps] == [
        "mount", "statvfs", "stat", "write", "read", "delete"
    ]  # fmt: skip
    assert result.measures.keys() >= {"statvfs_seconds", "write_seconds", "delete_seconds"}
    assert (result.measures["free_percent"], result.measures["free_inodes"]) == (50, 900)
    assert list(mount.path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "options", "verdict", "reason"),
    [
        ("estale", {}, "fail", "statvfs: stale file handle"),
        ("eio", {}, "fail", "statvfs: input/output error"),
        ("full", {}, "fail", "full: 0 free of 3.8G"),
        ("full", {"writable": False}, "ok", "0 free of 3.8G"),
        ("ro", {"canary": True}, "fail", "write: read-only file system"),
        ("ro", {}, "ok", "1.9G free of 3.8G"),
        ("ok", {"file": True}, "fail", "stat: no such file or directory"),
        ("ok", {"source": "10.0.0.8:/x"}, "fail", f"mount: from {SOURCE}, not 10.0.0.8:/x"),
        ("ok", {"fstype": ("nfs", "nfs4")}, "fail", f"mount: of type {TYPE}, not nfs or nfs4"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_mount_is_said(
    mount: Mount, word: str, options: dict[str, Any], verdict: str, reason: str
) -> None:
    if options.get("canary"):
        options = {"canary": mount.path}
    if options.get("file"):
        options = {"file": mount.path / "none"}
    check = Nfs(**{"path": mount.path, "fstype": (TYPE,), **options})
    with mount.being(word):
        result = once(check)
    assert (result.verdict, result.reason) == (verdict, reason)


def test_a_slow_mount_shows_in_the_measures_of_its_steps(mount: Mount) -> None:
    with mount.being("slow 0.3"):
        result = once(mount.check)
    assert result.verdict == "ok"
    assert result.measures["statvfs_seconds"] >= 0.3


def test_what_is_not_mounted_is_not_looked_at(mount: Mount) -> None:
    mount.stop()
    result = once(mount.check)
    assert (result.verdict, result.reason) == ("fail", "mount: not mounted")
    mount.start()


def test_a_mount_whose_server_is_gone_is_an_error(mount: Mount) -> None:
    mount.process.kill()
    mount.process.wait()
    result = once(mount.check)
    assert (result.verdict, result.reason) == (
        "fail", "statvfs: transport endpoint is not connected"
    )  # fmt: skip


def watched(mount: Mount) -> Watch:
    """Watch by two checks of one mount, and a port that has nothing to do with it."""
    other = Nfs(path=mount.path, fstype=(TYPE,), file=mount.path)
    checks = {
        name: structs.replace(timed(check, PACE, PACE, 0.2), rise=1)
        for name, check in {"mail": mount.check, "other": other}.items()
    }
    return Watch(checks | {"port": timed(Tcp(port=1), 0.2, 0.2, 0.2)})


@pytest.mark.parametrize("how", ["hang", "frozen"])
def test_a_hung_mount_has_one_worker_and_comes_back(mount: Mount, how: str) -> None:
    with watched(mount) as watch:
        watch.until(State.UP, "mail", "other")
        with mount.frozen() if how == "frozen" else mount.being("hang"):
            downs = watch.until(State.DOWN, "mail", "other")
            for health in downs.values():
                assert health.last is not None
                assert health.last.verdict == "fail"
            watch.after(3, "mail")
            assert len(workers()) <= 1
            if how == "hang":  # SIGKILL does nothing to it
                assert [each.status() for each in workers()] == [psutil.STATUS_DISK_SLEEP]
                last = watch.after(1, "mail").last
                assert last is not None
                assert last.reason.startswith("statvfs: hangs for ")
                assert last.measures["stuck_seconds"] > PACE
            watch.after(5, "port")
        watch.until(State.UP, "mail", "other")
    psutil.wait_procs(workers(), timeout=PATIENCE)
    assert workers() == []


def test_nothing_waits_for_a_hung_mount_at_the_end(mount: Mount) -> None:
    """A program that looks, and ends while its worker hangs."""
    code = f"""
import asyncio
from pathlib import Path
from checks import Target
from checks._tasks import look
from checks.nfs import Nfs
print(asyncio.run(look(Nfs(path=Path({str(mount.path)!r}), fstype=({TYPE!r},)), Target("mx0"), {LIMIT})).reason)
"""
    with mount.being("hang"):
        began = time.monotonic()
        command = [sys.executable, "-c", code]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        took = time.monotonic() - began
    assert (ended.stdout, ended.stderr) == (f"statvfs: no answer in {LIMIT * 1000:.0f}ms\n", "")
    assert took < PATIENCE / 2
