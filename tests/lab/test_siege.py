"""The engine and the relayd model under random events, and each warning of relayd's that binds.

`WARNINGS` names what is known to hurt relayd, or whoever steers it, from its source and from runs
of it; each is held over the commands of a siege, in which the model dies of whatever the real one
is known to die of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import pytest

from hactl.core.model import Member, Verb
from hactl.core.reconcile import DWELL, MARGIN
from hactl.lab.siege import (
    NODES,
    A,
    B,
    C,
    Cluster,
    Knowledge,
    Sent,
    Wish,
    besiege,
    hosts,
    relayd_conf,
    wrong,
)

EVENTS = 40
TIMEOUT = 0.2  # seconds of relayd's checks


@cache
def sieged(seed: int) -> Cluster:
    """Let a few events happen; whoever asks again gets the same."""
    cluster = Cluster(seed)
    cluster.run(20.0)
    for _ in range(EVENTS):
        event = cluster.event()
        assert cluster.settle() == "", event
    return cluster


def orders(verb: Verb) -> Iterator[tuple[Sent, Member]]:
    for seed in (1, 2):
        for sent in sieged(seed).sent:
            if sent.action.verb is verb and sent.action.member is not None:
                yield sent, sent.action.member


def polls(seed: int) -> list[Sent]:
    return [sent for sent in sieged(seed).sent if sent.action.verb is Verb.POLL]


# Each warning


def only_words_that_are_safe() -> None:
    sent = [sent for seed in (1, 2) for sent in sieged(seed).sent]
    assert len(sent) > 20
    for each in sent:
        words = each.action.words()
        assert words == ("poll",) or (
            words[:2] in (("host", "disable"), ("host", "enable")) and words[2].isdigit()
        )


def unchecked_tables_are_left_alone() -> None:
    for verb in (Verb.ENABLE, Verb.DISABLE):
        assert "proxy" not in {member.service for _, member in orders(verb)}


def children_are_left_to_their_parents() -> None:
    for verb in (Verb.ENABLE, Verb.DISABLE):
        assert Member("kin", 0, C) not in {member for _, member in orders(verb)}


def opposite_commands_keep_apart() -> None:
    for seed in (1, 2):
        off: dict[Member, float] = {}
        for sent in sieged(seed).sent:
            member = sent.action.member
            if member is not None and sent.action.verb is Verb.DISABLE:
                off[member] = sent.at
            elif member is not None and member in off:
                assert sent.at >= off.pop(member) + DWELL


def polls_keep_apart_unless_everybody_is_up() -> None:
    for seed in (1, 2):
        for one, other in pairwise(polls(seed)):
            if (one.boot, one.load) == (other.boot, other.load):
                assert other.at >= one.at + TIMEOUT + MARGIN - 1e-6 or other.everybody_up


def a_dead_host_is_never_polled_into_pf() -> None:
    cluster = Cluster(3)
    cluster.run(20.0)
    cluster.known.failing.add(A)  # it drops SYNs, and has a retry left
    cluster.silent.add(A)
    served = []
    for _ in range(600):
        cluster.run(0.1)
        served.append(A in cluster.pf.tables["mx"])
    assert served.index(False) < 80
    assert not any(served[80:])


def what_a_load_forgets_is_disabled_again_before_it_serves() -> None:
    cluster = Cluster(4)
    cluster.run(20.0)
    cluster.known.failing.add(A)
    cluster.run(20.0)
    assert cluster.model is not None
    for shift in (0, 2, 2, 1):
        cluster.shift = shift
        cluster.model.load(relayd_conf(shift), cluster.now)
        cluster.run(1.1)  # a cycle
        assert hosts(cluster.model)["mx", 0, A].disabled
        for _ in range(60):
            cluster.run(0.1)
            assert A not in cluster.pf.tables["mx"]
        assert cluster.pf.tables["mx"] == (B,)
    assert cluster.engine.reloads == 4


def a_restart_is_the_same() -> None:
    cluster = Cluster(5)
    cluster.run(20.0)
    cluster.known.failing.add(A)
    cluster.run(20.0)
    assert cluster.model is not None
    cluster.model.crash("pfe: killed")
    cluster.model = None
    cluster.run(3.0)
    cluster.boot()
    cluster.run(1.1)
    assert cluster.model is not None
    assert hosts(cluster.model)["mx", 0, A].disabled


def pf_is_never_emptied() -> None:
    cluster = Cluster(6)
    cluster.run(20.0)
    for word in (A, B, C):
        cluster.known.failing.add(word)
        cluster.run(40.0)
        for name in ("mx", "kin", "two"):
            assert cluster.pf.tables[name]


def an_enabled_host_takes_over_only_once_it_is_up() -> None:
    """`up` in show, not `enabled`: pf gets it one or two intervals later."""
    cluster = Cluster(7)
    cluster.run(20.0)
    cluster.known.failing |= {A, C}
    cluster.run(30.0)
    cluster.known.failing -= {A, C}
    cluster.known.failing.add(B)
    for _ in range(300):
        cluster.run(0.1)
        assert cluster.pf.tables["mx"]
    assert B not in cluster.pf.tables["mx"]


def ids_are_those_of_the_last_show() -> None:
    cluster = Cluster(8)
    cluster.run(20.0)
    for shift in (2, 0, 1):
        cluster.shift = shift
        assert cluster.model is not None
        cluster.model.load(relayd_conf(shift), cluster.now)
        cluster.known.failing ^= {A}
        cluster.run(40.0)
        found = hosts(cluster.model)
        assert found["mx", 0, A].disabled is (A in cluster.known.failing)
        assert not any(h.disabled for (name, _, _), h in found.items() if name.startswith("x"))


def one_host_in_two_tables_is_two() -> None:
    cluster = Cluster(9)
    cluster.run(20.0)
    cluster.known.failing.add(A)
    cluster.run(80.0)
    disabled = {m for s in cluster.sent if (m := s.action.member) is not None}
    assert {Member("mx", 0, A), Member("two", 1, A)} <= disabled


def what_is_hidden_is_not_gone() -> None:
    cluster = Cluster(10)
    cluster.run(20.0)
    cluster.known.failing.add(A)
    cluster.run(20.0)
    assert cluster.model is not None
    owned = dict(cluster.engine.owned)
    for what in ("table", "redirect"):
        cluster.model.command((what, "disable", "1"), cluster.now)
        cluster.run(10.0)
        assert Member("mx", 0, A) in cluster.engine.owned
        cluster.model.command((what, "enable", "1"), cluster.now)
        cluster.run(10.0)
    assert cluster.engine.owned.keys() >= owned.keys()


def a_lost_command_is_never_answered_by_its_opposite() -> None:
    cluster = Cluster(11)
    cluster.run(20.0)
    cluster.lost = ["late"]
    cluster.known.failing.add(A)
    cluster.run(30.0)
    about = [s.action.verb for s in cluster.sent if s.action.member == Member("mx", 0, A)]
    assert set(about) == {Verb.DISABLE}


def a_child_does_not_stand_in_for_its_parent() -> None:
    cluster = Cluster(12)
    cluster.run(20.0)
    cluster.known.failing.add(A)
    cluster.run(60.0)
    assert cluster.pf.tables["kin"] == (A, C)  # a disable of A would take C out with it


def a_header_alone_is_a_relayd_that_starts() -> None:
    cluster = Cluster(13)
    cluster.run(20.0)
    before = dict(cluster.engine.decisions)
    assert cluster.model is not None
    services, cluster.model.services = cluster.model.services, []
    cluster.run(3.0)
    assert [s for s in cluster.sent if s.action.member is not None] == []
    cluster.model.services = services
    cluster.run(5.0)
    assert cluster.engine.decisions.keys() == before.keys()


WARNINGS: dict[str, Callable[[], None]] = {
    "reload, load, table, redirect and names are no actuators": only_words_that_are_safe,
    "a disable in an unchecked relay table kills relayd": unchecked_tables_are_left_alone,
    "a child cannot be switched": children_are_left_to_their_parents,
    "disable and enable in quick succession": opposite_commands_keep_apart,
    "two polls within a check's timeout": polls_keep_apart_unless_everybody_is_up,
    "poll and retry put a dead host in service": a_dead_host_is_never_polled_into_pf,
    "a reload forgets every disable": what_a_load_forgets_is_disabled_again_before_it_serves,
    "a restart forgets every disable": a_restart_is_the_same,
    "with both tables empty the rule goes": pf_is_never_emptied,
    "up is slow: one or two intervals": an_enabled_host_takes_over_only_once_it_is_up,
    "a reload numbers everything anew": ids_are_those_of_the_last_show,
    "one address can be several hosts": one_host_in_two_tables_is_two,
    "a disabled table or redirect hides its hosts": what_is_hidden_is_not_gone,
    "a killed relayctl is carried out later": a_lost_command_is_never_answered_by_its_opposite,
    "disabling the parent disables its children": a_child_does_not_stand_in_for_its_parent,
    "a header alone right after a start": a_header_alone_is_a_relayd_that_starts,
}


@pytest.mark.parametrize("warning", WARNINGS)
def test_what_is_known_to_hurt_is_avoided(warning: str) -> None:
    WARNINGS[warning]()


# That a siege can fail


def test_the_desired_state_is_reached_after_each_event() -> None:
    assert sieged(1).crashed == sieged(2).crashed == ""
    assert besiege(1, 3).wrong == ""


def test_a_siege_sees_a_relayd_that_dies() -> None:
    cluster = Cluster(1)
    cluster.run(10.0)
    assert cluster.model is not None
    bare = hosts(cluster.model)["proxy", 0, A]
    cluster.model.command(("host", "disable", str(bare.conf.id)), cluster.now)
    assert cluster.settle().startswith("relayd died: hce: ")


@pytest.mark.parametrize(
    ("known", "want", "says"),
    [
        (Knowledge(), "out", "is wanted out (because)"),
        (Knowledge(foreign={("mx", 0, A)}), "in", "was disabled by hand, and is not any more"),
        (Knowledge(told={"a": "maint"}), "in", "is in maintenance, and enabled"),
        (Knowledge(failing={A}), "in", "fails and is in"),
        (Knowledge(failing={A}, frozen=True), "in", ""),
        (Knowledge(), "in", ""),
    ],
)
def test_what_is_wrong_is_seen(known: Knowledge, want: str, says: str) -> None:
    cluster = Cluster(1)
    cluster.run(20.0)
    assert cluster.model is not None
    wants = {key: Wish("in", "", False) for key in hosts(cluster.model)}
    wants["mx", 0, A] = Wish(want, "because", False)
    found = wrong(cluster.model, wants, NODES, known)
    assert says in found
    assert bool(found) is bool(says)


def test_a_pf_that_is_not_relayds_is_seen() -> None:
    cluster = Cluster(1)
    cluster.run(20.0)
    assert cluster.wrong() == ""
    cluster.pf.tables["mx"] = (A,)
    assert "pf's table mx has" in cluster.wrong()
