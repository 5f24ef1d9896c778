"""How fast a fault is seen and acted on: hactld beside HAProxy, with and without fastinter.

All three check the same farm with the same interval, timeout and fall, and meet the same faults at
the same moments, one target at a time.  The moment is a random one of hactld's interval, but each
part of the interval has its turn: with N repetitions one fault in each Nth of it, in random order.
For HAProxy, whose looks have nothing to do with hactld's, it is simply random.  hactld steers an
emulated relayd; its decision and the end of the command are those of its log, the start of relayctl
is the first thing that the program itself does, pf is the table of the emulated relayd, which finds
nothing out by itself here.  `first` is hactld's first look that failed: from there on the phase
plays no part.  The `others` hang all the time; hactld and HAProxy check them too.

refuse: the port is closed.  silent: accepts and says nothing.  421: greets with it and closes.
dead: the port is closed, and what is open is reset.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from farm import FAULTS, Farm, address, more_files
from peers import STOLEN, Hactl, Haproxy, HaproxyFast, Peer, Setup, Stolen, quantile

import hactl.lab
from hactl.core import schedule
from hactl.core.model import Probe, Rule
from hactl.lab.relayd import Emulator

PATIENCE = 14.0  # seconds until a fault counts as not seen
STEPS = ("first", "decision", "started", "acted", "pf")

# The log's times with all their digits.
LAUNCH = """
import logging
logging.Formatter.formatTime = lambda self, record, datefmt=None: f"{record.created:.6f}"
from hactl.daemon.main import main
main()
"""

# The lab's relayctl, telling when it began.
STAMPED = """
#include <fcntl.h>
#include <time.h>
#define main relayctl
#include CLIENT
#undef main
int main(int argc, char *argv[])
{
	struct timespec now;
	char line[512];
	int i, n, fd = open(STAMPS, O_WRONLY | O_CREAT | O_APPEND, 0600);
	clock_gettime(CLOCK_REALTIME, &now);
	n = snprintf(line, sizeof(line), "%lld.%09ld", (long long)now.tv_sec, now.tv_nsec);
	for (i = 1; i < argc; i++)
		n += snprintf(line + n, sizeof(line) - n, " %s", argv[i]);
	line[n++] = '\\n';
	if (write(fd, line, n) != n)
		return 1;
	close(fd);
	return relayctl(argc, argv);
}
"""


class Steering(Hactl):
    """hactld on the emulated relayd, with a log of every result."""

    def launch(self, config: Path) -> None:
        """Start hactld."""
        self.spawn(sys.executable, "-c", LAUNCH, "-d", "-v", "-f", config)


def build(directory: Path) -> Path:
    """Make the relayctl that tells when it began.  Raise OSError without a compiler."""
    source, program = directory / "stamped.c", directory / "stamped"
    source.write_text(STAMPED)
    client = Path(hactl.lab.__file__ or "").parent / "client.c"
    defines = [f'-DCLIENT="{client}"', f'-DSTAMPS="{directory}/stamps"']
    subprocess.run(["cc", "-O2", *defines, "-o", program, source], check=True)
    return program


def relayd_conf(path: Path, members: int, port: int) -> Path:
    """Write a relayd.conf whose own checks come too seldom to matter."""
    hosts = " ".join(address(n) for n in range(members))
    path.write_text(
        f"interval 3600\ntimeout 1000\ntable <farm> {{ {hosts} }}\nredirect farm {{\n"
        f"\tlisten on 127.0.0.1 port 2526\n\tforward to <farm> port {port} check tcp\n}}\n"
    )
    return path


def read_log(peer: Hactl, directory: Path) -> dict[str, dict[str, list[float]]]:
    """Return the moments of each event, by event and address."""
    found: dict[str, dict[str, list[float]]] = {step: {} for step in STEPS}
    for line in peer.log.read_text(errors="replace").splitlines():
        stamp, _, rest = line.partition(" ")
        moment = stamp.rpartition(".")[0]
        if not re.fullmatch(r"\d+\.\d+", moment):
            continue
        if failed := re.search(r"DEBUG t(\d+)/\S+ Result\(verdict=<Verdict.FAIL", rest):
            found["first"].setdefault(address(int(failed[1])), []).append(float(moment))
        elif decided := re.search(r" decision service=farm host=(\S+) .*to=out", rest):
            found["decision"].setdefault(decided[1], []).append(float(moment))
        elif acted := re.search(r" acted .*host=(\S+) id=(\d+) verb=disable", rest):
            found["acted"].setdefault(acted[1], []).append(float(moment))
            found["started"].setdefault(acted[1], []).extend(started(directory, acted[2]))
    return found


def phase_of(target: int, interval: float) -> float:
    """Return when in the interval, on the monotonic clock, hactld's regular look at a target is due."""
    probe = Probe(f"t{target}", "smtp", address(target))
    return schedule.first(probe, 0, Rule(interval=interval), 0.0).due


