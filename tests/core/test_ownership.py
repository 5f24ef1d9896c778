"""Whose disable it is, loads of relayd, and what the engine does about pf."""

from __future__ import annotations

from hactl.core import proof
from hactl.core.engine import FOREIGN, TRIES, Engine
from hactl.core.model import (
    Action,
    Checked,
    Cleaning,
    Facts,
    Host,
    HostStatus,
    Kind,
    Member,
    NodePlan,
    Observation,
    Owned,
    Plan,
    Rule,
    Service,
    ServicePlan,
    Table,
    Verb,
    Want,
    fail,
    ok,
)
from hactl.core.proof import Pf
from hactl.core.reconcile import Polling

A, B = "10.0.0.4", "10.0.0.5"
MX_A, MX_B = Member("mx", 0, A), Member("mx", 0, B)
UP, DOWN, UNKNOWN, OFF = HostStatus
ALL_PF = Pf(0.0, {"mx": (A, B)}, frozenset({"mx"}), frozenset({"mx"}), {})


class Bench:
    """An engine, what relayd shows it, and a clock."""

    def __init__(self, **plan: object) -> None:
        nodes = {w: NodePlan(w, (w,), frozenset({w})) for w in (A, B)}
        self.plan = Plan(nodes, {"smtp": Rule()}, {"mx": ServicePlan("mx", ("smtp",))}, **plan)  # type: ignore[arg-type]
        self.now = 1000.0
        self.engine = Engine(self.plan, Facts(checked=frozenset({("mx", 0)})), self.now)
        self.first = 1
        self.status = {A: UP, B: UP}
        self.engine.observed(self.shown(), self.now)
        for probe in self.engine.due(self.now + 5):
            self.engine.feed(Checked(probe, self.now, self.now, ok("220")))

    def shown(self) -> Observation:
        hosts = tuple(Host(self.first + n, w, s) for n, (w, s) in enumerate(self.status.items()))
        up = sum(s is UP for s in self.status.values())
        table = Table(1, "mx:25", f"active ({up} hosts)" if up else "empty", hosts)
        status = "active" if up else "down"
        service = Service(Kind.REDIRECT, 1, "mx", status, (table,))
        return Observation(self.now, (service,))

    def cycle(self, seconds: float = 1.0) -> tuple[Action, ...]:
        self.now += seconds
        self.engine.observed(self.shown(), self.now)
        return self.engine.actions(self.now)

    def disable(self, word: str) -> None:
        """Have the engine disable a host, whatever it thinks of it."""
        member = Member("mx", 0, word)
        action = Action(
            Verb.DISABLE, 7, "because", member, self.first + list(self.status).index(word)
        )
        self.engine.intend(action)
        self.status[word] = OFF
        self.engine.acted(action, self.now, done=True)

    def fail(self, word: str) -> None:
        """Have every look at a node fail from now on, and its removal follow."""
        for probe in self.engine.healths:
            if probe.node == word:
                for _ in range(3):
                    self.engine.feed(Checked(probe, self.now, self.now, fail("refused")))

    def names(self) -> list[str]:
        return [event.name for event in self.engine.events()]

    def foreign(self) -> list[Member]:
        return [m for m, s in self.engine.standings.items() if s.foreign]

    def prove(self, *table: str, **more: object) -> None:
        pf = Pf(self.now, {"mx": table}, frozenset({"mx"}), frozenset({"mx"}), **more)  # type: ignore[arg-type]
        self.engine.proved(pf, self.now)


def test_a_disable_that_outlives_a_load_is_somebody_elses() -> None:
    bench = Bench()
    bench.cycle()
    bench.fail(A)
    bench.disable(A)
    bench.cycle()
    bench.engine.counted({2: 40}, bench.now, bench.now)
    bench.cycle()
    assert MX_A in bench.engine.owned
    bench.engine.counted({2: 1}, bench.now, bench.now)
    bench.cycle()
    assert bench.foreign() == [MX_A]
    assert bench.engine.reloads == 1
    assert "reloaded" in bench.names()


def test_a_disable_that_somebody_undid_is_told_and_sent_again() -> None:
    bench = Bench()
    bench.fail(A)
    bench.cycle(9.0)  # past the wait for witnesses
    bench.disable(A)
    bench.cycle()
    bench.names()
    bench.status[A] = UNKNOWN
    again = bench.cycle()
    assert [a.words() for a in again if a.verb is Verb.DISABLE] == [("host", "disable", "1")]
    assert "undone" in bench.names()


