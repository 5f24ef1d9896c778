"""hactld killed with -9 over and over while the demo's story goes on, once through.

HACTL_KILLS says how often, spread evenly over the acts: 20, or 200 in under ten minutes.  Looked at
are the state right after each restart, and that a restart as such moves nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hactl.lab.demo import Hactld
from hactl.lab.nodes import Mood, Node
from hactl.lab.relayd import Emulator
from tests.services.servers import free_port

pytestmark = pytest.mark.service

KILLS = int(os.environ.get("HACTL_KILLS", "20"))
LIFE = (0.3, 3.0)  # seconds from hactld's first answer to its end
NODES = {"mx0": "127.0.16.4", "mx1": "127.0.16.5"}
SERVICES = ("mx0-smtp", "mx1-smtp")

RELAYD = """\
interval 2
timeout 400
table <mx0> {{ {mx0} }}
table <mx1> {{ {mx1} }}
table <fallback-mx0> {{ {mx1} }}
table <fallback-mx1> {{ {mx0} }}
redirect mx0-smtp {{
	listen on 127.0.16.1 port {front0} sticky-address
	forward to <mx0> port {smtp} check tcp
	forward to <fallback-mx0> port {smtp} check tcp
}}
redirect mx1-smtp {{
	listen on 127.0.16.1 port {front1} sticky-address
	forward to <mx1> port {smtp} check tcp
	forward to <fallback-mx1> port {smtp} check tcp
}}
"""
HACTL = """\
mode: relayctl
nodes: {{mx0: {mx0}, mx1: {mx1}}}
checks:
  smtp: {{type: smtp, port: {smtp}, interval: 1s, timeout: 500ms}}
services:
  mx0-smtp: &mx {{require: [smtp], grace: 3s, pace: 100% in 60s}}
  mx1-smtp: *mx
relayd:
  conf: {dir}/relayd.conf
  relayctl: {dir}/relayd/relayctl
  pfctl: {dir}/relayd/pfctl
  socket: {dir}/relayd/relayd.sock
run_dir: {dir}/run
state_dir: {dir}/state
user: root
"""


class Killed(NamedTuple):
    """One restart: seconds until hactld answered, and until it had seen relayd and decided."""

    act: str
    answered: float
    decided: float
    steady: bool  # the act's goal was reached before


class Stage:
    """Nodes, relayd, hactld, and what was seen of them."""

    def __init__(self, directory: Path) -> None:
        ports = {"smtp": free_port(), "front0": free_port(), "front1": free_port()}
        (directory / "relayd.conf").write_text(RELAYD.format(**ports, **NODES))
        (directory / "hactl.yaml").write_text(HACTL.format(dir=directory, **ports, **NODES))
        self.directory = directory
        self.nodes = {n: Node(n, {"smtp": (a, ports["smtp"])}) for n, a in NODES.items()}
        self.relayd = Emulator(directory / "relayd.conf", directory / "relayd")
        self.hactld = Hactld(directory)
        self.killed: list[Killed] = []
        self.random = random.Random(4)

    def set(self, mood: Mood, *names: str) -> None:
        for name in names:
            self.nodes[name].set("smtp", mood)

    def disabled(self) -> list[str]:
        """Return the nodes that relayd shows disabled, once for each table that they are in."""
        names = {address: name for name, address in NODES.items()}
        rows = self.relayd.command("show hosts").stdout.splitlines()
        cells = [[cell.strip() for cell in row.split("\t")] for row in rows]
        return [names[row[2]] for row in cells if row[-1] == "disabled"]

    def pf(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(self.relayd.pf.tables.get(service, ())) for service in SERVICES)

    def switches(self) -> int:
        return (self.directory / "hactld.log").read_text().count(" acted service=")

    async def status(self) -> Any:
        return (await self.hactld.ask("status"))["data"]

    async def until(self, what: Callable[[], bool | Awaitable[bool]], limit: float = 30.0) -> None:
        end = time.monotonic() + limit
        while not (found if isinstance(found := what(), bool) else await found):
            log = (self.directory / "hactld.log").read_text()
            assert time.monotonic() < end, f"never so:\n{log[-3000:]}"
            await asyncio.sleep(0.01)

    async def restart(self, act: str, *, steady: bool, overrides: list[str]) -> None:
        """Kill hactld, start it again, and look at what there is then."""
        before = self.disabled()
        await self.hactld.kill()
        began = time.monotonic()
        await self.hactld.start()
        answered = time.monotonic() - began

        async def decided() -> bool:
            data = await self.status()
            whole = [m for s in data["services"] for m in s["members"]]
            return not data["relayd"] and len(whole) == 4

        await self.until(decided)
        data = await self.status()
        self.killed.append(Killed(act, answered, time.monotonic() - began, steady))
        whole = [m for s in data["services"] for m in s["members"]]
        assert [o["target"] for o in data["overrides"]] == overrides
        assert [m["mark"] for m in whole if m["mark"] == "foreign"] == [], act
        assert "the store cannot be written" not in " ".join(data["alerts"])
        if steady:
            assert self.disabled() == before, f"{act}: a restart moved somebody"

    async def play(
        self,
        act: str,
        goal: Callable[[], bool],
        kills: int,
        overrides: tuple[str, ...] = (),
        now_and_then: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Kill hactld so often; its act's goal must be reached, and stay reached."""
        reached = False
        for number in range(kills):
            switches = self.switches()
            was = reached
            if now_and_then is not None and number % 5 == 2:
                await now_and_then()
                was = reached = False  # relayd forgot
            await asyncio.sleep(self.random.uniform(*LIFE))
            if was:
                assert goal(), f"{act}: what was reached is lost"
                assert self.switches() == switches, f"{act}: something moved for nothing"
            reached = reached or goal()
            await self.restart(act, steady=reached, overrides=list(overrides))

        await self.until(goal)


