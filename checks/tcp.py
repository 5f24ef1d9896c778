"""tcp: the port accepts a connection.

What relayd's own `check tcp` sees, and no more: the kernel accepts, whatever the program does.
"""

from __future__ import annotations

from checks import NOBODY, Spoken, Target
from checks._wire import Dialogue
from hactl.core.model import ok


class Tcp(Spoken, frozen=True, kw_only=True, tag="tcp"):
    """Options."""

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Say nothing: to be connected is all."""
        yield from ()
        return ok("connected")
