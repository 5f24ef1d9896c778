"""What happens in whole stories: the core against a pretended relayd, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from msgspec.structs import replace

from hactl.core.engine import Engine
from hactl.core.explain import explain, snapshot
from hactl.core.model import (
    Action,
    Checked,
    Decision,
    Facts,
    Host,
    HostStatus,
    Kind,
    Member,
    NodePlan,
    Observation,
    Override,
    Plan,
    Probe,
    Result,
    Rule,
    Service,
    ServicePlan,
    Table,
    Verb,
    Want,
)
from hactl.core.policy import Hold
from tests.core.world import LOST, OK, REFUSED, SILENT, WARNED, World, failing

PAIR = {"mx": (("A", "B"),)}
SEED = {"mx0": (("A",), ("B",)), "mx1": (("B",), ("A",))}  # main and fallback, crosswise


def decision(world: World, service: str, word: str, table: int = 0) -> Decision:
    return world.engine.decisions[Member(service, table, word)]


def disabled(world: World) -> set[tuple[str, str]]:
    return {(service, word) for (service, _, word), h in world.hosts.items() if h.disabled}


def causes(world: World) -> list[str]:
    return [e.name for e in world.engine.events() if e.level == "error"]


@pytest.mark.parametrize(
    ("how", "bound"), [(REFUSED, 2.0 + 2 * 0.2), (SILENT, 2.0 + 3 * 1.0 + 2 * 0.2)]
)
def test_a_node_that_fails_is_out_within_the_detection_bound(how: object, bound: float) -> None:
    world = World(PAIR, say=failing("A", after=30, how=how)).run(60)  # type: ignore[arg-type]
    assert [words for _, words in world.log if words != "poll"] == ["host disable 1"]
    when = next(at for at, words in world.log if words != "poll")
    assert when <= 30 + bound + 0.2  # two slots


def test_a_node_that_comes_back_returns_after_rise_looks_at_the_normal_interval() -> None:
    world = World(PAIR, say=failing("A", after=30, until=90)).run(150)
    assert world.switches() == ["host disable 1", "host enable 1"]
    back = world.log[-1][0]
    assert 90 + 2 * 2.0 <= back <= 90 + 3 * 2.0 + 0.2


def test_two_nodes_that_fail_at_once_share_a_cause_and_nobody_moves() -> None:
    world = World(PAIR, say=failing("A", "B", after=30, until=90)).run(60)
    assert world.switches() == []
    assert causes(world) == ["shared_fate"]
    assert "A, B fail together" in decision(world, "mx", "A").reason
    assert world.run(120).switches() == []  # the end of it moves nobody either


def test_a_node_already_out_comes_back_when_its_sibling_fails_close_behind() -> None:
    def say(probe: object, now: float) -> object:
        after = {"A": 30.0, "B": 38.0}[probe.node]  # type: ignore[attr-defined]
        return REFUSED if now - 1000 >= after else failing()(probe, now)  # type: ignore[arg-type]

    world = World(PAIR, say=say).run(80)  # type: ignore[arg-type]
    assert world.switches() == ["host disable 1", "host enable 1"]


def test_the_one_still_down_after_a_shared_fate_is_removed_after_the_grace() -> None:
    world = World(PAIR, say=failing("A", "B", after=30))
    world.run(60)
    world.say = failing("B")
    world.run(10)
    (note,) = decision(world, "mx", "B").chain
    world.run(50)
    assert world.switches() == ["host disable 2"]
    assert note.until is not None
    assert abs(note.until - 1000 - world.log[-1][0]) < 1.1
    back = next(h.since for p, h in world.engine.healths.items() if p.node == "A") - 1000
    assert back + 9.9 <= world.log[-1][0] <= back + 11.2


def test_a_sibling_long_dead_does_not_hide_a_shared_fate() -> None:
    three = {"mx": (("A", "B", "C"),)}
    world = World(three, say=failing("C", after=20)).run(600)
    world.say = failing("A", "B", "C")
    world.run(60)
    assert world.switches() == ["host disable 3"]
    assert causes(world) == ["shared_fate"]


def test_a_single_fail_makes_the_siblings_be_looked_at_at_once() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten, say=failing("A", after=30)).run(32.5)
    first = next(at for at, p in world.looks if p.node == "A" and at >= 30)
    witnesses = [p.node for at, p in world.looks if first <= at <= first + 0.25 and p.node != "A"]
    assert len(set(witnesses)) == 9


def test_the_last_one_who_passes_is_kept_when_failures_come_far_apart() -> None:
    def say(probe: object, now: float) -> object:
        after = {"A": 30.0, "B": 90.0}[probe.node]  # type: ignore[attr-defined]
        return REFUSED if now - 1000 >= after else failing()(probe, now)  # type: ignore[arg-type]

    world = World(PAIR, say=say).run(200)  # type: ignore[arg-type]
    assert disabled(world) == {("mx", "A")}
    assert decision(world, "mx", "B").cause == "floor"
    assert "nobody who passes serves in its place" in decision(world, "mx", "B").reason


def test_first_repaired_is_enabled_and_up_before_the_second_is_disabled() -> None:
    def say(probe: object, now: float) -> object:
        bad = {"A": 30 <= now - 1000 < 150, "B": now - 1000 >= 90}[probe.node]  # type: ignore[attr-defined]
        return REFUSED if bad else failing()(probe, now)  # type: ignore[arg-type]

    world = World(PAIR, say=say, interval=10.0).run(220)  # type: ignore[arg-type]
    assert world.switches() == ["host disable 1", "host enable 1", "host disable 2"]
    assert "poll" in [words for at, words in world.log if at > 150]  # the guard's poll
    assert world.empty["mx"] == pytest.approx(1.6, abs=0.3)  # relayd's own start, nothing later


def test_with_a_backup_the_failing_main_goes_and_relayd_uses_the_backup() -> None:
    world = World(SEED, say=failing("A", after=30)).run(60)
    assert disabled(world) == {("mx0", "A"), ("mx1", "A")}
    assert world.serving("mx0") == {"B"}


def test_failing_members_are_kept_only_when_nobody_passes_in_either_table() -> None:
    tables = {"mx": (("A", "B"), ("C",))}
    world = World(tables, plans={"mx": ServicePlan("mx", ("smtp",), least=2)})
    world.run(20)
    world.say = failing("B")
    world.run(60)
    world.say = failing("A", "B")
    world.run(60)
    assert disabled(world) == {("mx", "A"), ("mx", "B")}
    assert world.serving("mx") == {"C"}


def test_when_relayd_shows_nobody_up_all_candidates_come_back() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    assert disabled(world) == {("mx", "A")}
    world.tcp = lambda word, now: word != "B"
    world.say = failing("A", "B", check="smtp")
    world.run(60)
    assert disabled(world) == set()
    assert world.serving("mx") == {"A"}


def test_the_floor_keeps_a_share_of_the_weight() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten).run(20)
    for number, _ in enumerate("ABCDEFGHI", 1):
        world.say = failing(*"ABCDEFGHI"[:number])
        world.run(60)
    assert len(disabled(world)) == 7  # 30 % of ten stay, be they well or not


def test_members_in_maintenance_do_not_raise_the_floor_for_the_rest() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten).run(20)
    for word in "CDEFGHIJ":
        world.engine.override(Override(word, "maint", "root", "", 0.0))
    world.run(20)
    world.say = failing("A")
    world.run(30)
    assert ("mx", "A") in disabled(world)
    assert world.serving("mx") == {"B"}


def test_a_watched_check_alerts_and_moves_nobody() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), watch=("cert",))}
    world = World(PAIR, checks=("smtp", "cert"), plans=plans)
    world.say = failing("A", after=30, check="cert")
    world.run(60)
    assert world.switches() == []
    assert causes(world) == ["state"]
    snap = snapshot(world.engine, world.now, "0", (), {})
    assert snap.alerts == ("A/cert is down: connection refused",)


def test_drain_waits_for_the_floor_and_maint_does_not() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.engine.override(Override("B", "drain", "root", "upgrade", 0.0))
    world.run(30)
    assert disabled(world) == {("mx", "A")}
    assert decision(world, "mx", "B").cause == "floor"
    world.engine.override(Override("B", "maint", "root", "upgrade", 0.0))
    world.run(30)
    assert disabled(world) == {("mx", "B")}  # nobody else is left, so even A comes back


def test_a_drain_ends_by_itself_and_the_member_returns() -> None:
    world = World(PAIR).run(20)
    world.engine.override(Override("A", "drain", "root", "", 0.0, 60.0, world.now + 40))
    world.run(20)
    assert disabled(world) == {("mx", "A")}
    assert disabled(world.run(40)) == set()


def test_a_foreign_disable_is_shown_and_never_undone() -> None:
    world = World(PAIR).run(20)
    host = world.hosts["mx", 0, "A"]
    host.disabled, host.in_pf = True, False
    world.run(60)
    assert world.switches() == []
    assert decision(world, "mx", "A").cause == "foreign"


def test_a_reload_that_forgets_is_repaired_in_one_cycle_with_the_new_ids() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.load(first_id=11)
    at = world.now
    world.run(30)
    repair = [(when, words) for when, words in world.log if when + 1000 >= at]
    assert repair[0][1] == "host disable 11"
    assert repair[0][0] + 1000 - at <= 1.0
    assert [words for _, words in repair[1:]] == ["poll", "poll"]
    assert world.serving("mx") == {"B"}


def test_hactld_killed_and_restarted_moves_nobody() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    done = list(world.switches())
    world.restart_hactld()
    world.run(60)
    assert world.switches() == done
    assert decision(world, "mx", "A").want is Want.OUT


def test_nobody_is_enabled_after_a_restart_before_it_has_answered() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.restart_hactld()
    world.say = failing("A", how=LOST)
    world.run(60)
    assert disabled(world) == {("mx", "A")}
    assert "smtp has no answer yet" in decision(world, "mx", "A").reason
    world.say = failing()
    assert disabled(world.run(10)) == set()


def test_a_check_that_never_answers_is_neutral_once_the_bound_has_passed() -> None:
    world = World(PAIR, checks=("smtp", "nfs"), say=failing("A", "B", how=LOST, check="nfs"))
    world.run(20)
    assert {d.want for d in world.engine.decisions.values()} == {Want.IN}
    world.say = failing("A", check="smtp")
    assert disabled(world.run(10)) == {("mx", "A")}


def test_observe_decides_and_sends_nothing() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), acts=False)}
    world = World(PAIR, plans=plans, say=failing("A", after=30)).run(60)
    assert world.log == []
    snap = snapshot(world.engine, world.now, "0", (), {})
    assert [m.would for s in snap.services for m in s.members] == ["would: out", ""]


def test_nothing_is_done_on_old_news_of_relayd() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(25)
    engine = world.engine
    engine.unseen("relayctl: show summary: no answer in 5s")
    assert engine.actions(world.now) == ()
    engine.observed(world.show(), world.now)
    assert engine.actions(world.now + 2.1) == ()


def shown(kind: Kind, *hosts: Host, status: str = "active") -> Observation:
    return Observation(0.0, (Service(kind, 1, "mx", status, (Table(1, "t:25", "active", hosts),)),))


UP = HostStatus.UP


@pytest.mark.parametrize(
    ("kind", "facts", "host", "why"),
    [
        (Kind.RELAY, Facts(checked=frozenset()), Host(1, "A", UP), "its table has no check"),
        (Kind.RELAY, Facts(checked=None), Host(1, "A", UP), "relayd.conf cannot be read"),
        (Kind.REDIRECT, Facts(checked=frozenset()), Host(1, "A", UP, 9), "follows its parent"),
    ],
)
def test_hosts_that_would_kill_relayd_or_cannot_be_switched_are_left_alone(
    kind: Kind, facts: Facts, host: Host, why: str
) -> None:
    plan = World(PAIR).plan
    engine = Engine(plan, facts, 0.0)
    engine.override(Override("A", "maint", "root", "", 0.0))
    engine.observed(shown(kind, host, Host(2, "B", UP)), 0.0)
    assert engine.actions(0.1) == ()
    assert why in engine.decisions[Member("mx", 0, "A")].reason


def test_hosts_that_relayd_hides_are_remembered_and_not_touched() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    engine = world.engine
    hidden = Observation(world.now, (Service(Kind.REDIRECT, 1, "mx", "disabled"),))
    engine.observed(hidden, world.now)
    assert engine.actions(world.now) == ()
    snap = snapshot(engine, world.now, "0", (), {})
    assert [(m.host, m.relayd, m.want) for m in snap.services[0].members] == [
        ("A", "hidden", "leave"),
        ("B", "hidden", "leave"),
    ]
    assert engine.owned.keys() == {Member("mx", 0, "A")}


def test_the_header_alone_right_after_relayds_start_changes_nothing() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.engine.observed(Observation(world.now, ()), world.now)
    assert world.engine.actions(world.now) == ()
    assert world.run(10).switches() == ["host disable 1"]


def test_an_enable_waits_a_second_after_the_disable_of_the_same_host() -> None:
    world = World(PAIR).run(20)
    world.engine.override(Override("A", "drain", "root", "", 0.0))
    world.act()
    world.engine.resume("A")
    world.act()
    assert world.switches() == ["host disable 1"]
    assert world.engine.waits[Member("mx", 0, "A")].rule == "dwell"
    assert world.run(2).switches() == ["host disable 1", "host enable 1"]


def test_a_disable_of_unknown_outcome_stays_ours_when_it_is_carried_out_late() -> None:
    world = World(PAIR).run(20)
    engine = world.engine
    engine.override(Override("A", "drain", "root", "", 0.0))
    (action,) = engine.actions(world.now)
    engine.intend(action)
    engine.acted(action, world.now, done=False, unsure=60.0)
    engine.observed(world.show(), world.now)  # it shows the host enabled still
    assert engine.owned.keys() == {Member("mx", 0, "A")}


def test_a_record_without_its_command_is_dropped_when_the_host_is_seen_enabled() -> None:
    world = World(PAIR).run(20)
    engine = world.engine
    engine.override(Override("A", "drain", "root", "", 0.0))
    engine.intend(engine.actions(world.now)[0])
    engine.observed(world.show(), world.now)
    assert engine.owned == {}


def test_two_polls_are_never_closer_than_a_check_may_take_unless_all_were_up() -> None:
    world = World(PAIR, tcp=lambda word, now: word != "B", interval=10.0)
    world.facts = Facts(10.0, 0.5, world.facts.checked)
    world.engine = Engine(world.plan, world.facts, world.now)
    world.run(40)
    polls = [at for at, words in world.log if words == "poll"]
    assert len(polls) == 2
    assert polls[1] - polls[0] >= 0.6


def test_without_relayd_conf_nothing_is_polled() -> None:
    world = World(PAIR)
    world.engine = Engine(world.plan, Facts(checked=None), world.now)
    assert world.run(40).log == []


def test_a_new_plan_keeps_the_health_of_checks_that_did_not_change() -> None:
    world = World(PAIR, checks=("smtp", "nfs")).run(20)
    rules = {"smtp": world.rule, "nfs": Rule(interval=5.0)}
    before = dict(world.engine.healths)
    world.engine.replan(
        Plan(world.plan.nodes, rules, world.plan.services, world.plan.watch), world.now
    )
    after = world.engine.healths
    assert all(after[p] == before[p] for p in before if p.check == "smtp")
    assert all(after[p].last is None for p in before if p.check == "nfs")


def test_maint_says_which_services_it_would_empty() -> None:
    world = World(SEED).run(20)
    engine = world.engine
    assert engine.would_empty(Override("A", "maint", "root", "", 0.0)) == []
    assert engine.would_empty(Override("mx0", "maint", "root", "", 0.0)) == ["mx0"]
    assert engine.would_empty(Override("mx0", "drain", "root", "", 0.0)) == []


def test_release_at_exit_gives_back_what_checks_took() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), release=True)}
    world = World(PAIR, plans=plans, say=failing("A", after=30)).run(60)
    world.engine.releasing = True
    world.act()
    assert disabled(world) == set()


def test_explain_tells_the_chain_and_what_would_change_it() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    lines = explain(snapshot(world.engine, world.now, "0", (), {}), "mx/A")
    assert lines[0] == "mx/A: disabled in relayd, wanted out"
    text = "\n".join(lines)
    assert "smtp: connection refused; down removes the member" in text
    assert "up after 3 more successes in a row" in text
    assert explain(snapshot(world.engine, world.now, "0", (), {}), "nobody") == []


def test_every_action_carries_the_id_of_its_decision() -> None:
    world = World(PAIR).run(20)
    world.engine.override(Override("A", "drain", "root", "", 0.0))
    (action,) = world.engine.actions(world.now)
    assert (action.verb, action.decision) == (Verb.DISABLE, decision(world, "mx", "A").id)
    assert action.decision > 0


# Holds, prefer, pace, exclusive, pin and freeze


def hourly(world: World, word: str) -> int:
    """Return the most changes of a host within any hour."""
    hosts = {h.id for h in world.hosts.values() if h.word == word}
    times = [
        at for at, words in world.log if words[:5] == "host " and int(words.split()[2]) in hosts
    ]
    return max((sum(t <= u < t + 3600 for u in times) for t in times), default=0)


def flapping(word: str, well: float, sick: float) -> Callable[[Probe, float], Result]:
    return lambda probe, now: (
        REFUSED if probe.node == word and (now - 1000) % (well + sick) >= well else OK
    )


@pytest.mark.long
@pytest.mark.parametrize(("well", "sick"), [(30.0, 30.0), (297.0, 3.0), (240.0, 60.0)])
def test_no_pattern_makes_more_than_fifteen_changes_an_hour(well: float, sick: float) -> None:
    world = World(PAIR, say=flapping("A", well, sick)).run(2 * 3600)
    assert 2 <= hourly(world, "A") <= 15
    assert hourly(world, "B") == 0
    assert world.empty["mx"] < 2


def test_each_removal_makes_the_next_return_later() -> None:
    world = World(PAIR, say=flapping("A", 30, 30)).run(1200)
    disables = [at for at, words in world.log if words == "host disable 1"]
    enables = [at for at, words in world.log if words == "host enable 1"]
    waits = [round(b - a, 3) for a, b in zip(disables, enables, strict=False)]
    assert waits == sorted(waits)
    assert waits[0] < 40 < waits[-1]
    note = decision(world, "mx", "A").chain[-1]
    assert (note.rule, note.until is not None) == ("hold", True)


def test_a_node_that_is_only_restarted_costs_no_level_once_an_hour() -> None:
    rule = Rule(interval=1.0, timeout=1.0, fast=0.2)
    world = World(PAIR, rule=rule, say=failing("A", after=30, until=33)).run(60)
    member = Member("mx", 0, "A")
    assert world.switches() == ["host disable 1", "host enable 1"]
    assert world.engine.memories["mx"].holds[member].level == 0
    world.say = failing("A", after=90, until=93)
    world.run(60)
    assert world.engine.memories["mx"].holds[member].level == 1


def test_holds_survive_a_restart_of_hactld() -> None:
    world = World(PAIR, say=flapping("A", 30, 30)).run(600)
    until = world.engine.memories["mx"].holds[Member("mx", 0, "A")].until
    assert until > world.now
    world.restart_hactld()
    world.say = failing()
    world.run(until - world.now - 5)
    assert disabled(world) == {("mx", "A")}
    assert disabled(world.run(20)) == set()


def preferring(**more: object) -> dict[str, ServicePlan]:
    return {"mx": ServicePlan("mx", ("smtp",), prefer=("spamd",), **more)}  # type: ignore[arg-type]


def test_prefer_takes_the_worse_out_while_a_better_one_serves() -> None:
    world = World(PAIR, checks=("smtp", "spamd"), plans=preferring())
    world.say = failing("A", after=30, check="spamd")
    world.run(60)
    assert disabled(world) == {("mx", "A")}
    assert decision(world, "mx", "A").cause == "prefer"
    world.say = failing("B", check="smtp")  # now the better one is gone
    world.run(60)
    assert disabled(world) == {("mx", "B")}


def test_ten_that_degrade_one_after_another_never_leave_less_than_half() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten, checks=("smtp", "spamd"), plans=preferring()).run(20)
    for number in range(1, 7):
        slow = frozenset("ABCDEF"[:number])
        world.say = lambda probe, now, slow=slow: (  # type: ignore[misc]
            WARNED if probe.check == "spamd" and probe.node in slow else OK
        )
        world.run(60)
    assert len(disabled(world)) == 5


def test_a_slowness_that_follows_the_load_is_not_chased() -> None:
    """Spamd is slow wherever one node carries all: without the guard they swap for ever."""
    world = World(PAIR, checks=("smtp", "spamd"), plans=preferring())

    def say(probe: Probe, now: float) -> Result:
        alone = world.serving("mx") == {probe.node}
        started = probe.node == "A" and 30 <= now - 1000 < 70
        return WARNED if probe.check == "spamd" and (alone or started) else OK

    world.say = say
    world.run(900)
    assert len(world.switches()) == 2
    assert disabled(world) == set()


def test_removals_are_paced_and_the_worst_goes_first() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten, say=failing("A", "B", "C", "D", after=30))
    world.run(38)
    assert len(disabled(world)) == 2
    waiting = [d for d in world.engine.decisions.values() if d.cause == "pace"]
    assert len(waiting) == 2
    assert all(d.chain[-1].until is not None for d in waiting)
    assert len(disabled(world.run(65))) == 4


EXCLUSIVE = {"mx": ServicePlan("mx", ("smtp",), exclusive=True, failback=False)}


def test_an_exclusive_service_never_has_two_in_pf() -> None:
    world = World(PAIR, plans=EXCLUSIVE, interval=2.0, say=failing("A", after=60, until=120))
    most = 0
    world.run(10)
    for second in range(400):
        world.run(0.5)
        most = max(most, len(world.serving("mx")))
        if second == 350:
            world.load(first_id=21)
            world.act()
    assert most == 1
    assert world.serving("mx") == {"B"}, "failback is manual"
    assert decision(world, "mx", "A").cause == "exclusive"


def test_failback_auto_returns_to_the_first() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), exclusive=True)}
    world = World(PAIR, plans=plans, interval=2.0, say=failing("A", after=30, until=60)).run(55)
    assert world.serving("mx") == {"B"}
    assert world.run(40).serving("mx") == {"A"}


def test_a_pin_in_an_exclusive_service_says_who_it_is_and_a_second_is_refused() -> None:
    world = World(PAIR, plans=EXCLUSIVE, interval=2.0).run(20)
    pin = Override("B", "pin", "root", "", 0.0)
    assert world.engine.refusal(pin) == ""
    world.engine.override(pin)
    assert world.run(20).serving("mx") == {"B"}
    assert "exclusive" in world.engine.refusal(Override("A", "pin", "root", "", 0.0))


def test_a_pinned_member_stays_in_whatever_checks_say() -> None:
    world = World(PAIR, say=failing("A", after=30))
    world.engine.override(Override("A", "pin", "root", "it only looks dead", 0.0))
    assert disabled(world.run(60)) == set()
    assert decision(world, "mx", "A").cause == "pin"


def test_with_a_closed_floor_who_fails_goes() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), open=False)}

    def say(probe: Probe, now: float) -> Result:
        return REFUSED if now - 1000 >= {"A": 30.0, "B": 100.0}[probe.node] else OK

    assert disabled(World(PAIR, plans=plans, say=say).run(200)) == {("mx", "A"), ("mx", "B")}


def test_a_freeze_keeps_who_was_in_through_a_reload_and_thaws_at_the_pace() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    world = World(ten, say=failing("A", after=30)).run(100)
    world.engine.override(Override("mx", "freeze", "root", "holidays", 0.0, 1.0, world.now + 300))
    world.run(5)
    world.say = failing(*"ABCDEF")
    world.run(60)
    assert disabled(world) == {("mx", "A")}
    assert decision(world, "mx", "B").cause == "freeze"
    world.load(first_id=31)
    world.run(30)
    assert disabled(world) == {("mx", "A")}
    world.run(300 - 95 + 20)
    assert len(disabled(world)) <= 1 + 3


def test_hands_off_sends_nothing_at_all() -> None:
    world = World(PAIR, say=failing("A", after=30))
    world.engine.override(Override("all", "hands-off", "root", "", 0.0))
    assert world.run(60).log == []


def test_a_declared_cause_covers_what_fails_with_it() -> None:
    world = World(PAIR, checks=("smtp", "nfs"))
    world.engine.replan(replace(world.plan, causes={"nfs": ("smtp",)}), world.now)
    world.run(20)
    world.say = lambda probe, now: (
        REFUSED if probe.check == "nfs" or (probe.node == "A" and now > 1060) else OK
    )
    assert disabled(world.run(100)) == set()


def test_an_effect_that_is_shared_by_itself_is_said_once() -> None:
    world = World(PAIR, checks=("smtp", "nfs"))
    world.engine.replan(replace(world.plan, causes={"nfs": ("smtp",)}), world.now)
    world.run(20)
    world.say = failing("A", "B")
    world.run(60)
    assert causes(world) == ["shared_fate", "shared_fate"]
    assert disabled(world) == set()


def test_a_freeze_survives_a_restart_of_hactld_and_a_reload_of_relayd() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.engine.override(Override("mx", "freeze", "root", "", 0.0))
    world.run(5)
    world.restart_hactld()
    world.load(first_id=50)
    world.say = failing()
    world.run(60)
    assert disabled(world) == {("mx", "A")}


def test_of_three_the_one_with_fewest_removals_is_recalled() -> None:
    three = {"mx": (("A", "B", "C"),)}
    world = World(three, say=flapping("A", 30, 30)).run(600)
    world.say = failing()
    world.engine.override(Override("B", "drain", "root", "", 0.0))
    world.engine.override(Override("C", "drain", "root", "", 0.0))
    world.run(10)
    assert world.serving("mx") <= {"B", "C"}


def test_heavier_members_count_for_more_in_the_floor() -> None:
    world = World(PAIR, plans={"mx": ServicePlan("mx", ("smtp",), least=2)})
    nodes = {
        name: replace(n, weight=2 if name == "B" else 1) for name, n in world.plan.nodes.items()
    }
    world.engine.replan(replace(world.plan, nodes=nodes), world.now)
    world.say = failing("A", after=30)
    assert disabled(world.run(60)) == {("mx", "A")}
    world.say = failing("B")
    assert disabled(world.run(60)) == set()


def test_while_nobody_passes_a_down_probe_is_looked_at_fast() -> None:
    world = World(PAIR, say=failing("A", "B", after=30, until=90)).run(120)
    back = min(h.since for h in world.engine.healths.values()) - 1000
    assert back < 91.5


# What a review by fresh eyes found: each of these went wrong once


def test_a_new_plan_while_relayd_cannot_be_read_stops_no_probe() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(31.6)
    world.engine.unseen("relayctl: connect: refused")
    nodes = dict(world.plan.nodes)
    nodes["A"] = replace(nodes["A"], addresses=("10.0.0.99",))
    world.engine.replan(replace(world.plan, nodes=nodes), world.now)
    snapshot(world.engine, world.now, "0", (), {})
    looked = {p.address for now in range(60) for p in world.engine.due(world.now + now / 10)}
    assert "10.0.0.99" in looked


def test_a_shared_fate_ends_when_somebody_outside_of_it_is_up() -> None:
    three = {"mx": (("A", "B", "C"),)}
    world = World(three, say=failing("C", after=20)).run(600)
    world.say = failing("A", "B", "C")
    world.run(60)
    world.say = failing("A", "B")
    world.run(300)
    assert world.serving("mx") == {"C"}
    assert disabled(world) == {("mx", "A"), ("mx", "B")}


def test_siblings_that_just_began_to_fail_share_nothing_with_one_long_down() -> None:
    three = {"mx": (("A", "B", "C"),)}
    world = World(three, say=failing("C", after=20)).run(600)
    once: set[str] = {"A", "B"}

    def say(probe: Probe, now: float) -> Result:
        fails = probe.node == "C" or probe.node in once
        once.discard(probe.node)
        return REFUSED if fails else OK

    world.say = say
    world.run(30)
    assert causes(world) == []


def test_a_recalled_member_is_polled_into_pf_at_once() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(120)
    assert world.serving("mx") == {"B"}
    before = world.empty["mx"]
    world.tcp = lambda word, now: word != "B"
    world.hosts["mx", 0, "B"].status = HostStatus.DOWN
    world.sync()
    world.say = failing("A", "B")
    world.run(30)
    assert world.serving("mx") == {"A"}
    assert world.empty["mx"] - before < 1.6


def test_failing_members_fill_the_floor_and_no_more_however_they_came_to_fail() -> None:
    ten = {"mx": (tuple("ABCDEFGHIJ"),)}
    plans = {"mx": ServicePlan("mx", ("smtp",), pace_share=1.0)}
    world = World(ten, plans=plans).run(20)
    world.say = failing(*"ABCDEFGH")
    world.run(60)
    assert len(disabled(world)) == 7
    world.load(first_id=40)
    world.run(60)
    assert len(disabled(world)) == 7


def test_the_cause_of_a_disable_follows_its_decision() -> None:
    world = World(PAIR).run(20)
    world.engine.override(Override("A", "drain", "root", "", 0.0))
    world.run(5)
    world.say = failing("A")
    world.run(10)
    world.engine.resume("A")
    world.run(5)
    assert world.engine.owned[Member("mx", 0, "A")].cause == "check"
    world.restart_hactld()
    world.say = failing("A", how=LOST)
    assert disabled(world.run(60)) == {("mx", "A")}


def test_release_at_exit_leaves_maintenance_alone() -> None:
    plans = {"mx": ServicePlan("mx", ("smtp",), release=True)}
    world = World(PAIR, plans=plans, say=failing("A", after=30)).run(60)
    world.engine.override(Override("A", "maint", "root", "", 0.0))
    world.run(5)
    world.engine.releasing = True
    world.act()
    assert disabled(world) == {("mx", "A")}


def test_what_leaves_hactl_yaml_while_it_is_out_is_handed_back() -> None:
    tables = {"mx": (("A", "B"),), "imap": (("A", "B"),)}
    world = World(tables, say=failing("A", after=30)).run(60)
    assert disabled(world) == {("mx", "A"), ("imap", "A")}
    services = {"mx": world.plan.services["mx"]}
    nodes = {"B": world.plan.nodes["B"]}
    world.engine.replan(replace(world.plan, services=services, nodes=nodes), world.now)
    assert disabled(world.run(10)) == set()
    assert world.engine.owned == {}


def test_ipv4_and_ipv6_of_a_node_are_judged_by_themselves() -> None:
    tables = {"mx": (("10.0.0.1", "::1", "10.0.0.2", "::2"),)}
    world = World(tables)
    nodes = {
        name: NodePlan(name, words, frozenset(words))
        for name, words in (("a", ("10.0.0.1", "::1")), ("b", ("10.0.0.2", "::2")))
    }
    world.engine.replan(replace(world.plan, nodes=nodes), world.now)
    world.run(20)
    world.say = lambda probe, now: REFUSED if ":" in probe.address else OK
    world.run(60)
    assert disabled(world) == set(), "both fail over IPv6 at once: a common cause"
    world.say = lambda probe, now: REFUSED if probe.address == "::2" else OK
    world.run(60)
    assert disabled(world) == {("mx", "::2")}


def test_an_answer_of_relayd_that_comes_too_late_is_said() -> None:
    world = World(PAIR).run(20)
    world.engine.observed(world.show(), world.now + 2.5)
    assert world.engine.actions(world.now + 2.5) == ()
    assert world.engine.blind == "relayd's answer took longer than 2s"


def test_unknowns_cost_no_extra_looks() -> None:
    world = World(PAIR, say=failing("A", after=30, until=31.5)).run(31.5)
    world.say = failing("A", "B", how=LOST)
    before = len(world.looks)
    world.run(60)
    assert len(world.looks) - before <= 2 * 30 + 6


def test_a_poll_whose_outcome_is_unknown_counts_as_sent() -> None:
    world = World(PAIR, tcp=lambda word, now: False)
    world.engine.facts = Facts(10.0, 1.5, world.facts.checked)
    polls = []
    world.run(1)
    for _ in range(100):
        world.now += 0.1
        world.engine.observed(world.show(), world.now)
        for action in world.engine.actions(world.now):
            polls.append(world.now)
            world.engine.acted(action, world.now, done=False, unsure=60.0)
        for probe in world.engine.due(world.now):
            world.engine.feed(Checked(probe, world.now, world.now, OK))
    assert all(b - a >= 1.5 for a, b in pairwise(polls))


def test_a_probe_that_finds_out_nothing_is_stale_and_alerts_after_a_while() -> None:
    world = World(PAIR, say=failing("A", after=30, how=LOST)).run(60)
    snap = snapshot(world.engine, world.now, "0", (), {})
    assert [(p.node, p.stale) for p in snap.probes] == [("A", True), ("B", False)]
    assert snap.alerts == ()
    world.run(360)
    (alert,) = snapshot(world.engine, world.now, "0", (), {}).alerts
    assert alert.startswith("A/smtp is stale: nothing found out for 6m")


def test_a_timer_that_ends_into_unknown_results_moves_nobody() -> None:
    world = World(PAIR, say=failing("A", "B", after=30)).run(60)
    world.say = lambda probe, now: LOST if probe.node == "B" else OK
    assert disabled(world.run(60)) == set()
    assert "cannot be looked at" in decision(world, "mx", "B").reason
    world.say = failing("B")
    assert disabled(world.run(10)) == {("mx", "B")}


def test_an_exclusive_service_does_not_wait_for_results_to_lose_a_second_member() -> None:
    world = World(PAIR, plans=EXCLUSIVE, interval=2.0).run(60)
    (owner,) = world.serving("mx")
    world.load(first_id=50)
    world.check_round()
    world.sync()
    world.restart_hactld()
    assert len(world.serving("mx")) == 2, "hactld was dead while relayd was restarted"
    world.act()
    assert world.serving("mx") == {owner}


def test_a_freeze_right_after_a_restart_of_relayd_latches_who_was_in_before() -> None:
    world = World(PAIR, say=failing("A", after=30)).run(60)
    world.load(first_id=50)
    world.engine.override(Override("mx", "freeze", "root", "", 0.0))
    assert disabled(world.run(20)) == {("mx", "A")}


def test_nothing_joins_a_silent_look_while_we_are_late_ourselves() -> None:
    plan = Plan(
        {"A": NodePlan("A", ("10.0.0.1",), frozenset({"A"}))},
        {"smtp": Rule(hedge=0.1)},
        watch={"A": ("smtp",)},
    )
    engine = Engine(plan, Facts(), 0.0)
    (probe,) = engine.due(engine.next_look())
    engine.feed(Checked(probe, 0.0, 0.1, OK))
    begun = engine.planned(probe)
    assert begun is not None
    assert engine.due(begun) == [probe]
    assert engine.due(begun + 0.1, lagging=True) == []
    assert engine.due(begun + 0.15) == []
    assert engine.due(begun + 0.2) == [probe]
    assert engine.due(begun + 2.0, lagging=True) == [], "the regular look would join it as well"


def test_a_host_that_is_twice_in_a_table_is_probed_where_it_is() -> None:
    world = World(PAIR)
    nodes = {"A": NodePlan("A", ("10.0.0.1", "10.0.0.9"), frozenset({"A", "10.0.0.9"}))}
    engine = Engine(replace(world.plan, nodes=nodes), world.facts, 0.0)
    twice = (Host(1, "10.0.0.9", UP), Host(2, "10.0.0.9", UP))
    engine.observed(shown(Kind.REDIRECT, *twice), 0.0)
    assert {probe.address for probe in engine.healths} == {"10.0.0.9"}
    engine.replan(replace(world.plan, nodes=nodes), 0.1)
    assert engine.actions(0.1) == ()
    assert [s.node for s in engine.standings.values()] == ["A", "A"]


def test_once_nobody_passes_those_who_are_down_are_looked_at_at_once_and_fast() -> None:
    """A is well again while it is not due for long; B's death makes hactl look, and A is back."""
    rule = Rule(interval=20.0)
    say = failing("A", after=30, until=124)
    both = failing("B", after=125)
    world = World(
        PAIR,
        rule=rule,
        say=lambda p, now: both(p, now) if p.node == "B" else say(p, now),
        tcp=lambda word, now: True,
    ).run(125)
    b = Probe("B", "smtp", "10.0.0.2")
    while world.engine.healths[b].state != "down":
        world.run(0.1)
    down = world.now - 1000
    world.run(1)
    looks = [at for at, probe in world.looks if probe.node == "A" and at >= down - 0.15]
    assert [round(at - looks[0], 1) for at in looks[:2]] == [0.0, 0.2]
    assert looks[0] <= down + 0.05


