"""Mode hook with all that takes part but pf: real nodes, hactld, the script, and relayd emulated."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hactl.lab.nodes import Mood, Node
from hactl.lab.relayd import Emulator
from hactl.relayd import hook
from tests.daemon.farm import Farm

MX0, MX1, VIP = "127.0.14.4", "127.0.14.5", "127.0.14.10"
RELAYD = """
interval 1
table <mx> {{ {MX0} {MX1} }}
redirect mx-smtp {{
	listen on {VIP} port {port}
	forward to <mx> port {port} check script "{dir}/libexec/mx-smtp" timeout 900
}}
"""
HACTL = """
mode: hook
nodes: {{mx0: {MX0}, mx1: {MX1}}}
checks:
  smtp: {{type: smtp, port: {port}, interval: 300ms, timeout: 200ms, fast_interval: 100ms, fall: 2}}
services: {{mx-smtp: {{require: [smtp], grace: 1s}}}}
relayd: {{conf: {dir}/relayd.conf, relayctl: {dir}/relayctl}}
run_dir: {dir}/run
state_dir: {dir}/state
user: root
"""


class Scene:
    """The farm of nodes with hactld, and relayd."""

    def __init__(self, farm: Farm, relayd: Emulator) -> None:
        self.farm, self.relayd = farm, relayd
        self.down = farm.directory / "run" / "down"

    async def served(self, *addresses: str) -> None:
        """Wait until pf has these."""
        await self.farm.until(lambda: self.relayd.pf.tables.get("mx-smtp") == addresses)

    def verdicts(self) -> list[str]:
        return sorted(path.name for path in self.down.rglob("*") if not path.is_dir())


def play(monkeypatch: pytest.MonkeyPatch, scene: Callable[[Scene], Awaitable[None]]) -> None:
    with socket.socket() as probe:
        probe.bind((MX0, 0))
        port = probe.getsockname()[1]

    async def run(directory: Path) -> None:
        names = globals() | {"port": port, "dir": directory}
        (directory / "relayd.conf").write_text(RELAYD.format(**names))
        (directory / "hactl.yaml").write_text(HACTL.format(**names))
        hook.install("mx-smtp", directory / "libexec")
        relayd = Emulator(directory / "relayd.conf", directory, tick=0.1)
        nodes = {n: Node(n, {"smtp": (a, port)}) for n, a in (("mx0", MX0), ("mx1", MX1))}
        await relayd.start()
        try:
            async with Farm(directory, nodes) as farm:
                await farm.until(farm.settled)
                await scene(Scene(farm, relayd))
        finally:
            await relayd.stop()

    # short, for sockets have short names
    with tempfile.TemporaryDirectory(prefix="hook") as name:
        monkeypatch.setenv("HACTL_RUN_DIR", f"{name}/run")
        asyncio.run(run(Path(name)))


@pytest.mark.long
def test_relayd_takes_out_whom_hactl_calls_down(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(scene: Scene) -> None:
        await scene.served(MX0, MX1)
        scene.farm.nodes["mx0"].set("smtp", Mood.HANG)
        await scene.served(MX1)
        assert scene.verdicts() == [MX0]
        scene.farm.nodes["mx0"].set("smtp", Mood.WELL)
        await scene.served(MX0, MX1)
        assert scene.verdicts() == []

    play(monkeypatch, scene)


@pytest.mark.service
def test_verdicts_outlive_hactld_and_operators_disable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(scene: Scene) -> None:
        scene.farm.nodes["mx0"].set("smtp", Mood.HANG)
        await scene.served(MX1)
        await scene.farm.stop(kill=True)  # relayd is told the same by whoever is left
        scene.farm.nodes["mx0"].set("smtp", Mood.WELL)
        assert scene.verdicts() == [MX0]
        await scene.farm.start()
        await scene.served(MX0, MX1)
        assert scene.verdicts() == []
        await scene.farm.ask("drain", "mx1", who="test")
        await scene.served(MX0)
        assert (scene.verdicts(), "disabled" in scene.relayd.command("show hosts").stdout) == (
            [],
            True,
        )

    play(monkeypatch, scene)


@pytest.mark.service
def test_a_verdict_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(scene: Scene) -> None:
        await scene.served(MX0, MX1)
        scene.down.write_text("")  # in the way of the directory
        scene.farm.nodes["mx0"].set("smtp", Mood.HANG)

        async def alerted() -> bool:
            alerts = (await scene.farm.status())["alerts"]
            return any("Not a directory; relayd is told up as before" in text for text in alerts)

        await scene.farm.until(alerted)
        scene.down.unlink()
        await scene.served(MX1)
        scene.farm.nodes["mx0"].set("smtp", Mood.WELL)
        await scene.served(MX0, MX1)

    play(monkeypatch, scene)
