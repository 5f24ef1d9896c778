"""exec: a monitoring plugin or another program says how the node is.

Exit 0 is ok, 1 warn, 2 fail, and 3 unknown; the first line is the reason, and figures behind a `|`
become measures, with their units in their names.  Scripts of relayd's `check script` say it the
other way round: 0 is down, and anything else up.
Source: the Monitoring Plugins' development guidelines; relayd's check_script.c.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from checks import Probed, Step, Target, Timing, _process
from checks._process import Ended, TooMuchError
from checks._wire import quote
from hactl.core.model import FIGURES, Result, Verdict, unknown

LABEL = 64  # characters of a figure's label

VERDICTS = (Verdict.OK, Verdict.WARN, Verdict.FAIL, Verdict.UNKNOWN)
_PLACES = frozenset({"{address}", "{node}"})
_PLACE = re.compile(r"\{[a-z_]+\}")
_FIGURE = re.compile(
    r"(?P<label>'(?:[^']|'')*'|[^\s='][^\s=]*)"
    r"=(?P<value>[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)(?P<unit>[A-Za-z%]*)"
    r"(?:;\S*)?(?:\s|$)"
)
_BYTES = {f"{prefix}b": 1024.0**power for power, prefix in enumerate(("", "k", "m", "g", "t"))}
# what a unit is in a measure's name, and by how much a figure is multiplied for it
_UNITS = {
    "": ("", 1.0),
    "s": ("_seconds", 1.0),
    "ms": ("_seconds", 1e-3),
    "us": ("_seconds", 1e-6),
    "%": ("_percent", 1.0),
    "c": ("_count", 1.0),
    **{unit: ("_bytes", factor) for unit, factor in _BYTES.items()},
}


class Exec(Probed, frozen=True, kw_only=True, tag="exec"):
    """Options.

    *command*: an absolute path and arguments; `{address}` and `{node}` in them say who is meant.
    *invert*: exit 0 means down and anything else up.
    """

    command: tuple[str, ...]
    invert: bool = False

    timing: ClassVar[Timing] = Timing(interval=30.0, timeout=10.0, fast=0.0)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield why the command cannot be run, and words in braces that mean nothing."""
        if not self.command or not self.command[0].startswith("/"):
            yield "command", "expected an absolute path and its arguments"
            return
        program = Path(self.command[0])
        if not program.exists():
            yield "command", f"there is no {program}"
        elif not program.is_file() or not os.access(program, os.X_OK):
            yield "command", f"{program} is no program"
        for word in self.command:
            for place in set(_PLACE.findall(word)) - _PLACES:
                yield "command", f"{place} means nothing here; there are {{address}} and {{node}}"

    async def probe(self, target: Target, step: Step) -> Result:
        """Run it."""
        step("run")
        known = {"{address}": target.address, "{node}": target.node}
        command = [
            _PLACE.sub(lambda place: known.get(place[0], place[0]), word) for word in self.command
        ]
        try:
            return self.judge(await _process.run(command))
        except TooMuchError:
            return unknown(f"run: more than {_process.LIMIT >> 20} MiB of output")

    def judge(self, ended: Ended) -> Result:
        """Judge the exit code; a signal or a code without a meaning says nothing of the node."""
        head, _, more = ended.out.partition(b"\n")
        text, _, figures = head.partition(b"|")
        code = ended.code
        reason = quote(text.strip()) or quote(ended.err.strip().partition(b"\n")[0])
        if code < 0:
            return unknown(f"run: ended by signal {-code}")
        if self.invert:
            verdict = Verdict.OK if code else Verdict.FAIL
        elif code < len(VERDICTS):
            verdict = VERDICTS[code]
        else:
            verdict, reason = Verdict.UNKNOWN, f"run: exit {code}" + (reason and f": {reason}")
        figures += b" " + more.partition(b"|")[2]
        return Result(verdict, reason or f"exit {code}", measures=dict(measures(figures)))


def measures(figures: bytes) -> Iterator[tuple[str, float]]:
    """Yield measures from `'label'=value[unit];warn;crit;min;max ...`; what is no figure is left out."""
    for number, figure in enumerate(_FIGURE.finditer(figures.decode("latin-1"))):
        label = re.sub(r"[^a-z0-9]+", "_", figure["label"].lower())[:LABEL].strip("_") or "value"
        unit = _UNITS.get(figure["unit"].lower())
        if number == FIGURES:
            return
        if unit is None:
            continue
        name, factor = unit
        value = float(figure["value"]) * factor
        if math.isfinite(value):
            yield label.removesuffix(name) + name, value
