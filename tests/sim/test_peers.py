"""The peers' rules do what their manuals say, in the same world."""

from __future__ import annotations

from statistics import median

import pytest

from hactl.sim import peers
from hactl.sim.ledger import Figures
from hactl.sim.peers import FASTINTER, GDNSD, HAPROXY, KEEPALIVED, RELAYD, Peer, RiseFall, Score
from hactl.sim.truth import Event
from tests.sim.farm import pair

REFUSE = Event(300, "refuse", ("A",), lasts=600)
HANG = Event(300, "hang", ("A",), lasts=600)


def figures(peer: Peer, *events: Event, seed: int = 0, tables: str = "") -> Figures:
    nodes = "ABC" if "C" in tables else "AB"
    return peers.run(pair(nodes=nodes, tables=tables), events, 1200, peer, seed).figures["mx"]


def detection(peer: Peer, event: Event) -> float:
    found = [figures(peer, event, seed=seed).detection for seed in range(30)]
    return median(each for each in found if each is not None)


@pytest.mark.parametrize(
    ("peer", "event", "least", "most"),
    [
        (HAPROXY, REFUSE, 4.5, 5.6),  # measured with HAProxy 2.6: 4.82
        (HAPROXY, HANG, 7.4, 8.4),  # 7.92
        (FASTINTER, REFUSE, 1.1, 1.7),  # 1.32 with 100 ms
        (FASTINTER, HANG, 4.0, 4.8),  # 4.39 with 100 ms
        (KEEPALIVED, REFUSE, 20, 42),
        (GDNSD, REFUSE, 90, 100),
    ],
)
def test_detection_is_what_was_measured(
    peer: Peer, event: Event, least: float, most: float
) -> None:
    assert least <= detection(peer, event) <= most


def test_check_tcp_alone_never_sees_a_refusing_service() -> None:
    assert figures(RELAYD, REFUSE).failing == 300


def test_haproxy_serves_from_its_backup_and_then_from_nobody() -> None:
    both = Event(300, "refuse", ("A", "B"), lasts=100)
    alone = Event(500, "refuse", ("A", "B", "C"), lasts=100)
    assert figures(HAPROXY, both, tables="AB|C").empty == 0
    assert 90 < figures(HAPROXY, alone, tables="AB|C").empty < 105


def test_gdnsd_gives_out_everybody_when_too_few_are_up() -> None:
    assert figures(GDNSD, Event(0, "refuse", ("A", "B"))).empty == 0


def test_fall_and_rise_are_counted_in_a_row() -> None:
    score, rule = Score(), RiseFall(2, 3, 2, fast=0.2)
    pauses = [score.step(rule, good) for good in (False, False, True, False, False, False, True)]
    assert pauses == [0.2, 0.2, 2, 0.2, 0.2, 2, 0.2]
    assert not score.up
    score.step(rule, good=True)
    assert score.up


def test_gdnsd_counts_failures_over_any_time() -> None:
    score, rule = Score(), peers.Counted(10, 3, 4, 2)
    for good in (False, True, True, False, True, False):
        score.step(rule, good)
    assert not score.up
