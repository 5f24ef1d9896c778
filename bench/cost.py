"""What a check costs: the real hactld beside other checkers, on the same farm of SMTP targets.

hactld runs as in production: core, store, proof, with a relayctl and a pfctl that are read each
second (stand-ins that cost what an empty program costs).  The checkers take turns, round by round.  CPU is user and
system time of the checker and its children, divided by the conversations that the farm counted;
lateness is how far from the interval two looks at one target were apart, as the farm saw it.  `floor`
is no checker: an asyncio loop that exchanges the same words over the same sockets and slots.  A
measurement during which more than 5 % of the machine's time was stolen is dropped, and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from farm import Farm, more_files
from peers import PEERS, STOLEN, Hactl, Peer, Setup, Stolen, missing, quantile

WARM = 15.0  # seconds a checker may take until it has looked at every target
GOALS = {100: 1.0, 1000: 2.0}


async def measure(kind: type[Peer], farm: Farm, setup: Setup, seconds: float) -> dict[str, Any]:
    """Let one checker run, and return what it cost once it had looked at every target."""
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as directory:
        peer = kind(farm, Path(directory), setup)
        farm.reset()
        try:
            await peer.start()
            await peer.ready(WARM)
            await asyncio.sleep(2 * setup.interval)
            stolen = Stolen()
            farm.reset()
            before = peer.cpu()
            await asyncio.sleep(seconds)
            spent = peer.cpu() - before
            count = farm.count_up(arrivals=True)
            share = stolen.share()
            resident = peer.memory()
        finally:
            await peer.stop()
        moves = peer.said("state") - farm.count if isinstance(peer, Hactl) else 0
    late = [
        abs(later - sooner - setup.interval)
        for times in count["arrivals"]
        for sooner, later in pairwise(times)
    ]
    looks = count["conversations"]
    return {
        "us": spent / max(1, looks) * 1e6,
        "core": spent / count["seconds"],
        "mb": resident,
        "rate": looks / (count["seconds"] * farm.count / setup.interval),
        "late_p50": quantile(late, 0.5) * 1e3,
        "late_p99": quantile(late, 0.99) * 1e3,
        "whole": count["hellos"] / max(1, looks),
        "stolen": share,
        "moves": moves,
    }


async def size(
    count: int, rounds: int, seconds: float, kinds: list[type[Peer]]
) -> list[dict[str, Any]]:
    """Measure all checkers on *count* targets."""
    farm = Farm(count)
    rows = []
    try:
        for number in range(rounds):
            turn = number % len(kinds)  # nobody is always the first
            for kind in kinds[turn:] + kinds[:turn]:
                row = await measure(kind, farm, Setup(), seconds)
                row |= {"peer": kind.name, "targets": count, "round": number}
                row["dropped"] = row["stolen"] > STOLEN
                rows.append(row)
                print(
                    f"N={count} round {number + 1}/{rounds} {kind.name}: {row['us']:.0f} us,"
                    f" {row['stolen']:.1%} stolen{', dropped' * row['dropped']}",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        farm.stop()
    return rows


def summary(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Put the rounds of one checker together."""
    mine = [row for row in rows if row["peer"] == name]
    kept = [row for row in mine if not row["dropped"]]
    found: dict[str, Any] = {"peer": name, "rounds": len(kept), "dropped": len(mine) - len(kept)}
    for key in ("us", "core", "mb", "rate", "late_p50", "late_p99", "whole", "moves"):
        values = [row[key] for row in kept if row[key] is not None]
        found[key] = statistics.median(values) if values else None
        found[f"{key}_min"] = min(values, default=None)
        found[f"{key}_max"] = max(values, default=None)
    return found


def ratio(rows: list[dict[str, Any]], other: str) -> float | None:
    """Return hactl's CPU by another's: the median over the rounds that both kept."""
    spent = {(r["peer"], r["round"]): r["us"] for r in rows if not r["dropped"]}
    pairs = [
        us / spent[other, number]
        for (name, number), us in spent.items()
        if name == "hactl" and (other, number) in spent
    ]
    return round(statistics.median(pairs), 3) if pairs else None


def show(count: int, rows: list[dict[str, Any]], names: list[str]) -> None:
    """Print the table of one size."""
    print(f"\n{count} targets, each looked at once a second")
    print(
        "checker       us/check  (min-max)      core     MB   rate  late p50/p99 ms  rounds  ratio"
    )
    for name in names:
        s = summary(rows, name)
        if s["us"] is None:
            print(f"{name:12}  every round dropped ({s['dropped']})")
            continue
        by = ratio(rows, name)
        dropped = f" -{s['dropped']}" if s["dropped"] else ""
        print(
            f"{name:12}{s['us']:10.0f}  {s['us_min']:5.0f}-{s['us_max']:<6.0f}{s['core']:8.1%}"
            f"{s['mb'] or 0:7.1f}{s['rate']:7.0%}{s['late_p50']:9.1f} /{s['late_p99']:6.1f}"
            f"{s['rounds']:6}{dropped:3}{'      -' if by is None else format(by, '7.2f')}"
        )
    if (goal := GOALS.get(count)) and (by := ratio(rows, "haproxy")) is not None:
        print(f"goal: at most {goal:g} x haproxy; it is {by:g}")


def main() -> None:
    """Measure, and print the tables or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", type=int, nargs="*", default=[10, 100, 1000], metavar="N")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--peers", default=",".join(p.name for p in PEERS), help="default: all")
    parser.add_argument(
        "--json", action="store_true", help="ratio_to_haproxy, by size if there are several"
    )
    options = parser.parse_args()
    more_files()
    wanted = options.peers.split(",")
    kinds = [p for p in PEERS if p.name in wanted and p.found()]
    names = [kind.name for kind in kinds]
    for line in missing():
        print(f"{line} (skipped)", file=sys.stderr)
    rows = {
        count: asyncio.run(size(count, options.rounds, options.seconds, kinds))
        for count in options.targets
    }
    if options.json:
        ratios = {str(count): ratio(found, "haproxy") for count, found in rows.items()}
        data = {
            "ratio_to_haproxy": ratios if len(rows) > 1 else next(iter(ratios.values())),
            "ratios": {str(c): {n: ratio(r, n) for n in names} for c, r in rows.items()},
            "summary": {str(c): [summary(r, n) for n in names] for c, r in rows.items()},
            "versions": {kind.name: kind.which_version() for kind in kinds},
            "missing": missing(),
            "rows": [row for found in rows.values() for row in found],
        }
        print(json.dumps(data))
        return
    for count, found in rows.items():
        show(count, found, names)
    print(
        f"\nratio: hactl by this one.  {', '.join(f'{k.name} {k.which_version()}' for k in kinds)}"
    )


if __name__ == "__main__":
    main()
