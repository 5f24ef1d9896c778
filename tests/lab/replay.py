"""Replay recorded sequences against the model: the world answers checks, commands come at times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from hactl.lab.model import Check, Model, Reply
from hactl.relayd.conf import RelaydConf

# What a host does with a check: `ok`, `wrong` (another banner), `silent`, or fails by that reason.
World = Callable[[Check, float], str]


class Lab:
    """A model under a virtual clock; *world* says how a check started at a time ends.

    *delays* are seconds until a check of a host succeeds, by address.
    """

    def __init__(
        self,
        conf: RelaydConf,
        world: World,
        *,
        variant: Literal["2019", "later"] = "later",
        addresses: Mapping[str, str] = {},
        delays: Mapping[str, float] = {},
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.now = 0.0
        self.model = Model(variant, log=log)
        self.world = world
        self.delays = delays
        self.history: list[tuple[float, Mapping[str, tuple[str, ...]]]] = []
        self._due: list[tuple[float, int, Check, bool | None, str]] = []
        self.addresses = addresses
        self.model.load(conf, 0.0, addresses)
        self.until(0.0)

    def until(self, time: float) -> None:
        """Let everything happen that is due up to *time*."""
        while True:
            event = self.model.next_event_time
            result = self._due[0][0] if self._due else None
            next_ = min((at for at in (event, result) if at is not None), default=None)
            if next_ is None or next_ > time:
                break
            self.now = next_
            if result == next_:
                _, _, check, up, reason = self._due.pop(0)
                self.model.check_done(check, up, next_, reason)
            else:
                self._ask(self.model.advance(next_))
            self._note()
        self.now = time

    def _ask(self, checks: list[Check]) -> None:
        for check in checks:
            match self.world(check, self.now):
                case "ok":
                    late = self.now + self.delays.get(check.address, 0.0)
                    self._due.append((late, check.serial, check, True, ""))
                case "silent":
                    reason = "tcp connect timeout"
                    self._due.append((check.deadline, check.serial, check, False, reason))
                case "wrong":
                    self._due.append((self.now, check.serial, check, None, ""))
                case reason:
                    self._due.append((self.now, check.serial, check, False, reason))
        self._due.sort(key=lambda each: each[:2])

    def command(self, words: str, at: float | None = None) -> Reply:
        """Give a relayctl command and let what it causes at once happen."""
        self.until(self.now if at is None else at)
        reply = self.model.command(words.split(" ") if words else [], self.now)
        self._note()
        self.until(self.now)
        return reply

    def load(self, conf: RelaydConf) -> None:
        """Reload."""
        self.model.load(conf, self.now, self.addresses)
        self._note()

    def _note(self) -> None:
        tables = dict(self.model.pf.tables)
        if not self.history or self.history[-1][1] != tables:
            self.history.append((self.now, tables))