def started(directory: Path, host: str) -> list[float]:
    """Return when relayctl was started to disable a host."""
    rows = (line.split() for line in (directory / "stamps").read_text().splitlines())
    return [float(row[0]) for row in rows if row[1:] == ["host", "disable", host]]


async def until(condition: Callable[[], bool], limit: float) -> None:
    """Wait until something is so, or *limit* seconds."""
    end = time.monotonic() + limit
    while not condition() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def play(
    fault: str, others: int, repetitions: int, setup: Setup, check: str, dice: random.Random
) -> dict[str, Any]:
    """Break one target after another; return the seconds until everybody knew."""
    members = 2 * repetitions  # half of them stay well
    farm = Farm(members + others)
    seen: dict[str, dict[int, float]] = {"haproxy": {}, "haproxy-fastinter": {}, "pf": {}}
    with tempfile.TemporaryDirectory(prefix="hactl-bench.") as name:
        directory = Path(name)
        conf = relayd_conf(directory / "relayd.conf", members, farm.port)
        emulator = Emulator(conf, directory, socket=directory / "relayd.sock")
        await emulator.start()
        steering = Steering(farm, directory, setup)
        steering.conf, steering.relayctl = conf, build(directory)
        steering.members = members
        steering.check = check
        steering.service = ", pace: 100% in 1s"
        peers: list[Peer] = [steering]
        peers += [
            kind(farm, directory, setup, partial(note, seen[kind.name]))
            for kind in (Haproxy, HaproxyFast)
            if kind.found()
        ]
        faults: dict[int, float] = {}
        try:
            if others:
                farm.fault(list(range(members, farm.count)), "silent")
            for peer in peers:
                await peer.start()
            await steering.ready(20.0)
            await asyncio.sleep(setup.interval + 2)
            stolen = Stolen()
            watches = []
            phases = [(n + dice.random()) / repetitions for n in range(repetitions)]
            dice.shuffle(phases)
            for target, phase in enumerate(phases):
                moment = phase_of(target, setup.interval) + phase * setup.interval
                await asyncio.sleep((moment - time.monotonic()) % setup.interval)
                faults[target] = farm.fault([target], fault)
                watches.append(asyncio.create_task(gone(emulator, target, seen["pf"])))
                await until(lambda target=target: target in seen["pf"], PATIENCE)  # type: ignore[misc]
            names = [peer.name for peer in peers[1:]]
            await until(lambda: all(faults.keys() <= seen[n].keys() for n in names), PATIENCE)
            share = stolen.share()
            for watch in watches:
                watch.cancel()
            moments = read_log(steering, directory)
            wrong = len(moments["decision"].keys() - {address(n) for n in faults})
        finally:
            for peer in peers:
                await peer.stop()
            await emulator.stop()
            farm.stop()
    return {
        "fault": fault,
        "others": others,
        "repetitions": repetitions,
        "stolen": share,
        "removed_wrongly": wrong,
        "missed": {n: repetitions - len(seen[n].keys() & faults.keys()) for n in ("pf", *names)},
        **digest(faults, moments, seen, names),
    }


def note(seen: dict[int, float], target: int, at: float) -> None:
    """Note when a checker first said that a target is down."""
    seen.setdefault(target, at)


async def gone(emulator: Emulator, target: int, seen: dict[int, float]) -> None:
    """Note when a target is no longer in pf's table."""
    await emulator.until(lambda: address(target) not in emulator.pf.tables["farm"], None)
    seen[target] = time.time()


