"""tcp: the port accepts a connection."""

from __future__ import annotations

from checks import Option


class Tcp(Option, frozen=True, kw_only=True, tag="tcp"):
    """Options."""
