"""show: tables and colours for terminals; plain text everywhere else.

Untrusted text (banners, host names) is escaped here, whatever was done to it before.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
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


class Progress:
    """A line on standard error for who waits at a terminal longer than *after* seconds."""

    def __init__(self, after: float = 1.0) -> None:
        self._shown = False
        self._next = time.monotonic() + after

    def show(self, part: float, text: str) -> None:
        """Show how much is done, 0 to 1, and what; a few times a second at most."""
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if time.monotonic() < self._next or not terminal:
            return
        self._next = time.monotonic() + 0.2
        self._shown = True
        done = min(20, int(20 * part))
        line = f"[{'#' * done}{'.' * (20 - done)}] {text}"
        room = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:room]}\x1b[K", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


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
