"""verify: what faults would do to this hactl.yaml and this relayd.conf.

Every single fault, every pair of faults within a service, and then random schedules until the
budget is spent, each in a world of its own.  Nodes that are in the same tables with the same
weight are equal, and stand for each other: what happens to one of them is tried once.  A single
fault that a row of fails must show is tried in PHASES worlds, as its detection depends on when
between two looks it begins.

What is read off the files without running anything is a weakness; what a run shows is a fault
that empties a service, a late detection, a rule that breaks.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from hactl.config import Config, ConfigError, Problem
from hactl.core.model import Kind
from hactl.core.units import span
from hactl.daemon.plan import mismatches
from hactl.relayd.conf import RelaydConf
from hactl.show import Progress, safe, table
from hactl.sim.rules import RULES, Watch
from hactl.sim.scenario import files, write
from hactl.sim.truth import Event
from hactl.sim.world import Cluster, World

BEGIN = 60.0  # seconds into a run at which the first fault comes
SECOND = 37.3  # seconds later the second
SHOWN = 3.0  # seconds of an empty service that are worth telling
SLOW = 10.0  # seconds of interval from which on a required check is called slow
CLEAR = ("crash", "vanish", "hang", "refuse", "slow")  # faults that a row of fails must show
PHASES = 5
KEPT = 20  # schedules that broke a rule, written down
STOPPED = 130  # the exit code after ^C, as a shell has it


class Case(Struct, frozen=True):
    """One schedule: *kind* is single, pair or sampled."""

    name: str
    kind: str
    events: tuple[Event, ...]
    seconds: float
    seed: int = 1

    @property
    def clear(self) -> bool:
        """Whether it is one plain fault of one node, whose detection says something."""
        first = self.events[0]
        return (
            self.kind == "single"
            and first.do in CLEAR
            and bool(first.to)
            and first.every is None
        )  # fmt: skip


class Service(Struct):
    """What was found out about a service."""

    name: str
    members: int = 0
    nodes: int = 0
    detection: float | None = None
    detection_by: str = ""
    changes: int = 0
    changes_by: str = ""
    emptied: dict[str, float] = {}  # by which fault, and for how many seconds at most
    needless: float = 0.0
    needless_by: str = ""


class Seen(Struct, frozen=True):
    """What one case came to: violations, and per service detection, changes, empty, needless."""

    case: Case
    seconds: float  # simulated
    violations: tuple[tuple[int, str], ...]
    services: dict[str, tuple[float, int, float, float]]


class Verdict(Struct):
    """All that `hactl verify --json` prints."""

    single: tuple[int, int]  # tried, of how many
    pairs: tuple[int, int]
    sampled: int
    seconds: float
    simulated_hours: float
    weaknesses: list[str]
    services: list[Service]
    broken: dict[int, list[str]]
    stopped: str = ""  # by what, if not by the budget
    schedules: list[str] = []  # those that broke a rule, as scenarios


# What is read off the files


def weaknesses(config: Config, conf: RelaydConf, what: Cluster) -> Iterator[str]:
    """Say what is weak without running anything."""
    yield from mismatches(config, conf)
    for service in conf.services:
        if service.name not in config.services and service.tables:
            yield f"service {service.name}: relayd has it, hactl.yaml does not: nobody steers it"
    required: dict[str, list[str]] = {}
    for layout in what.layouts:
        service_plan = what.plan.services[layout.name]
        yield from _alone(what, layout.name)
        for check in layout.require:
            required.setdefault(check, []).append(layout.name)
        if config.services[layout.name].mode == "observe":
            yield f"service {layout.name}: mode observe: hactl moves nothing, it is tried as if it did"
        if not layout.require:
            yield f"service {layout.name}: requires no check: hactl never removes anybody"
        if not service_plan.open:
            yield f"service {layout.name}: floor closed: when all fail, nobody serves"
    for check, users in required.items():
        yield from _weak_check(config, check, users)
    yield from _relayd(config, conf)


def _alone(what: Cluster, name: str) -> Iterator[str]:
    """Say where a service has nobody to fall back on, or asks for more than it has."""
    layout = next(each for each in what.layouts if each.name == name)
    service = what.plan.services[name]
    nodes = {s.node for s in layout.seats}
    main = [s for s in layout.seats if s.member.table == 0]
    spare = {s.node for s in layout.seats if s.member.table}
    if len(nodes) == 1:
        yield f"service {name}: no fallback: {nodes.pop()} is all it has"
    elif len({s.node for s in main}) == 1 and not spare - {s.node for s in main}:
        yield f"service {name}: no fallback: its backup is the same node as its main table"
    plans = what.plan.nodes
    weight = sum(plans[s.node].weight if s.node in plans else 1 for s in main)
    needed = max(service.least, int(service.share * weight + 1e-9))
    if needed > weight:
        yield f"service {name}: min_serving {needed} cannot be met by a weight of {weight}"
    elif needed == weight and len(main) > 1 and needed > 1:
        yield f"service {name}: min_serving needs every member: no failing one is ever removed"


def _weak_check(config: Config, check: str, users: list[str]) -> Iterator[str]:
    rule = config.checks[check]
    whom = ", ".join(users)
    if rule.fall == 1:
        yield f"check {check}: fall 1: one lost packet removes a member of {whom}"
    if rule.rise == 1:
        yield f"check {check}: rise 1: one good look brings a sick member back to {whom}"
    if rule.interval > SLOW:
        yield f"check {check}: required by {whom}, but looked at only every {rule.interval}"
    if rule.at is not None:
        yield f"check {check}: looked at on {rule.at} alone: one answer for all members of {whom}"


def _relayd(config: Config, conf: RelaydConf) -> Iterator[str]:
    for service in conf.services:
        if service.name not in config.services:
            continue
        for table_ in service.tables:
            where = f"service {service.name}: table {table_.name}"
            if table_.check is None and service.kind is Kind.RELAY:
                yield f"{where} has no check: hactl cannot touch its hosts without killing relayd"
            elif table_.check is None:
                yield f"{where} has no check: relayd never uses its hosts"
            if table_.check == "script":
                yield f"{where} has a script check: relayd's reload is slow and can kill it"
            if table_.check == "tcp" and any(h.retry == 0 for h in table_.hosts):
                yield f"{where}: retry 0: one lost SYN of relayd's own check takes a host out"


# What is tried


def classes(what: Cluster) -> dict[str, tuple[object, ...]]:
    """Return for each node what makes it equal to others: its places and its weight."""
    found: dict[str, list[object]] = {}
    for layout in what.layouts:
        for seat in layout.seats:
            found.setdefault(seat.node, []).append((layout.name, seat.member.table))
    nodes = what.plan.nodes
    return {
        node: (nodes[node].weight if node in nodes else 1, *places)
        for node, places in found.items()
    }


Fault = tuple[str, str, tuple[str, ...]]  # what, node, checks


def _length(what: Cluster, *faults: Fault) -> float:
    """Return how long faults have to last so that the checks that they are of can see them."""
    seen = {c for _, _, checks in faults for c in checks}
    if not seen:
        seen = {c for each in what.layouts for c in each.require}
    rules = [what.plan.rules[c] for c in seen]
    slowest = max((r.interval * r.fall + r.timeout for r in rules), default=10.0)
    return max(90.0, 3 * slowest)


def _faults(what: Cluster, node: str) -> list[Fault]:
    """Return every fault that a node can have."""
    mine = [each for each in what.layouts if any(s.node == node for s in each.seats)]
    checks = {c for each in mine for c in each.require}
    preferred = {c for each in mine for c in what.plan.services[each.name].prefer}
    found: list[Fault] = [("crash", node, ()), ("vanish", node, ()), ("hang", node, ())]
    for check in sorted(checks):
        found += [(do, node, (check,)) for do in ("refuse", "hang", "unknown", "slow", "loss")]
    for check in sorted(preferred - checks):
        found += [(do, node, (check,)) for do in ("warn", "hang")]
    return found


def _event(fault: Fault, at: float, lasts: float, every: float | None = None) -> Event:
    do, node, checks = fault
    share = 0.2 if do == "loss" else 0.0
    by = 3600.0 if do == "slow" else 0.0
    return Event(at, do, (node,), checks, lasts, every, share=share, by=by)


OURS = (("reload", None), ("restart", 3.0), ("down", 3.0), ("kill", 30.0), ("stall", 20.0),
        ("lag", 60.0), ("mute", 60.0), ("late", 60.0), ("cut", 30.0))  # fmt: skip


def singles(what: Cluster) -> Iterator[Case]:
    """Yield every single fault, of one node in each class."""
    seen: set[tuple[object, ...]] = set()
    for node, kind in classes(what).items():
        if kind in seen:
            continue
        seen.add(kind)
        for fault in _faults(what, node):
            length = _length(what, fault)
            event = _event(fault, BEGIN, length)
            yield Case(str(event), "single", (event,), BEGIN + 2 * length + 60)
        for fault in _faults(what, node):
            if fault[0] in ("crash", "refuse"):
                event = _event(fault, BEGIN, 20.0, 40.0)
                yield Case(f"{event}, on and off", "single", (event,), 1800.0)
    for do, lasts in OURS:
        yield Case(do, "single", (Event(BEGIN, do, lasts=lasts),), BEGIN + 240)
    length = _length(what)
    total = BEGIN + 2 * length + 60
    for check in sorted({c for each in what.layouts for c in each.require}):
        event = Event(BEGIN, "refuse", check=(check,), lasts=length)
        yield Case(f"refuse everywhere ({check})", "single", (event,), total)
    event = Event(BEGIN, "crash", lasts=length)
    yield Case("crash everywhere", "single", (event,), total)


def pairs(what: Cluster) -> Iterator[Case]:
    """Yield every pair of faults within a service; equal members stand for each other."""
    kinds = classes(what)
    seen: set[object] = set()
    for layout in what.layouts:
        nodes = list(dict.fromkeys(s.node for s in layout.seats))
        for one in nodes:
            for two in nodes:
                for first in _faults(what, one):
                    for second in _faults(what, two):
                        key = (kinds[one], kinds[two], one == two, first[::2], second[::2])
                        if first == second or key in seen:
                            continue
                        seen.add(key)
                        length = _length(what, first, second)
                        events = (
                            _event(first, BEGIN, length),
                            _event(second, BEGIN + SECOND, length),
                        )
                        total = BEGIN + SECOND + 2 * length + 60
                        yield Case(f"{events[0]}, then {events[1]}", "pair", events, total)
            for fault in _faults(what, one):
                length = _length(what, fault)
                total = BEGIN + SECOND + 2 * length + 60
                for do, lasts in OURS:
                    beside = (kinds[one], do, fault[::2])
                    if beside not in seen:
                        seen.add(beside)
                        events = (
                            _event(fault, BEGIN, length),
                            Event(BEGIN + SECOND, do, lasts=lasts),
                        )
                        yield Case(f"{events[0]}, then {do}", "pair", events, total)


def sampled(what: Cluster, seed: int = 0) -> Iterator[Case]:
    """Yield random schedules without end."""
    nodes = sorted(classes(what))
    number = seed
    while nodes:
        number += 1
        rng = random.Random(f"verify {number}")
        at, events = BEGIN, []
        for _ in range(rng.randint(3, 8)):
            at += rng.choice((0.0, 0.5, 3.0, 12.0, 40.0, 150.0))
            lasts = rng.choice((2.0, 10.0, 45.0, 180.0))
            if rng.random() < 0.3:
                do, long = rng.choice(OURS)
                events.append(Event(at, do, lasts=long))
            else:
                fault = rng.choice(_faults(what, rng.choice(nodes)))
                every = rng.choice((None, None, None, 2 * lasts))
                events.append(_event(fault, at, lasts, every))
        name = f"random schedule {number}"
        yield Case(name, "sampled", tuple(events), at + 400, number)


# Running


_what: Cluster | None = None  # of a worker


def _start(what: Cluster) -> None:
    """Make a worker ready."""
    global _what
    _what = what


def _work(case: Case) -> Seen:
    assert _what is not None
    return trial(_what, case)


def trial(what: Cluster, case: Case) -> Seen:
    """Run one case, in its phases, and return the worst of them."""
    services: dict[str, tuple[float, int, float, float]] = {}
    seconds = 0.0
    for each in phases(what, case) if case.clear else (case,):
        watch = Watch()
        world = World(
            what, each.events, each.seconds, seed=each.seed, watchers=[watch], record=False
        )
        for name, f in world.run().figures.items():
            mine = (f.worst_detection or 0.0, f.worst_hour, f.empty, f.longest_needless)
            worst = services.get(name, mine)
            services[name] = (
                max(worst[0], mine[0]), max(worst[1], mine[1]),
                max(worst[2], mine[2]), max(worst[3], mine[3]),
            )  # fmt: skip
        seconds += each.seconds
        if watch.violations:
            break
    violations = tuple((v.rule, str(v)) for v in watch.violations)
    return Seen(each, seconds, violations, services)


def phases(what: Cluster, case: Case) -> Iterator[Case]:
    """Yield a case with its fault at other moments between two looks."""
    (event,) = case.events
    mine = [each for each in what.layouts if any(s.node in event.to for s in each.seats)]
    checks = event.check or {check for each in mine for check in each.require}
    quickest = min((what.plan.rules[check].interval for check in checks), default=0.0)
    for n in range(PHASES):
        shift = quickest * n / PHASES
        events = tuple(replace(event, at=event.at + shift) for event in case.events)
        yield replace(case, events=events, seconds=case.seconds + shift)


def verify(
    path: Path,
    relayd: Path | None,
    budget: float,
    jobs: int,
    progress: Callable[[int, int], None],
) -> Verdict:
    """Try all that fits into *budget* seconds.  Raise ConfigError."""
    config, conf, what = files(path, relayd)
    weak = sorted(weaknesses(config, conf, what))
    one, two = list(singles(what)), list(pairs(what))
    verdict = Verdict(
        (0, len(one)), (0, len(two)), 0, 0.0, 0.0, weak,
        [
            Service(each.name, len(each.seats), len({s.node for s in each.seats}), emptied={})
            for each in what.layouts
        ],
        {},
    )  # fmt: skip
    began = time.monotonic()
    queue = _until(began + budget, chain(one, two, sampled(what)))
    known = len(one) + len(two)
    try:
        for seen in _tried(what, queue, jobs):
            _take(verdict, seen)
            progress(verdict.single[0] + verdict.pairs[0] + verdict.sampled, known)
    except KeyboardInterrupt:
        verdict.stopped = "interrupted"
    except BrokenProcessPool:
        verdict.stopped = "a process of verify was killed"
    verdict.seconds = round(time.monotonic() - began, 1)
    verdict.simulated_hours = round(verdict.simulated_hours, 1)
    return verdict


def _until(end: float, cases: Iterable[Case]) -> Iterator[Case]:
    """Yield cases as long as there is time."""
    for case in cases:
        if time.monotonic() >= end:
            return
        yield case


def _tried(what: Cluster, queue: Iterator[Case], jobs: int) -> Iterator[Seen]:
    """Yield what each case came to, from as many processes as there are *jobs*."""
    if jobs < 2:
        yield from (trial(what, case) for case in queue)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (what,)) as pool:
        running: set[Future[Seen]] = set()
        try:
            while True:
                with _deaf():  # and so is a worker that this starts
                    more = [
                        pool.submit(_work, case) for case in islice(queue, 2 * jobs - len(running))
                    ]
                if not (running := running | {*more}):
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (each.result() for each in done)
        except KeyboardInterrupt:
            yield from [each.result() for each in running if not each.cancel()]
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore ^C for a moment."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _take(verdict: Verdict, seen: Seen) -> None:
    """Add what one case came to."""
    case = seen.case
    verdict.simulated_hours += seen.seconds / 3600
    if case.kind == "single":
        verdict.single = (verdict.single[0] + 1, verdict.single[1])
    elif case.kind == "pair":
        verdict.pairs = (verdict.pairs[0] + 1, verdict.pairs[1])
    else:
        verdict.sampled += 1
    for rule, text in seen.violations:
        verdict.broken.setdefault(rule, []).append(f"{case.name}: {text}")
    if seen.violations and len(verdict.schedules) < KEPT:
        about = json.dumps(f"{case.name}: {seen.violations[0][1]}")
        verdict.schedules.append(write(about, {}, case.events, case.seconds, case.seed))
    for service in verdict.services:
        detection, changes, empty, needless = seen.services[service.name]
        if case.clear and detection > (service.detection or 0.0):
            service.detection, service.detection_by = round(detection, 2), case.name
        if changes > service.changes:
            service.changes, service.changes_by = changes, case.name
        if case.kind == "single" and empty > SHOWN:
            service.emptied[case.name] = max(service.emptied.get(case.name, 0.0), round(empty, 1))
        if needless > service.needless:
            service.needless, service.needless_by = round(needless, 1), case.name


# For people


def counted(number: int, what: str) -> str:
    """Write a number of things."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def lines(verdict: Verdict) -> Iterator[str]:
    """Write the verdict."""
    for weakness in verdict.weaknesses:
        yield f"weak: {weakness}"
    if verdict.weaknesses:
        yield ""
    rows = [
        [
            each.name,
            f"{each.members} on {counted(each.nodes, 'node')}",
            "-" if each.detection is None else span(each.detection),
            str(each.changes) if each.changes else "-",
            span(each.needless) if each.needless > 0.05 else "-",
            counted(len(each.emptied), "fault") if each.emptied else "-",
        ]
        for each in verdict.services
    ]
    yield from table(
        ("SERVICE", "MEMBERS", "DETECTION", "CHANGES/H", "NEEDLESS", "EMPTIED BY"), rows
    )
    for each in verdict.services:
        if each.detection_by:
            yield f"{each.name}: slowest detection: {each.detection_by}"
        if each.changes_by:
            yield f"{each.name}: most changes by checks of a member in an hour: {each.changes_by}"
        if each.needless > 0.05:
            yield f"{each.name}: longest empty while a healthy member was there: {each.needless_by}"
        for name, seconds in sorted(each.emptied.items(), key=lambda e: -e[1]):
            yield f"{each.name}: emptied for {span(seconds)} by: {name}"
    yield ""
    tried = verdict.single[0] + verdict.pairs[0] + verdict.sampled
    for rule, what in RULES.items():
        broken = verdict.broken.get(rule, [])
        word = "BROKEN " if broken else "untried" if not tried else "holds  "
        yield f"rule {rule:>2} {word} {what}"
        for text in broken[:3]:
            yield f"    {text}"
        if len(broken) > 3:
            yield f"    and {len(broken) - 3} more"
    yield "rules 7 and 8 are about how looks are run; that is not simulated"
    yield ""
    yield (
        f"{verdict.single[0]} of {counted(verdict.single[1], 'single fault')},"
        f" {verdict.pairs[0]} of {counted(verdict.pairs[1], 'pair')},"
        f" {counted(verdict.sampled, 'random schedule')}:"
        f" {verdict.simulated_hours:.0f} simulated hours in {verdict.seconds:.0f} s"
    )
    if verdict.stopped:
        yield f"{verdict.stopped}: this is what was tried until then"
    elif verdict.single[0] < verdict.single[1]:
        yield "not every single fault was tried: give it a larger --budget"


