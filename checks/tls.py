"""tls: the handshake works, and the certificate is one that clients accept.

Chain, name and dates are verified as a client would; how long the certificate is good for is the
measure `left_days`, which is negative once it has expired.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from checks import HANDSHAKE, NOBODY, Spoken, Target, Timing, _tls
from checks._tls import Policy, Protocol
from checks._wire import Dialogue, StartTLS
from hactl.core.model import ok


class Tls(Spoken, frozen=True, kw_only=True, tag="tls"):
    """Options.

    *name*: who the certificate must be for, by default the node's name.  *ca*: authorities to
    believe in place of the system's.  *min_version*: the oldest protocol that will do.
    """

    name: str = ""
    ca: Path | None = None
    min_version: Protocol = "TLSv1.2"

    timing: ClassVar[Timing] = HANDSHAKE

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(minimum=self.min_version, ca=self.ca)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is wrong with name and authorities."""
        yield from _tls.problems(self.policy, self.name)

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Shake hands, and no more."""
        name = self.name or target.node
        agreed = yield StartTLS(_tls.get(self.policy), name, lambda: self.talk(target))
        return ok(agreed.decode())
