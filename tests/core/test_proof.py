"""What differs between relayd's word and pf, when it counts, and what is done about it."""

from __future__ import annotations

import pytest

from hactl.core import proof
from hactl.core.model import (
    Host,
    HostStatus,
    Kind,
    Member,
    NodePlan,
    Observation,
    Plan,
    Service,
    ServicePlan,
    Table,
)
from hactl.core.proof import Difference, Pf, Proof, Signs, Standing

A, B, C = "10.0.0.4", "10.0.0.5", "10.0.0.6"
UP, DOWN, UNKNOWN, OFF = HostStatus
PLAN = Plan(
    {
        "a": NodePlan("a", (A,), frozenset({"a", A})),
        "b": NodePlan("b", (B, "2001:db8::5"), frozenset({"b", B})),
        "far": NodePlan("far", ("far.example.org",), frozenset({"far", "far.example.org"})),
    },
    services={"mx": ServicePlan("mx")},
)
INTERVAL = 2.0


def mx(
    main: dict[str, HostStatus],
    backup: dict[str, HostStatus] | None = None,
    status: str = "active",
    kind: Kind = Kind.REDIRECT,
) -> Observation:
    """Return what relayd shows of one redirect."""
    tables = []
    for position, each in enumerate((main, backup)):
        if each is not None:
            hosts = tuple(Host(10 * position + n, w, s) for n, (w, s) in enumerate(each.items(), 1))
            tables.append(Table(position + 1, f"t{position}:25", "active", hosts))
    return Observation(0.0, (Service(kind, 1, "mx", status, tuple(tables)),))


def differs(seen: Observation, *table: str, **more: object) -> list[tuple[str, str]]:
    """Return the kinds and the hosts of what differs if pf's table has these addresses."""
    pf = Pf(100.0, {"mx": table}, frozenset({"mx"}), frozenset({"mx"}))
    found = proof.compare(PLAN, seen, pf, {}, INTERVAL, {})
    return [(d.kind, d.member.host if d.member else "") for d in found]


BACKUP = "active (using backup table)"


