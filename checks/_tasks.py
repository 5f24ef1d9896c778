"""Run checks that are coroutines: each in a task of its own, with its deadline set from outside.

The result is told at the deadline, whatever the task does then.  It is cancelled, and until it has
really ended (a program that the kernel does not let go, a thread in a library) the next look with
the same key waits for it: what hangs is never piled up, and goes on to count as silence.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Hashable
from functools import partial

from checks import Probed, Step, Target, _tls
from checks._wire import Done, blame, quote
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration, span

Probe = Callable[[Step], Awaitable[Result]]

BEFORE = "before"  # the step in which a look waits for one that has not ended
PARTING = 1.0  # seconds that looks have to end when all is over


class Tasks:
    """Starts coroutines, and holds what they share.

    *cap* is how many may run at once, those included that should have ended.  *excuse* is as in
    `checks._wire.Wire`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, cap: int, excuse: Callable[[float], str | None]
    ) -> None:
        self.loop = loop
        self.cap = cap
        self.excuse = excuse
        self.live: set[Look] = set()
        self.overdue: dict[Hashable, Look] = {}

    def start(self, key: Hashable, probe: Probe, timeout: float, done: Done) -> Look:
        """Begin a look; *done* is called once, and never before this returns."""
        return Look(self, key, probe, timeout, done)

    def close(self) -> None:
        """Cancel whatever still goes on."""
        for look in tuple(self.live):
            look.cancel()

    async def ended(self) -> None:
        """Wait a moment, after `close`, for looks to end.

        A loop that is closed cancels what is left once more, asyncio's own tasks included.  A program
        that is just being started then ends late and without its pipes closed (see `_process`).
        """
        if self.live:
            await asyncio.wait([look.task for look in self.live], timeout=PARTING)


class Look:
    """One run of a coroutine; made by `Tasks.start`."""

    def __init__(
        self, tasks: Tasks, key: Hashable, probe: Probe, timeout: float, done: Done
    ) -> None:
        self._tasks = tasks
        self._loop = tasks.loop
        self._key = key
        self._timeout = timeout
        self._done: Done | None = done  # until it has been called
        self._step = ""
        self._steps: list[tuple[str, float]] = []
        self.started = self._mark = self._loop.time()
        self._before = tasks.overdue.get(key)
        self._timer = self._loop.call_at(self.started + timeout, self._late)
        crowded = len(tasks.live) >= tasks.cap
        self.task = self._loop.create_task(self._crowded() if crowded else self._run(probe))
        tasks.live.add(self)
        self.task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """End it without a word to anybody."""
        self._timer.cancel()
        self._done = None
        self.task.cancel()

    def step(self, name: str) -> None:
        """Note that step *name* begins."""
        now = self._loop.time()
        if self._step:
            self._steps.append((self._step, now - self._mark))
        self._step, self._mark = name, now

    async def _crowded(self) -> None:
        why = f"too many looks at a time (cap {self._tasks.cap})"
        self._report(Result(Verdict.UNKNOWN, why))

    async def _run(self, probe: Probe) -> None:
        """Run *probe*, and make a result of whatever it raises."""
        try:
            if self._before is not None:
                self.step(BEFORE)
                await asyncio.wait([self._before.task])
                self._before = None
            result: object = await probe(self.step)
            if isinstance(result, Result):
                self.step("")
            else:
                result = self._cut(Verdict.UNKNOWN, f"check broke: returned {_shown(result)}")
        except asyncio.CancelledError:
            if self._done is None:
                raise
            result = self._cut(Verdict.UNKNOWN, "check broke: it was cancelled")
        except ssl.SSLError as error:
            result = self._cut(*_tls.trouble(error))
        except OSError as error:
            if isinstance(error, TimeoutError) and error.errno is None:
                result = self._silent()  # a library's own deadline came first
            else:  # in the system's own words, where a library has others
                number = error.errno or 0
                why = os.strerror(number) if number > 0 else error.strerror or str(error)
                result = self._cut(blame(error), why.lower())
        except EOFError:
            result = self._cut(Verdict.FAIL, "closed in mid-answer")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - no news of the node
            result = self._cut(Verdict.UNKNOWN, f"check broke: {_shown(error)}")
        self._report(result)

    def _late(self) -> None:
        """Give up at the deadline."""
        self._report(self._silent())
        self._tasks.overdue.setdefault(self._key, self)
        self.task.cancel()

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._tasks.live.discard(self)
        if self._tasks.overdue.get(self._key) is self:
            del self._tasks.overdue[self._key]

    def _silent(self) -> Result:
        now = self._loop.time()
        excuse = self._tasks.excuse(self.started)
        if excuse is not None:
            return self._cut(Verdict.UNKNOWN, excuse)
        if self._before is not None:  # where that one stands is what matters
            return self._before._cut(
                Verdict.FAIL, f"no answer for {span(now - self._before.started)}"
            )
        return self._cut(Verdict.FAIL, f"no answer in {Duration(self._timeout)}")

    def _cut(self, verdict: Verdict, why: str) -> Result:
        """Return the result of a look that ended early, here."""
        step = self._step
        return Result(verdict, f"{step}: {why}" if step else why, step)

    def _report(self, result: Result) -> None:
        """Tell *result* with the times of its steps, unless one has been told."""
        if self._done is None:
            return
        done, self._done = self._done, None
        self._timer.cancel()
        ended = self._loop.time()
        steps = tuple(self._steps)
        measures = {f"{step}_seconds": seconds for step, seconds in steps}
        measures.update(result.measures)
        measures["total_seconds"] = ended - self.started
        step = result.step or (steps[-1][0] if steps else "")
        done(Result(result.verdict, result.reason, step, measures, steps), self.started, ended)


def _shown(what: object) -> str:
    return quote(repr(what).encode())


async def look(option: Probed, target: Target, limit: float) -> Result:
    """Look once at *target* by itself, within *limit* seconds."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()
    tasks = Tasks(loop, cap=1, excuse=lambda _started: None)
    tasks.start(
        None, partial(option.probe, target), limit, lambda result, *_: answer.set_result(result)
    )
    try:
        return await answer
    finally:
        for _ in range(2):  # again for one that clings to life
            tasks.close()
            await asyncio.sleep(0.001)
        while tasks.live:  # noqa: ASYNC110 - they end without a word
            await asyncio.sleep(0.001)
