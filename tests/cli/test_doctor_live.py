"""doctor among real processes: an emulated relayd with its relayctl and pfctl, and a hactld."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hactl.cli._judge import Level, exit_code, judge
from hactl.cli.doctor import gather
from hactl.cli.init import propose, text
from hactl.lab.nodes import Node
from hactl.lab.relayd import Emulator
from hactl.relayd import conf as conf_
from tests.cli.test_cli import hactl

pytestmark = pytest.mark.service

# Addresses of this run's own, so that runs side by side do not meet.
A, B, VIP = (f"127.{128 + (os.getpid() >> 8 & 63)}.{os.getpid() & 255}.{n}" for n in (4, 5, 10))
CONF = f"""\
interval 1
timeout 300
table <mx0> {{ {A} retry 2 }}
table <mx1> {{ {B} retry 2 }}
redirect mx-smtp {{
	listen on {VIP} port 25
	forward to <mx0> port 25 check tcp
	forward to <mx1> port 25 check tcp
}}
redirect mx-old {{
	listen on {VIP} port 2525
	forward to <mx0> port 25 check tcp
	forward to <mx1> port 25 check tcp
}}
"""


class Site:
    """Everything that doctor looks at, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.conf = directory / "relayd.conf"
        self.conf.write_text(CONF)
        self.yaml = directory / "hactl.yaml"
        self.relayd = Emulator(self.conf, directory, tick=0.2)
        self.nodes = [Node("mx0", {"smtp": (A, 25)}), Node("mx1", {"smtp": (B, 25)})]
        conf = conf_.read(self.conf)
        made = text(propose(conf), conf, self.conf)
        made = made.replace(
            f"relayd: {{conf: {self.conf}}}",
            f"relayd: {{conf: {self.conf}, relayctl: {directory}/relayctl,"
            f" pfctl: {directory}/pfctl, socket: {directory}/relayd.sock}}\n"
            f"run_dir: {directory}/run\nstate_dir: {directory}/state\nuser: root",
        )
        self.yaml.write_text(made)

    async def start(self, file: Path) -> asyncio.subprocess.Process:
        """Start a hactld."""
        with (self.directory / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hactl.daemon.main", "-d", "-f", str(file)),
                stdout=log,
                stderr=log,
            )

    async def faults(self) -> tuple[int, list[tuple[Level, str]]]:
        """Return doctor's exit code and what is not ok."""
        rows = judge(await gather(self.yaml, None))
        return exit_code(rows), [(r.level, r.what) for r in rows if r.level != Level.OK]

    async def until(self, *expected: tuple[Level, str]) -> int:
        """Wait for the faults that are expected; return the exit code."""
        bad: list[tuple[Level, str]] = []
        for _ in range(20):
            code, bad = await self.faults()
            if bad == list(expected):
                return code
            await asyncio.sleep(0.2)
        log = (self.directory / "log").read_text()
        raise AssertionError(f"doctor says {bad}, not {expected}; the log:\n{log}")


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[tuple[Site, asyncio.subprocess.Process]]:
    place = Site(directory)
    process = None
    try:
        for node in place.nodes:
            await node.start()
        await place.relayd.start()
        process = await place.start(place.yaml)
        assert await place.until() == 0
        yield place, process
    finally:
        if process is not None and process.returncode is None:
            process.terminate()
            await process.wait()
        await place.relayd.stop()
        for node in place.nodes:
            await node.stop()


def test_mistakes_planted_among_real_processes(tmp_path: Path) -> None:
    async def scene() -> None:
        async with site(tmp_path) as (place, process):
            page = await hactl("doctor", "-f", str(place.yaml))
            assert (page.code, page.err) == (0, "")
            assert page.out.splitlines()[-1].startswith("0 errors, 0 warnings, ")

            place.relayd.pf.anchored = False
            assert await place.until((Level.ERROR, "anchor")) == 2
            place.relayd.pf.anchored = True

            control = tmp_path / "run" / "hactl.sock"
            control.chmod(0o666)
            assert place.relayd.socket is not None
            place.relayd.socket.chmod(0o666)
            sockets = (Level.ERROR, "sockets")
            assert await place.until(sockets, sockets) == 2
            control.chmod(0o660)
            place.relayd.socket.chmod(0o660)

            place.relayd.command("redirect disable mx-old")
            assert await place.until((Level.WARNING, "relayd")) == 1
            place.relayd.command("redirect enable mx-old")
            assert await place.until() == 0

            # the file has lost a redirect, and relayd has not seen it yet
            place.conf.write_text(CONF[: CONF.index("redirect mx-old")])
            assert await place.until((Level.ERROR, "relayd"), (Level.ERROR, "services")) == 2
            place.relayd.hup()
            left = [(Level.ERROR, "services"), (Level.ERROR, "left in pf")]
            assert await place.until(*left) == 2
            place.conf.write_text(CONF)
            place.relayd.hup()
            assert await place.until() == 0

            other = tmp_path / "other.yaml"
            others = place.yaml.read_text().replace("/run\n", "/run2\n")
            other.write_text(others.replace("/state\n", "/state2\n"))
            second = await place.start(other)
            assert await place.until((Level.ERROR, "processes")) == 2
            second.send_signal(signal.SIGTERM)
            await second.wait()

            place.yaml.rename(tmp_path / "gone")
            ran = await hactl("doctor", "-f", str(place.yaml), "-s", str(control), "--json")
            assert ran.code == 2
            (tmp_path / "gone").rename(place.yaml)

            place.relayd.kill()
            await place.until((Level.ERROR, "relayctl"))
            process.kill()
            await process.wait()
            assert await place.until((Level.ERROR, "relayctl"), (Level.ERROR, "hactld")) == 3

    asyncio.run(scene())