def test_one_that_comes_in_makes_room_for_one_removal_beside_the_pace() -> None:
    """Ten members, 25 %: two a minute, and a third as C is back just then."""
    c, late = failing("C", after=30, until=100), failing("D", "E", "F", "G", "H", after=107)
    world = World(
        {"mx": (tuple("ABCDEFGHIJ"),)},
        say=lambda probe, now: (c if probe.node == "C" else late)(probe, now),
    ).run(106)
    assert world.switches() == ["host disable 3", "host enable 3"]
    out = [at for at, words in world.run(100).log if "disable" in words][1:]
    assert [sum(at < end for at in out) for end in (120, 165, 180)] == [3, 3, 5]


@pytest.mark.long
def test_removals_that_relayctl_did_not_live_to_confirm_take_holds_like_others() -> None:
    world = World({"mx": (("A", "B"),)}, late={Verb.DISABLE}, say=flapping("A", 30, 30))
    assert 0 < hourly(world.run(2 * 3600), "A") <= 15


def test_removals_that_relayctl_did_not_live_to_confirm_are_paced_like_others() -> None:
    world = World({"mx": (tuple("ABCDEFGHIJ"),)}, late={Verb.DISABLE}).run(20)
    world.say = failing("A", "B", "C", "D", "E")
    world.run(20)
    assert sum(host.disabled for host in world.hosts.values()) == 2


