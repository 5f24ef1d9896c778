"""reload: `hactl relayd-reload`, the one safe way to reload relayd.

It runs relayctl and pfctl itself, with the rights of whoever types it; hactld is only asked to
keep its hands off relayd meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from hactl.cli import ask
from hactl.config import Config
from hactl.core import proof
from hactl.core.model import HostStatus, Observation, Plan, ServicePlan
from hactl.core.units import span
from hactl.daemon.plan import plan
from hactl.relayd import conf as conf_
from hactl.relayd import reload as reload_
from hactl.relayd.command import CommandError, Local
from hactl.relayd.conf import ConfError, RelaydConf
from hactl.relayd.pf import Pfctl, PfError, usable
from hactl.relayd.relayctl import Answer, Hosts, Relayctl, RelayctlError
from hactl.relayd.reload import Disabled, Layout

T = TypeVar("T")

OK, NO, UNASKABLE = 0, 1, 3
PARSING = 60.0  # seconds for `relayd -n`, which resolves names
LOADED = 10.0  # seconds until a reload must have shown
FILLED = 30.0  # seconds until pf's tables must be filled again
LATE = 1.0  # seconds beyond relayd's interval in which pf must have what relayd shows
PAUSE = 0.003  # seconds between two looks at what a reload did
MARGIN = 0.1  # seconds beyond a check's timeout after which its result must be in


class ReloadError(Exception):
    """It cannot be done; the text says why, *code* is hactl's exit code."""

    def __init__(self, text: str, code: int = NO) -> None:
        super().__init__(text)
        self.code = code


class Orders(Struct, frozen=True):
    """What was typed: *relayd* checks the file, else the one beside relayctl; *socket* is hactld's."""

    relayd: Path | None = None
    socket: str | None = None
    dry_run: bool = False
    force: bool = False


def run(config: Config, orders: Orders, say: Callable[[str], None]) -> int:
    """Reload relayd; return hactl's exit code.  Raise ReloadError."""
    return asyncio.run(Reload(config, orders, say).run())


