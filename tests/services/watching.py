"""Watch real servers as hactld does: the core and the runner in a thread, without relayd."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from checks import Probed, Spoken
from hactl.config import Check, Config, Node
from hactl.core.engine import Engine
from hactl.core.health import Health, State
from hactl.core.model import Checked, Limit
from hactl.core.schedule import SLOT
from hactl.core.units import Duration
from hactl.daemon.plan import NO_CONF, plan
from hactl.daemon.runner import Runner
from tests.services.servers import HOST, PATIENCE

NODE = "mx0.example.org"
GRACE = 0.5  # seconds that the machine may add to a bound


def timed(
    option: Spoken | Probed,
    interval: float | None = None,
    timeout: float | None = None,
    fast: float | None = None,
    limits: Mapping[str, Limit] | None = None,
) -> Check:
    """Return a check with the times of its type, but for those given."""
    times = option.times()
    return Check(
        option,
        Duration(interval or times.interval),
        Duration(timeout or times.timeout),
        Duration(fast or times.fast),
        Duration(times.hedge),
        limits=dict(limits or {}),
    )


def bound(check: Check, *, silent: bool) -> float:
    """Return the seconds within which a fault is found out, as hactl.yaml(5) has them."""
    again = check.fall - 1
    if not silent:
        return check.interval + again * (check.fast_interval or check.interval) + SLOT
    if check.hedge:
        return check.interval + check.timeout + again * check.hedge + SLOT
    fast = check.fast_interval or check.interval
    return check.interval + check.fall * check.timeout + again * fast + SLOT


class Watch:
    """Looks at *checks* until it is left; tells what becomes of them."""

    def __init__(self, checks: Mapping[str, Check], host: str = HOST) -> None:
        node = {NODE: Node((host,))}
        self.config = Config("observe", node, dict(checks), watch={NODE: tuple(checks)})
        self._news = threading.Condition()
        self._healths: dict[str, Health] = {}
        self._downs: dict[str, Health] = {}  # as they were when they went down
        self._looks: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE)

    async def _run(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._engine = Engine(plan(self.config), NO_CONF, self._loop.time())
        self.runner = Runner(self._engine.due, self._feed)
        self.runner.configure(self.config.checks)
        self._ready.set()
        await self._end.wait()
        await self.runner.end()

    def _feed(self, checked: Checked) -> None:
        self._engine.feed(checked)
        with self._news:
            name = checked.probe.check
            before = self._healths.get(name)
            self._looks[name] += 1
            self._verdicts[checked.result.verdict] += 1
            self._healths[name] = health = self._engine.healths[checked.probe]
            if health.state is State.DOWN and (before is None or before.state is not State.DOWN):
                self._downs[name] = health
            self._news.notify_all()

    def until(self, state: State, *names: str, limit: float = PATIENCE) -> dict[str, Health]:
        """Return the healths of the checks called *names*, or of all, as soon as all are *state*."""
        names = names or tuple(self.config.checks)

        def there() -> bool:
            return all(n in self._healths and self._healths[n].state is state for n in names)

        with self._news:
            done = self._news.wait_for(there, limit)
            found = {name: self._healths.get(name, Health()) for name in names}
        assert done, f"not all {state} in {limit:g}s: " + "; ".join(
            f"{name} {health.state} ({health.last.reason if health.last else health.reason})"
            for name, health in found.items()
        )
        return found

    def after(self, count: int, name: str) -> Health:
        """Return the health of a check after *count* more looks at it."""
        with self._news:
            wanted = self._looks[name] + count
            assert self._news.wait_for(lambda: self._looks[name] >= wanted, PATIENCE)
            return self._healths[name]

    def count(self) -> int:
        """Return how many looks have ended."""
        with self._news:
            return self._looks.total()

    def tally(self) -> dict[str, int]:
        """Return what came of all looks, by verdict, and how often we were late ourselves."""
        with self._news:
            return dict(self._verdicts) | {"own_lag": self.runner.counts["own_lag"]}

    def down(self, name: str, since: float, *, silent: bool) -> Health:
        """Return the health with which a check went down, which must not take longer than it may.

        Where hactld itself was late, for this machine has other work, there is no telling.
        """
        check = self.config.checks[name]
        lag = self.runner.counts["own_lag"]
        self.until(State.DOWN, name)
        health = self._downs[name]
        took, allowed = health.since - since, bound(check, silent=silent) + GRACE
        late = self.runner.counts["own_lag"] > lag
        assert took <= allowed or late, f"{name}: down after {took:.2f}s, allowed {allowed:.2f}s"
        return health


def endure(
    watch: Watch,
    fault: AbstractContextManager[object],
    expected: Mapping[str, str],
    *,
    silent: bool = True,
    either: Collection[str] = (),
) -> None:
    """See what *fault* does: each check in *expected* goes down in time, for the reason given.

    The reason is a regular expression; it begins with the step, or with the command that was
    refused at it.  The other checks stay up, but for those in *either*, and afterwards all are well again.
    """
    watch.until(State.UP)
    with fault:
        since = time.monotonic()
        for name, reason in expected.items():
            health = watch.down(name, since, silent=silent)
            assert health.last is not None
            assert re.fullmatch(reason, health.last.reason), (name, health.last)
        others = watch.config.checks.keys() - expected.keys() - set(either)
        watch.until(State.UP, *others, limit=0) if others else None
    watch.until(State.UP)
