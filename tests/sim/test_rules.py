"""Every rule's watch sees the rule broken: by a core that was spoilt on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from hactl.core.engine import Engine
from hactl.core.model import Action, HostStatus, Member, Verb
from hactl.core.policy import Memory
from hactl.sim.rules import Watch, broken
from hactl.sim.truth import Event
from hactl.sim.world import START, Cluster, World
from tests.sim.farm import pair

Spoil = Callable[[Engine, tuple[Action, ...], float], tuple[Action, ...]]
A, B = Member("mx", 0, "A"), Member("mx", 0, "B")


def seen(
    monkeypatch: pytest.MonkeyPatch,
    spoil: Spoil,
    *events: Event,
    what: Cluster | None = None,
    seconds: float = 600,
) -> list[int]:
    """Run with actions as *spoil* makes them, and return the rules that were seen to break."""

    class Spoilt(Engine):
        def actions(self, now: float) -> tuple[Action, ...]:
            actions = super().actions(now)
            return spoil(self, actions, now) if now > START else actions

    monkeypatch.setattr("hactl.sim.world.Engine", Spoilt)
    watch = Watch()
    World(what or pair(), events, seconds, seed=1, watchers=[watch], leap=False).run()
    return broken(watch.violations)


def switch(engine: Engine, verb: Verb, member: Member, cause: str = "check") -> tuple[Action, ...]:
    """Return a command that nothing asks for, unless the host is so already."""
    host = engine.places[member].host
    if (host.status is HostStatus.DISABLED) is (verb is Verb.DISABLE):
        return ()
    engine.decisions[member] = replace(engine.decisions[member], cause=cause)
    return (Action(verb, engine.decisions[member].id, "spoilt", member, host.id),)


def test_the_real_core_breaks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, lambda engine, actions, now: actions) == []


def test_1_the_last_one_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, Verb.DISABLE, A) + switch(engine, Verb.DISABLE, B)

    assert 1 in seen(monkeypatch, spoil, seconds=60)


def test_1_a_passing_member_is_held_back_from_an_empty_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return tuple(a for a in actions if a.verb is not Verb.ENABLE)

    events = Event(30, "refuse", ("A",), lasts=20), Event(200, "crash", ("B",))
    assert 1 in seen(monkeypatch, spoil, *events)


def test_2_a_member_is_removed_on_unknown_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, Verb.DISABLE, A) if now > START + 60 else actions

    assert 2 in seen(monkeypatch, spoil, Event(20, "lag"), seconds=70)


def test_3_both_of_an_exclusive_service_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, Verb.ENABLE, A) + switch(engine, Verb.ENABLE, B)

    what = pair(service="require: [smtp], exclusive: true")
    assert 3 in seen(monkeypatch, spoil, what=what, seconds=120)


@pytest.mark.parametrize(
    ("event", "verb"),
    [
        (Event(10, "disable", ("A",)), Verb.ENABLE),
        (Event(10, "maint", ("A",)), Verb.ENABLE),
        (Event(10, "pin", ("A",)), Verb.DISABLE),
    ],
)
def test_4_an_operators_word_is_outvoted(
    monkeypatch: pytest.MonkeyPatch, event: Event, verb: Verb
) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, verb, A) if now > START + 30 else actions

    assert 4 in seen(monkeypatch, spoil, event, seconds=40)


def test_5_a_needed_command_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, lambda *_: (), Event(30, "refuse", ("A",))) == [5]


def test_6_nobody_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        engine.memories = {name: Memory() for name in engine.memories}
        return actions

    flap = Event(30, "refuse", ("A",), lasts=20, every=40)
    assert 6 in seen(monkeypatch, spoil, flap, seconds=1800)


def test_9_somebody_is_removed_while_nobody_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, Verb.DISABLE, B) if now > START + 120 else actions

    events = Event(30, "refuse", ("A",)), Event(80, "refuse", ("B",))
    assert 9 in seen(monkeypatch, spoil, *events, seconds=130)


def test_10_a_member_is_switched_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(engine: Engine, actions: tuple[Action, ...], now: float) -> tuple[Action, ...]:
        return switch(engine, Verb.DISABLE if int(now) % 2 else Verb.ENABLE, A, "drain")

    assert 10 in seen(monkeypatch, spoil, seconds=60)


def test_10_relayd_is_polled_on_and_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, lambda *_: (Action(Verb.POLL, 0, "spoilt"),)) == [10]