def test_a_disable_sent_since_the_load_stays_ours() -> None:
    bench = Bench()
    bench.cycle()
    bench.engine.counted({1: 50, 2: 40}, bench.now, bench.now)
    bench.cycle()
    bench.fail(A)
    bench.disable(A)  # sent after the load that the counts are about to tell of
    bench.engine.counted({2: 1}, bench.now, bench.now)
    bench.cycle()
    assert bench.foreign() == []
    assert bench.engine.reloads == 1


def test_a_count_that_falls_by_our_own_hand_is_no_load() -> None:
    bench = Bench()
    bench.cycle()
    bench.engine.counted({1: 50, 2: 40}, bench.now, bench.now)
    bench.disable(A)
    enable = Action(Verb.ENABLE, 8, "passes", MX_A, 1)
    bench.status[A] = UP
    bench.engine.acted(enable, bench.now + 1.5, done=True)
    bench.cycle(2.0)
    bench.engine.counted({1: 0, 2: 41}, bench.now, bench.now)
    assert bench.engine.reloads == 0


def test_the_last_host_whose_count_would_tell_of_a_load_is_known() -> None:
    bench = Bench()
    bench.cycle()
    first, second = (Action(Verb.DISABLE, 9, "fails", m, n) for n, m in ((1, MX_A), (2, MX_B)))
    assert not bench.engine.last_sign(second)  # no counts yet
    bench.engine.counted({1: 50, 2: 40}, bench.now, bench.now)
    assert not bench.engine.last_sign(second)  # that of the first would tell as well
    bench.cycle()
    bench.disable(A)
    assert bench.engine.last_sign(second)  # whether relayd shows the first disabled by now or not
    bench.cycle()
    assert bench.engine.last_sign(second)
    assert not bench.engine.last_sign(first)
    bench.engine.counted({2: 0}, bench.now, bench.now)
    assert not bench.engine.last_sign(second)  # a count of nothing cannot fall


def test_new_ids_and_a_new_socket_tell_of_one_load_once() -> None:
    bench = Bench()
    bench.cycle()
    bench.engine.socket((1, 100), bench.now)
    bench.fail(A)
    bench.disable(A)
    bench.cycle()
    bench.engine.socket((1, 100), bench.now)
    bench.first = 5
    bench.engine.socket((1, 101), bench.now + 0.9)
    bench.engine.socket(None, bench.now + 0.95)
    bench.cycle()
    assert bench.engine.reloads == 1
    assert bench.names().count("reloaded") == 1
    assert bench.foreign() == [MX_A]


def test_what_a_command_without_an_end_may_have_done_stays_ours() -> None:
    bench = Bench()
    bench.cycle()
    bench.disable(A)
    bench.engine.owned[MX_A] = Owned(7, "check", unsure=bench.now + 60)
    bench.cycle()
    bench.engine.counted({2: 40}, bench.now, bench.now)
    bench.engine.counted({2: 1}, bench.now + 1, bench.now + 1)
    assert MX_A in bench.engine.owned


def test_our_own_reload_takes_nothing_away() -> None:
    bench = Bench()
    bench.cycle()
    bench.disable(A)
    bench.cycle()
    bench.engine.forgiving = bench.now + 60
    bench.engine.counted({2: 40}, bench.now, bench.now)
    bench.engine.counted({2: 1}, bench.now + 1, bench.now + 1)
    assert MX_A in bench.engine.owned


def test_a_foreign_disable_is_told_once_after_ten_minutes_and_can_be_taken_over() -> None:
    bench = Bench()
    bench.status[A] = OFF
    bench.cycle()
    assert bench.engine.adopt("mx/" + B) == []
    bench.names()
    bench.cycle(FOREIGN - 1)
    assert "foreign" not in bench.names()
    bench.cycle(2.0)
    assert bench.names().count("foreign") == 1
    bench.cycle(600)
    assert "foreign" not in bench.names()
    assert bench.engine.decisions[MX_A].want is Want.LEAVE
    assert bench.engine.adopt(A) == [MX_A]
    assert [a.words() for a in bench.cycle()] == [("host", "enable", "1")]


def test_a_host_taken_over_by_hand_is_no_removal_of_ours() -> None:
    bench = Bench()
    bench.status[A] = OFF
    bench.cycle()
    bench.engine.adopt(A)
    bench.fail(A)
    bench.cycle()
    bench.cycle()
    assert bench.engine.owned[MX_A].cause == "check"
    assert bench.engine.memories["mx"].holds[MX_A].removals == ()


