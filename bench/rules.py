"""Rules against each other in the simulator: quick when sure, calm when not, never empty.

Two nodes in one table, one check each 2 s with a timeout of 1 s; relayd looks each 10 s.  hactl
steers the relayd model; each peer is given the same check (hactl/sim/peers.py says how, and where
the rules are from).  Detection and return are of single outages at random phases.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from hactl import config
from hactl.relayd import conf
from hactl.sim import peers
from hactl.sim.ledger import Figures
from hactl.sim.peers import PEERS, Peer
from hactl.sim.truth import Event
from hactl.sim.world import Cluster, World, cluster

HACTL = Peer("hactl", None)
RULES = (HACTL, *PEERS)
Pattern = Callable[[float], tuple[Event, ...]]


def _flap(on: float, off: float, do: str = "refuse", node: str = "A") -> Pattern:
    return lambda phase: (Event(phase + off, do, (node,), lasts=on, every=on + off),)


PATTERNS: dict[str, Pattern] = {
    "loss 5 %": lambda phase: (Event(0, "loss", ("A",), share=0.05),),
    "loss 20 %": lambda phase: (Event(0, "loss", ("A",), share=0.2),),
    "loss 50 %": lambda phase: (Event(0, "loss", ("A",), share=0.5),),
    "flap 30/30": _flap(30, 30),
    "flap 60/240": _flap(60, 240),
    "blip 3 s / 300": _flap(3, 297),
    "blip 8 s / 300": _flap(8, 292),
    "antiphase 30/30": lambda phase: (
        Event(phase, "refuse", ("A",), lasts=30, every=60),
        Event(phase + 30, "refuse", ("B",), lasts=30, every=60),
    ),
}
OUTAGES = ("refuse", "hang", "crash")
ABOUT = {"refuse": "refuses", "hang": "hangs", "crash": "dead"}


def pair() -> Cluster:
    """Return two nodes in one table with one check."""
    text = (
        "mode: relayctl\nnodes: {A: 10.0.0.1, B: 10.0.0.2}\n"
        "checks: {smtp: {type: smtp}}\nservices: {mx: {require: [smtp]}}\n"
    )
    relayd = (
        "table <mx> { A, B }\n"
        "redirect mx {\nlisten on 10.9.0.1 port 25\nforward to <mx> check tcp\n}\n"
    )
    return cluster(config.parse(text, "hactl.yaml"), conf.parse(relayd, "relayd.conf"))


def run(what: Cluster, events: Sequence[Event], seconds: float, rule: Peer, seed: int) -> Figures:
    """Run a schedule under hactl or a peer's rule."""
    if rule is HACTL:
        return World(what, events, seconds, seed=seed, record=False).run().figures["mx"]
    return peers.run(what, events, seconds, rule, seed).figures["mx"]


def delays(what: Cluster, rule: Peer, do: str, repeats: int) -> dict[str, list[float]]:
    """Return the median and the 95th percentile of detection and return, if there are any."""
    found: dict[str, list[float]] = {"detect": [], "back": []}
    for seed in range(repeats):
        at = 60 + random.Random(seed).random() * 60
        figures = run(what, (Event(at, do, ("A",), lasts=600),), 1200, rule, seed)
        for key, value in (("detect", figures.detection), ("back", figures.back)):
            if value is not None:
                found[key].append(value)
    return {
        key: [round(median(v), 2), round(sorted(v)[int(0.95 * len(v))], 2)] if v else []
        for key, v in found.items()
    }


def pattern(what: Cluster, rule: Peer, make: Pattern, hours: float, seeds: int) -> dict[str, float]:
    """Return what a pattern costs an hour."""
    found = [
        run(what, make(random.Random(seed).random() * 60), hours * 3600, rule, seed)
        for seed in range(seeds)
    ]
    total = hours * seeds
    return {
        "changes": round(sum(f.per_hour for f in found) / seeds, 1),
        "worst_hour": max(f.worst_hour for f in found),
        "table_changes": round(sum(f.changes for f in found) / total, 1),
        "failing": round(sum(f.failing for f in found) / total, 1),
        "avoidable": round(sum(f.avoidable for f in found) / total, 1),
        "needless_empty": round(sum(f.needless for f in found) / total, 1),
        "longest_empty": round(max(f.longest_needless for f in found), 2),
        "kept_out": round(sum(f.kept_out for f in found) / total),
    }


def cell(job: tuple[str, str, argparse.Namespace]) -> Any:
    """Return the figures of a rule, by name, for an outage or a pattern."""
    name, about, options = job
    what, rule = pair(), next(rule for rule in RULES if rule.name == name)
    if about in OUTAGES:
        return delays(what, rule, about, options.repeats)
    return pattern(what, rule, PATTERNS[about], options.hours, options.seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hours", type=float, default=2.0, help="of each pattern and seed [2]")
    parser.add_argument("--seeds", type=int, default=4, help="runs of each pattern [4]")
    parser.add_argument("--repeats", type=int, default=60, help="outages for the delays [60]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes [all cores]")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    jobs = [(rule.name, about, options) for about in (*PATTERNS, *OUTAGES) for rule in RULES]
    found: dict[str, dict[str, Any]] = {about: {} for about in (*PATTERNS, *OUTAGES)}
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for number, ((name, about, _), figures) in enumerate(
            zip(jobs, pool.imap(cell, jobs), strict=True), 1
        ):
            found[about][name] = figures
            if sys.stderr.isatty():
                print(f"\r{number} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    quick = {rule.name: {do: found[do][rule.name] for do in OUTAGES} for rule in RULES}
    calm = {name: found[name] for name in PATTERNS}
    if options.json:
        print(json.dumps({"delays": quick, "patterns": calm}))
        return
    print("seconds until a failing node is out, and a repaired one back: median / 95 %")
    print(f"{'rule':<18}" + "".join(f"{ABOUT[do] + ', out':>17}{'back':>18}" for do in OUTAGES))
    for name, each in quick.items():
        cells = [
            f"{' / '.join(f'{v:.2f}' for v in each[do][key]) or 'never':>{width}}"
            for do in OUTAGES
            for key, width in (("detect", 17), ("back", 18))
        ]
        print(f"{name:<18}{''.join(cells)}")
    head = (
        "changes",
        "worst hour",
        "pf changes",
        "failing",
        "avoidable",
        "needless",
        "longest",
        "kept out",
    )
    for name, found in calm.items():
        print(f"\n{name}, an hour (changes by checks per member)")
        print(f"{'':<18}" + "".join(f"{word:>12}" for word in head))
        for rule_name, figures in found.items():
            print(f"{rule_name:<18}" + "".join(f"{value:>12g}" for value in figures.values()))


if __name__ == "__main__":
    main()
