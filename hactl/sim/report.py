"""report: a scenario's run for people and programs, beside what each peer would have done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from hactl import config as config_
from hactl.config import ConfigError
from hactl.core.units import span
from hactl.daemon.plan import mismatches
from hactl.show import Progress, safe, table
from hactl.sim import peers
from hactl.sim.ledger import Figures
from hactl.sim.picture import picture
from hactl.sim.scenario import Scenario, files, load
from hactl.sim.simulate import Outcome, simulate
from hactl.sim.world import START, Run, Watcher, World

HEAD = (
    "RULE",
    "EMPTY",
    "NEEDLESS",
    "FAILING",
    "AVOIDABLE",
    "KEPT OUT",
    "CHANGES",
    "DETECT",
    "BACK",
)


class Report(Struct, frozen=True):
    """All that `hactl simulate --json` prints."""

    name: str
    about: str
    notes: tuple[str, ...]
    seconds: float
    seed: int
    figures: dict[str, dict[str, Figures]]  # rule -> service
    timeline: tuple[tuple[float, str, str], ...]
    violations: tuple[str, ...]
    disappointments: tuple[str, ...]


def read(
    path: Path, file: Path | None, relayd: Path | None = None
) -> tuple[Scenario, tuple[str, ...]]:
    """Read a scenario, on a hactl.yaml if one is given, and the relayd.conf that it names or *relayd*.

    Return it with what has to be said of these files.  Raise ConfigError.
    """
    if file is None:
        scenario = load(path)
        if scenario.what is None:
            text = "has no tables; name them, or run it on a hactl.yaml with -f"
            raise ConfigError([config_.Problem(str(path), 0, 0, "", text)])
        return scenario, ()
    config, conf, what = files(file, relayd)
    idle = [each.name for each in what.layouts if config.services[each.name].mode == "observe"]
    observed = (f"service {name}: mode observe, simulated as if hactl acted in it" for name in idle)
    return load(path, what), (*mismatches(config, conf), *observed)


class _Waiting(Watcher):
    """Shows how far a run has come."""

    def __init__(self, line: Progress) -> None:
        self._line = line

    def cycled(self, world: World) -> None:
        self._line.show((world.now - START) / world.duration, "hactl")


def compare(scenario: Scenario) -> tuple[Outcome, list[tuple[str, Run]]]:
    """Run a scenario, and the same under every peer's rule."""
    line = Progress()
    outcome = simulate(scenario, watchers=[_Waiting(line)])
    assert scenario.what is not None
    runs = [("hactl", outcome.run)]
    for number, peer in enumerate(peers.PEERS):
        line.show(number / len(peers.PEERS), peer.name)
        run = peers.run(scenario.what, scenario.events, scenario.duration, peer, scenario.seed)
        runs.append((peer.name, run))
    line.clear()
    return outcome, runs


def lines(
    scenario: Scenario, notes: Sequence[str], outcome: Outcome, runs: list[tuple[str, Run]]
) -> Iterator[str]:
    """Write a run for people: the timeline, then a table for each service."""
    above = [*([scenario.about] if scenario.about else []), *(f"note: {note}" for note in notes)]
    yield from above
    if above:
        yield ""
    for moment in outcome.run.timeline:
        yield f"{clock(moment.at):>11}  {moment.who:<6} {moment.text}"
    assert scenario.what is not None
    for layout in scenario.what.layouts:
        yield ""
        yield f"{layout.name}, {span(scenario.duration)} simulated, seed {scenario.seed}"
        rows = [row(name, run.figures[layout.name]) for name, run in runs]
        yield from table(HEAD, rows)
    yield ""
    yield from outcome.disappointments
    if not outcome.disappointments:
        yield "as expected; every rule held"


def clock(at: float) -> str:
    """Write a second of the run as `1:02:03.4`."""
    tenths = round(at * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}"


def row(name: str, figures: Figures) -> list[str]:
    """Write one rule's figures."""
    times = (
        figures.empty, figures.needless, figures.failing, figures.avoidable, figures.kept_out,
    )  # fmt: skip
    delays = (figures.detection, figures.back)
    return [
        name,
        *(span(seconds) if seconds >= 0.05 else "-" for seconds in times),
        str(figures.changes) if figures.changes else "-",
        *("-" if seconds is None else span(seconds) for seconds in delays),
    ]


def run(
    path: Path,
    file: Path | None,
    svg: Path | None,
    *,
    conf: Path | None = None,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """Do what `hactl simulate` does; return its exit code.  Raise ConfigError, OSError."""
    scenario, notes = read(path, file, conf)
    if svg is not None:
        svg.open("a").close()  # what cannot be written is told before a long run
    outcome, runs = compare(scenario)
    if svg is not None:
        assert scenario.what is not None
        title = scenario.about or scenario.name
        svg.write_text(picture(title, scenario.what, scenario.events, runs), encoding="utf-8")
    if as_json:
        report = Report(
            scenario.name, scenario.about, notes, scenario.duration, scenario.seed,
            {name: each.figures for name, each in runs},
            tuple((round(m.at, 3), m.who, m.text) for m in outcome.run.timeline),
            tuple(map(str, outcome.violations)), outcome.disappointments,
        )  # fmt: skip
        say(msgspec.json.format(msgspec.json.encode(report), indent=1).decode())
    else:
        for line in lines(scenario, notes, outcome, runs):
            say(safe(line))
    return 1 if outcome.disappointments else 0
