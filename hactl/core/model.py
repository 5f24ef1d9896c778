"""The values that travel along the one way: schedule -> check -> health -> policy -> reconcile.

Times are seconds of the loop's monotonic clock unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

# What a check says

FIGURES = 100  # that a program may say in one result, beside the measures of the look itself


class Verdict(StrEnum):
    """One look, now.  FAIL: the node is bad.  UNKNOWN: we could not look."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


class Result(Struct, frozen=True):
    """What one look found.

    *step* is where the conversation stood when it ended; *measures* maps `name_unit` to a number;
    *steps* has each finished step with the seconds it took, in order.
    """

    verdict: Verdict
    reason: str
    step: str = ""
    measures: Mapping[str, float] = {}
    steps: tuple[tuple[str, float], ...] = ()


def ok(reason: str, **measures: float) -> Result:
    """The node answered as it should."""
    return Result(Verdict.OK, reason, measures=measures)


def fail(reason: str) -> Result:
    """The node is bad."""
    return Result(Verdict.FAIL, reason)


def unknown(reason: str) -> Result:
    """We could not look; this says nothing of the node."""
    return Result(Verdict.UNKNOWN, reason)


class Probe(NamedTuple):
    """A check on a node, at one of the node's addresses."""

    node: str
    check: str
    address: str

    def __str__(self) -> str:
        return f"{self.node}/{self.check}"


class Checked(Struct, frozen=True):
    """A result with its probe and the times at which the look began and ended.

    *stamp* tells an agent's samples apart (its own clock); None for a look of ours.
    """

    probe: Probe
    started: float
    ended: float
    result: Result
    stamp: float | None = None


# What relayd shows


class HostStatus(StrEnum):
    """The status column of a host row."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"
    DISABLED = "disabled"


class Kind(StrEnum):
    """What a service is in relayd: packets redirected by pf, or connections relayed."""

    REDIRECT = "redirect"
    RELAY = "relay"


class Host(Struct, frozen=True):
    """A host row: *id* holds until relayd's next load, *name* is relayd.conf's word for it."""

    id: int
    name: str
    status: HostStatus
    parent: int | None = None
    availability: float | None = None


class Table(Struct, frozen=True):
    """A table row with its hosts; a disabled table shows none.  *name* is `mx0:25` as shown."""

    id: int
    name: str
    status: str
    hosts: tuple[Host, ...] = ()


class Service(Struct, frozen=True):
    """A redirect or relay row with its tables, main first; a disabled one shows none."""

    kind: Kind
    id: int
    name: str
    status: str
    tables: tuple[Table, ...] = ()


class Observation(Struct, frozen=True):
    """What relayd showed at one moment (*at*: when the question was asked)."""

    at: float
    services: tuple[Service, ...]


# What the configuration wants


class Limit(Struct, frozen=True):
    """Thresholds of a measure; *low*: less is worse.  None: no such threshold."""

    warn: float | None = None
    fail: float | None = None
    clear: float | None = None
    low: bool = False

    def level(self, value: float, before: Verdict) -> Verdict:
        """Judge *value*, given how it was judged *before*; at a threshold is beyond it."""
        if self._beyond(value, self.fail):
            return Verdict.FAIL
        if self._beyond(value, self.warn):
            return Verdict.WARN
        if before is not Verdict.OK and self._beyond(value, self.clear):
            return Verdict.WARN if self.warn is not None else before
        return Verdict.OK

    def bound(self, level: Verdict) -> float:
        """Return the threshold that *level* speaks of."""
        found = self.fail if level is Verdict.FAIL else self.warn
        return next(b for b in (found, self.warn, self.fail, self.clear) if b is not None)

    def _beyond(self, value: float, bound: float | None) -> bool:
        if bound is None:
            return False
        return value <= bound if self.low else value >= bound


class Rule(Struct, frozen=True):
    """How a check is run and judged; seconds.  *fast* 0: confirm at the normal interval.

    *hedge* 0: a silent look is not joined by another.  *what* stands for all else that the check
    is; when it changes, what was seen is forgotten.
    """

    interval: float = 2.0
    timeout: float = 1.0
    fast: float = 0.2
    fall: int = 3
    rise: int = 3
    down_count: int = 8
    wipe_count: int = 12
    hedge: float = 0.0
    limits: Mapping[str, Limit] = {}
    what: str = ""


class ServicePlan(Struct, frozen=True):
    """How a service uses checks.

    *share* is the part of the weight that must go on serving, *least* the weight below which it
    never falls; *open*: when nobody passes, who is in stays in.  *prefer_share* of the weight stays
    when preferred checks remove members; of all members, *pace_share* may be removed in
    *pace_span* seconds.  *window* and *grace* are shared fate's, in seconds.  *failback*: an
    exclusive service goes back to its first member.
    """

    name: str
    require: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    watch: tuple[str, ...] = ()
    acts: bool = True  # False: mode observe
    hook: bool = False  # checks speak through relayd's script, operators through disable
    least: int = 1
    share: float = 0.3
    open: bool = True
    prefer_share: float = 0.5
    pace_share: float = 0.25
    pace_span: float = 60.0
    exclusive: bool = False
    failback: bool = True
    window: float = 10.0
    grace: float = 10.0
    release: bool = False  # on exit, enable what we disabled


class NodePlan(Struct, frozen=True):
    """A node: *words* are what relayd may call it (its name, its addresses, others)."""

    name: str
    addresses: tuple[str, ...]
    words: frozenset[str]
    weight: int = 1


class Plan(Struct, frozen=True):
    """All of the configuration that decisions depend on.

    *at*: checks looked at on one node; *causes*: checks that fail with a check when it is shared;
    *clear_sources* and *kill_states*: what pf still holds of a host that we removed goes, too.
    """

    nodes: Mapping[str, NodePlan] = {}
    rules: Mapping[str, Rule] = {}
    services: Mapping[str, ServicePlan] = {}
    watch: Mapping[str, tuple[str, ...]] = {}
    at: Mapping[str, str] = {}
    causes: Mapping[str, tuple[str, ...]] = {}
    clear_sources: bool = False
    kill_states: bool = False

    def node_of(self, word: str) -> str | None:
        """Return the node that relayd calls *word*."""
        return next((n.name for n in self.nodes.values() if word in n.words), None)


class Facts(Struct, frozen=True):
    """What relayd.conf says that `show` does not.

    *checked* has (service, table position) of every table with a check; None: not readable, so
    relays are untouchable and relayd is never polled.  *longest* is the longest check timeout.
    """

    interval: float = 10.0
    longest: float = 0.2
    checked: frozenset[tuple[str, int]] | None = None


# What operators want


class Override(Struct, frozen=True):
    """An operator's word on a NODE, a SERVICE or a SERVICE/NODE.

    *since* and *until* are wall clock (Unix seconds); *ends* is *until* on the loop's clock.
    """

    target: str
    kind: str  # drain, maint, pin; freeze and hands-off, of a service or of "all"
    who: str
    reason: str
    since: float
    until: float | None = None
    ends: float | None = None

    @property
    def key(self) -> str:
        """What it replaces: one of drain, maint and pin on a target, and one freeze."""
        return f"freeze {self.target}" if self.kind in ("freeze", "hands-off") else self.target

    def covers(self, service: str, node: str | None) -> bool:
        """Tell whether the override speaks of *node* in *service*."""
        return self.target in (service, node, f"{service}/{node}")


# What is decided and done


class Member(NamedTuple):
    """A node's place in a service: the table's position (0 is main) and relayd's word for it."""

    service: str
    table: int
    host: str

    @property
    def word(self) -> str:
        """What relayd.conf calls the host; the second of that name in a table is `host#2` here."""
        return self.host.partition("#")[0]

    def __str__(self) -> str:
        return f"{self.service}/{self.host}"


