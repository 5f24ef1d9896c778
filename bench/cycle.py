"""What deciding costs: CPU per result fed and per cycle, for services of many sizes.

The engine alone, without sockets: N nodes in one service, two required checks each, everything
well, then one node failing.  One cycle reads an observation, decides and compares.
"""

from __future__ import annotations

import argparse
import json
import time

from hactl.core.engine import Engine
from hactl.core.model import (
    Checked,
    Facts,
    Host,
    HostStatus,
    Kind,
    NodePlan,
    Observation,
    Plan,
    Rule,
    Service,
    ServicePlan,
    Table,
    fail,
    ok,
)


def build(nodes: int) -> tuple[Engine, Observation]:
    """Return an engine and what relayd shows it."""
    names = [f"mx{n}" for n in range(nodes)]
    checks = ("smtp", "spamd")
    plan = Plan(
        {name: NodePlan(name, (f"10.0.{n >> 8}.{n & 255}",), frozenset({name}))
         for n, name in enumerate(names)},
        dict.fromkeys(checks, Rule()),
        {"mx": ServicePlan("mx", require=checks)},
    )  # fmt: skip
    hosts = tuple(Host(n, name, HostStatus.UP) for n, name in enumerate(names, 1))
    tables = (Table(1, "mx:25", f"active ({nodes} hosts)", hosts),)
    seen = Observation(0.0, (Service(Kind.REDIRECT, 1, "mx", "active", tables),))
    engine = Engine(plan, Facts(checked=frozenset({("mx", 0)})), 0.0)
    engine.observed(seen, 0.0)
    return engine, seen


def measure(nodes: int, cycles: int) -> dict[str, float]:
    """Return microseconds of CPU per result, and per cycle while all is well and while not."""
    engine, seen = build(nodes)
    fed = spent_feeding = 0.0
    spent: dict[str, float] = {"well": 0.0, "failing": 0.0}
    now = 0.0
    for cycle in range(2 * cycles):
        phase = "well" if cycle < cycles else "failing"
        now += 2.0
        probes = engine.due(now)
        results = [
            fail("refused") if phase == "failing" and p.node == "mx0" else ok("220") for p in probes
        ]
        began = time.process_time()
        for probe, result in zip(probes, results, strict=True):
            engine.feed(Checked(probe, now, now, result))
        spent_feeding += time.process_time() - began
        fed += len(probes)
        began = time.process_time()
        engine.observed(Observation(now, seen.services), now)
        engine.actions(now)
        spent[phase] += time.process_time() - began
        engine.events()
    return {
        "nodes": nodes,
        "us_per_result": round(spent_feeding / fed * 1e6, 1),
        "us_per_cycle_well": round(spent["well"] / cycles * 1e6, 1),
        "us_per_cycle_failing": round(spent["failing"] / cycles * 1e6, 1),
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[2, 20, 200])
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(nodes, options.cycles) for nodes in options.nodes]
    if options.json:
        print(json.dumps(rows))
        return
    print("nodes  us/result  us/cycle, well  us/cycle, one failing")
    for row in rows:
        print(
            f"{row['nodes']:5.0f}  {row['us_per_result']:9.1f}  {row['us_per_cycle_well']:14.1f}"
            f"  {row['us_per_cycle_failing']:21.1f}"
        )


if __name__ == "__main__":
    main()
