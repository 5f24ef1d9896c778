"""The values that travel along the one way: schedule -> check -> health -> policy -> reconcile.

Times are seconds of the loop's monotonic clock unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

# What a check says


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
    """A result with its probe and the times at which the look began and ended."""

    probe: Probe
    started: float
    ended: float
    result: Result


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