class Reload:
    """One reload, from looking to proving."""

    def __init__(self, config: Config, orders: Orders, say: Callable[[str], None]) -> None:
        relayctl = [str(config.relayd.relayctl)]
        if config.relayd.socket is not None:
            relayctl += ["-s", str(config.relayd.socket)]
        commands = {"relayctl": relayctl, "pfctl": [str(config.relayd.pfctl)]}
        programs = Local(commands, config.relayd.timeout)
        checker = orders.relayd or config.relayd.relayctl.with_name("relayd")
        self._checker = Local({"relayd": [str(checker)]}, PARSING)
        self._relayctl, self._pfctl = Relayctl(programs), Pfctl(programs)
        self._file = config.relayd.conf
        self._plan = plan(config)
        self._socket = ask.path(orders.socket, os.fspath(config.control.path))
        self._orders = orders
        self._out = say
        self._begun = False

    def _say(self, text: str) -> None:
        """Say it; once relayd is touched nothing depends on whether somebody hears it."""
        try:
            self._out(text)
        except OSError:
            if not self._begun:
                raise

    async def run(self) -> int:
        """Show what would change; reload, unless something speaks against it."""
        await self._check()
        try:
            conf = conf_.read(self._file)
        except ConfError as error:
            raise ReloadError(str(error)) from error
        before = await self._show()
        off = reload_.disabled(before)
        old, new = reload_.shown(before), reload_.written(conf)
        gone = reload_.vanishing(old, new)
        self._announce(old, new, off, gone)
        refused = list(reload_.refusals(conf))
        for refusal in refused:
            self._say(f"refused: {refusal.text}")
        if any(r.final or not self._orders.force for r in refused):
            if not any(r.final for r in refused):
                self._say("--force reloads all the same")
            return NO
        if self._orders.dry_run:
            self._say("nothing was done (--dry-run)")
            return OK
        if problem := self._tell("begin"):
            self._say(f"hactld was not told, and may switch hosts meanwhile: {problem}")
        self._begun = True
        try:
            await self._reload(conf, off, gone)
            await self._flush(gone)
            return await self._prove(conf, off, gone)
        finally:
            self._tell("end")

    async def _check(self) -> None:
        """Have relayd itself check the file: a reload takes a broken one, and says nothing."""
        try:
            ended = await self._checker.run("relayd", ["-n", "-f", str(self._file)])
        except CommandError as error:
            raise ReloadError(f"relayd -n: {error}", UNASKABLE) from error
        if ended.code != 0:
            said = (ended.err or ended.out).strip() or f"exit {ended.code}, and not a word"
            if "need root privileges" in said:
                raise ReloadError("relayd -n needs root, and so does a reload", UNASKABLE)
            raise ReloadError(f"relayd does not accept {self._file}:\n{said}")

    def _announce(self, old: Layout, new: Layout, off: Disabled, gone: Mapping[str, int]) -> None:
        lines = list(reload_.changes(old, new))
        for line in lines or ["relayd.conf: the same services, tables and hosts as relayd has"]:
            self._say(line)
        for name in gone:
            self._say(f"redirect {name}: disabled first, or pf would keep it")
        for name in reload_.severed(old):
            self._say(f"relay {name}: a reload ends its open sessions")
        again = len([*off.commands(new)])
        if again:
            self._say(f"disabled, and again after the reload: {again}")
        for name, position in sorted(old.hidden):
            what = "redirect" if position < 0 else "table"
            self._say(f"{name}: a disabled {what} hides its hosts; their own disables get lost")

    def _tell(self, what: str) -> str:
        """Ask hactld to leave relayd alone; return why it could not be told, if it runs."""
        try:
            ask.ask(self._socket, "relayd-reload", what, timeout=10)
        except ask.AbsentError:
            return ""
        except ask.AskError as error:
            return str(error)
        return ""

    async def _show(self) -> Observation:
        try:
            return await self._relayctl.show()
        except RelayctlError as error:
            raise ReloadError(str(error), UNASKABLE) from error

    async def _command(self, *words: str) -> None:
        outcome = await self._relayctl.run(*words)
        if outcome.answer is not Answer.DONE:
            raise ReloadError(outcome.text)

    async def _reload(self, conf: RelaydConf, off: Disabled, gone: Mapping[str, int]) -> None:
        for id in gone.values():
            await self._command("redirect", "disable", str(id))
        shown, counts = await self._show(), await self._counts()
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        watch = asyncio.create_task(self._watch(await self._filled(shown), done))
        began = loop.time()
        try:
            with _undisturbed():
                await self._relayctl.reload()
                await self._loaded(shown, counts)
                self._say(f"loaded after {_ms(loop.time() - began)}")
                await self._disable(off)
                await self._command("poll")
                await self._answered(conf)
                await self._command("poll")
            polled = loop.time()
            done.set()
            empty = await watch
        except (RelayctlError, ReloadError) as error:
            again = "".join(f"\ndisabled before: {name}" for name in off.names())
            text = f"{error}; look at relayctl show summary now{again}"
            raise ReloadError(text, error.code if isinstance(error, ReloadError) else NO) from error
        finally:
            watch.cancel()
        for name, seconds in empty.items():
            text = "is empty" if seconds is None else f"was empty for {_ms(seconds)} at most"
            self._say(f"pf's table {name} {text}")
        self._say(f"polled twice, the second time after {_ms(polled - began)}")

    async def _disable(self, off: Disabled) -> None:
        """Disable again what was disabled; what fails is tried once more, after all else."""
        commands = list(off.commands(reload_.shown(await _patiently(self._show))))
        for last in (False, True):
            failed = []
            for words in commands:
                outcome = await self._relayctl.run(*words)
                if outcome.answer is not Answer.DONE:
                    failed.append(words)
                    if last:
                        self._say(f"wrong: {outcome.text}")
            commands = failed

    async def _counts(self) -> Hosts:
        try:
            return await self._relayctl.show_hosts()
        except RelayctlError as error:
            raise ReloadError(str(error), UNASKABLE) from error

    async def _loaded(self, before: Observation, counts: Hosts) -> None:
        """Wait until relayd shows the new load: a disable sent earlier would be forgotten."""
        loop = asyncio.get_running_loop()
        end = loop.time() + LOADED
        off = reload_.disabled(before)
        known = any(checks.total for checks in counts.checks.values()) or off != Disabled()
        if not known:  # nothing shows the difference; it takes milliseconds
            await asyncio.sleep(1.0)
            return
        old = reload_.shown(before)
        while loop.time() < end:
            if _fallen(counts, await _patiently(self._counts)):
                return
            seen = await _patiently(self._show)
            if seen.services and (reload_.disabled(seen) != off or reload_.shown(seen) != old):
                return
            await asyncio.sleep(PAUSE)
        raise ReloadError(f"relayd has not loaded {self._file} within {span(LOADED)}; see its log")

    async def _answered(self, conf: RelaydConf) -> None:
        """Wait until every check that the poll started has its result."""
        loop = asyncio.get_running_loop()
        longest = max((t.timeout for s in conf.services for t in s.tables), default=conf.timeout)
        end = loop.time() + longest + MARGIN
        settled = (HostStatus.UP, HostStatus.DISABLED)
        while loop.time() < end:
            seen = await self._show()
            hosts = [h for s in seen.services for t in s.tables for h in t.hosts]
            if hosts and all(host.status in settled for host in hosts):
                return
            await asyncio.sleep(PAUSE)

    async def _filled(self, seen: Observation) -> list[str]:
        """Name the redirects that have addresses in pf; none if pf cannot be read."""
        names = [s.name for s in seen.services if usable(s.name) and proof.active(s) is not None]
        try:
            tables = (await self._pfctl.read(names, None, wide=False)).tables
        except PfError as error:
            self._say(f"pf's tables are not watched: {error}")
            return []
        return [name for name in names if tables[name]]

    async def _watch(self, names: list[str], done: asyncio.Event) -> dict[str, float | None]:
        """Look at pf's tables until *done* and filled; return for how long each may have been empty.

        That is the longest time between two looks that found it filled; None: it is empty still.
        """
        loop = asyncio.get_running_loop()
        full = dict.fromkeys(names, loop.time())
        longest: dict[str, float] = dict.fromkeys(names, 0.0)
        empty, end = set(names), loop.time() + LOADED + FILLED
        with suppress(PfError):
            while names and loop.time() < end and (empty or not done.is_set()):
                pf = await self._pfctl.read(names, None, wide=False)
                empty = {name for name in names if not pf.tables[name]}
                for name in full.keys() - empty:
                    longest[name] = max(longest[name], loop.time() - full[name])
                    full[name] = pf.at
                await asyncio.sleep(PAUSE)
        return {name: None if name in empty else longest[name] for name in names}

    async def _flush(self, gone: Mapping[str, int]) -> None:
        """Take out of pf what relayd left there in spite of the disable.

        From a load until one of its hosts is up it takes away no rule of an earlier load's.
        """
        names = [name for name in gone if usable(name)]
        if not names:
            return
        try:
            pf = await self._pfctl.read(names, None, wide=True)
            for name in names:
                if pf.tables[name] or name in (pf.rules or ()):
                    await self._pfctl.flush(name)
                    self._say(f"redirect {name}: pf had it still, and was told to forget it")
        except PfError as error:
            self._say(f"pf may still have {', '.join(names)}: {error}")

    async def _prove(self, conf: RelaydConf, off: Disabled, gone: Mapping[str, int]) -> int:
        """Compare relayd with what it was before, and pf with relayd; return the exit code.

        A host that comes up just now is in pf an interval later, so that much time is given.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + conf.interval + LATE
        while wrong := await self._wrong(off, gone):
            if loop.time() >= end:
                break
            await asyncio.sleep(PAUSE * 10)
        for text in wrong:
            self._say(f"wrong: {text}")
        if not wrong:
            self._say("pf has what relayd shows")
        return NO if wrong else OK

    async def _wrong(self, off: Disabled, gone: Mapping[str, int]) -> list[str]:
        seen = await self._show()
        layout, now = reload_.shown(seen), reload_.disabled(seen)
        wrong = [
            f"host {seat[2]} of {seat[0]} was disabled, and is not"
            for seat in off.hosts
            if seat in layout.hosts and seat not in now.hosts
        ]
        names = [s.name for s in seen.services if usable(s.name)] + [g for g in gone if usable(g)]
        try:
            pf = await self._pfctl.read(names, None, wide=True)
        except PfError as error:
            return [*wrong, f"not proved: {error}"]
        services = {name: ServicePlan(name) for name in names}
        everything = Plan(nodes=self._plan.nodes, services=services)
        differences = proof.compare(everything, seen, pf, {}, 0.0, {})
        return wrong + [f"{d.service}: {d.text}" for d in differences]


async def _patiently(look: Callable[[], Awaitable[T]]) -> T:
    """Look until relayd answers, which it is slow to do while it loads; at last raise ReloadError."""
    end = asyncio.get_running_loop().time() + LOADED
    while True:
        try:
            return await look()
        except ReloadError:
            if asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(PAUSE)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let nobody end us, nor what we run, with relayd half loaded; it takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fallen(before: Hosts, after: Hosts) -> bool:
    """Tell whether every count of checks is smaller than it was."""
    counted = {id: c.total for id, c in before.checks.items() if c.total}
    later = {id: after.checks[id].total if id in after.checks else 0 for id in counted}
    return bool(counted) and all(later[id] < counted[id] for id in counted)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
