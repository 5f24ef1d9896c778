"""Quantities that people write in the configuration: durations, sizes, shares, modes, secrets.

What `parse` reads `str` writes, and reading that again gives the same value.  PATTERN is the
regular expression of the whole text, in the subset that JSON Schema knows too.
"""

from __future__ import annotations

import re
import shlex
from typing import ClassVar, Self

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_BYTES = {"T": 1 << 40, "G": 1 << 30, "M": 1 << 20, "K": 1 << 10, "": 1}


class Duration(float):
    """Seconds, to the microsecond; written as `500ms`, `5s`, `10m`, `2h`, `14d`."""

    PATTERN: ClassVar[str] = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one number and one unit.  Raise ValueError for anything else."""
        match = re.fullmatch(cls.PATTERN, text)
        if match is None:
            raise ValueError(f'expected a duration like "5s" (got "{text}")')
        return cls(round(float(match[1]) * _SECONDS[match[2]], 6))

    def __str__(self) -> str:
        """Write it as the configuration would, in the largest unit that keeps it whole."""
        for unit in ("d", "h", "m", "s"):
            count = self / _SECONDS[unit]
            if count >= 1 and count.is_integer():
                return f"{count:.0f}{unit}"
        if 0 < self < 1:
            return f"{self * 1000:g}ms"
        return f"{self:.6f}".rstrip("0").rstrip(".") + "s"


class Size(int):
    """Bytes; written as `512`, `64K`, `10M`, `1G`."""

    PATTERN: ClassVar[str] = r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMGT]?)B?"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one number and one binary unit.  Raise ValueError for anything else."""
        match = re.fullmatch(cls.PATTERN, text)
        if match is None:
            raise ValueError(f'expected a size like "10M" (got "{text}")')
        return cls(float(match[1]) * _BYTES[match[2]])

    def __str__(self) -> str:
        """Write it in the largest unit that keeps it whole."""
        unit = next(
            unit for unit, count in _BYTES.items() if (self and self % count == 0) or not unit
        )
        return f"{self // _BYTES[unit]}{unit}"


class Share(float):
    """A part of a whole, 0.6; written as `60%`."""

    PATTERN: ClassVar[str] = r"([0-9]{1,2}(?:\.[0-9]{1,2})?|100)%"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a percentage up to 100.  Raise ValueError for anything else."""
        match = re.fullmatch(cls.PATTERN, text)
        if match is None:
            raise ValueError(f'expected a share like "60%" (got "{text}")')
        return cls(float(match[1]) / 100)

    def __str__(self) -> str:
        return f"{self * 100:g}%"


class Pace(tuple[Share, Duration]):
    """A share of the members in a span of time; written as `25% in 60s`."""

    __slots__ = ()
    PATTERN: ClassVar[str] = rf"{Share.PATTERN} in {Duration.PATTERN}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a share and a duration.  Raise ValueError for anything else."""
        share, middle, span = text.partition(" in ")
        if not middle:
            raise ValueError(f'expected a pace like "25% in 60s" (got "{text}")')
        return cls((Share.parse(share), Duration.parse(span)))

    def __str__(self) -> str:
        return f"{self[0]} in {self[1]}"


class FileMode(int):
    """Permission bits of a file, 0o660; written as `"0660"`."""

    PATTERN: ClassVar[str] = r"0?[0-7]{3}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read three octal digits.  Raise ValueError for anything else."""
        if re.fullmatch(cls.PATTERN, text) is None:
            raise ValueError(f'expected a mode like "0660" (got "{text}")')
        return cls(int(text, 8))

    def __str__(self) -> str:
        return f"{int(self):04o}"


class Command(tuple[str, ...]):
    """A program and its arguments, split as a shell would, run without one."""

    __slots__ = ()
    PATTERN: ClassVar[str] = "/.*"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split a line that begins with an absolute path.  Raise ValueError for anything else."""
        words = shlex.split(text)
        if not words or not words[0].startswith("/"):
            raise ValueError(f'expected a command like "/bin/true" (got "{text}")')
        return cls(words)

    def __str__(self) -> str:
        return shlex.join(self)


class Secret:
    """A secret kept in a file: shown as the file's name, never as what it holds."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __str__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"Secret({self.path!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)


def span(seconds: float) -> str:
    """Write a span for a table: `4.2s`, `42s`, `2m10s`, `1h02m`, `3d4h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
