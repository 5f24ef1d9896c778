"""A strange relayctl never leads to a wrong action: every recorded answer, cut, mixed and mutated.

The engine runs on what `Relayctl` believes of such answers, between right ones, while nodes fail
and recover; relayd's counts of checks are never right.  Every command must name the host that it means in what relayd really has.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence

import pytest

from hactl.core.engine import Engine
from hactl.core.model import (
    Checked,
    Facts,
    HostStatus,
    Member,
    NodePlan,
    Observation,
    Plan,
    Rule,
    ServicePlan,
    Verb,
    fail,
    ok,
)
from hactl.relayd.command import Ended
from hactl.relayd.relayctl import Relayctl, RelayctlError, parse
from tests.relayd.test_relayctl import CALLS, SUMMARIES

ROUNDS = 60
COUNTS = [call.stdout for call in CALLS if call.words == "show hosts" and call.exit == 0]
TRUTHS = sorted({text for text in SUMMARIES if text.count("\thost") >= 2})


class Strange:
    """A relayctl that tells the truth now and then, and never the same lie twice in a row."""

    def __init__(self, truth: str, rng: random.Random) -> None:
        self.truth = truth
        self.rng = rng
        self.last = ""

    async def run(self, program: str, arguments: Sequence[str]) -> Ended:
        if arguments[-1] == "hosts":
            return Ended(0, self.lie(self.rng.choice(COUNTS)), "")
        if self.rng.random() < 0.5:
            self.last = self.truth
            return Ended(0, self.truth, "")
        lie = self.last
        while lie in (self.last, self.truth):
            lie = self.lie(self.truth)
        self.last = lie
        return Ended(self.rng.choice((0, 0, 0, 1)), lie, "")

    def lie(self, truth: str) -> str:
        rng, lines = self.rng, truth.splitlines(True)
        other = rng.choice(CALLS).stdout
        match rng.randrange(5):
            case 0:
                return other
            case 1:
                return truth[: rng.randrange(len(truth))]
            case 2:
                cut = rng.randrange(1, len(lines) + 1)
                return "".join(lines[:cut] + other.splitlines(True)[rng.randrange(8) :])
            case 3:
                rng.shuffle(lines)
                return "".join(lines)
        at = rng.randrange(len(truth))
        new = rng.choice("123456789") if truth[at].isdigit() else rng.choice("1 \tx\n")
        return truth[:at] + new + truth[at + 1 :]


def cluster(truth: Observation) -> Plan:
    """Return a configuration in which every service and host of a dump is known."""
    words = {h.name for s in truth.services for t in s.tables for h in t.hosts}
    nodes = {w: NodePlan(w, (w,), frozenset({w})) for w in words}
    services = {s.name: ServicePlan(s.name, ("smtp",), pace_share=1.0) for s in truth.services}
    return Plan(nodes, {"smtp": Rule()}, services)


@pytest.mark.parametrize("truth", TRUTHS, ids=lambda text: str(TRUTHS.index(text)))
def test_no_command_names_another_host_than_it_means(truth: str) -> None:
    real = parse(truth, 0.0)
    plan = cluster(real)
    ids: dict[int, set[tuple[str, int, str]]] = {}
    foreign = set()
    for service in real.services:
        for position, table in enumerate(service.tables):
            for host in table.hosts:
                ids.setdefault(host.id, set()).add((service.name, position, host.name))
                if host.status is HostStatus.DISABLED:
                    foreign.add(host.id)
    checked = frozenset((s.name, n) for s in real.services for n in range(len(s.tables)))
    rng = random.Random(truth)
    relayctl = Relayctl(Strange(truth, rng))
    engine = Engine(plan, Facts(checked=checked), 0.0)
    said = 0

    async def scene() -> None:
        nonlocal said
        bad: set[str] = set()
        for now in map(float, range(1, ROUNDS * 3, 3)):
            bad = bad ^ {rng.choice(sorted(plan.nodes))}
            try:
                seen = await relayctl.show()
            except RelayctlError as error:
                engine.unseen(str(error))
                continue
            with contextlib.suppress(RelayctlError):
                counts = (await relayctl.show_hosts()).checks
                engine.counted({id: count.total for id, count in counts.items()}, now, now)
            engine.observed(Observation(now, seen.services), now)
            for probe in engine.due(now):
                for _ in range(3):
                    result = fail("421") if probe.node in bad else ok("220")
                    engine.feed(Checked(probe, now, now, result))
            for action in engine.actions(now):
                if action.member is None:
                    continue
                said += 1
                name, position, word = action.member
                assert (name, position, word.split("#")[0]) in ids[action.host]
                assert action.verb is Verb.DISABLE or action.host not in foreign
                with contextlib.suppress(KeyError):
                    engine.intend(action)
                engine.acted(action, now, done=False)
                assert Member(name, position, word) in engine.places

    asyncio.run(scene())
    assert said or len(ids) < 2 or len(foreign) >= len(ids) - 1
