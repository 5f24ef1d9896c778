"""What breaks around hactld: its store, its directories, its descriptors, the clock, relayd.

Real processes; relayctl is a script that does as it is told, relayd the lab's emulator.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from hactl.lab.nodes import Mood
from hactl.lab.relayd import Emulator
from tests.daemon.farm import Farm
from tests.services.servers import free_port, need

pytestmark = pytest.mark.service

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

Scene = Callable[[Farm], Awaitable[None]]


def play(directory: Path, scene: Scene, prefix: tuple[str, ...] = ()) -> None:
    """Run *scene* with a hactld that is started through *prefix*."""
    with socket.socket() as probe:
        probe.bind(("127.0.11.4", 0))
        port = probe.getsockname()[1]

    async def run() -> None:
        farm = Farm.make(directory, port, prefix=prefix)
        text = (
            (directory / "hactl.yaml")
            .read_text()
            .replace("grace: 1s", "grace: 1s, pace: 100% in 1s")
        )
        (directory / "hactl.yaml").write_text(text)
        async with farm:
            await farm.until(farm.settled)
            await scene(farm)
        assert "Traceback" not in farm.log()

    asyncio.run(run())


async def alerts(farm: Farm) -> list[str]:
    found: list[str] = (await farm.status())["alerts"]
    return found


async def alerted(farm: Farm, what: str) -> bool:
    return any(what in alert for alert in await alerts(farm))


async def calm(farm: Farm) -> bool:
    return not await alerts(farm)


async def members(farm: Farm) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await farm.status())["services"][0]["members"]
    return found


async def out_and_back(farm: Farm) -> None:
    """See that hactld still does what it is for."""
    farm.nodes["mx0"].set("smtp", Mood.HANG)
    await farm.until(lambda: farm.disabled() == {"1"}, 20)
    farm.nodes["mx0"].set("smtp", Mood.WELL)
    await farm.until(lambda: farm.disabled() == set(), 20)


# The store


def garble(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 99)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1000)


@pytest.mark.parametrize("spoil", [garble, cut])
def test_a_store_that_is_corrupt_at_the_start_is_said_and_stops_nothing(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    async def scene(farm: Farm) -> None:
        await farm.stop()
        spoil(tmp_path / "state" / "hactl.db")
        await farm.start()
        await farm.until(farm.settled)
        assert await alerted(farm, f"{tmp_path}/state/hactl.db: ")
        assert "store unusable, what happens from now on will be forgotten" in farm.log()
        await out_and_back(farm)
        assert "it is not on disk" in (await farm.ask("drain", "mx1", yes="yes"))["text"]

    play(tmp_path, scene)


def test_a_store_that_is_spoilt_while_it_is_open_stops_nothing(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        for name in ("hactl.db", "hactl.db-wal", "hactl.db-shm"):
            garble(tmp_path / "state" / name)
        await out_and_back(farm)
        await out_and_back(farm)

    play(tmp_path, scene)


# A small disk of its own for both directories, in a mount namespace of hactld's own

SMALL = """\
mkdir -p "$0/disk" && mount -t tmpfs -o size=512k,mode=755 none "$0/disk" &&
mkdir "$0/disk/run" "$0/disk/state" && exec "$@"
"""


def small_disk(directory: Path) -> tuple[str, ...]:
    need("unshare", "nsenter", "mount")
    unshare = ("unshare", "--mount", "--propagation", "private")
    return (*unshare, "sh", "-c", SMALL, str(directory))


def on_small_disk(directory: Path, scene: Scene) -> None:
    async def moved(farm: Farm) -> None:
        await farm.stop()
        yaml = directory / "hactl.yaml"
        text = yaml.read_text()
        text = text.replace(f"state_dir: {directory}/state", f"state_dir: {directory}/disk/state")
        yaml.write_text(text)
        farm.prefix = small_disk(directory)
        await farm.start()
        await farm.until(farm.settled)
        await scene(farm)

    play(directory, moved)


def disk(farm: Farm) -> Path:
    """Return the small disk as it is seen from here."""
    assert farm.process is not None
    return Path(f"/proc/{farm.process.pid}/root{farm.directory}/disk")


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_full_disk_stops_no_failover_and_is_made_up_for(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        fill(disk(farm) / "fill")
        await out_and_back(farm)
        assert "is not on disk; acting all the same" in farm.log()
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        assert await alerted(farm, "the store cannot be written: ")
        (disk(farm) / "fill").unlink()
        await farm.until(lambda: calm(farm))

    on_small_disk(tmp_path, scene)


@pytest.mark.parametrize("kill", [True, False])
def test_hactld_starts_on_a_disk_that_is_read_only_and_knows_what_was_said(
    tmp_path: Path, kill: bool
) -> None:
    need("unshare", "mount")

    async def scene(farm: Farm) -> None:
        await farm.ask("drain", "mx1", who="test")
        await farm.until(lambda: farm.disabled() == {"2"})
        await farm.stop(kill)
        unshare = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
        here = f"{tmp_path}/state"
        read_only = f"mount --bind {here} {here} && mount -o remount,bind,ro {here}"
        farm.prefix = (*unshare, f'{read_only} && exec "$@"', "sh")
        await farm.start()

        async def decided() -> bool:
            return [m["want"] for m in await members(farm)] == ["in", "out"]

        await farm.until(decided)
        assert await alerted(farm, f"{here}/hactl.db: ")
        assert farm.switches() == ["host disable 2"]
        await farm.ask("resume", "mx1")
        await farm.until(lambda: farm.disabled() == set(), 20)
        await farm.until(farm.settled)
        await out_and_back(farm)

    play(tmp_path, scene)


# run_dir


def test_a_run_dir_that_is_taken_away_stops_no_failover(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        shutil.rmtree(tmp_path / "run")
        await out_and_back(farm)
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        assert farm.process is not None
        farm.process.send_signal(signal.SIGUSR1)
        told = f"the marker of own disables cannot be written: {tmp_path}/run/owned.json: No such"
        await farm.until(lambda: told in farm.log())
        assert await farm.stop() == 0
        await farm.start()
        assert (tmp_path / "run").stat().st_mode & 0o7777 == 0o755

    play(tmp_path, scene)


# Descriptors


def test_without_descriptors_nothing_is_known_and_nothing_moves(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        assert farm.process is not None
        process = psutil.Process(farm.process.pid)
        soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        before = farm.switches()
        process.rlimit(psutil.RLIMIT_NOFILE, (3, hard))
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        calls = len(farm.calls())
        await asyncio.sleep(4)  # nothing can be waited for: nothing is what must happen
        assert farm.switches() == before
        assert len(farm.calls()) <= calls + 1
        process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        await farm.until(lambda: farm.disabled() == {"1"}, 20)
        await farm.until(farm.answers, 20)
        assert "Too many open files" in farm.log()
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set())

    play(tmp_path, scene)


def test_few_descriptors_are_shared_out_and_never_exceeded(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        counts = (await farm.status())["counts"]
        assert 8 <= counts["cap"] <= 32
        assert counts["tasks_cap"] >= 1
        await out_and_back(farm)
        assert "Too many open files" not in farm.log()

    play(tmp_path, scene, ("sh", "-c", 'ulimit -n 96 && exec "$@"', "sh"))


# The clock, stepped by an hour each way


@pytest.mark.parametrize("step", ["+3600", "-3600"])
def test_a_clock_that_is_stepped_by_an_hour_moves_nothing_and_ends_nothing(
    tmp_path: Path, step: str
) -> None:
    if FAKETIME is None:
        pytest.skip("no libfaketime here: run tests/services/install")
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    fake = (
        f"LD_PRELOAD={FAKETIME}",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_NO_CACHE=1",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
    )

    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        answer = await farm.ask("drain", "mx0", who="test", **{"for": "30m"})
        assert answer["code"] == 0
        switches, cycles = farm.switches(), (await farm.status())["counts"]["cycles"]
        clock.write_text(f"{step}\n")

        async def stepped() -> bool:
            data = await farm.status()
            return bool(data["counts"]["cycles"] >= cycles + 4)

        await farm.until(stepped)
        data = await farm.status()
        assert farm.switches() == switches
        assert [o["target"] for o in data["overrides"]] == ["mx0"]
        assert "late by" not in farm.log()
        await farm.stop(kill=True)
        await farm.start()

        async def decided() -> bool:
            return [m["want"] for m in await members(farm)] == ["out", "in"]

        await farm.until(decided)
        assert farm.switches() == switches
        left = [o["target"] for o in (await farm.status())["overrides"]]
        assert left == ["mx0"], "half an hour is half an hour, whatever the clock says"
        await farm.ask("resume", "mx0")
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set(), 30)

    play(tmp_path, scene, ("env", *fake))


# A relayctl that is killed at our deadline, and what it asked for carried out later


def test_what_is_carried_out_after_our_deadline_is_ours_and_nothing_is_sent_against_it(
    tmp_path: Path,
) -> None:
    async def scene(farm: Farm) -> None:
        farm.misbehave("late")
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        assert "outcome unknown" in farm.log()
        await farm.until(lambda: calm(farm), 20)
        assert [m["relayd"] for m in await members(farm)] == ["disabled", "up"]
        assert set(farm.switches()) == {"host disable 1"}
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set(), 20)
        await farm.until(farm.settled)
        assert set(farm.switches()) == {"host disable 1", "host enable 1"}
        farm.misbehave("no")
        await farm.until(lambda: calm(farm), 20)
        assert "foreign" not in farm.log()

    play(tmp_path, scene)


# relayd itself

FIRST = """\
interval 2
table <mx> { 127.0.11.4 127.0.11.5 }
redirect mx-smtp {
	listen on 127.0.11.1 port %(front)s
	forward to <mx> port %(smtp)s check tcp
}
"""
OTHER = """\
interval 2
table <other> { 127.0.11.5 127.0.11.6 127.0.11.7 }
table <mx> { 127.0.11.5 127.0.11.4 }
redirect other {
	listen on 127.0.11.2 port %(front)s
	forward to <other> port %(smtp)s check tcp
}
redirect mx-smtp {
	listen on 127.0.11.1 port %(front)s
	forward to <mx> port %(smtp)s check tcp
}
"""


def test_relayd_gone_and_back_with_other_ids_has_the_same_nodes_out(tmp_path: Path) -> None:
    """What was host 1 is host 5 afterwards, and host 1 is another node."""

    async def scene(farm: Farm) -> None:
        await farm.stop()
        conf, yaml = tmp_path / "relayd.conf", tmp_path / "hactl.yaml"
        text = yaml.read_text()
        ports = {"smtp": text.partition("port: ")[2].partition(",")[0], "front": free_port()}
        conf.write_text(FIRST % ports)
        here = tmp_path / "relayd"
        relayd = Emulator(conf, here)
        await relayd.start()
        text = text.replace(f"{tmp_path}/relayctl", f"{here}/relayctl, socket: {here}/relayd.sock")
        text = text.replace(f"{tmp_path}/pfctl", f"{here}/pfctl").replace(
            "timeout: 300ms}", "timeout: 2s}"
        )
        yaml.write_text(text)
        await farm.start()
        try:
            await farm.until(lambda: in_pf(relayd) == {"127.0.11.4", "127.0.11.5"}, 20)
            farm.nodes["mx0"].set("smtp", Mood.HANG)
            await farm.until(lambda: in_pf(relayd) == {"127.0.11.5"}, 20)
            assert disabled(relayd) == [("1", "127.0.11.4")]
            await relayd.stop()

            async def gone() -> bool:
                return "relayd.sock" in (await farm.status())["relayd"]

            await farm.until(gone, 20)
            conf.write_text(OTHER % ports)
            await relayd.start()
            await farm.until(lambda: disabled(relayd) == [("5", "127.0.11.4")], 20)
            await farm.until(lambda: in_pf(relayd) == {"127.0.11.5"}, 20)
            # with relayd's file read again, for it has another service now
            assert (await farm.ask("reload"))["code"] == 0
            farm.nodes["mx0"].set("smtp", Mood.WELL)
            await farm.until(lambda: in_pf(relayd) == {"127.0.11.4", "127.0.11.5"}, 30)
            assert disabled(relayd) == []
        finally:
            await relayd.stop()

    play(tmp_path, scene)


def in_pf(relayd: Emulator) -> set[str]:
    return set(relayd.pf.tables.get("mx-smtp", ()))


def disabled(relayd: Emulator) -> list[tuple[str, str]]:
    """Return number and name of each host that relayd shows disabled."""
    rows = relayd.command("show hosts").stdout.splitlines()
    cells = [[cell.strip() for cell in row.split("\t")] for row in rows]
    return [(row[0], row[2]) for row in cells if row[-1] == "disabled"]