def test_kill_9_at_any_time_forgets_nothing_and_moves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def story(stage: Stage) -> None:
        kills = [KILLS // 6 + (number < KILLS % 6) for number in range(6)]
        home = tuple((address,) for address in NODES.values())
        other = ((NODES["mx1"],), (NODES["mx1"],))

        def well() -> bool:
            return stage.disabled() == [] and stage.pf() == home

        def out() -> bool:
            return stage.disabled() == ["mx0", "mx0"] and stage.pf() == other

        async def reload() -> None:
            await stage.relayd.reload()

        await stage.until(well)
        await stage.play("all is well", well, kills[0])
        assert stage.switches() == 0
        stage.set(Mood.HANG, "mx0")
        await stage.play("mx0 hangs", out, kills[1])
        stage.set(Mood.WELL, "mx0")
        await stage.play("mx0 greets", well, kills[2])
        switches = stage.switches()
        stage.set(Mood.SAY421, "mx0", "mx1")
        await stage.play("both say 421", well, kills[3])
        assert stage.switches() == switches, "nobody moves for what all have"
        stage.set(Mood.WELL, "mx0", "mx1")
        await stage.hactld.ask("drain", "mx0", who="test", reason="kernel")
        await stage.until(out)
        await stage.play("drained, relayd reloaded", out, kills[4], ("mx0",), reload)
        await stage.hactld.ask("resume", "mx0")
        await stage.play("resumed", well, 0)
        stage.set(Mood.HANG, "mx0")
        await stage.play("mx0 hangs again", out, kills[5])

    async def run() -> Stage:
        stage = Stage(tmp_path)
        for node in stage.nodes.values():
            await node.start()
        await stage.relayd.start()
        try:
            await stage.hactld.start()
            await story(stage)
        finally:
            await stage.hactld.stop()
            await stage.relayd.stop()
            for node in stage.nodes.values():
                await node.stop()
        return stage

    began = time.monotonic()
    stage = asyncio.run(run())
    took = time.monotonic() - began
    assert len(stage.killed) == KILLS
    assert "Traceback" not in (tmp_path / "hactld.log").read_text()
    with capsys.disabled():
        print("\n".join(report(stage, took)))


def report(stage: Stage, took: float) -> list[str]:
    """Say what was seen, act by act."""
    lines = [f"\n{len(stage.killed)} kills in {took:.0f}s, {stage.switches()} switches"]
    for act in dict.fromkeys(k.act for k in stage.killed):
        some = [k for k in stage.killed if k.act == act]
        decided = sorted(k.decided for k in some)
        lines.append(
            f"  {act}: {len(some)} kills, {sum(k.steady for k in some)} with the goal reached;"
            f" seconds until it steers again: median {decided[len(decided) // 2]:.2f},"
            f" most {decided[-1]:.2f}"
        )
    return lines
