"""The runner: looks in slots, and knows when hactld itself was late."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

from checks import Probed, Step, Target
from checks.smtp import Smtp
from hactl.config import Check
from hactl.core.model import Checked, Probe, Result, Verdict, ok
from hactl.core.units import Duration
from hactl.daemon.runner import RESERVE, Runner
from hactl.lab.nodes import Mood, Node

PROBE = Probe("mx0", "smtp", "127.0.11.6")


Seen = asyncio.Queue[Checked]


def play(scene: Callable[[Runner, Node, Seen], Awaitable[None]]) -> None:
    """Run *scene* with a runner that looks once at a node, in its first slot."""

    async def run() -> None:
        node = Node("mx0", {"smtp": ("127.0.11.6", 0)})
        await node.start()
        probes, seen = [PROBE], Seen()
        runner = Runner(lambda now: [probes.pop()] if probes else [], seen.put_nowait)
        option = Smtp(port=node.where("smtp")[1])
        second = Duration(1)
        runner.configure(
            {"smtp": Check(option, second, Duration(0.15), Duration(0.2), Duration(0))}
        )
        try:
            await scene(runner, node, seen)
        finally:
            runner.stop()
            await node.stop()

    asyncio.run(run())


async def greeted(node: Node) -> None:
    """Wait until the look has reached the node."""
    for _ in range(500):
        if node.sessions["smtp"]:
            return
        await asyncio.sleep(0.01)


def test_silence_is_the_nodes_fault_while_we_are_in_time() -> None:
    async def scene(runner: Runner, node: Node, seen: Seen) -> None:
        node.set("smtp", Mood.HANG)
        result = (await asyncio.wait_for(seen.get(), 5)).result
        assert (result.verdict, result.step) == (Verdict.FAIL, "greeting")

    play(scene)


def test_silence_proves_nothing_when_we_were_late_ourselves() -> None:
    async def scene(runner: Runner, node: Node, seen: Seen) -> None:
        node.set("smtp", Mood.HANG)
        await asyncio.wait_for(greeted(node), 5)
        time.sleep(0.4)  # noqa: ASYNC251 - hactld is stopped, as a busy machine would stop it
        result = (await asyncio.wait_for(seen.get(), 5)).result
        assert result.verdict is Verdict.UNKNOWN
        assert "hactld itself was late" in result.reason
        await asyncio.sleep(0)
        assert runner.counts["own_lag"] >= 1

    play(scene)


def test_a_thousand_connections_that_nobody_answers_cost_a_neighbour_no_look() -> None:
    crowd, asked = 1000, 5

    async def scene() -> None:
        node = Node("mx0", {"smtp": ("127.0.11.6", 0)})
        await node.start()
        silent = [[Probe("mx1", "silent", "127.0.11.7")] * crowd]
        due = iter([*silent, *[[PROBE]] * asked])
        ended = Seen()
        listener = socket.create_server(("127.0.11.7", 0), backlog=crowd)
        with closing(listener):
            runner = Runner(lambda now: next(due, []), ended.put_nowait)
            times = (Duration(60), Duration(30), Duration(0), Duration(0))
            runner.configure(
                {
                    "smtp": Check(Smtp(port=node.where("smtp")[1]), *times),
                    "silent": Check(Smtp(port=listener.getsockname()[1]), *times),
                }
            )
            try:
                looks = [await asyncio.wait_for(ended.get(), 20) for _ in range(asked)]
                assert {(look.probe, look.result.verdict) for look in looks} == {
                    (PROBE, Verdict.OK)
                }
                tally = runner.tally()
                assert (tally["looks"], tally["open"]) == (crowd + asked, crowd)
                assert tally["capped"] == 0
            finally:
                runner.stop()
                await node.stop()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        asyncio.run(scene())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_sockets_than_the_cap_are_not_opened_and_counted() -> None:
    async def scene() -> None:
        node = Node("mx0", {"smtp": ("127.0.11.6", 0)})
        node.set("smtp", Mood.HANG)
        await node.start()
        due, ended = list[list[Probe]](), Seen()
        runner = Runner(lambda now: due.pop() if due else [], ended.put_nowait)
        cap = runner.tally()["cap"]
        due.append([PROBE] * (cap + 2))
        times = (Duration(60), Duration(30), Duration(0), Duration(0))
        runner.configure({"smtp": Check(Smtp(port=node.where("smtp")[1]), *times)})
        try:
            looks = [await asyncio.wait_for(ended.get(), 20) for _ in range(2)]
            why = f"connect: too many open sockets (cap {cap})"
            assert {look.result.reason for look in looks} == {why}
            assert {look.result.verdict for look in looks} == {Verdict.UNKNOWN}
            tally = runner.tally()
            assert (tally["open"], tally["capped"]) == (cap, 2)
        finally:
            runner.stop()
            await node.stop()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (RESERVE + 8, hard))
    try:
        asyncio.run(scene())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Leaping(asyncio.SelectorEventLoop):
    """A loop that does not wait for its timers: its clock leaps to the next one."""

    def __init__(self) -> None:
        self.now = 1000.02
        super().__init__()
        select = self._selector.select  # type: ignore[attr-defined]

        def leap(timeout: float | None) -> object:
            self.now += (timeout or 0.0) + 1e-5  # no clock stands still
            return select(0)

        self._selector.select = leap  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def test_what_confirms_between_two_slots_does_not_wait_for_the_next() -> None:
    asked: list[float] = []

    def due(now: float) -> list[Probe]:
        asked.append(round(now, 3))
        return []

    async def scene() -> None:
        runner = Runner(due, lambda checked: None)
        runner.confirm(1000.17)
        runner.confirm(1000.2)
        runner.hurry()
        runner.hurry()
        await asyncio.sleep(0.35)
        runner.confirm(1000.42)
        runner.stop()
        await asyncio.sleep(1)

    loop = Leaping()
    loop.run_until_complete(scene())
    loop.close()
    assert asked == [1000.02, 1000.1, 1000.17, 1000.2, 1000.3]


def test_a_name_is_resolved_once_and_one_that_cannot_be_is_said() -> None:
    async def scene(runner: Runner, node: Node, seen: Seen) -> None:
        assert await runner.resolve({"localhost"}) == []
        (failed,) = await runner.resolve({"no.such.host.invalid"})
        assert failed.startswith("no.such.host.invalid: cannot be resolved")

    play(scene)


def test_the_end_of_an_idle_connection_is_a_suspicion_that_starts_a_look() -> None:
    async def scene() -> None:
        node = Node("mx0", {"smtp": ("127.0.11.6", 0)})
        await node.start()
        probes, suspects = [PROBE], asyncio.Queue[Probe]()
        runner = Runner(
            lambda now: [probes.pop()] if probes else [], lambda checked: None, suspects.put_nowait
        )
        option = Smtp(port=node.where("smtp")[1])
        times = (Duration(1), Duration(0.5), Duration(0.2), Duration(0))
        runner.configure({"smtp": Check(option, *times, tripwire=True)})
        try:
            for _ in range(500):
                if node.sessions["smtp"] == 2:  # the look and the tripwire
                    break
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert suspects.empty()
            node.set("smtp", Mood.REFUSE)
            assert await asyncio.wait_for(suspects.get(), 5) == PROBE
            assert runner.counts["tripwires_cut"] == 1
        finally:
            runner.stop()
            await node.stop()

    asyncio.run(scene())


class Slow(Probed, frozen=True, kw_only=True, tag="slow"):
    """A coroutine that takes its time, and says whom it was to look at."""

    seconds: float

    async def probe(self, target: Target, step: Step) -> Result:
        step("wait")
        await asyncio.sleep(self.seconds)
        return ok(f"{target.node} {target.address}")


def test_a_coroutine_is_run_beside_the_dialogues_and_has_its_deadline() -> None:
    async def scene() -> None:
        seen = Seen()
        runner = Runner(lambda now: [], seen.put_nowait)
        times = (Duration(1), Duration(0.15), Duration(0), Duration(0))
        runner.configure(
            {"quick": Check(Slow(seconds=0.0), *times), "slow": Check(Slow(seconds=60.0), *times)}
        )
        try:
            for check in ("quick", "slow"):
                runner.look(Probe("mx0", check, "127.0.11.6"), seen.put_nowait)
            quick, slow = [await asyncio.wait_for(seen.get(), 5) for _ in range(2)]
        finally:
            runner.stop()
        assert (quick.probe.check, quick.result.reason) == ("quick", "mx0 127.0.11.6")
        assert [name for name, _ in quick.result.steps] == ["wait"]
        assert slow.result.verdict in (Verdict.FAIL, Verdict.UNKNOWN)  # we may have been late
        assert slow.result.step == "wait"
        assert 0.15 <= slow.ended - slow.started < 5

    asyncio.run(scene())


class Counting(Probed, frozen=True, kw_only=True, tag="counting"):
    """A coroutine that counts its looks in what they leave each other."""

    async def probe(self, target: Target, step: Step) -> Result:
        target.note(looks=(target.noted("looks") or 0) + 1)
        return ok(f"{target.node} {target.noted('looks'):g}")


def test_looks_of_a_probe_remember_until_the_configuration_is_loaded_again() -> None:
    async def scene() -> None:
        seen = Seen()
        runner = Runner(lambda now: [], seen.put_nowait)
        checks = {"c": Check(Counting(), *(Duration(5), Duration(5), Duration(0), Duration(0)))}

        async def look(node: str) -> str:
            runner.look(Probe(node, "c", "127.0.0.1"), seen.put_nowait)
            return (await asyncio.wait_for(seen.get(), 5)).result.reason

        runner.configure(checks)
        try:
            assert [await look(n) for n in ("a", "a", "b")] == ["a 1", "a 2", "b 1"]
            runner.configure(checks)
            assert await look("a") == "a 1"
        finally:
            runner.stop()

    asyncio.run(scene())
