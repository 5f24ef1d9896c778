"""pf: read through pfctl(8) what relayd has put there, and clear what points to a dead host.

relayd gives each redirect an anchor `relayd/NAME` with rules and one table, also called NAME.
What pfctl prints is believed whole or not at all.  hactld writes nothing but the two kills: relayd
would overwrite a table at its next change, and not before.  What relayd has left behind of a
redirect that it no longer has, `hactl relayd-reload` takes out.

Source: pfctl.c, pfctl_parser.c and pfctl_table.c; not run on OpenBSD.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import TypeVar

from msgspec.structs import replace

from hactl.core.proof import Pf
from hactl.relayd.command import CommandError, Ended, Programs

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,30}")
_NONE = re.compile(
    r"pfctl: (Table|Anchor|Anchor or Ruleset) does not exist\.?|pfctl: Anchor .* not found\.?"
)
_RULE = re.compile(
    r"\s*(@[0-9]+ )?(pass|match|block|anchor|scrub|nat|rdr|binat|antispoof|\})( .*)?"
)
_ANCHOR = re.compile(r'\s*(@[0-9]+ )?anchor "(?P<name>[^"]+)".*')
_SOURCE = re.compile(
    r"(\S+)(?: (?:rdr-to|nat-to|route-to|->) (\S+))?"
    r" \( states [0-9]+, connections [0-9]+, rate [0-9]+\.[0-9]/[0-9]+s \)"
)


class PfError(Exception):
    """pf cannot be read; the text says why."""


class NonsenseError(ValueError):
    """Output that is no complete answer; the text says which line, and why."""


def usable(name: str) -> bool:
    """Tell whether a redirect's name can be asked for."""
    return NAME.fullmatch(name) is not None


# The words of pfctl: nothing else is ever run


def show_table(name: str) -> tuple[str, ...]:
    """Ask for the addresses of a redirect."""
    return "-a", f"relayd/{name}", "-t", name, "-T", "show"


def show_rules(name: str) -> tuple[str, ...]:
    """Ask for the rules of a redirect."""
    return "-a", f"relayd/{name}", "-sr"


SHOW_MAIN = ("-sr",)
SHOW_SOURCES = ("-sS",)


def kill(what: str, address: str) -> tuple[str, ...]:
    """Clear the `sources` or `states` that lead from anywhere to *address*.  Raise ValueError."""
    to = ip_address(address)
    option = {"sources": "-K", "states": "-k"}[what]
    return option, "0.0.0.0/0" if to.version == 4 else "::/0", option, str(to)


def flush(name: str) -> tuple[str, ...]:
    """Take out the rules and the table of a redirect."""
    return "-a", f"relayd/{name}", "-F", "all"


# What it prints


def _lines(text: str) -> list[str]:
    """Split an answer into its lines.  Raise NonsenseError for one that is cut."""
    lines = text.split("\n")
    if lines.pop():
        raise NonsenseError(f"line {len(lines) + 1} is cut")
    for number, line in enumerate(lines, 1):
        if not line.replace("\t", " ").isprintable():
            raise NonsenseError(f"line {number}: a control character")
    return lines


@lru_cache(256)  # most answers are the one before again
def parse_table(text: str) -> tuple[str, ...]:
    """Read `-T show`: an entry a line, each in its one spelling.

    relayd enters addresses alone; a network, or a `!`, was put there by somebody else.
    """
    return tuple(_entry(number, line.strip()) for number, line in enumerate(_lines(text), 1))


def _entry(number: int, text: str) -> str:
    bare = text.removeprefix("!").strip()
    try:
        entry = str(ip_network(bare) if "/" in bare else ip_address(bare))
    except ValueError as error:
        raise NonsenseError(f"line {number}: {text[:60]!r} is no address") from error
    return f"!{entry}" if text.startswith("!") else entry


@lru_cache(256)
def parse_rules(text: str) -> tuple[int, frozenset[str]]:
    """Read `-sr`: how many rules there are, and which anchors they call."""
    lines = _lines(text)
    for number, line in enumerate(lines, 1):
        if not _RULE.fullmatch(line):
            raise NonsenseError(f"line {number}: {line[:60]!r} is no rule")
    anchors = (_ANCHOR.fullmatch(line) for line in lines)
    return len(lines), frozenset(found["name"] for found in anchors if found)


@lru_cache(4)
def parse_sources(text: str) -> Mapping[str, int]:
    """Read `-sS`: how many entries lead to each address."""
    found: Counter[str] = Counter()
    for number, line in enumerate(_lines(text), 1):
        match = _SOURCE.fullmatch(line)
        if match is None:
            raise NonsenseError(f"line {number}: {line[:60]!r} is no source entry")
        if match[2] is not None:
            found[_entry(number, match[2])] += 1
    return found


class Pfctl:
    """pfctl, one of *programs*, run once at a time: nobody waits for it."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    async def read(self, names: Sequence[str], last: Pf | None, *, wide: bool) -> Pf:
        """Read the tables of redirects; *wide*: rules, anchors and source entries as well.

        What is not read is as in *last*.  Raise PfError if any of it cannot be believed.
        """
        pf = Pf(asyncio.get_running_loop().time(), {})
        pf = replace(pf, tables={n: await self._ask(show_table(n), parse_table) for n in names})
        if not wide:
            return pf if last is None else replace(last, at=pf.at, tables=pf.tables)
        rules = {n: await self._ask(show_rules(n), parse_rules) for n in names}
        _, called = await self._ask(SHOW_MAIN, parse_rules)
        return replace(
            pf,
            rules=frozenset(n for n, (count, _) in rules.items() if count),
            anchored=frozenset(n for n in names if called & {"relayd/*", "*", f"relayd/{n}"}),
            sources=await self._ask(SHOW_SOURCES, parse_sources),
        )

    async def kill(self, what: str, address: str) -> None:
        """Clear the `sources` or `states` that lead to *address*.  Raise PfError."""
        await self._do(kill(what, address))

    async def flush(self, name: str) -> None:
        """Take out what is left of a redirect.  Raise PfError.  Root's helper does not do this."""
        await self._do(flush(name))

    async def _do(self, words: Sequence[str]) -> None:
        ended = await self._run(words)
        if ended.code != 0:
            raise PfError(_complaint(words, ended))

    async def _ask(self, words: Sequence[str], parse: Callable[[str], T]) -> T:
        """Return what pfctl prints, read; what does not exist is empty."""
        ended = await self._run(words)
        if ended.code != 0 and (ended.out or not _NONE.fullmatch(ended.err.strip())):
            raise PfError(_complaint(words, ended))
        try:
            return parse(ended.out)
        except NonsenseError as error:
            raise PfError(f"pfctl {' '.join(words)}: {error}") from error

    async def _run(self, words: Sequence[str]) -> Ended:
        try:
            return await self._programs.run("pfctl", words)
        except CommandError as error:
            raise PfError(f"pfctl {' '.join(words)}: {error}") from error


def _complaint(words: Sequence[str], ended: Ended) -> str:
    said = (ended.err.strip() or ended.out.strip()).removeprefix("pfctl: ")
    return f"pfctl {' '.join(words)}: exit {ended.code}: {said[:200]!a}"
