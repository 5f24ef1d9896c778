"""Workers: programs that touch what may hang, one at a time for each thing.

A system call on a dead mount does not end, and no signal ends it: a thread in it would keep hactld
from ending, and its sockets open.  So a program of its own makes it.  At the end of the look it is
killed and not waited for; as long as the kernel does not let it go no other is started, and how long
it has hung is what there is to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from checks import Step, _process
from checks._process import Ended

BEFORE = "before"  # the step in which a look waits for one that goes on


class StuckError(Exception):
    """The last worker has not ended: *age* is how long it has hung, *step* where."""

    def __init__(self, age: float, step: str) -> None:
        super().__init__(step)
        self.age = age
        self.step = step


class _Worker:
    """One program at work; *over* is set when it ends, or when its look does not wait any more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.since = loop.time()
        self.step = ""
        self.left = False  # to the kernel: killed, and not waited for
        self.over = asyncio.Event()


_at_work: dict[str, _Worker] = {}  # by what they touch


async def run(
    thing: str, command: Sequence[str], step: Step, heard: Callable[[bytes], str | None]
) -> Ended:
    """Run *command*, which touches *thing*, to its end.

    *heard* gets each line that it says, and returns the step that it names if it does.  Raise
    StuckError if the last one still hangs.
    """
    loop = asyncio.get_running_loop()
    while (other := _at_work.get(thing)) is not None:
        if other.left:
            raise StuckError(loop.time() - other.since, other.step)
        step(BEFORE)
        await other.over.wait()
    worker = _at_work[thing] = _Worker(loop)
    rest = b""

    def take(data: bytes) -> bool:
        nonlocal rest
        *lines, rest = (rest + data).split(b"\n")
        for name in filter(None, map(heard, lines)):
            worker.step = name
            if not worker.left:
                step(name)
        return True

    task = loop.create_task(_process.run(command, take=take))

    def ended(_task: asyncio.Task[Ended]) -> None:
        del _at_work[thing]
        worker.over.set()
        with suppress(asyncio.CancelledError):
            task.exception()

    task.add_done_callback(ended)
    try:
        await asyncio.wait([task])
    finally:
        if not task.done():
            worker.left = True
            worker.over.set()
            task.cancel()
    return task.result()