def digest(
    faults: dict[int, float],
    moments: dict[str, dict[str, list[float]]],
    seen: dict[str, dict[int, float]],
    names: list[str],
) -> dict[str, Any]:
    """Turn moments into seconds since the fault, and since the step before."""
    rows: dict[str, list[float]] = {"decision": [], "pf": [], **{name: [] for name in names}}
    steps: dict[str, list[float]] = {
        "first_to_decision": [], "decision_to_started": [], "decision_to_acted": [],
        "decision_to_pf": [],
    }  # fmt: skip
    for target, at in faults.items():
        for name in names:
            if target in seen[name]:
                rows[name].append(seen[name][target] - at)
        after = {
            step: min((m for m in moments[step].get(address(target), []) if m >= at), default=None)
            for step in STEPS[:-1]
        }
        after["pf"] = seen["pf"].get(target)
        first, decision, pf = after["first"], after["decision"], after["pf"]
        if first is None or decision is None or pf is None:
            continue
        rows["decision"].append(decision - at)
        rows["pf"].append(pf - at)
        steps["first_to_decision"].append(decision - first)
        for step in ("started", "acted", "pf"):
            if (moment := after[step]) is not None:
                steps[f"decision_to_{step}"].append(moment - decision)
    return {
        "seconds": {name: spread(values) for name, values in rows.items()},
        "steps": {name: spread(values) for name, values in steps.items()},
    }


def spread(values: list[float]) -> dict[str, float] | None:
    """Return minimum, median, the 90th of a hundred, and maximum."""
    if not values:
        return None
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "p90": round(quantile(values, 0.9), 4),
        "max": round(max(values), 4),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    print("seconds from the fault until it was known      min   median      max")
    for row in rows:
        for name, values in row["seconds"].items():
            what = {"decision": "hactl, decision", "pf": "hactl, pf's table"}.get(name, name)
            head = f"{row['fault']:7} {row['others']:3} others  {what:20}"
            missed = row["missed"].get("pf" if name == "decision" else name, 0)
            tail = f"   {missed} not seen" if missed else ""
            print(f"{head}{line(values, 1.0, 9, 3)}{tail}")
    print("\nmilliseconds inside hactl                      min   median      max")
    for row in rows:
        for name, values in row["steps"].items():
            head = f"{row['fault']:7} {row['others']:3} others  {name.replace('_', ' '):20}"
            print(f"{head}{line(values, 1000.0, 9, 1)}")
    if wrong := sum(row["removed_wrongly"] for row in rows):
        print(f"\n{wrong} targets were removed that had no fault")


def line(values: dict[str, float] | None, factor: float, width: int, digits: int) -> str:
    """Write minimum, median and maximum."""
    if values is None:
        return f"{'-':>{width}}" * 3
    keys = ("min", "median", "max")
    return "".join(f"{values[key] * factor:{width}.{digits}f}" for key in keys)


def main() -> None:
    """Measure, and print the tables or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", nargs="*", default=list(FAULTS[1:]), choices=FAULTS[1:])
    parser.add_argument("--others", type=int, nargs="*", default=[0], help="0 50 for the full run")
    parser.add_argument("--repetitions", type=int, default=3, help="20 for the full run")
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--timeout", type=float, default=1.0)
    parser.add_argument("--fall", type=int, default=3)
    parser.add_argument(
        "--check",
        default="fast_interval: 100ms, hedge: 100ms, tripwire: true",
        help="more keys of hactl's check, as in hactl.yaml",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    more_files()
    if not Haproxy.found():
        print("haproxy is not installed: apt-get install haproxy (skipped)", file=sys.stderr)
    setup = Setup(options.interval, options.timeout, options.fall)
    check = f", {options.check}" if options.check else ""
    dice = random.Random(options.seed)
    rows = []
    for fault in options.faults:
        for others in options.others:
            found = play(fault, others, options.repetitions, setup, check, dice)
            row = asyncio.run(found)
            row["dropped"] = row["stolen"] > STOLEN
            rows.append(row)
            print(
                f"{fault}, {others} others: {row['stolen']:.1%} stolen"
                f"{', more than 5 %: do not trust it' * row['dropped']}",
                file=sys.stderr,
                flush=True,
            )
    if options.json:
        print(json.dumps({"rows": rows, "setup": setup._asdict(), "pid": os.getpid()}))
        return
    show(rows)


if __name__ == "__main__":
    main()