@pytest.mark.parametrize(
    ("seen", "table", "expected"),
    [
        (mx({A: UP, B: UP}), (A, B), []),
        (mx({A: UP, B: DOWN, C: OFF}), (A,), []),
        (mx({A: UP, B: UP}), (A,), [("lacks", B)]),
        (mx({A: UP, B: OFF}), (A, B), [("has", B)]),
        (mx({A: UP, B: UNKNOWN}), (A, B), [("has", B)]),
        (mx({A: UP}), (A, C), [("has", "")]),
        (mx({A: UP}), (A, "10.0.0.0/24"), [("has", "")]),
        # the table in use is the one that relayd says, whoever is up in the other
        (mx({A: UP}, {B: UP}), (A,), []),
        (mx({A: UP}, {B: UP}), (A, B), [("has", B)]),
        (mx({A: OFF}, {B: UP}, BACKUP), (B,), []),
        (mx({A: UP}, {B: UP}, BACKUP), (B,), []),
        (mx({A: OFF}, {B: UP}, BACKUP), (A,), [("lacks", B), ("has", A)]),
        # nobody is up, or relayd has not written pf yet, or the redirect is off
        (mx({A: DOWN}, status="down"), (), []),
        (mx({A: UP}, status="down"), (), []),
        (mx({A: DOWN}, status="down"), (A,), [("has", A)]),
        (Observation(0.0, (Service(Kind.REDIRECT, 1, "mx", "disabled"),)), (A,), [("has", "")]),
        # names: the node's addresses will do, and what we cannot know excuses what is strange
        (mx({"a": UP, "b": UP}), (A, "2001:db8::5"), []),
        (mx({"a": UP, "b": UP}), (A,), [("lacks", "b")]),
        (mx({A: UP, "far.example.org": UP}), (A, "198.51.100.7"), []),
        (mx({A: UP, "unheard.example.org": UP}), (A, "198.51.100.7"), []),
        (mx({A: OFF, "far.example.org": UP}), (A, "198.51.100.7"), [("has", A)]),
        # relays use no table of pf
        (mx({A: UP}, kind=Kind.RELAY), (), []),
    ],
)
def test_expected_against_pf(
    seen: Observation, table: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    assert differs(seen, *table) == expected


def test_a_missing_anchor_and_a_missing_rule_are_told_apart() -> None:
    kinds = []
    for rules, anchored in (({"mx"}, set()), (set(), {"mx"}), (set(), set()), ({"mx"}, {"mx"})):
        pf = Pf(0.0, {"mx": (A,)}, frozenset(rules), frozenset(anchored))
        found = proof.compare(PLAN, mx({A: UP}), pf, {}, INTERVAL, {})
        kinds.append([d.kind for d in found])
    assert kinds == [["anchor"], ["rule"], ["anchor", "rule"], []]
    # not read, or nobody is up: nothing is claimed
    assert proof.compare(PLAN, mx({A: UP}), Pf(0.0, {"mx": (A,)}), {}, INTERVAL, {}) == {}
    pf = Pf(0.0, {"mx": ()}, frozenset(), frozenset({"mx"}))
    assert proof.compare(PLAN, mx({A: DOWN}, status="down"), pf, {}, INTERVAL, {}) == {}


def test_a_redirect_that_relayd_dropped_and_pf_kept() -> None:
    other = Observation(0.0, (Service(Kind.REDIRECT, 1, "imap", "active"),))
    pf = Pf(50.0, {"mx": (A,)}, frozenset({"mx"}))
    found = proof.compare(PLAN, other, pf, {}, INTERVAL, {})
    ((difference, since),) = found.items()
    assert (difference.kind, since) == ("left", 50.0 + proof.LEFT)
    assert A in difference.text
    assert "-F all" in difference.text
    # a header alone: relayd is starting
    assert proof.compare(PLAN, Observation(0.0, ()), pf, {}, INTERVAL, {}) == {}
    clean = Pf(50.0, {"mx": ()}, frozenset())
    assert proof.compare(PLAN, other, clean, {}, INTERVAL, {}) == {}


def test_source_entries_of_a_removed_host() -> None:
    member = Member("mx", 0, A)
    pf = Pf(0.0, {"mx": ()}, frozenset({"mx"}), frozenset({"mx"}), {A: 2, B: 7})
    found = proof.compare(
        PLAN, mx({A: OFF}, status="down"), pf, {}, INTERVAL, {member: frozenset({A})}
    )
    assert [(d.kind, d.member) for d in found] == [("sources", member)]


LACKS = Difference("mx", "lacks", "relayd shows 10.0.0.4 up, and pf's table lacks it", None)
HAS = Difference("mx", "has", "pf's table has it", None)
PF = Pf(0.0, {})


def after(*steps: tuple[float, dict[Difference, float]]) -> Proof:
    state = Proof()
    for now, found in steps:
        state = proof.step(state, PF, found, now)
    return state


def test_one_look_proves_nothing() -> None:
    assert list(after((0.0, {HAS: 0.0})).of("mx")) == []
    assert list(after((0.0, {HAS: 0.0}), (0.1, {HAS: 0.0})).of("mx")) == []
    assert list(after((0.0, {HAS: 0.0}), (1.0, {HAS: 0.0})).of("mx")) == [HAS]
    assert list(after((0.0, {HAS: 0.0}), (1.0, {}), (2.0, {HAS: 0.0})).of("mx")) == []


def test_a_host_that_came_up_has_an_interval_to_reach_pf() -> None:
    sinces = {Member("mx", 0, A): 50.0}
    seen = mx({A: UP}, status="active")
    found = proof.compare(PLAN, seen, Pf(60.0, {"mx": (B,)}), sinces, 10.0, {})
    wrong_from = {d.kind: at for d, at in found.items()}
    assert wrong_from == {"lacks": 50.0 + 10.0 + proof.LATE, "has": 0.0}
    assert list(after((51.0, {LACKS: 61.5}), (61.0, {LACKS: 61.5})).of("mx")) == []
    assert list(after((51.0, {LACKS: 61.5}), (61.5, {LACKS: 61.5})).of("mx")) == [LACKS]


def test_repairs_have_a_budget() -> None:
    state = after((0.0, {HAS: 0.0}), (1.0, {HAS: 0.0}))
    pairs = 0
    while proof.in_doubt(state, 2.0 + pairs):
        state = proof.spent(state, proof.in_doubt(state, 2.0 + pairs), 2.0 + pairs)
        pairs += 1
    assert pairs == proof.PAIRS
    assert proof.in_doubt(state, 2.0 + proof.SPAN) == {"mx"}
    # not even a difference that comes and goes gets more
    state = proof.step(state, PF, {}, 10.0)
    state = proof.step(proof.step(state, PF, {HAS: 0.0}, 11.0), PF, {HAS: 0.0}, 12.0)
    assert list(state.of("mx")) == [HAS]
    assert proof.in_doubt(state, 12.0) == frozenset()


def test_people_hear_once_of_what_was_not_or_cannot_be_repaired() -> None:
    rule = Difference("mx", "rule", "no rule")
    sources = Difference("mx", "sources", "2 entries", Member("mx", 0, A))
    found = {HAS: 0.0, rule: 0.0, sources: 0.0}
    state = after((0.0, found), (1.0, found))
    assert [d for d in found if proof.overdue(state, d, 1.0)] == [rule]
    state = proof.alerted(state, [rule])
    assert [d for d in found if proof.overdue(state, d, proof.REPAIR)] == [HAS]
    state = proof.alerted(state, [HAS])
    assert [d for d in found if proof.overdue(state, d, 99.0)] == []
    assert state.differences[HAS] == Standing(0.0, True, True)


@pytest.mark.parametrize(
    ("before", "later", "loaded"),
    [
        ({1: 9, 2: 7}, {1: 1, 2: 1}, True),
        ({1: 9, 2: 7}, {1: 0, 2: 0}, True),
        ({1: 9, 2: 7}, {1: 10, 2: 8}, False),
        ({1: 9, 2: 7}, {1: 9, 2: 7}, False),
        ({1: 9, 2: 7}, {1: 1, 2: 8}, False),  # one was disabled and enabled
        ({1: 9}, {1: 1}, True),
        ({1: 9, 2: 7, 3: 4}, {1: 1, 2: 1}, True),  # the third was disabled after the load
        ({1: 9, 2: 7, 3: 0}, {1: 1, 2: 1, 3: 1}, True),
        ({}, {1: 1}, False),
    ],
)
def test_a_load_of_relayd_shows_in_every_count(
    before: dict[int, int], later: dict[int, int], loaded: bool
) -> None:
    assert proof.restarted(Signs(0.0, before), Signs(1.0, later)) is loaded
