"""What happens in whole stories: the core against a pretended relayd, in virtual time."""

from __future__ import annotations

import pytest

from hactl.core.engine import Engine
from hactl.core.explain import explain, snapshot
from hactl.core.model import (
    Decision,
    Facts,
    Host,
    HostStatus,
    Kind,
    Member,
    Observation,
    Override,
    Plan,
    Rule,
    Service,
    ServicePlan,
    Table,
    Verb,
    Want,
)
from tests.core.world import LOST, REFUSED, SILENT, World, failing

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
    world.run(60)
    assert world.switches() == ["host disable 2"]
    back = next(h.since for p, h in world.engine.healths.items() if p.node == "A") - 1000
    assert back + 10 <= world.log[-1][0] <= back + 10 + 1.1


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
    assert "no required check has an answer yet" in decision(world, "mx", "A").reason
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
