"""How fast simulated time runs: two nodes with eight required checks each, as CPU time.

Three kinds of days: nothing happens; a fault of one check each ten minutes; a tenth of the looks
fails all the time, so that no calm moment can be leapt over.  Each with leaps and without.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from hactl import config
from hactl.relayd import conf
from hactl.sim.truth import Event
from hactl.sim.world import Cluster, World, cluster

CHECKS = ("smtp", "submit", "imap", "pop3", "sieve", "nfs", "spamd", "replica")
DAYS: dict[str, tuple[Event, ...]] = {
    "calm": (),
    "a fault each 10 min": tuple(
        Event(300 + 600 * n, do, ("AB"[n % 2],), (CHECKS[n],), 60, 600 * len(CHECKS))
        for n, do in enumerate(("refuse", "hang", "unknown", "refuse") * 2)
    ),
    "a tenth lost": (Event(0, "loss", ("A",), share=0.1),),
}


def pair() -> Cluster:
    """Return two nodes in one table, with eight checks that both must pass."""
    text = "\n".join((
        "mode: relayctl",
        "nodes: {A: 10.0.0.1, B: 10.0.0.2}",
        f"checks: {{{', '.join(f'{name}: {{type: smtp}}' for name in CHECKS)}}}",
        f"services: {{mx: {{require: [{', '.join(CHECKS)}]}}}}",
    ))  # fmt: skip
    relayd = (
        "table <mx> { A retry 2, B retry 2 }\n"
        "redirect mx {\nlisten on 10.9.0.1 port 25\nforward to <mx> check tcp\n}\n"
    )
    return cluster(config.parse(text, "hactl.yaml"), conf.parse(relayd, "relayd.conf"))


def measure(events: Sequence[Event], hours: float, *, leap: bool, rounds: int) -> float:
    """Return simulated seconds per second of CPU, the median of some rounds."""
    speeds = []
    for seed in range(rounds):
        world = World(pair(), events, hours * 3600, seed=seed, leap=leap, record=False)
        began = time.process_time()
        world.run()
        speeds.append(hours * 3600 / (time.process_time() - began))
    return sorted(speeds)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hours", type=float, default=2.0, help="simulated in each run [2]")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind [3]")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = {
        name: {
            "leaping": round(measure(events, options.hours, leap=True, rounds=options.rounds)),
            "walking": round(measure(events, options.hours, leap=False, rounds=options.rounds)),
        }
        for name, events in DAYS.items()
    }
    if options.json:
        print(json.dumps(figures))
        return
    print("simulated seconds per second of CPU")
    print(f"{'day':<22} {'leaping':>9} {'walking':>9}")
    for name, found in figures.items():
        print(f"{name:<22} {found['leaping']:>9,} {found['walking']:>9,}")


if __name__ == "__main__":
    main()