def _make_room(keep: Path) -> None:
    """Make a directory, and see that files can be made in it, before a long run."""
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.glob("broken-*.yaml")):
        text = "has schedules of an earlier run, broken-*.yaml; name another directory"
        raise ConfigError([Problem(str(keep), 0, 0, "", text)])
    first = keep / "broken-1.yaml"
    first.touch()
    first.unlink()


def run(
    path: Path,
    relayd: Path | None,
    budget: float,
    *,
    keep: Path | None,
    as_json: bool,
    jobs: int,
    say: Callable[[str], None],
) -> int:
    """Do what `hactl verify` does; return its exit code.  Raise ConfigError, OSError."""
    if keep is not None:
        _make_room(keep)

    waiting = Progress()

    def progress(done: int, known: int) -> None:
        waiting.show(done / max(1, known), f"{counted(done, 'schedule')}, {known} to be sure")

    verdict = verify(path, relayd, budget, jobs, progress)
    waiting.clear()
    if as_json:
        say(msgspec.json.format(msgspec.json.encode(verdict), indent=1).decode())
    else:
        for line in lines(verdict):
            say(safe(line))
    for number, text in enumerate(verdict.schedules if keep is not None else (), 1):
        assert keep is not None
        (keep / f"broken-{number}.yaml").write_text(text, encoding="utf-8")
    if verdict.schedules and not as_json:
        say(
            f"{counted(len(verdict.schedules), 'schedule')} kept in {safe(str(keep))}"
            if keep is not None
            else "run it with --keep DIR to have these schedules as scenarios for hactl simulate -f"
        )
    return 1 if verdict.broken else STOPPED if verdict.stopped else 0
