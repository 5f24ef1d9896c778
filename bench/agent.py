"""What an agent's answer costs the balancer: microseconds of CPU, and those of the agent itself.

A real agent in another process, asked over HTTPS with pinned certificates on a connection that is
kept, as hactld does it: question, answer, its reading and judging for every check, health.  Only
the CPU of the asking process counts, the kernel's share of our side of the connection included; that
of the agent is told beside it.  The goal is 1000 us.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import tempfile
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from msgspec.structs import replace

from checks.tcp import Tcp
from hactl.agent import keys
from hactl.agent.fetch import Agents
from hactl.agent.serve import Findings, Serving
from hactl.config import Agent, Check, FromAgent, Node
from hactl.core.health import Health, State, step
from hactl.core.model import Checked, Probe, Result, Rule, Verdict
from hactl.core.units import Duration

HOST = "127.1.99.2"
MEASURES = {f"measure{number}_seconds": number / 7 for number in range(8)}
STEPS = (("connect", 0.001), ("greeting", 0.01), ("ehlo", 0.002))
MADE = Check(Tcp(port=25), Duration(5), Duration(1), Duration(0), Duration(0))
ASKED = Check(FromAgent(), Duration(5), Duration(3), Duration(0), Duration(0))


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


def serve(directory: str, checks: int, told: Connection) -> None:
    """Be an agent until the other side of *told* is closed; then tell the CPU that it took."""

    async def play() -> None:
        loop = asyncio.get_running_loop()
        names = [f"check{number}" for number in range(checks)]
        findings = Findings("mx0", loop.time, dict.fromkeys(names, MADE))
        serving = Serving(findings)
        notes = await serving.start(Agent(f"{HOST}:{free_port()}", Path(directory) / "node"))

        def look() -> None:
            now = loop.time()
            result = Result(Verdict.OK, "220 mx0 ESMTP", "ehlo", MEASURES, STEPS)
            for name in names:
                probe = Probe("mx0", name, HOST)
                health = Health(State.UP, now, last=result, reason=result.reason)
                findings.feed(Checked(probe, now, now, result), health)
            loop.call_later(0.5, look)

        look()
        told.send((notes, serving.places[0][1] if serving.places else 0))
        before = time.process_time()
        with suppress(EOFError):
            while await asyncio.to_thread(told.recv):
                told.send(time.process_time() - before)
        await serving.stop()

    asyncio.run(play())


async def ask(directory: Path, port: int, checks: int, answers: int) -> float:
    """Ask so often; return the CPU seconds that it took.  Raise RuntimeError if an answer is bad."""
    loop = asyncio.get_running_loop()
    agents = Agents()
    names = [f"check{number}" for number in range(checks)]
    node = Node((HOST,), agent=f"https://{HOST}:{port}")
    asked = replace(ASKED, interval=Duration(1e-6))  # so that no answer is young enough for two
    notes = await agents.configure({"mx0": node}, dict.fromkeys(names, ASKED), directory / "lb")
    if notes:
        raise RuntimeError("; ".join(notes))
    rule = Rule(interval=5.0)
    healths = dict.fromkeys(names, Health())

    async def once() -> None:
        left: asyncio.Future[None] = loop.create_future()
        count = 0

        def done(checked: Checked) -> None:
            nonlocal count
            count += 1
            name = checked.probe.check
            healths[name] = step(healths[name], checked, rule)
            if checked.result.verdict is not Verdict.OK:
                left.set_exception(RuntimeError(checked.result.reason))
            elif count == checks:
                left.set_result(None)

        for name in names:
            agents.look(Probe("mx0", name, HOST), asked, done)
        await left

    try:
        for _ in range(20):
            await once()
        before = time.process_time()
        for _ in range(answers):
            await once()
        return time.process_time() - before
    finally:
        await agents.close()


def measure(checks: int, answers: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return microseconds of an answer to balancer and agent, one figure a round."""
    ours_us, theirs_us = [], []
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as name:
        directory = Path(name)
        for place, whose in (("node", "mx0"), ("lb", "lb0")):
            keys.keygen(directory / place, whose)
        keys.trust(directory / "node", keys.own(directory / "lb")[0])
        keys.trust(directory / "lb", keys.own(directory / "node")[0])
        ours, theirs = fork.Pipe()
        process = fork.Process(target=serve, args=(name, checks, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(20):
                raise RuntimeError("the agent does not start")
            notes, port = ours.recv()
            if notes:
                raise RuntimeError("; ".join(notes))
            for _ in range(rounds):
                ours.send(True)
                before = ours.recv()
                used = asyncio.run(ask(directory, port, checks, answers))
                ours.send(True)
                theirs_us.append((ours.recv() - before) / answers * 1e6)
                ours_us.append(used / answers * 1e6)
        finally:
            ours.close()
            process.terminate()
            process.join(5)
    return ours_us, theirs_us


def main() -> None:
    """Measure, and print the table or JSON."""
    parser = argparse.ArgumentParser(
        "agent.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks", type=int, default=8, help="of the node, all in each answer")
    parser.add_argument("--answers", type=int, default=1000, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    ours, theirs = measure(chosen.checks, chosen.answers, chosen.rounds)
    rows = [
        {"side": side, "us": statistics.median(us), "min": min(us), "max": max(us)}
        for side, us in (("balancer", ours), ("agent", theirs))
    ]
    if chosen.json:
        print(json.dumps({"checks": chosen.checks, "answers": chosen.answers, "rows": rows}))
        return
    print(f"{chosen.checks} checks in an answer\nside      us/answer     min     max")
    for row in rows:
        print(f"{row['side']:10}{row['us']:9.0f}{row['min']:8.0f}{row['max']:8.0f}")


if __name__ == "__main__":
    main()
