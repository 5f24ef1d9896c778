"""chance: random schedules, the same for the same seed; a failing one is shrunk and written down.

    python -m hactl.sim.chance --count 20000 --keep tests/scenarios

A schedule is an hour or so of a small cluster: up to a dozen faults and deeds of every kind,
crowded in time, for what breaks rules is what comes together.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from hactl.config import ConfigError
from hactl.sim import scenario as scenario_
from hactl.sim.rules import Violation, Watch, broken
from hactl.sim.truth import Event
from hactl.sim.world import World

SHAPES: Sequence[Mapping[str, tuple[tuple[str, ...], ...]]] = (
    {"mx": (("A", "B"),)},
    {"mx": (("A", "B"),)},
    {"mx": (("A", "B", "C"),)},
    {"mx": (("A",), ("B",))},
    {"mx": (("A", "B"), ("C",))},
    {"mx0": (("A",), ("B",)), "mx1": (("B",), ("A",))},
    {"mx": (("A", "B"),), "imap": (("A", "B", "C"),)},
    {"mx": (("A", "B", "C", "D", "E", "F"),)},
)
# What services may say besides; a line that hactl.yaml does not know is left out.
MANNERS = (
    "", "", "",
    "min_serving: 2",
    "floor: closed",
    "prefer: [spamd]",
    "prefer: [spamd], min_serving: 50%",
    "exclusive: true",
    "exclusive: true, failback: manual",
    "mode: hook",
)  # fmt: skip
FAULTS = ("crash", "vanish", "hang", "refuse", "refuse", "slow", "warn", "unknown", "loss")
DEEDS = (
    "reload", "reload", "restart", "down", "kill", "kill", "stall", "lag", "mute", "cut",
    "disable", "enable", "drain", "maint", "pin", "freeze", "resume", "thaw", "ahead", "back",
)  # fmt: skip
SPANS = (0.5, 2.0, 3.0, 7.0, 15.0, 31.0, 60.0, 200.0, 600.0)
GAPS = (0.0, 0.2, 0.5, 1.1, 2.0, 4.0, 9.0, 15.0, 35.0, 120.0, 300.0)


class Story(Struct, frozen=True):
    """A schedule with its cluster; *more* has hactl.yaml's sections."""

    seed: int
    tables: Mapping[str, tuple[tuple[str, ...], ...]]
    more: str
    events: tuple[Event, ...]
    duration: float

    def text(self, about: str) -> str:
        """Write it as a scenario file."""
        return scenario_.write(about, self.tables, self.events, self.duration, self.seed, self.more)


def story(seed: int) -> Story:
    """Make the schedule of a seed."""
    rng = random.Random(f"story {seed}")
    tables = rng.choice(SHAPES)
    manner = rng.choice(MANNERS)
    nodes = sorted({w for each in tables.values() for table in each for w in table})
    interval = rng.choice(("2s", "2s", "5s"))
    lines = [
        f"relayd: {{interval: {rng.choice((3, 5, 10))}s, retry: {rng.choice((0, 0, 2))}}}",
        f"checks: {{smtp: {{}}, nfs: {{interval: {interval}}}, spamd: {{interval: 5s}}}}",
        "services:",
    ]
    for service in tables:
        beside = f", {manner}" if _known(manner) else ""
        lines.append(f"  {service}: {{require: [smtp, nfs]{beside}}}")
    events: list[Event] = []
    at = 5.0
    for _ in range(rng.randint(2, 12)):
        at += rng.choice(GAPS)
        events.append(_event(rng, round(at, 1), nodes, list(tables)))
    duration = at + rng.choice((300.0, 1200.0, 3600.0))
    rng = random.Random(f"late {seed}")  # of its own: the other stories stay what they were
    if rng.random() < 0.25:
        lasts = rng.choice((3.0, 60.0, 600.0, 3600.0))
        events.append(Event(round(rng.uniform(0.0, at), 1), "late", lasts=lasts))
    rng = random.Random(f"flap {seed}")
    if rng.random() < 0.15:  # one that flaps as long as the story goes on
        do, lasts = (
            rng.choice(("crash", "hang", "refuse")),
            rng.choice((3.0, 7.0, 15.0, 31.0, 60.0)),
        )
        begins = round(rng.uniform(5.0, 60.0), 1)
        every = lasts * rng.choice((1.5, 2, 4, 8))
        events.append(Event(begins, do, (rng.choice(nodes),), (), lasts, every))
    events.sort(key=lambda event: event.at)
    return Story(seed, tables, "\n".join(lines), tuple(events), duration)


_KNOWN: dict[str, bool] = {}


def _known(manner: str) -> bool:
    """Tell whether hactl.yaml has these keys."""
    if manner not in _KNOWN:
        text = "tables: {mx: {main: [A]}}\nchecks: {smtp: {}, spamd: {}}\n"
        beside = f", {manner}" if manner else ""
        text += f"services: {{mx: {{require: [smtp]{beside}}}}}\n"
        try:
            scenario_.parse(text, "try")
            _KNOWN[manner] = bool(manner)
        except ConfigError:
            _KNOWN[manner] = False
    return _KNOWN[manner]


