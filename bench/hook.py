"""What a round of relayd's script checks costs with hactl-verdict, beside other programs.

relayd runs scripts one after another; so does this, fork, exec and wait, for as many hosts as asked
for.  The programs take turns, round by round, and a round with more than 5 % of the machine's time
stolen is dropped and counted.  Milliseconds for a round, and ratios to an empty program in C.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import STOLEN, Stolen

from hactl.core.model import Member
from hactl.relayd import hook
from hactl.relayd.hook import Verdicts

EMPTY = "int main(void) { return 1; }\n"
CLOCK = """#!/bin/sh
read -r until < "$HACTL_RUN_DIR/until"
[ "$(date +%s)" -lt "$until" ] && [ -e "$HACTL_RUN_DIR/down/mx/$1" ] && exit 0
exit 1
"""
PYTHON = """#!{0} -IS
import posix, sys
try:
    posix.stat(posix.environ[b"HACTL_RUN_DIR"] + b"/down/mx/" + sys.argv[1].encode())
except OSError:
    posix._exit(1)
posix._exit(0)
"""


def programs(directory: Path) -> dict[str, Path]:
    """Make the programs; without a compiler true(1) is the empty one."""
    empty = directory / "empty"
    compiler = shutil.which("cc")
    if compiler:
        (directory / "empty.c").write_text(EMPTY)
        subprocess.run([compiler, "-O2", "-o", empty, directory / "empty.c"], check=True)
    else:
        shutil.copy(shutil.which("true") or "/usr/bin/true", empty)
    hook.install("mx", directory / "libexec")
    scripts = {"sh with $(date)": CLOCK, "python3 -I -S": PYTHON.format(sys.executable)}
    found = {"empty": empty, "hactl-verdict": directory / "libexec" / "mx"}
    for number, (name, text) in enumerate(scripts.items()):
        found[name] = directory / f"script{number}"
        found[name].write_text(text)
        found[name].chmod(0o755)
    return found


def once(program: Path, words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run *program* for each word in turn; return wall clock and CPU in milliseconds."""
    spent = 0.0
    null = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in (0, 1, 2)]
    began = time.perf_counter()
    for word in words:
        argv = [os.fspath(program), word]
        child = os.posix_spawn(program, argv, environment, file_actions=null)
        _, status, usage = os.wait4(child, 0)
        if not os.WIFEXITED(status) or os.WEXITSTATUS(status) > 1:
            raise SystemExit(f"{program} {word}: status {status}")
        spent += usage.ru_utime + usage.ru_stime
    return (time.perf_counter() - began) * 1e3, spent * 1e3


def measure(hosts: int, rounds: int) -> dict[str, Any]:
    """Return for each program its rounds, and the ratio of medians to the empty one."""
    words = [f"10.0.{n >> 8}.{n & 255}" for n in range(hosts)]
    taken: dict[str, list[tuple[float, float]]] = {}
    dropped = 0
    with tempfile.TemporaryDirectory(prefix="hactl-hook-") as name:
        directory = Path(name)
        verdicts = Verdicts(directory / "down")
        for word in words[::2]:  # every other one is down
            verdicts.put(Member("mx", 0, word), down=True)
        (directory / "until").write_text(f"{int(time.time()) + 86400}\n")
        environment = {"HACTL_RUN_DIR": name, "PATH": "/usr/bin:/bin"}
        found = programs(directory)
        for program in found.values():  # into the cache
            once(program, words[:2], environment)
        for _ in range(rounds):
            stolen = Stolen()
            row = {name: once(program, words, environment) for name, program in found.items()}
            if stolen.share() > STOLEN:
                dropped += 1
                continue
            for name, figures in row.items():
                taken.setdefault(name, []).append(figures)
    return {"hosts": hosts, "rounds": rounds, "dropped": dropped, "rows": _rows(taken)}


def _rows(taken: dict[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Return medians, extremes, and the median of each round's own ratio to the empty program."""
    rows = []
    for name, figures in taken.items():
        walls, cpus = zip(*figures, strict=True)
        ratios = [
            [
                mine[k] / max(empty[k], 1e-6)
                for mine, empty in zip(figures, taken["empty"], strict=True)
            ]
            for k in (0, 1)
        ]
        rows.append(
            {
                "program": name,
                "wall_ms": round(statistics.median(walls), 2),
                "wall_ms_least": round(min(walls), 2),
                "wall_ms_most": round(max(walls), 2),
                "cpu_ms": round(statistics.median(cpus), 2),
                "wall_ratio": round(statistics.median(ratios[0]), 3),
                "cpu_ratio": round(statistics.median(ratios[1]), 3),
            }
        )
    return rows


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=50, help="scripts a round [50]")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each program [40]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    data = measure(options.hosts, options.rounds)
    if options.json:
        print(json.dumps(data))
        return
    print(f"{data['hosts']} hosts, {data['rounds']} rounds, {data['dropped']} dropped")
    print("program          ms: median   least    most   CPU ms   x empty   x empty, CPU")
    for row in data["rows"]:
        print(
            f"{row['program']:<16} {row['wall_ms']:10.1f}  {row['wall_ms_least']:6.1f}  "
            f"{row['wall_ms_most']:6.1f}  {row['cpu_ms']:7.1f}  {row['wall_ratio']:8.2f}  "
            f"{row['cpu_ratio']:13.2f}"
        )


if __name__ == "__main__":
    main()