def test_a_host_missing_in_pf_is_polled_for_within_a_budget() -> None:
    bench = Bench()
    bench.cycle()
    polls: list[float] = []
    for _ in range(120):
        for action in bench.cycle():
            assert action.verb is Verb.POLL
            bench.engine.acted(action, bench.now, done=True)
            polls.append(bench.now)
        bench.prove(B)
    assert len(polls) == 2 * proof.PAIRS
    events = bench.engine.events()
    levels = [e.level for e in events if e.name == "difference"]
    assert levels == ["warning", "error"]
    bench.prove(A, B)
    bench.cycle()
    assert dict(bench.engine.events()[0].fields)["state"] == "ends"
    assert bench.engine.in_pf(MX_A, bench.now) is True
    assert bench.engine.in_pf(MX_A, bench.now + 60) is None


def test_observe_and_hands_off_poll_for_nothing() -> None:
    bench = Bench()
    services = {"mx": ServicePlan("mx", ("smtp",), acts=False)}
    bench.engine.replan(Plan(bench.plan.nodes, bench.plan.rules, services), bench.now)
    for _ in range(30):
        assert bench.cycle() == ()
        bench.prove(B)


def test_pf_that_cannot_be_read_says_nothing() -> None:
    bench = Bench()
    for _ in range(3):
        bench.cycle()
        bench.prove(B)
    bench.engine.unproved("pfctl: exit 1")
    bench.engine.unproved("pfctl: exit 1")
    assert bench.engine.in_pf(MX_A, bench.now) is None
    assert list(bench.engine.proof.of("mx")) == []
    assert bench.names().count("unproved") == 1
    bench.prove(A, B)
    assert "proved" in bench.names()


def cleaned(bench: Bench) -> list[Cleaning]:
    found = list(bench.engine.cleanings())
    for cleaning in found:
        bench.engine.cleaned(cleaning, done=True)
    return found


def test_only_what_we_removed_is_cleaned_and_only_if_wanted() -> None:
    for wanted in ({}, {"clear_sources": True}, {"clear_sources": True, "kill_states": True}):
        bench = Bench(**wanted)
        bench.cycle()
        bench.fail(A)
        bench.cycle(10.0)
        assert bench.engine.decisions[MX_A].cause == "check"
        bench.disable(A)
        bench.status[B] = OFF  # somebody else's
        bench.cycle()
        kinds = [(c.what, c.address) for c in cleaned(bench)]
        expected = [("sources", A)] * ("clear_sources" in wanted)
        assert kinds == expected + [("states", A)] * ("kill_states" in wanted)
        assert cleaned(bench) == []


def test_sources_are_cleared_again_while_they_come_back_but_not_for_ever() -> None:
    bench = Bench(clear_sources=True)
    bench.cycle()
    bench.disable(A)
    rounds = 0
    for _ in range(20):
        bench.cycle()
        bench.prove(B, sources={A: 1})
        rounds += len(cleaned(bench))
    assert rounds == TRIES


def test_a_host_that_is_in_elsewhere_is_not_cleaned() -> None:
    bench = Bench(clear_sources=True, kill_states=True)
    bench.cycle()
    bench.disable(A)
    bench.now += 1
    host = Host(9, A, UP)
    other = Service(
        Kind.REDIRECT, 2, "imap", "active", (Table(2, "imap:143", "active (1 hosts)", (host,)),)
    )
    bench.engine.observed(Observation(bench.now, (*bench.shown().services, other)), bench.now)
    bench.engine.actions(bench.now)
    assert cleaned(bench) == []


def test_a_poll_keeps_away_from_relayds_own_round_where_that_is_known() -> None:
    bench = Bench()
    bench.cycle()
    bench.prove(B)
    at = bench.now  # relayd checks in the second after this, and again every ten
    bench.engine.counted({1: 5, 2: 5}, at, at)
    bench.now += 1
    bench.engine.counted({1: 6, 2: 6}, bench.now, bench.now)
    bench.status[B] = DOWN
    sent = []
    for _ in range(300):
        for action in bench.cycle(0.1):
            bench.engine.acted(action, bench.now, done=True)
            sent.append(round(bench.now - at, 1))
        bench.prove(B)
    way = 0.2 + 0.1  # a check's timeout, and the margin
    assert sent
    # each poll begins a round of its own, from which relayd counts anew
    assert not any(10 - 0.2 - way <= s <= 11 + way for s in sent if s < sent[0] + 0.01)
    assert sent[0] > 1 + way


def test_rounds_that_are_too_close_to_keep_away_from_do_not_count() -> None:
    polling = Polling(round=(100.0, 101.0))
    slow, quick = Facts(10.0, 0.2), Facts(2.0, 0.2)
    near = [
        at
        for at in (99.5, 99.8, 101.2, 101.4, 109.6, 109.8, 111.2, 111.4)
        if polling.near(slow, at)
    ]
    assert near == [99.8, 101.2, 109.8, 111.2]
    assert not any(polling.near(quick, at / 10) for at in range(990, 1050))
    assert not Polling().near(slow, 100.0)
