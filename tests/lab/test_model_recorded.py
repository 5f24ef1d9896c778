"""The model against recordings of the real relayd: same events, same bytes.

Each file has the configuration, how checks ended (`answers`: host id, from, until, answer) and the
commands with their seconds since the start.  The recordings do not have those seconds: they were
found by looking for the round of checks whose counts the output shows, and agree with relayd's log
where there is one.  What pf holds was recorded after each command; the order of anchors is not
compared, for it depends on which check ended first.

`02-reload`: relayd keeps what it could read of a broken file; *confs* has that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec
import pytest
from msgspec.structs import replace

from hactl.core.model import Kind
from hactl.lab.model import Check
from hactl.relayd import conf as relayd_conf
from hactl.relayd.conf import RelaydConf
from tests.lab.replay import Lab

DATA = Path(__file__).parent.parent / "data" / "lab-recorded"


class Step(msgspec.Struct, frozen=True):
    at: float
    words: str
    stdout: str
    stderr: str = ""
    exit: int = 0
    tables: dict[str, tuple[str, ...]] | None = None
    rules: tuple[str, ...] = ()
    load: str | None = ""


class Recording(msgspec.Struct, frozen=True):
    variant: Literal["2019", "later"]
    conf: str
    answers: list[tuple[int, float, float, str]]
    steps: list[Step]
    confs: dict[str, str] = {}
    addresses: dict[str, str] = {}

    def answer(self, check: Check, now: float) -> str:
        for host, since, until, answer in self.answers:
            if host == check.host and since <= now < until:
                return answer
        return "ok"

    def read(self, name: str | None) -> RelaydConf:
        """The configuration *name*; None is the missing file, which leaves nothing."""
        if name is None:
            return RelaydConf(2.0, 0.5, (), None, ())
        conf = relayd_conf.parse(self.confs.get(name, self.conf), name)
        if name != "broken":
            return conf
        # The redirect that could not be read has taken its id with it.
        late = (each for each in conf.services if each.kind is Kind.REDIRECT and each.id > 1)
        moved = {each: replace(each, id=each.id + 1) for each in late}
        return replace(conf, services=tuple(moved.get(each, each) for each in conf.services))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: str(path.stem))
def test_the_same_events_give_the_same_bytes(path: Path) -> None:
    recording = msgspec.json.decode(path.read_bytes(), type=Recording)
    lab = Lab(
        recording.read("a"),
        recording.answer,
        variant=recording.variant,
        addresses=recording.addresses,
    )
    for step in recording.steps:
        reply = lab.command(step.words, step.at)
        assert (step.at, *reply[:3]) == (step.at, step.stdout, step.stderr, step.exit)
        if reply.wants:
            lab.load(recording.read(step.load))
        elif step.tables is not None:
            pf = lab.model.pf
            assert (step.at, pf.tables) == (step.at, step.tables)
            assert sorted(pf.rules) == sorted(step.rules)
