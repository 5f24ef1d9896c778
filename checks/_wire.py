"""Runs dialogues on plain non-blocking sockets."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple

from hactl.core.model import Result


class Say(NamedTuple):
    """Send *data*, then read until *complete* returns the length of the whole answer (0: not yet).

    *step* names this exchange.  With *close* our sending side is shut down after *data*.
    """

    data: bytes
    complete: Callable[[bytes], int]
    step: str
    close: bool = False


Dialogue = Generator[Say, bytes, Result]