class Owned(Struct, frozen=True):
    """A disable that is ours: its decision and cause.

    *unsure* is the time until which a command that outlived its deadline may still be carried out.
    """

    decision: int
    cause: str
    unsure: float = 0.0


class Want(StrEnum):
    """What a member should be.  LEAVE: as it is, whatever that is."""

    IN = "in"
    OUT = "out"
    LEAVE = "leave"


class Note(Struct, frozen=True):
    """A link of a decision's chain: the rule that spoke, what it said, until when it holds."""

    rule: str
    text: str
    until: float | None = None


class Decision(Struct, frozen=True):
    """What a member should be, why (*cause* is one word), and the chain of reasons.

    *checks* has the preferred checks that are bad, where they are the cause; *swap*: somebody comes
    in for it, so pace does not count it.
    """

    member: Member
    want: Want
    cause: str
    reason: str
    chain: tuple[Note, ...] = ()
    id: int = 0
    checks: tuple[str, ...] = ()
    swap: bool = False


class Verb(StrEnum):
    """What can be asked of relayctl."""

    ENABLE = "enable"
    DISABLE = "disable"
    POLL = "poll"


class Action(Struct, frozen=True):
    """One relayctl command; a poll has no member and no host.

    *hook*: no command; relayd's script is to say so, by the verdict file of the member's word.
    """

    verb: Verb
    decision: int
    reason: str
    member: Member | None = None
    host: int = 0
    hook: bool = False

    def words(self) -> tuple[str, ...]:
        """Return relayctl's arguments; for the hook what tells the action from others."""
        if self.hook and self.member is not None:
            return ("hook", self.verb, self.member.service, self.member.word)
        return ("poll",) if self.verb is Verb.POLL else ("host", self.verb, str(self.host))


class Cleaning(NamedTuple):
    """What pf is to forget: all `sources` or `states` that lead to *address*, of a host removed."""

    what: str
    address: str
    decision: int
