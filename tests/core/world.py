"""A small world for tests of the core: nodes that can be made to fail, and a pretended relayd.

Virtual time in steps of a slot; relayd's rules as far as the core depends on them: a disable acts
at once, an enabled host is up one check round later and in pf one more, reload forgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hactl.core.engine import CYCLE, UNSURE, Engine
from hactl.core.model import (
    Action,
    Checked,
    Facts,
    Host,
    HostStatus,
    Kind,
    NodePlan,
    Observation,
    Plan,
    Probe,
    Result,
    Rule,
    Service,
    ServicePlan,
    Table,
    Verb,
    Verdict,
    fail,
    ok,
    unknown,
)


@dataclass
class FakeHost:
    """A host of the pretended relayd: its own check sees *tcp*, pf gets it a round after `up`."""

    id: int
    word: str
    disabled: bool = False
    status: HostStatus = HostStatus.UNKNOWN
    in_pf: bool = False


@dataclass
class World:
    """Runs an engine against nodes whose checks answer what `say` returns."""

    tables: Mapping[str, tuple[tuple[str, ...], ...]]  # service -> tables -> words
    checks: tuple[str, ...] = ("smtp",)
    interval: float = 10.0
    rule: Rule = field(default_factory=Rule)
    plans: Mapping[str, ServicePlan] = field(default_factory=dict)
    say: Callable[[Probe, float], Result] = lambda probe, now: ok("220 ready")
    tcp: Callable[[str, float], bool] = lambda word, now: True
    now: float = 1000.0
    log: list[tuple[float, str]] = field(default_factory=list)
    looks: list[tuple[float, Probe]] = field(default_factory=list)
    empty: dict[str, float] = field(default_factory=dict)
    refused: set[Verb] = field(default_factory=set)  # what relayctl refuses to do
    late: set[Verb] = field(default_factory=set)  # what is carried out after relayctl was given up

    def __post_init__(self) -> None:
        words = sorted({w for tables in self.tables.values() for t in tables for w in t})
        nodes = {w: NodePlan(w, (f"10.0.0.{n}",), frozenset({w})) for n, w in enumerate(words, 1)}
        services = {
            name: self.plans.get(name, ServicePlan(name, require=self.checks))
            for name in self.tables
        }
        self.plan = Plan(nodes, dict.fromkeys(self.checks, self.rule), services)
        self.facts = Facts(
            self.interval,
            0.2,
            frozenset((s, p) for s, tables in self.tables.items() for p in range(len(tables))),
        )
        self.load()
        self.round = self.now
        self.engine = Engine(self.plan, self.facts, self.now)
        self.flights: list[tuple[float, Checked]] = []
        self.cycle = self.now

    # relayd

    def load(self, first_id: int = 1) -> None:
        """Start or reload relayd: ids anew, nothing disabled, pf empty."""
        self.hosts: dict[tuple[str, int, str], FakeHost] = {}
        for service, tables in self.tables.items():
            for position, table in enumerate(tables):
                for word in table:
                    self.hosts[service, position, word] = FakeHost(first_id + len(self.hosts), word)
        self.round = self.now + self.interval

    def sync(self) -> None:
        for host in self.hosts.values():
            host.in_pf = host.status is HostStatus.UP

    def check_round(self) -> None:
        """pf gets what was up, then every host is checked (answers come at once)."""
        self.sync()
        for host in self.hosts.values():
            if not host.disabled:
                up = self.tcp(host.word, self.now)
                host.status = HostStatus.UP if up else HostStatus.DOWN
                host.in_pf = host.in_pf and up
        self.round = self.now + self.interval

    def show(self) -> Observation:
        services = []
        for number, (name, tables) in enumerate(self.tables.items(), 1):
            shown = []
            for position, table in enumerate(tables):
                hosts = [self.hosts[name, position, word] for word in table]
                shown.append(
                    Table(
                        position + 1,
                        f"t{position}:25",
                        "active",
                        tuple(
                            Host(
                                h.id,
                                h.word,
                                HostStatus.DISABLED if h.disabled else h.status,
                            )
                            for h in hosts
                        ),
                    )
                )
            status = "active" if self.serving(name) else "down"
            services.append(Service(Kind.REDIRECT, number, name, status, tuple(shown)))
        return Observation(self.now, tuple(services))

    def serving(self, service: str) -> set[str]:
        """Return the words in pf's table: main's if anyone of main is in, else backup's."""
        for position, table in enumerate(self.tables[service]):
            words = {w for w in table if self.hosts[service, position, w].in_pf}
            if words:
                return words
        return set()

    def carry_out(self, action: Action) -> None:
        self.log.append((round(self.now - 1000, 1), " ".join(action.words())))
        if action.verb is Verb.POLL:
            self.check_round()
            return
        host = next(h for h in self.hosts.values() if h.id == action.host)
        host.disabled = action.verb is Verb.DISABLE
        host.status, host.in_pf = HostStatus.UNKNOWN, False
        if host.disabled:
            self.sync()

    # hactld

    def act(self) -> None:
        """Run one cycle as hactld does: observe, act once, observe again."""
        tried: set[tuple[str, ...]] = set()
        for _ in range(50):
            self.engine.observed(self.show(), self.now)
            actions = self.engine.actions(self.now)
            action = next((a for a in actions if a.words() not in tried), None)
            if action is None:
                return
            done = action.verb not in self.refused
            if not done:
                tried.add(action.words())
            self.engine.intend(action)
            if done:
                self.carry_out(action)
            late = action.verb in self.late
            self.engine.acted(action, self.now, done=done and not late, unsure=UNSURE * late)
        raise AssertionError(f"no end of actions: {self.log[-6:]}")

    def restart_hactld(self) -> None:
        """Kill hactld and start it anew with what it had stored."""
        owned, overrides = self.engine.owned, self.engine.overrides
        memories = self.engine.memories
        self.engine = Engine(self.plan, self.facts, self.now, counter=self.engine.counter + 1024)
        self.engine.owned, self.engine.overrides = dict(owned), dict(overrides)
        self.engine.remember({s: m.lasting() for s, m in memories.items()})
        self.flights = []

    def run(self, seconds: float) -> World:
        """Let time pass, from one thing that happens to the next."""
        end = self.now + seconds
        while self.now < end:
            nexts = (
                self.engine.next_look(),
                self.engine.next_moment(self.now),
                min((f[0] for f in self.flights), default=end),
                self.cycle,
                self.round,
                end,
            )
            before = self.now
            self.now = max(self.now, min(nexts))
            for service in self.tables:
                if not self.serving(service):
                    self.empty[service] = self.empty.get(service, 0.0) + self.now - before
            self.moment()
        return self

    def moment(self) -> None:
        """Do whatever is due now."""
        if self.now >= self.round:
            self.check_round()
        changed = False
        for flight in [f for f in self.flights if f[0] <= self.now]:
            self.flights.remove(flight)
            changed |= self.feed(flight[1])
        while probes := self.engine.due(self.now):
            for probe in probes:
                self.looks.append((round(self.now - 1000, 1), probe))
                result = self.say(probe, self.now)
                took = self.rule.timeout if result.reason == "silent" else 0.0
                checked = Checked(probe, self.now, self.now + took, result)
                if took:
                    self.flights.append((self.now + took, checked))
                else:
                    changed |= self.feed(checked)
        if changed or self.now >= min(self.cycle, self.engine.next_moment(self.now - 1e-6)):
            self.cycle = self.now + CYCLE
            self.act()

    def feed(self, checked: Checked) -> bool:
        return self.engine.feed(checked)

    def switches(self) -> list[str]:
        """Return the commands that were sent, polls left out."""
        return [words for _, words in self.log if words != "poll"]


OK = ok("220 ready")
REFUSED = fail("connection refused")
SILENT = fail("silent")
WARNED = Result(Verdict.WARN, "slow")
LOST = unknown("too many open files")


def failing(
    *nodes: str, after: float = 0.0, until: float = 1e9, how: Result = REFUSED, check: str = ""
) -> Callable[[Probe, float], Result]:
    """Return a `say` under which *nodes* fail between two virtual seconds."""

    def say(probe: Probe, now: float) -> Result:
        bad = probe.node in nodes and after <= now - 1000 < until
        return how if bad and check in ("", probe.check) else ok("220 ready")

    return say


__all__ = ["LOST", "OK", "REFUSED", "SILENT", "WARNED", "Verdict", "World", "failing"]
