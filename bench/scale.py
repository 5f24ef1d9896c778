"""What many probes cost hactld: 1,000 and 10,000 of them, and what `hactl status` costs meanwhile.

A thousand nodes in one table, each with so many checks that the number is reached; the interval
grows with it, so a thousand looks start each second at all sizes.  Lateness is how far from the
plan two looks at one target were apart, as the farm saw it: for several checks of one node it can
only be told for all of them together, as the share of the wanted rate and hactld's own lag.  Each
status is asked over the control socket; the last row is the program `hactl status` on two nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from farm import Farm, more_files
from peers import STOLEN, Hactl, Setup, Stolen, quantile

NODES = 1000  # at most; more probes are more checks for each
STATUS = 4.0  # times a second somebody asks, in the second half


async def measure(probes: int, interval: float, seconds: float) -> dict[str, Any]:
    """Run hactld on so many probes: at first left alone, then asked for its status."""
    nodes = min(probes, NODES)
    checks = max(1, probes // nodes)
    farm = Farm(nodes)
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as directory:
        peer = Hactl(farm, Path(directory), Setup(interval))
        peer.checks = tuple(f"smtp{n}" for n in range(checks))
        try:
            await peer.start()
            await peer.ready(30.0)
            await asyncio.sleep(interval + 5.0)
            stolen = Stolen()
            alone, _ = await window(peer, farm, interval, checks, seconds, ask=False)
            asked, took = await window(peer, farm, interval, checks, seconds, ask=True)
            share = stolen.share()
            counts = json.loads(peer.ask("status"))["data"]["counts"]
            resident = peer.memory()
        finally:
            await peer.stop()
            farm.stop()
        moves = peer.said("state") - nodes * checks
    return {
        "probes": nodes * checks,
        "nodes": nodes,
        "interval": interval,
        "mb": resident,
        "alone": alone,
        "asked": asked,
        "status_ms": took,
        "own_lag": counts.get("own_lag"),
        "moves": moves,
        "stolen": share,
        "dropped": share > STOLEN,
    }


async def window(
    peer: Hactl, farm: Farm, interval: float, checks: int, seconds: float, *, ask: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """Return what a while cost, and how long answers took in it."""
    began = peer.cpu()
    farm.reset()
    end = time.monotonic() + seconds
    took = []
    while (left := end - time.monotonic()) > 0:
        if ask:
            asked = time.monotonic()
            await asyncio.to_thread(peer.ask, "status")
            took.append((time.monotonic() - asked) * 1e3)
        await asyncio.sleep(min(left, 1 / STATUS if ask else left))
    spent = peer.cpu() - began
    count = farm.count_up(arrivals=True)
    late = [
        abs(later - sooner - interval) * 1e3
        for times in count["arrivals"]
        for sooner, later in pairwise(times)
    ]
    figures = {
        "us": spent / max(1, count["conversations"]) * 1e6,
        "core": spent / count["seconds"],
        "rate": count["conversations"] / (count["seconds"] * farm.count * checks / interval),
    }
    if checks == 1:
        figures |= {"late_p50": quantile(late, 0.5), "late_p99": quantile(late, 0.99)}
    if not took:
        return figures, {}
    return figures, {
        "median": statistics.median(took), "p99": quantile(took, 0.99), "max": max(took)
    }  # fmt: skip


async def status(runs: int) -> dict[str, float]:
    """Return the CPU of `hactl status` on two nodes, beside that of an empty Python."""
    farm = Farm(2)
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as directory:
        peer = Hactl(farm, Path(directory), Setup())
        try:
            await peer.start()
            await peer.ready(20.0)
            program = str(Path(sys.executable).parent / "hactl")
            commands = {
                "status": [program, "status", "-s", str(peer.control)],
                "python": [sys.executable, "-I", "-c", "pass"],
            }
            spent: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(runs):
                for name, command in commands.items():
                    spent[name].append(await asyncio.to_thread(run, command))
        finally:
            await peer.stop()
            farm.stop()
    ratios = [ours / theirs for ours, theirs in zip(spent["status"], spent["python"], strict=True)]
    return {
        "status_cpu_ms": statistics.median(spent["status"]) * 1e3,
        "python_cpu_ms": statistics.median(spent["python"]) * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def run(command: Sequence[str]) -> float:
    """Run a program; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show(rows: list[dict[str, Any]], client: dict[str, float]) -> None:
    """Print the table."""
    print(
        "probes interval            us/look   core   rate  late p50/p99 ms     MB  status ms (max)"
    )
    for row in rows:
        for phase in ("alone", "asked"):
            f = row[phase]
            late = (
                f"{f['late_p50']:6.1f} /{f['late_p99']:6.1f}" if "late_p50" in f else f"{'-':>14}"
            )
            took = row["status_ms"]
            tail = f"{took['median']:9.1f} ({took['max']:.1f})" if phase == "asked" else ""
            print(
                f"{row['probes']:6} {row['interval']:7g}s {phase:9}{f['us']:9.0f}{f['core']:7.1%}"
                f"{f['rate']:7.0%}  {late}{row['mb']:8.1f}{tail}"
            )
        if row["own_lag"] or row["moves"] or row["dropped"]:
            print(
                f"       slots that hactld itself was late for: {row['own_lag']}; changes of state:"
                f" {row['moves']}; stolen: {row['stolen']:.1%}"
            )
    print(
        f"hactl status: {client['status_cpu_ms']:.0f} ms of CPU, {client['ratio']:.1f} x an empty"
        f" Python's {client['python_cpu_ms']:.0f} ms"
    )


def main() -> None:
    """Measure, and print the table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--probes", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument(
        "--rate", type=float, default=1000.0, help="looks a second; the interval follows"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of two windows")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    more_files()
    rows = []
    for number in range(options.rounds):
        for probes in options.probes:
            interval = max(1.0, probes / options.rate)
            row = asyncio.run(measure(probes, interval, options.seconds))
            rows.append(row | {"round": number})
            print(f"{probes} probes: {row['stolen']:.1%} stolen", file=sys.stderr, flush=True)
    client = asyncio.run(status(5 * options.rounds))
    if options.json:
        print(json.dumps({"rows": rows, "status": client}))
        return
    show(rows, client)


if __name__ == "__main__":
    main()
