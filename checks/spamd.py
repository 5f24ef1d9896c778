"""spamd: SpamAssassin scans a small message, and scans it in time."""

from __future__ import annotations

from typing import ClassVar

from checks import SCAN, Option, Timing


class Spamd(Option, frozen=True, kw_only=True, tag="spamd"):
    """Options.  *scan*: scan a message; without it only PING is asked."""

    port: int = 783
    scan: bool = True

    timing: ClassVar[Timing] = SCAN
