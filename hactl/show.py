"""show: tables and colours for terminals; plain text everywhere else.

Untrusted text (banners, host names) is escaped here, whatever was done to it before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_COLOURS = {"red": "31", "yellow": "33", "green": "32", "bold": "1", "dim": "2"}


def safe(text: str) -> str:
    r"""Escape what a terminal would obey: control and non-printable characters become `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def coloured() -> bool:
    """Tell whether standard output wants colour."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str) -> str:
    """Colour a text that carries its meaning without colour too."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and coloured() else text


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str] = ()
) -> list[str]:
    """Lay out rows under a head, columns as wide as they need; *colours* has one for each row."""
    cells = [[safe(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    painted = [paint(line, colour) for line, colour in zip(lines[1:], colours, strict=False)]
    return [paint(lines[0], "bold"), *painted, *lines[1 + len(painted) :]]
