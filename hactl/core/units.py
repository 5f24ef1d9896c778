"""Quantities that people write in the configuration: durations, sizes, shares and secrets."""

from __future__ import annotations

import re
from typing import Self

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)B?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Duration(float):
    """Seconds; written as `500ms`, `5s`, `10m`, `2h`, `14d`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one number and one unit.  Raise ValueError for anything else."""
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(f'expected a duration like "5s" (got "{text}")')
        return cls(float(match[1]) * _SECONDS[match[2]])

    def __str__(self) -> str:
        """Write it as the configuration would, in the largest unit that keeps it whole."""
        for unit in ("d", "h", "m", "s"):
            count = self / _SECONDS[unit]
            if count >= 1 and count == int(count):
                return f"{int(count)}{unit}"
        if self < 1:
            return f"{self * 1000:g}ms"
        return f"{float(self):g}s"


class Size(int):
    """Bytes; written as `512`, `64K`, `10M`, `1G`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one number and one binary unit.  Raise ValueError for anything else."""
        match = _SIZE.fullmatch(text)
        if match is None:
            raise ValueError(f'expected a size like "10M" (got "{text}")')
        return cls(float(match[1]) * _BYTES[match[2]])


class Secret:
    """A secret kept in a file: shown as the file's name, never as what it holds."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Secret({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)
