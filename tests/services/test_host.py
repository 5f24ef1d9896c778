"""The host check on this machine: a process ends, a disk fills up and runs out of inodes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from checks.host import Host
from hactl.core.health import State
from hactl.core.model import Limit
from tests.services.servers import need
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

NAME = "hactl-tested"  # of a process, as short as the kernel keeps it
FREE = Limit(warn=50, fail=20, low=True)


@pytest.fixture
def disk(directory: Path) -> Iterator[Path]:
    """A file system of 1 MiB with 40 inodes."""
    need("mount", "umount")
    path = directory / "disk"
    path.mkdir()
    options = "size=1m,nr_inodes=40,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


class Sleeper:
    """A process with a name of its own; it can be ended and started again."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / NAME
        found = shutil.which("sleep")
        assert found is not None
        shutil.copy(found, self._file)
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen([self._file, "3600"])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def ended(self) -> Iterator[None]:
        self.stop()
        yield
        self._start()


@contextmanager
def filled(path: Path) -> Iterator[None]:
    """Fill a disk, by and by, to the last byte."""
    with suppress(OSError), (path / "file").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    yield
    (path / "file").unlink()


@contextmanager
def crowded(path: Path) -> Iterator[None]:
    """Use up a disk's inodes with empty files."""
    files = []
    with suppress(OSError):
        for number in range(1000):
            file = path / str(number)
            file.touch()
            files.append(file)
    yield
    for file in files:
        file.unlink()


def test_what_a_machine_runs_out_of_is_seen_and_that_it_is_there_again(
    directory: Path, disk: Path
) -> None:
    sleeper = Sleeper(directory)
    space, inodes = ({name: FREE} for name in ("disk_free_percent", "inodes_free_percent"))
    checks = {
        "processes": timed(Host(processes=(NAME,)), 0.3, 5.0),
        "space": timed(Host(disks=(disk,)), 0.3, 5.0, limits=space),
        "inodes": timed(Host(disks=(disk,)), 0.3, 5.0, limits=inodes),
    }
    try:
        with Watch(checks) as watch:
            health = watch.until(State.UP)["processes"]
            assert health.last is not None
            assert health.last.measures["processes_count"] == 1
            endure(watch, sleeper.ended(), {"processes": f"not running: {NAME}"}, silent=False)
            full = {"space": "disk_free_percent is 0 .limit 20."}
            endure(watch, filled(disk), full, silent=False)
            used = {"inodes": "inodes_free_percent is 0 .limit 20."}
            endure(watch, crowded(disk), used, silent=False)
    finally:
        sleeper.stop()
