"""Wait in a Maildir for messages of ours, print the headers of one, and remove them.

A program of its own: a Maildir may lie on a mount that hangs, and a process can be killed.  It is
run without our packages, so that it starts quickly.

    python3 -I -S _maildir.py DIRECTORY KEY [KEY ...]

The message whose mark is the first KEY is waited for; those with one of the others, which are late,
and all marked ones older than a day, are removed on the way.  With `-` as the first KEY nothing is
waited for; what is printed are the other KEYs that were found.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress

HEAD = 32 * 1024  # bytes of a message that are looked at
OLD = 86400.0  # seconds after which a marked message is anybody's to remove
PAUSES = (0.05, 1.0)  # seconds between two looks, at first and at last

MARK = re.compile(rb"^X-Hactl-Probe:[ \t]*(([0-9]+)\.[0-9a-f]+)[ \t]*\r?$", re.MULTILINE)


def header(path: str) -> bytes:
    """Return the header of a message, nothing if it has gone."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib takes half of the start
            return re.split(rb"\r?\n\r?\n", file.read(HEAD), maxsplit=1)[0]
    except FileNotFoundError:
        return b""


def visit(directory: str, keys: list[bytes], seen: set[str]) -> dict[bytes, bytes]:
    """Look once; remove what is ours, and return the headers of what has one of *keys*."""
    found = {}
    for folder in ("new", "cur"):
        with os.scandir(f"{directory}/{folder}") as entries:
            names = [entry.name for entry in entries if entry.name.partition(":")[0] not in seen]
        for name in names:
            seen.add(name.partition(":")[0])  # flags behind the colon change
            head = header(path := f"{directory}/{folder}/{name}")
            mark = MARK.search(head)
            if mark is None or (mark[1] not in keys and float(mark[2]) > time.time() - OLD):
                continue
            if mark[1] in keys:
                found[mark[1]] = head
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
    return found


def main() -> None:
    """Print what is found; exit 1 with a line that says why nothing can be."""
    directory, first, *others = sys.argv[1:]
    keys = [key.encode() for key in (first, *others)]
    seen: set[str] = set()
    pause, longest = PAUSES
    try:
        while True:
            found = visit(directory, keys, seen)
            if first == "-":
                sys.stdout.buffer.write(b"\n".join(found))
                return
            if keys[0] in found:
                sys.stdout.buffer.write(found[keys[0]])
                return
            time.sleep(pause)
            pause = min(longest, pause * 1.5)
    except OSError as error:
        sys.exit(f"{error.filename or directory}: {error.strerror}")


if __name__ == "__main__":
    main()