def test_a_removal_of_unknown_outcome_that_was_not_carried_out_takes_no_hold() -> None:
    world = World({"mx": (("A", "B"),)}, refused={Verb.DISABLE}, late={Verb.DISABLE}).run(20)
    world.say = failing("A")
    world.run(90)
    world.say = lambda probe, now: OK
    world.run(90)
    assert world.engine.memories["mx"].holds == {}


class KilledError(Exception):
    """hactld is gone in the middle of a command."""


@pytest.mark.parametrize(("carried_out", "counted"), [(False, 0), (True, 1)])
def test_a_removal_counts_when_it_shows_though_hactld_was_killed_before_its_end(
    carried_out: bool, counted: int
) -> None:
    class Killing(World):
        def carry_out(self, action: Action) -> None:
            disable = action.verb is Verb.DISABLE
            if carried_out or not disable:
                super().carry_out(action)
            if disable:
                raise KilledError

    world = Killing(PAIR, say=failing("A", after=20))
    with pytest.raises(KilledError):
        world.run(60)
    world.restart_hactld()
    world.engine.observed(world.show(), world.now)
    hold = world.engine.memories["mx"].holds.get(Member("mx", 0, "A"), Hold())
    assert len(hold.removals) == counted


def test_a_store_without_decisions_counts_no_removal_again() -> None:
    world = World(PAIR, say=failing("A", after=20)).run(60)
    memory = world.engine.memories["mx"]
    holds = {member: replace(hold, decision=None) for member, hold in memory.holds.items()}
    world.engine.memories["mx"] = replace(memory, holds=holds)
    world.restart_hactld()
    world.run(5)
    assert len(world.engine.memories["mx"].holds[Member("mx", 0, "A")].removals) == 1


def test_explain_says_of_a_preferred_check_what_would_change_it() -> None:
    plan = {"mx": ServicePlan("mx", ("smtp",), prefer=("spamd",))}
    world = World(PAIR, checks=("smtp", "spamd"), plans=plan)
    world.say = lambda probe, now: WARNED if probe == Probe("A", "spamd", "10.0.0.1") else OK
    world.run(60)
    lines = explain(snapshot(world.engine, world.now, "0", (), {}), "mx/A")
    spamd = next(n for n, line in enumerate(lines) if line.startswith("    spamd "))
    assert lines[spamd + 1].strip() == "up after 3 more without a warning in a row"