def _event(rng: random.Random, at: float, nodes: list[str], services: list[str]) -> Event:
    lasts = rng.choice(SPANS)
    if rng.random() < 0.6:
        do = rng.choice(FAULTS)
        many = rng.choice((1, 1, 1, 2, len(nodes)))
        to = tuple(sorted(rng.sample(nodes, min(many, len(nodes)))))
        check: tuple[str, ...] = ()
        if do not in ("crash", "vanish") and rng.random() < 0.7:
            check = (rng.choice(("smtp", "nfs", "spamd")),)
        every = lasts * rng.choice((1.5, 2, 4)) if rng.random() < 0.2 else None
        share = rng.choice((0.05, 0.2, 0.5)) if do == "loss" else 0.0
        by = rng.choice((0.4, 3.0)) if do == "slow" else 0.0
        return Event(at, do, to, check, lasts, every, share=share, by=by)
    do = rng.choice(DEEDS)
    if do in ("reload", "restart", "down"):
        return Event(at, do, lasts=rng.choice((0.5, 3.0, 12.0)) if do != "reload" else None,
                     shift=rng.choice((0, 1, 5)) if do == "reload" else 0)  # fmt: skip
    if do in ("kill", "stall", "lag", "mute", "cut"):
        return Event(at, do, lasts=lasts)
    if do in ("ahead", "back"):
        return Event(at, do, by=3600.0)
    if do in ("freeze", "thaw"):
        return Event(at, do, (rng.choice(services),), lasts=lasts if do == "freeze" else None)
    target = rng.choice((rng.choice(nodes), f"{services[0]}/{nodes[0]}"))
    ends = lasts if do in ("drain", "maint", "pin") else None
    return Event(at, do, (target,), lasts=ends)


def run(each: Story) -> list[Violation]:
    """Run a story and return the rules that it broke."""
    scenario = scenario_.parse(each.text("a random schedule"), f"seed {each.seed}")
    assert scenario.what is not None
    watch = Watch()
    World(
        scenario.what, scenario.events, scenario.duration, seed=scenario.seed,
        watchers=[watch], record=False,
    ).run()  # fmt: skip
    return watch.violations


def shrink(each: Story, rule: int, budget: int = 200) -> Story:
    """Leave out what the story does not need to break *rule*."""
    done = False
    while not done and budget > 0:
        done = True
        for smaller in _smaller(each):
            budget -= 1
            if rule in broken(run(smaller)):
                each, done = smaller, False
                break
            if budget <= 0:
                break
    return each


def _smaller(each: Story) -> Iterator[Story]:
    """Yield stories that are a little less."""
    for n in range(len(each.events)):
        yield replace(each, events=each.events[:n] + each.events[n + 1 :])
    for n, event in enumerate(each.events):
        for less in (
            replace(event, every=None) if event.every else None,
            replace(event, to=event.to[:1]) if len(event.to) > 1 else None,
        ):
            if less is not None:
                yield replace(each, events=(*each.events[:n], less, *each.events[n + 1 :]))
    if each.duration > 300:
        half = each.duration / 2
        yield replace(each, duration=half, events=tuple(e for e in each.events if e.at < half))


class Found(Struct, frozen=True):
    """What a seed gave: simulated seconds, and violations as text with their rules."""

    seed: int
    seconds: float
    violations: tuple[tuple[int, str], ...] = ()


def try_seed(seed: int) -> Found:
    """Run the story of a seed (in a worker)."""
    each = story(seed)
    return Found(seed, each.duration, tuple((v.rule, str(v)) for v in run(each)))


def soak(seeds: Sequence[int], jobs: int) -> Iterator[Found]:
    """Run the stories of all seeds, on several processors."""
    if jobs < 2:
        yield from map(try_seed, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs) as pool:
        yield from pool.imap_unordered(try_seed, seeds, chunksize=8)
        pool.close()
        pool.join()


def keep(seed: int, rule: int, folder: Path) -> Path:
    """Shrink the story of a seed and write it into *folder*."""
    small = shrink(story(seed), rule)
    said = next((str(v) for v in run(small) if v.rule == rule), f"rule {rule}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"found-{seed}-rule-{rule}.yaml"
    about = said.replace(": ", ", ").replace("#", "")
    path.write_text(small.text(f'"{about}"'))
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=500, help="schedules to run [500]")
    parser.add_argument("--first", type=int, default=0, help="the first seed [0]")
    parser.add_argument("--jobs", type=int, default=2, help="processes [2]")
    parser.add_argument("--keep", type=Path, help="shrink what fails and write it into this folder")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    began = time.monotonic()
    hours, failing = 0.0, []
    for number, found in enumerate(
        soak(range(options.first, options.first + options.count), options.jobs), 1
    ):
        hours += found.seconds / 3600
        if found.violations:
            failing.append(found)
            for _, text in found.violations:
                print(f"seed {found.seed}: {text}", file=sys.stderr)
        if number % (20 if sys.stderr.isatty() else 500) == 0:
            ends = "\r" if sys.stderr.isatty() else "\n"
            text = f"{number} of {options.count}: {hours:.0f} simulated hours, {len(failing)} fail"
            print(text, end=ends, file=sys.stderr, flush=True)
    took = time.monotonic() - began
    figures = {
        "schedules": options.count, "hours": round(hours, 1), "seconds": round(took, 1),
        "violating": len(failing), "speed": round(hours * 3600 / took),
    }  # fmt: skip
    if options.json:
        print(json.dumps(figures))
    else:
        print(
            f"{options.count} schedules, {hours:.0f} simulated hours in {took:.0f} s:"
            f" {len(failing)} break a rule"
        )
    for found in failing[:10] if options.keep else ():
        for rule in sorted({rule for rule, _ in found.violations}):
            print(f"kept as {keep(found.seed, rule, options.keep)}")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())
