"""simulate: run a scenario, judge it by its own expectations and by the rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from hactl.core.model import Verb
from hactl.sim import scenario as scenario_
from hactl.sim.rules import Violation, Watch
from hactl.sim.scenario import Scenario
from hactl.sim.world import Run, Watcher, World


class Outcome(Struct, frozen=True):
    """A run, the rules it broke, and what of the scenario's expectations did not come true."""

    run: Run
    violations: tuple[Violation, ...]
    disappointments: tuple[str, ...]


def simulate(
    scenario: Scenario, *, seed: int | None = None, watchers: Sequence[Watcher] = ()
) -> Outcome:
    """Run a scenario that has a cluster."""
    assert scenario.what is not None
    watch = Watch()
    world = World(
        scenario.what,
        scenario.events,
        scenario.duration,
        seed=scenario.seed if seed is None else seed,
        watchers=[watch, *watchers],
    )
    run = world.run()
    expect = scenario.expect
    wrong = [*_bounds(scenario, run), *_commands(scenario, world), *_words(scenario, run)]
    wrong += [str(v) for v in watch.violations if v.rule not in expect.breaks]
    held = set(expect.breaks) - {v.rule for v in watch.violations}
    wrong += [f"rule {rule} was expected to break and held" for rule in sorted(held)]
    return Outcome(run, tuple(watch.violations), tuple(wrong))


def _bounds(scenario: Scenario, run: Run) -> Iterator[str]:
    expect = scenario.expect
    for name, figures in run.figures.items():
        for key, bound, value in (
            ("empty", expect.empty, figures.empty),
            ("needless", expect.needless, figures.needless),
            ("avoidable", expect.avoidable, figures.avoidable),
            ("failing", expect.failing, figures.failing),
            ("kept_out", expect.kept_out, figures.kept_out),
            ("detection", expect.detection, figures.worst_detection),
            ("removals", expect.removals, figures.removals),
            ("worst_hour", expect.worst_hour, figures.worst_hour),
            ("most", expect.most, figures.commands),
        ):
            if bound is not None and value is not None and value > bound + 1e-6:
                yield f"{name}: {key} is {value:g}, more than {bound:g}"


def _commands(scenario: Scenario, world: World) -> Iterator[str]:
    wanted = scenario.expect.commands
    if wanted is None:
        return
    sent = [
        (at, action)
        for at, action in world.log
        if at >= 0 and action.verb is not Verb.POLL and action.member is not None
    ]
    shown = [f"{a.verb} {a.member} at {at:.1f}s" for at, a in sent]
    if len(sent) != len(wanted):
        yield f"{len(sent)} commands where {len(wanted)} were expected: {'; '.join(shown)}"
        return
    for (at, action), line, text in zip(sent, wanted, shown, strict=True):
        window = scenario_.window(line)
        assert window is not None
        assert action.member is not None
        who = (action.verb, action.member.service, action.member.host)
        if who != (window.verb, window.service, window.word):
            yield f'"{text}" where "{line}" was expected'
        elif not window.first <= at <= window.last + 1e-6:
            yield f'"{text}" is out of time; "{line}" was expected'
        elif window.cause and window.cause not in action.reason:
            yield f'"{text}" speaks of "{action.reason}"; "{line}" was expected'


def _words(scenario: Scenario, run: Run) -> Iterator[str]:
    text = "\n".join(moment.text for moment in run.timeline)
    for wanted in scenario.expect.said:
        if wanted not in text:
            yield f'"{wanted}" was never said'
    for unwanted in scenario.expect.unsaid:
        if unwanted in text:
            yield f'"{unwanted}" was said'
    for line in scenario.expect.serving:
        found = scenario_.served(line)
        assert found is not None
        at, service, words = found
        newest = [s for s in run.stretches if s.service == service and s.at <= at]
        serving = {m.host for m in newest[-1].serving} if newest else set()
        if serving != words:
            yield f'"{line}" was expected; it was {", ".join(sorted(serving)) or "nobody"}'
