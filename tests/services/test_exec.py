"""The exec check with a plugin that misbehaves: found out in time, and nothing of it is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from checks.exec import Exec
from hactl.core.health import State
from hactl.core.model import Verdict
from tests.services.opensmtpd import written
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

# A shell that reads what to do from a file.
PLUGIN = "echo 'up | sessions=3'"
MINE = "600.25"  # seconds that nobody else sleeps


@pytest.fixture(scope="module")
def plugin(directory: Path) -> Path:
    path = directory / "plugin"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(scope="module")
def watch(plugin: Path) -> Iterator[Watch]:
    check = Exec(command=("/bin/sh", str(plugin)))
    with Watch({"exec": timed(check, 0.5, 0.4)}) as watch:
        yield watch


def left() -> list[int]:
    """Return the processes that the plugin has begun."""
    return [p.pid for p in psutil.process_iter(["cmdline"]) if MINE in (p.info["cmdline"] or ())]


@pytest.mark.parametrize(
    ("script", "reason", "silent"),
    [
        (f"trap '' TERM; sleep {MINE}", r"run: no answer in 400ms", True),
        (f"sleep {MINE} & setsid sleep {MINE} & wait", r"run: no answer in 400ms", True),
        ("echo 'no room |'; exit 2", r"no room", False),
    ],
    ids=["ignores TERM", "forks", "fails"],
)
def test_a_fault_is_found_out_in_time(
    plugin: Path, watch: Watch, script: str, reason: str, silent: bool
) -> None:
    endure(watch, written(plugin, script), {"exec": reason}, silent=silent)
    assert left() == []


def test_a_gigabyte_of_output_says_nothing_and_is_not_kept(plugin: Path, watch: Watch) -> None:
    watch.until(State.UP)
    ours = psutil.Process(os.getpid())
    before = ours.memory_info().rss
    with written(plugin, "head -c 1000000000 /dev/zero"):
        watch.after(2, "exec")
        health = watch.after(2, "exec")
        assert health.last is not None
        assert (health.state, health.last.verdict) == (State.UP, Verdict.UNKNOWN)
        assert health.last.reason == "run: more than 16 MiB of output"
    assert ours.memory_info().rss - before < 32 << 20
    watch.until(State.UP)
