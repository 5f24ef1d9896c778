"""The host check: this machine, and figures of others."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import sys
from pathlib import Path

import psutil
import pytest

from checks import NOBODY
from checks._tasks import look
from checks.host import Host, disks, processes, system
from hactl.core.model import Result, Verdict
from tests.checks.peers import summary


def looked(option: Host) -> Result:
    return asyncio.run(look(option, NOBODY, 20))


def test_this_machine_is_measured(tmp_path: Path) -> None:
    own = psutil.Process().name()
    found = looked(Host(disks=(Path("/"), tmp_path), processes=(own,)))
    assert (found.verdict, found.step) == (Verdict.OK, "processes")
    assert {"load_per_core", "memory_available_percent", "swap_used_percent", "disk_free_percent",
            "disk_free_bytes", "processes_count", "descriptors_count",
            "uptime_seconds"} <= found.measures.keys()  # fmt: skip
    assert all(math.isfinite(value) and value >= 0 for value in found.measures.values())
    assert found.measures["memory_available_percent"] <= 100
    assert found.measures["descriptors_count"] > 2


def test_a_process_that_does_not_run_is_a_fail() -> None:
    found = looked(Host(processes=("no-such-process", "nor-this")))
    assert found.verdict is Verdict.FAIL
    assert found.reason == "not running: no-such-process, nor-this"


def test_a_path_that_is_missing_is_unknown(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    found = looked(Host(disks=(gone, tmp_path), processes=(psutil.Process().name(),)))
    assert summary(found) == (
        Verdict.UNKNOWN, "disks", f"disks: {gone}: no such file or directory"
    )  # fmt: skip
    assert {"disk_free_percent", "processes_count"} <= found.measures.keys()


@pytest.mark.parametrize("program", [sys.executable, "/bin/false", "/nonexistent/python"])
def test_no_disk_hides_a_process_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    found = looked(Host(disks=(tmp_path / "gone",), processes=("no-such-process",)))
    assert (found.verdict, found.step) == (Verdict.FAIL, "processes")
    assert found.reason.startswith("not running: no-such-process; disks: ")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENXIO, errno.ESTALE])
def test_a_file_system_that_is_broken_is_a_fail(number: int) -> None:
    out = b"%d\n%d\n1000 400 300 4096 0 0 0\n" % (errno.EACCES, number)
    found = disks(out, (Path("/a"), Path("/x"), Path("/var")))
    why = os.strerror(number).lower()
    assert found == (
        ["/var 33 % free"],
        {"disk_free_percent": pytest.approx(100 * 300 / 900), "disk_free_bytes": 300 * 4096},
        Verdict.FAIL,
        f"disks: /x: {why}, /a: permission denied",
    )


def test_free_space_is_what_others_than_root_have() -> None:
    out = b"1000 400 300 4096 100 50 50\n1000 900 900 1 0 0 0\n"
    found = disks(out, (Path("/"), Path("/var")))
    assert (found.words, found.verdict) == (["/ 33 % free"], Verdict.OK)
    assert found.measures == {
        "disk_free_percent": pytest.approx(100 * 300 / 900),
        "disk_free_bytes": 900,
        "inodes_free_percent": 50.0,
    }
    full = disks(b"0 0 0 0 0 0 0\n", (Path("/proc"),))
    assert full.words == ["/proc 100 % free"]
    assert full.measures == {"disk_free_percent": 100.0, "disk_free_bytes": 0}


def test_what_the_system_does_not_tell_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise psutil.AccessDenied

    for name in ("boot_time", "virtual_memory", "swap_memory"):
        monkeypatch.setattr(psutil, name, refused)
    monkeypatch.delattr(psutil.Process, "rlimit", raising=False)
    _, measures = system()
    assert measures.keys() == {"load_per_core"}
    _, counts = asyncio.run(processes([psutil.Process().name()]))
    assert counts.keys() == {"processes_count", "descriptors_count"}


def test_an_empty_name_is_refused() -> None:
    assert [name for name, _ in Host(processes=("",)).problems()] == ["processes"]
