"""runner: looks at nodes when the engine says so, and knows when hactld itself was late."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Mapping
from functools import partial

from checks import Probed, Spoken, Target
from checks._tasks import Look, Tasks
from checks._wire import Conversation, Tripwire, Wire
from hactl.config import Check, FromAgent
from hactl.core.model import Checked, Probe, Result, Verdict, unknown
from hactl.core.schedule import BLINK, SLOT, own_lag

RESERVE = 64  # descriptors kept for relayctl, the store and operators
MOST = 4096  # conversations at a time
CREW = 256  # coroutines at a time
NEEDS = 4  # descriptors that a coroutine may need


class Runner:
    """Starts looks in slots and measures its own lag in each of them.

    *due* is asked in every slot, with its time, for the probes to look at; *feed* gets the results;
    *suspect* hears of a probe whose tripwire was cut; *ask* makes the looks that agents answer.
    """

    def __init__(
        self,
        due: Callable[[float], list[Probe]],
        feed: Callable[[Checked], None],
        suspect: Callable[[Probe], None] = lambda probe: None,
        ask: Callable[[Probe, Check, Callable[[Checked], None]], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = due
        self._feed = feed
        self._suspect = suspect
        self._ask = ask
        self._strung: dict[Probe, Tripwire] = {}
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = 2 * MOST if soft == resource.RLIM_INFINITY else max(32, soft - RESERVE)
        crew = min(CREW, free // (4 * NEEDS))
        cap = min(MOST, free - crew * NEEDS)
        self._wire = Wire(self._loop, cap=cap, excuse=self._excuse)
        self._tasks = Tasks(self._loop, cap=crew, excuse=self._excuse)
        self._checks: Mapping[str, Check] = {}
        self._memories: dict[Probe, dict[str, float]] = {}
        self._addresses: dict[str, str] = {}
        self._slot = self._next_slot()
        self._lagged = float("-inf")
        self._hurried = False
        self._timer = self._loop.call_at(self._slot, self._tick)
        self.counts = {"looks": 0, "unknown": 0, "own_lag": 0, "cap": cap, "tripwires_cut": 0}
        self.worst_lag = 0.0
        self.lagging = False  # in the present slot

    def configure(self, checks: Mapping[str, Check]) -> None:
        """Run these checks from now on; tripwires are strung anew where they are wanted."""
        self._checks = checks
        self._memories.clear()
        for tripwire in self._strung.values():
            tripwire.cancel()
        self._strung.clear()

    async def resolve(self, names: set[str]) -> list[str]:
        """Look up the nodes' host names, once for each configuration; return what failed."""
        failed = []
        self._addresses = {}
        for name in sorted(names):
            try:
                found = await asyncio.wait_for(self._loop.getaddrinfo(name, None), 5)
                self._addresses[name] = str(found[0][4][0])
            except (OSError, TimeoutError) as error:
                failed.append(f"{name}: cannot be resolved: {error or 'no answer in 5s'}")
        return failed

    def look(self, probe: Probe, done: Callable[[Checked], None]) -> Conversation | Look | None:
        """Look once at *probe*; *done* gets the result."""
        check = self._checks[probe.check]
        if isinstance(check.option, FromAgent):
            assert self._ask is not None
            self._ask(probe, check, done)
            return None
        address = self._addresses.get(probe.address, probe.address)

        def finished(result: Result, began: float, ended: float) -> None:
            done(Checked(probe, began, ended, result))

        memory = self._memories.setdefault(probe, {})
        option, target = check.option, Target(probe.node, address, time.time(), memory)
        if isinstance(option, Spoken):
            talk = option.talk(target)
            return self._wire.start(*option.where(address), talk, check.timeout, finished)
        assert isinstance(option, Probed)
        coroutine = partial(option.probe, target)
        return self._tasks.start(probe, coroutine, check.timeout, finished)

    def tally(self) -> dict[str, int]:
        """Return the counts, with the sockets that are open now and those that could not be.

        *tasks* are looks that are coroutines or programs, of which *tasks_cap* may run at once.
        """
        tasks = {"tasks": len(self._tasks.live), "tasks_cap": self._tasks.cap}
        return self.counts | {"open": len(self._wire.live), "capped": self._wire.capped} | tasks

    def stop(self) -> None:
        """End all looks without a word."""
        self._timer.cancel()
        self._wire.close()
        self._tasks.close()

    async def end(self) -> None:
        """End all looks without a word, and wait a moment for those that do not end at once."""
        self.stop()
        await self._tasks.ended()

    def hurry(self) -> None:
        """Start what is due between two slots, in the loop's next turn: witnesses cannot wait."""
        if not self._hurried:  # finding them costs more than a look
            self._hurried = True
            self._loop.call_soon(self._between)

    def _between(self) -> None:
        self._hurried = False
        if not self._timer.cancelled():
            self._start(self._loop.time())

    def confirm(self, moment: float) -> None:
        """Look at *moment* if it is between two slots: what confirms a fail cannot wait either.

        Only what began between two slots itself comes to that, after a tripwire for example.
        """
        if abs(moment - round(moment / SLOT) * SLOT) > BLINK:
            self._loop.call_at(moment, self.hurry)

    def _next_slot(self) -> float:
        return (self._loop.time() // SLOT + 1) * SLOT

    def _tick(self) -> None:
        now = self._loop.time()
        late = own_lag(self._slot, now)
        self.lagging = late is not None
        if late is not None:
            self._lagged = now
            self.counts["own_lag"] += 1
            self.worst_lag = max(self.worst_lag, late)
        planned, self._slot = self._slot, self._next_slot()
        self._timer = self._loop.call_at(
            self._slot, self._tick
        )  # first: nothing may stop the clock
        self._start(planned if late is None else now)

    def _start(self, now: float) -> None:
        for probe in self._due(now):
            self.counts["looks"] += 1
            if probe.check in self._checks:
                self.look(probe, self._seen)
            else:
                self._feed(Checked(probe, now, now, unknown("its check is not configured")))

    def _seen(self, checked: Checked) -> None:
        """Pass a result on; string a tripwire where the node is well and none is."""
        probe = checked.probe
        check = self._checks.get(probe.check)
        well = checked.result.verdict is Verdict.OK
        if (
            well
            and check is not None
            and check.tripwire
            and isinstance(check.option, Spoken)
            and probe not in self._strung
        ):
            address = self._addresses.get(probe.address, probe.address)
            self._strung[probe] = self._wire.string(
                *check.option.where(address), lambda made: self._snapped(probe, made)
            )
        self._feed(checked)

    def _snapped(self, probe: Probe, made: bool) -> None:
        """Look at once at a node that ended an idle connection."""
        del self._strung[probe]
        if made:
            self.counts["tripwires_cut"] += 1
            self._suspect(probe)
            self.hurry()

    def _excuse(self, began: float) -> str | None:
        """Say why silence since *began* proves nothing: we were not listening all the time."""
        late = own_lag(self._slot, self._loop.time())
        if late is not None or self._lagged >= began:
            return f"hactld itself was late by {late or self.worst_lag:.1f}s"
        return None
