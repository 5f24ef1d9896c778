"""agent: what hactld on a mail node tells a balancer's, and how the two trust each other.

An agent tells results of its own looks with their ages; it takes no commands.  An answer has all
checks of the node.  It repeats a word that the question brought, so that it cannot be an old one,
and is written in one version of these types: who speaks another is not believed.
"""

from __future__ import annotations

from msgspec import Struct

from hactl.core.model import Result

PROTOCOL = 1  # of questions and answers
PATH = "/results"
NONCE = "Hactl-Nonce"  # the header with the question's word


class Report(Struct, frozen=True):
    """A check of the agent's with its newest result, None before the first.

    *stamp* tells its results apart, and grows.  The look ended *age* seconds before the answer and
    took *took*; it is made every *interval* seconds.
    """

    type: str
    interval: float
    stamp: float = 0.0
    age: float = 0.0
    took: float = 0.0
    result: Result | None = None


class Answer(Struct, frozen=True):
    """What an agent says.  *start* is drawn anew whenever it starts, *nonce* the question's word."""

    protocol: int
    version: str
    node: str
    start: str
    nonce: str
    checks: dict[str, Report]
