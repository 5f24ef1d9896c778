"""Mode hook: checks act through relayd's script, operators through a disable."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from hactl.core.explain import snapshot
from hactl.core.model import (
    Action,
    HostStatus,
    Member,
    Override,
    Probe,
    Result,
    ServicePlan,
    Verb,
    Want,
)
from tests.core.world import World, failing

MX = ServicePlan("mx", require=("smtp",), hook=True)
ONE = {"mx": (("a", "b"),)}


class Hooked(World):
    """A world whose relayd asks the hook, which has a set of words for each service."""

    def load(self, first_id: int = 1) -> None:
        if not hasattr(self, "verdicts"):
            self.verdicts: dict[str, set[str]] = {name: set() for name in self.tables}
            self.full = False  # no verdict can be written
        super().load(first_id)

    def check_round(self) -> None:
        self.sync()
        for (service, _, word), host in self.hosts.items():
            if not host.disabled:
                up = word not in self.verdicts[service]
                host.status = HostStatus.UP if up else HostStatus.DOWN
                host.in_pf = host.in_pf and up
        self.round = self.now + self.interval

    def run(self, seconds: float) -> Hooked:
        super().run(seconds)
        return self

    def act(self) -> None:
        tried: set[tuple[str, ...]] = set()
        for _ in range(50):
            self.engine.observed(self.show(), self.now, self.verdicts)
            actions = [a for a in self.engine.actions(self.now) if a.words() not in tried]
            if not actions:
                return
            tried.add(actions[0].words())
            self.engine.intend(actions[0])
            done = self.put(actions[0])
            self.engine.acted(actions[0], self.now, done=done)
        raise AssertionError(f"no end of actions: {self.log[-6:]}")

    def put(self, action: Action) -> bool:
        if not action.hook:
            self.carry_out(action)
            return True
        self.log.append((round(self.now - 1000, 1), " ".join(action.words())))
        assert action.member is not None
        words = self.verdicts[action.member.service]
        if self.full:
            return False
        (words.add if action.verb is Verb.DISABLE else words.discard)(action.member.word)
        return True


def hooked(
    say: Callable[[Probe, float], Result],
    plan: ServicePlan = MX,
    tables: Mapping[str, tuple[tuple[str, ...], ...]] = ONE,
) -> Hooked:
    return Hooked(tables, plans={"mx": plan}, say=say, interval=2.0)


def said(kind: str, target: str) -> Override:
    return Override(target, kind, "ann", "", 0.0)


def test_a_failing_member_is_called_down_and_up_again_and_nothing_is_disabled() -> None:
    world = hooked(failing("a", after=20, until=40)).run(30)
    assert (world.verdicts, world.serving("mx")) == ({"mx": {"a"}}, {"b"})
    world.run(30)
    assert (world.verdicts, world.serving("mx")) == ({"mx": set()}, {"a", "b"})
    assert world.switches() == ["hook disable mx a", "hook enable mx a"]


def test_the_verdict_is_shown_for_what_it_is() -> None:
    world = hooked(failing("a", after=20)).run(40)
    service = snapshot(world.engine, world.now, "", [], {}).services[0]
    a = service.members[0]
    assert (service.mode, a.relayd, a.want, a.mark, a.barred) == ("hook", "down", "out", "", True)


def test_nobody_is_called_down_while_nobody_passes() -> None:
    world = hooked(failing("a", "b", after=20)).run(100)
    assert (world.switches(), world.serving("mx")) == ([], {"a", "b"})


def test_the_last_one_stays_until_the_other_is_up() -> None:
    """Two exchange: the guard holds although a verdict would take a round to act."""

    def say(probe: Probe, now: float) -> Result:
        bad = failing("a", after=20, until=60) if now < 1060 else failing("b", after=60)
        return bad(probe, now)

    world = hooked(say).run(120)
    assert (world.serving("mx"), world.empty.get("mx", 0.0) <= 4) == ({"a"}, True)
    assert world.switches() == ["hook disable mx a", "hook enable mx a", "hook disable mx b"]


def test_what_a_file_says_counts_after_a_restart_of_hactld() -> None:
    world = hooked(failing("a", after=20, until=60)).run(40)
    world.restart_hactld()
    world.run(10)
    assert (world.verdicts, world.switches()) == ({"mx": {"a"}}, ["hook disable mx a"])
    world.run(30)
    assert world.verdicts == {"mx": set()}


def test_a_file_that_somebody_removed_is_made_again_in_the_next_cycle() -> None:
    world = hooked(failing("a", after=20)).run(40)
    world.verdicts["mx"].clear()
    world.run(1.1)
    assert world.verdicts == {"mx": {"a"}}


def test_a_file_that_somebody_made_is_removed() -> None:
    world = hooked(failing()).run(20)
    world.verdicts["mx"].add("a")
    world.run(3)
    assert world.verdicts == {"mx": set()}


def test_a_full_disk_is_tried_again_each_cycle() -> None:
    world = hooked(failing("a", after=20))
    world.full = True
    world.run(40)
    assert world.verdicts == {"mx": set()}
    assert len(world.switches()) > 10
    world.full = False
    world.run(1.1)
    assert world.verdicts == {"mx": {"a"}}


def test_operators_disable() -> None:
    world = hooked(failing()).run(20)
    world.engine.override(said("maint", "a"))
    world.run(2)
    assert (world.switches(), world.verdicts) == (["host disable 1"], {"mx": set()})
    world.engine.resume("a")
    world.run(10)
    assert (world.switches()[1:], world.serving("mx")) == (["host enable 1"], {"a", "b"})


def test_maintenance_of_a_member_called_down_disables_it_too() -> None:
    """Verdicts may be withdrawn when hactld dies; maintenance must hold all the same."""
    world = hooked(failing("a", after=20, until=60)).run(40)
    world.engine.override(said("maint", "a"))
    world.run(2)
    assert world.switches() == ["hook disable mx a", "host disable 1"]
    world.run(40)
    world.engine.resume("a")
    world.run(10)
    assert (world.verdicts, world.serving("mx")) == ({"mx": set()}, {"a", "b"})
    assert sorted(world.switches()[2:]) == ["hook enable mx a", "host enable 1"]


def test_a_member_that_fails_under_maintenance_is_called_down_when_that_ends() -> None:
    """relayd forgets the disable when it is loaded, and would send it clients for a round."""
    world = hooked(failing("a", after=20)).run(10)
    world.engine.override(said("maint", "a"))
    world.run(20)
    world.engine.resume("a")
    world.run(5)
    assert world.switches() == ["host disable 1", "hook disable mx a"]
    world.load()
    world.run(20)
    assert (world.serving("mx"), world.switches()[2:]) == ({"b"}, [])


def test_a_foreign_disable_is_respected_and_a_verdict_does_not_make_it_ours() -> None:
    world = hooked(failing("a", after=20, until=60)).run(40)
    world.hosts["mx", 0, "a"].disabled = True
    world.run(60)
    assert world.switches() == ["hook disable mx a"]
    assert world.engine.decisions[Member("mx", 0, "a")].cause == "foreign"


def test_a_flapping_member_is_held_as_with_relayctl() -> None:
    def say(probe: Probe, now: float) -> Result:
        return failing(*(["a"] if now % 60 < 20 else []))(probe, now)

    world = hooked(say).run(900)
    assert world.switches().count("hook disable mx a") <= 7  # of 15 times


def test_a_host_in_main_and_backup_is_down_only_if_both_places_are_out() -> None:
    """relayd asks once for both; a verdict for one would empty the other."""
    world = hooked(failing("a", after=20, until=60), tables={"mx": (("a",), ("a", "b"))}).run(40)
    assert (world.verdicts, world.serving("mx")) == ({"mx": {"a"}}, {"b"})
    world.run(40)
    assert (world.verdicts, world.serving("mx")) == ({"mx": set()}, {"a"})
    assert world.switches() == ["hook disable mx a", "hook enable mx a"]


def test_who_is_needed_at_one_place_is_not_called_down_for_another() -> None:
    plan = ServicePlan("mx", prefer=("smtp",), hook=True)
    tables = {"mx": (("a", "b"), ("a",))}
    world = hooked(failing("a", after=20), plan, tables).run(60)
    assert (world.verdicts, world.switches()) == ({"mx": set()}, [])
    assert world.engine.decisions[Member("mx", 1, "a")].want is Want.OUT
    assert world.engine.waits[Member("mx", 1, "a")].rule == "hook"


def test_an_exclusive_service_never_has_two() -> None:
    plan = ServicePlan("mx", require=("smtp",), hook=True, exclusive=True, failback=False)
    world = hooked(failing("a", after=40, until=80), plan).run(30)
    assert world.serving("mx") == {"a"}
    most = 0
    for _ in range(1000):
        world.run(0.1)
        most = max(most, len(world.serving("mx")))
    assert (world.serving("mx"), most) == ({"b"}, 1)


def test_pf_forgets_whom_the_hook_removed_but_not_before_relayd_shows_it_down() -> None:
    world = hooked(failing("a", after=20)).run(10)
    world.engine.replan(replace(world.plan, clear_sources=True, kill_states=True), world.now)
    while not world.verdicts["mx"]:
        world.run(0.1)
    assert world.engine.cleanings() == ()
    world.run(3)
    found = [(cleaning.what, cleaning.address) for cleaning in world.engine.cleanings()]
    assert found == [("sources", "10.0.0.1"), ("states", "10.0.0.1")]


def test_releasing_at_the_end_says_up() -> None:
    plan = ServicePlan("mx", require=("smtp",), hook=True, release=True)
    world = hooked(failing("a", after=20), plan).run(40)
    world.engine.releasing = True
    world.act()
    assert world.verdicts == {"mx": set()}
