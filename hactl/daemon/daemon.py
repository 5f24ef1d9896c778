"""daemon: the loop around the core.  It reads relayd, asks the engine, acts, and reads again."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

import hactl
from hactl import config as config_
from hactl.agent.fetch import Agents
from hactl.agent.serve import Findings, Serving
from hactl.config import Config, ConfigError
from hactl.core import explain
from hactl.core.engine import CYCLE, UNSURE, Engine, Event
from hactl.core.explain import Snapshot
from hactl.core.health import Health, limited
from hactl.core.model import Action, Checked, HostStatus, Member, Override, Owned, Probe, Verb
from hactl.core.policy import Memory
from hactl.core.units import Duration
from hactl.daemon import clock as clock_
from hactl.daemon import plan as plan_
from hactl.daemon.clock import Clock
from hactl.daemon.control import Answer, Control, Request
from hactl.daemon.helped import Helped
from hactl.daemon.runner import Runner
from hactl.daemon.store import BLOCK, Marker, Store, Stored, StoreError
from hactl.relayd import conf as conf_
from hactl.relayd.command import Local, Programs
from hactl.relayd.hook import Verdicts
from hactl.relayd.pf import Pfctl, PfError, usable
from hactl.relayd.relayctl import Answer as Said
from hactl.relayd.relayctl import Hosts, Relayctl, RelayctlError

log = logging.getLogger("hactld")

RELAYD_SOCKET = Path("/var/run/relayd.sock")
INTENT = 0.25  # seconds a removal waits for its intent to be on disk
UNWRITTEN = Owned(-1, "")  # stands for a record that is not on disk
WIDE = 10.0  # seconds between two looks at pf's rules and source entries, and at a pf that is shut
RELOADING = 60.0  # seconds for which `hactl relayd-reload` may have relayd to itself
NO_END = 2**31  # seconds; an override may not last longer


class Daemon:
    """Everything that hactld is while it runs."""

    def __init__(
        self, path: Path, config: Config, listening: socket.socket, helped: Helped | None = None
    ) -> None:
        self._path = path
        self._config = config
        self._helped = helped
        self._stopping = False
        self._wake = asyncio.Event()
        self._steer(helped or _programs(config))
        self._verdicts = Verdicts(config.run_dir / "down")
        self._store = Store(config.state_dir / "hactl.db")
        self._marker = Marker(config.run_dir / "owned.json")
        self._proving: asyncio.Task[None] | None = None
        self._prove_at = float("-inf")  # the next look at pf
        self._wide_at = float("-inf")  # the next one at its rules and sources too
        self._statuses: tuple[tuple[str, str], ...] = ()  # of services, as of the last wide look
        self._paused = float("-inf")  # until then relayd is another's, who reloads it
        self._steering = asyncio.Lock()
        self._epoch = config.run_dir / "epoch"
        self._agents = Agents()
        self._runner = Runner(self._due, self._feed, self._suspect, self._agents.look)
        self._findings: Findings | None = None  # what we tell as the agent of our own node
        self._serving: Serving | None = None
        self._connecting = asyncio.Lock()
        self._control = Control(listening, self._handle)
        self._notes: list[str] = []  # what was wrong at load, shown until the next one
        self._trouble = ""  # what relayctl last refused
        self._counts = {"cycles": 0, "actions": 0, "failed_actions": 0}
        self._loop = asyncio.get_running_loop()
        self._clock = Clock(self._loop.time, clock_.read(self._epoch))
        try:
            stored = self._store.open()
        except StoreError as error:
            log.error("store unusable, what happens from now on will be forgotten: %s", error)
            stored = error.stored or Stored(counter=int(time.time()) & 0xFFFFFF)
        self._engine = Engine(
            plan_.plan(config), plan_.NO_CONF, self._loop.time(), counter=stored.counter
        )
        self._engine.owned = self._inherited(stored)
        self._reserved = stored.counter
        for override in stored.overrides:
            self._engine.override(clock_.timed(override, self._clock))
        self._engine.remember(
            {
                name: clock_.restored(name, lasting, self._clock)
                for name, lasting in stored.memories.items()
            }
        )
        self._written = dict(stored.owned)
        self._remembered: dict[str, Memory] = {}

    def _steer(self, programs: Programs) -> None:
        self._relayctl, self._pfctl = Relayctl(programs), Pfctl(programs)

    def _inherited(self, stored: Stored) -> dict[Member, Owned]:
        """Return the disables that are ours: either record will do, unless a reboot came between."""
        marked = self._marker.read()
        if marked is None and stored.owned:
            log.warning(
                "%s is gone, so this machine was started anew: %d own disables are forgotten,"
                " as relayd forgot them", self._config.run_dir / "owned.json", len(stored.owned),
            )  # fmt: skip
        return {} if marked is None else {**stored.owned, **marked}

    # Life

    async def run(self, started: Callable[[], None]) -> None:
        """Run until told to stop; *started* is called once nothing can keep hactld from running."""
        await self._control.start()
        for number, handler in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._hangup),
            (signal.SIGUSR1, self._tell),
        ):
            self._loop.add_signal_handler(number, handler)
        started()
        log.info("hactld %s started, mode %s", hactl.__version__, self._config.mode)
        await self._configure()
        gc.freeze()  # what is here now stays; looks leave no cycles, so the collector may be lazy
        gc.set_threshold(50_000, 20, 50)
        try:
            await self._cycles()
            await self._release()
        finally:
            if self._proving is not None:
                self._proving.cancel()
            await self._runner.end()
            await self._agents.close()
            if self._serving is not None:
                await self._serving.stop()
            await self._control.stop()
            self._store.close()
        log.info("hactld stopped")

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def _hangup(self) -> None:
        task = self._loop.create_task(self.reload())
        self._reloading = task  # keeps a reference while it runs

    def _tell(self) -> None:
        for line in _summary(self.snapshot()):
            log.info("%s", line)

    async def reload(self) -> list[str]:
        """Load hactl.yaml and relayd.conf again; return the errors, in which case nothing changed."""
        try:
            config = config_.load(self._path)
        except ConfigError as error:
            lines = str(error).splitlines()
            for line in lines:
                log.error("%s", line)
            log.error("%s is refused, the old one is kept", self._path)
            return lines
        config, stays = _kept(config, self._config, helped=self._helped is not None)
        self._config = config
        self._steer(self._helped or _programs(config))
        self._engine.replan(plan_.plan(config), self._loop.time())
        await self._configure()
        self._notes += [f"{key} changed: it takes a restart of hactld" for key in stays]
        self._notes += [
            f"{o.kind} of {o.target} speaks of nothing any more; end it with hactl "
            + ("resume" if o.key == o.target else "thaw")
            for o in self._engine.overrides.values()
            if self._stranger(o.kind, o.target) is not None
        ]
        log.info("%s loaded", self._path)
        self._wake.set()
        return []

    async def _configure(self) -> None:
        """Take what lies outside hactl.yaml: relayd.conf, and the addresses of named nodes."""
        self._runner.configure(self._config.checks)
        names = {a for node in self._config.nodes.values() for a in node.addresses}
        self._notes = await self._runner.resolve({a for a in names if _is_name(a)})
        services = self._config.services.items()
        self._notes += self._verdicts.keep({n for n, s in services if s.mode != "relayctl"})
        self._notes += self._verdicts.held({n for n, s in services if s.mode == "observe"})
        async with self._connecting:  # two loads at a time would listen twice
            self._notes += await self._connect()
        if self._config.node is None:
            await self._learn()
        else:
            self._engine.blind = ""  # an agent has no relayd
        for note in self._notes:
            log.warning("%s", note)

    async def _connect(self) -> list[str]:
        """Ask and answer as the configuration says; return what cannot be."""
        config = self._config
        notes = await self._agents.configure(config.nodes, config.checks, config.agent.keys)
        if self._serving is not None:
            await self._serving.stop()
            self._serving = None
        if config.node is None:
            self._findings = None
            return notes
        if self._findings is None or self._findings.node != config.node:
            self._findings = Findings(config.node, self._loop.time, config.checks)
        self._findings.configure(config.checks)
        self._serving = Serving(self._findings)
        return notes + await self._serving.start(config.agent)

    async def _learn(self) -> None:
        """Read relayd.conf."""
        path = self._config.relayd.conf
        try:
            conf = await self._helped.conf(path) if self._helped else conf_.read(path)
        except (conf_.ConfError, OSError) as error:
            self._engine.facts = plan_.NO_CONF
            self._notes.append(
                f"relayd.conf: {error}; relays are left alone and relayd is never polled"
            )
        else:
            self._engine.facts = plan_.facts(conf)
            self._notes += plan_.mismatches(self._config, conf)

    # Looking

    def _due(self, now: float) -> list[Probe]:
        return self._engine.due(now, lagging=self._runner.lagging)

    def _suspect(self, probe: Probe) -> None:
        self._engine.suspect(probe, self._loop.time())

    def _feed(self, checked: Checked) -> None:
        if checked.result.verdict == "unknown":
            self._runner.counts["unknown"] += 1
        log.debug("%s %s", checked.probe, checked.result)
        if self._engine.feed(checked):
            self._wake.set()
        health = self._engine.healths.get(checked.probe)
        if self._findings and checked.probe.node == self._findings.node and health:
            self._findings.feed(checked, health)
        failed = checked.result.verdict == "fail"
        if failed and (moment := self._engine.planned(checked.probe)) is not None:
            self._runner.confirm(moment)
        if failed or self._engine.waiting:
            self._runner.hurry()
        self._report()

    # Steering

    async def _cycles(self) -> None:
        """Read relayd each second, and at once after a decision."""
        planned = self._loop.time()
        while not self._stopping:
            self._wake.clear()
            if self._loop.time() >= self._paused and self._config.node is None:
                async with self._steering:
                    await self._cycle()
                self._look_behind()
            now = self._loop.time()
            if now >= planned:
                planned += CYCLE * (1 + (now - planned) // CYCLE)
            pause = min(planned, self._engine.next_moment(now)) - now
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, pause))

    async def _cycle(self) -> None:
        """Compare relayd with what should be, and act until they agree or something fails."""
        self._counts["cycles"] += 1
        tried: set[tuple[str, ...]] = set()
        counted = False
        well = True
        while self._loop.time() >= self._paused:
            self._engine.socket(self._socket_identity(), self._loop.time())
            try:
                observation = await self._relayctl.show()
            except RelayctlError as error:
                self._engine.unseen(str(error))
                break
            verdicts = self._verdicts.read(self._hooked())
            self._engine.observed(observation, self._loop.time(), verdicts)
            actions = self._engine.actions(self._loop.time())
            if self._engine.waiting:
                self._runner.hurry()  # with the looks that are waited for
            self._report()  # the decision before its action
            # what was done and does not show, or was refused, gets its next try in the next cycle
            action = next((a for a in actions if a.words() not in tried), None)
            if action is None:
                if well:
                    self._trouble = ""
                break
            if not counted and (action.verb is Verb.ENABLE or self._engine.last_sign(action)):
                counted = True  # what looks like our disable may be another's since a load
                if await self._count():
                    continue
            tried.add(action.words())
            self._prove_at = self._wide_at = float("-inf")
            answer = await self._act(action)
            well = well and answer is Said.DONE
            if action.verb is Verb.POLL or answer not in (Said.DONE, Said.REFUSED):
                break  # a poll's results need a moment; a relayd that is gone, more than that
        self._sync()
        self._report()

    def _socket_identity(self) -> object:
        """Return what tells relayd's socket from that of another start of relayd."""
        path = self._config.relayd.socket or RELAYD_SOCKET
        try:
            found = path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns  # a chmod changes none of these

    async def _act(self, action: Action) -> Said:
        """Carry out one action, its intent written first; return how relayctl's call ended."""
        self._engine.intend(action)
        if action.verb is Verb.DISABLE and action.member is not None and not action.hook:
            written = self._own(action.member, self._engine.owned[action.member])
            marked = self._marker.write(self._engine.owned)
            if not await self._kept(written):
                where = "on disk" if marked else f"on disk, nor marked ({self._marker.problem})"
                log.error(
                    "the intent of %08x is not %s; acting all the same", action.decision, where
                )
        began = self._loop.time()
        if action.hook:
            assert action.member is not None
            outcome = self._verdicts.put(action.member, down=action.verb is Verb.DISABLE)
        else:
            outcome = await self._relayctl.run(*action.words())
        now = self._loop.time()
        done = outcome.answer is Said.DONE
        open_end = outcome.answer in (Said.UNKNOWN, Said.NONSENSE)
        self._engine.acted(action, now, done=done, unsure=UNSURE if open_end else 0.0)
        self._counts["actions"] += 1
        if done:
            self._trouble = ""
            log.info(
                "%08x acted %s took=%.3f reason=%s",
                action.decision, _who(action), now - began, _value(action.reason),
            )  # fmt: skip
        else:
            self._counts["failed_actions"] += 1
            self._trouble = f"{outcome.text}; reading relayd again in the next cycle"
            log.warning("%08x failed %s: %s", action.decision, _who(action), self._trouble)
        return outcome.answer

    # Proof

    def _look_behind(self) -> None:
        """Start a look at what stands behind relayd's words, once a cycle at most.

        It runs beside the cycles: no decision waits for it.
        """
        now = self._loop.time()
        if now < self._prove_at or (self._proving is not None and not self._proving.done()):
            return
        self._prove_at = now + CYCLE / 2  # so that the next second's cycle comes after it
        self._proving = self._loop.create_task(self._prove())
        self._proving.add_done_callback(_complain)

    async def _prove(self) -> None:
        engine, asked = self._engine, self._loop.time()
        if await self._count():
            self._wake.set()
        names = [name for name in engine.redirects() if usable(name)]
        if not names or engine.blind or (engine.proof.blind and asked < self._wide_at):
            return
        assert engine.observation is not None
        statuses = tuple((s.name, s.status) for s in engine.observation.services)
        wide = asked >= self._wide_at or statuses != self._statuses
        try:
            pf = await self._pfctl.read(names, engine.proof.pf, wide=wide)
        except PfError as error:
            self._wide_at = asked + WIDE
            engine.unproved(str(error))
        else:
            if wide:
                self._wide_at, self._statuses = asked + WIDE, statuses
            engine.proved(pf, self._loop.time())
            await self._clean()
        self._report()

    async def _count(self) -> bool:
        """Read relayd's counts of checks; return whether they tell of a load."""
        asked, loads = self._loop.time(), self._engine.reloads
        with suppress(RelayctlError):  # the cycle itself says what is wrong with relayctl
            totals = _totals(await self._relayctl.show_hosts())
            self._engine.counted(totals, asked, self._loop.time())
        return self._engine.reloads != loads

    async def _clean(self) -> None:
        """Have pf forget what leads to hosts that we removed."""
        for cleaning in self._engine.cleanings():
            try:
                await self._pfctl.kill(cleaning.what, cleaning.address)
            except PfError as error:
                self._engine.cleaned(cleaning, done=False)
                log.warning("%08x failed %s: %s", cleaning.decision, cleaning.what, error)
            else:
                self._engine.cleaned(cleaning, done=True)
                log.info(
                    "%08x cleared %s to=%s", cleaning.decision, cleaning.what, cleaning.address
                )

    async def _release(self) -> None:
        """At the end, give back the hosts of services with `on_exit: release`."""
        services = self._engine.plan.services.values()
        if any(service.release for service in services) and not self._engine.blind:
            self._engine.releasing = True
            async with self._steering:
                await self._cycle()

    def _hooked(self) -> set[str]:
        """Name the services whose checks speak through relayd's script."""
        return {name for name, service in self._config.services.items() if service.mode == "hook"}

    def _sync(self) -> None:
        """Write what changed of ownership and memory, and reserve decision ids in time."""
        self._follow_the_clock()
        owned = self._engine.owned
        for member in self._written.keys() | owned.keys():
            if self._written.get(member) != owned.get(member):
                self._own(member, owned.get(member))
        self._marker.write(owned)
        for service, memory in self._engine.memories.items():
            if memory.lasting() != self._remembered.get(service):
                self._remembered[service] = memory.lasting()
                self._store.remember(service, clock_.stored(memory, self._clock))
        if self._engine.counter > self._reserved + BLOCK // 2:
            self._reserved = self._engine.counter
            self._store.reserve(self._reserved)

    def _own(self, member: Member, owned: Owned | None) -> asyncio.Future[bool]:
        """Write one record of ownership; if that fails it is written again in the next cycle."""
        if owned is None:
            self._written.pop(member, None)
        else:
            self._written[member] = owned

        def ended(written: asyncio.Future[bool]) -> None:
            if not written.cancelled() and not written.result():
                self._written[member] = UNWRITTEN

        written = self._store.own(member, owned)
        written.add_done_callback(ended)
        return written

    def _follow_the_clock(self) -> None:
        """Let everything end when it would have, if somebody stepped the wall clock."""
        step = self._clock.stepped()
        if step:
            log.info(
                "the clock was stepped by %+.0f s; holds and overrides keep their length", step
            )
            for key, override in self._engine.overrides.items():
                self._engine.overrides[key] = clock_.shifted(override, step)
                self._store.override(key, self._engine.overrides[key])
            self._remembered.clear()
        if step or not self._epoch.exists():
            with suppress(OSError):  # then a step and a restart together may end holds early
                clock_.write(self._epoch, self._clock.epoch)

    def _report(self) -> None:
        """Write the engine's events to the log."""
        for event in self._engine.events():
            if event.name == "expired":
                fields = dict(event.fields)
                self._store.override(fields["key"], None)
            log.log(_LEVELS[event.level], "%s", line(event))

    # Operators

    def snapshot(self) -> Snapshot:
        """Take a snapshot of everything that operators can ask about."""
        alerts = [*self._notes]
        alerts += [text for text in (self._trouble, self._verdicts.problem) if text]
        if self._store.problem:
            alerts.append(f"the store cannot be written: {self._store.problem}")
        if self._marker.problem:
            alerts.append(f"the marker of own disables cannot be written: {self._marker.problem}")
        alerts += self._agents.alerts()
        counts = self._counts | self._runner.tally()
        return explain.snapshot(self._engine, self._loop.time(), hactl.__version__, alerts, counts)

    async def _handle(self, request: Request) -> Answer:
        match request.verb, request.words:
            case "status", ():
                return Answer(data=self.snapshot())
            case "reload", ():
                errors = await self.reload()
                return Answer(1 if errors else 0, "\n".join(errors) or f"{self._path} loaded")
            case "check", (node, *names):
                return await self._check(node, names)
            case ("drain" | "maint" | "pin" | "freeze" | "hands-off") as kind, (target,):
                return await self._override(kind, target, request.options)
            case "thaw", (target,):
                return await self._thaw(target)
            case "resume", (target,):
                if request.options.get("foreign") == "yes":
                    return self._adopt(target)
                return await self._resume(target)
            case "relayd-reload", ("begin" | "end" as what,):
                return await self._make_way(what)
            case _:
                words = " ".join((request.verb, *request.words))
                return Answer(2, f"hactld knows no request {words!r}")

    async def _override(self, kind: str, target: str, options: dict[str, str]) -> Answer:
        if (wrong := self._stranger(kind, target)) is not None:
            return wrong
        now = self._clock.wall(self._loop.time())
        until = None
        if options.get("for"):
            try:
                span = Duration.parse(options["for"])
            except ValueError as error:
                return Answer(2, f"--for: {error}")
            if not 0 < span < NO_END:
                days = f"{NO_END // 86400}d"
                return Answer(2, f"--for: expected more than 0s, and at most {days} (got {span})")
            until = now + span
        who, reason = options.get("who", "somebody")[:64], options.get("reason", "")[:256]
        override = clock_.timed(Override(target, kind, who, reason, now, until), self._clock)
        if refusal := self._engine.refusal(override):
            return Answer(1, refusal)
        empty = self._engine.would_empty(override)
        if empty and options.get("yes") != "yes":
            return Answer(
                1, f"this would leave {', '.join(empty)} without a member; say --yes to do it"
            )
        self._engine.override(override)
        kept = await self._told(self._store.override(override.key, override))
        log.info(
            "override %s target=%s who=%s reason=%s", kind, *map(_value, (target, who, reason))
        )
        self._wake.set()
        return Answer(0, f"{target}: {kind}" + (f" for {options['for']}" if until else "") + kept)

    async def _kept(self, written: asyncio.Future[bool]) -> bool:
        """Wait a moment until something is on disk; tell whether it is."""
        try:
            return await asyncio.wait_for(asyncio.shield(written), INTENT)
        except TimeoutError:
            return False

    async def _told(self, written: asyncio.Future[bool]) -> str:
        """Say so if an operator's word is not on disk, for it holds all the same."""
        kept = await self._kept(written)
        return "" if kept else "; it is not on disk and may be forgotten at a restart"

    async def _resume(self, target: str) -> Answer:
        if not self._engine.resume(target):
            others = [o.target for o in self._engine.overrides.values() if o.key == o.target]
            hint = f"; there is one on {', '.join(others)}" if others else ""
            return Answer(1, f"{target}: no override to end{hint}")
        kept = await self._told(self._store.override(target, None))
        log.info("override resume target=%s", _value(target))
        self._wake.set()
        return Answer(0, f"{target}: resumed{kept}")

    def _adopt(self, target: str) -> Answer:
        """Take over what somebody else disabled: from now on it is as if hactl had done it."""
        if (wrong := self._stranger("resume", target)) is not None:
            return wrong
        taken = self._engine.adopt(target)
        if not taken:
            return Answer(1, f"{target}: nothing there was disabled by somebody else")
        names = ", ".join(map(str, taken))
        log.info("override resume target=%s foreign=%s", *map(_value, (target, names)))
        self._wake.set()
        return Answer(0, f"{target}: taken over: {names}")

    async def _make_way(self, what: str) -> Answer:
        """Leave relayd to `hactl relayd-reload`, with no command under way, or take it back."""
        now = self._loop.time()
        self._paused = now + RELOADING if what == "begin" else now
        self._engine.forgiving = self._paused + WIDE
        self._wake.set()
        async with self._steering:
            log.info("relayd is reloaded by hactl: %s", what)
        return Answer()

    async def _thaw(self, target: str) -> Answer:
        if not self._engine.thaw(target):
            frozen = [o.target for o in self._engine.overrides.values() if o.key != o.target]
            hint = f"; frozen is {', '.join(frozen)}" if frozen else ""
            return Answer(1, f"{target}: not frozen{hint}")
        kept = await self._told(self._store.override(f"freeze {target}", None))
        log.info("override thaw target=%s", _value(target))
        self._wake.set()
        return Answer(0, f"{target}: thawed{kept}")

    def _stranger(self, kind: str, target: str) -> Answer | None:
        """Answer that *target* is nothing we know, and what would have been."""
        services, nodes = self._config.services, self._config.nodes
        if kind in ("freeze", "hands-off"):
            if target == "all" or target in services:
                return None
            return Answer(1, f"no service {target!r}; there are {', '.join(services)} and all")
        service, slash, node = target.partition("/")
        whole = bool(slash) and service in services and node in nodes
        if target in services or target in nodes or whole:
            return None
        names = ", ".join([*services, *nodes])
        return Answer(1, f"no node or service {target!r}; there are {names}")

    async def _check(self, node: str, names: list[str]) -> Answer:
        """Look at a node now, with one check or all it has; not fed into health."""
        probes = [
            probe
            for probe in sorted(self._engine.healths)
            if probe.node == node and (not names or probe.check in names)
        ]
        if not probes:
            has = sorted({p.check for p in self._engine.healths if p.node == node})
            if not has:
                nodes = sorted({p.node for p in self._engine.healths})
                return Answer(1, f"no node {node!r} is checked; checked are: {', '.join(nodes)}")
            return Answer(1, f"node {node} has no check {names[0]!r}; it has: {', '.join(has)}")
        looks = await asyncio.gather(*(self._look(probe) for probe in probes))
        return Answer(data=[msgspec.to_builtins(look) for look in looks])

    async def _look(self, probe: Probe) -> Checked:
        """Look once, and judge by the limits as health would; what is beyond one stopped nowhere."""
        ended: asyncio.Future[Checked] = self._loop.create_future()
        limits = self._config.checks[probe.check].limits
        self._runner.look(probe, ended.set_result)
        checked = await ended
        health = self._engine.healths.get(probe, Health())
        result, _ = limited(checked.result, health.levels, limits)
        if result is not checked.result:
            checked = replace(checked, result=replace(result, step=""))
        return checked


_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def line(event: Event) -> str:
    """Write an event as smtpd does: the decision's id, the name, key=value in a fixed order."""
    fields = " ".join(f"{name}={_value(value)}" for name, value in event.fields)
    return f"{event.decision:08x} {event.name} {fields}"


def _value(text: str) -> str:
    """Write a value for the log: bare if it is a word, else quoted, control characters escaped."""
    if text and text.isascii() and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    return msgspec.json.encode(text.encode("ascii", "backslashreplace").decode()).decode()


def _who(action: Action) -> str:
    if action.member is None:
        return "verb=poll"
    service, table, host = action.member
    return f"service={service} table={table} host={host} id={action.host} verb={action.verb}" + (
        " by=hook" if action.hook else ""
    )


def _summary(snapshot: Snapshot) -> Iterable[str]:
    """Tell the state of things in a few log lines."""
    for service in snapshot.services:
        for m in service.members:
            yield (
                f"status service={service.name} host={m.host} relayd={m.relayd} want={m.want}"
                f" passing={m.passing}/{m.required} reason={_value(m.reason)}"
            )
    for alert in snapshot.alerts:
        yield f"status alert={_value(alert)}"


def _kept(new: Config, old: Config, *, helped: bool) -> tuple[Config, list[str]]:
    """Return *new* with what takes a restart as it is in *old*, and the keys that differ."""
    keys = ("run_dir", "state_dir", "control", "user", "on_dead")
    stays = [key for key in keys if getattr(new, key) != getattr(old, key)]
    new = replace(new, **{key: getattr(old, key) for key in keys})
    if helped:  # the helper goes by what root loaded
        parts = ("conf", "relayctl", "pfctl", "socket", "timeout")
        stays += [
            f"relayd: {key}"
            for key in parts
            if getattr(new.relayd, key) != getattr(old.relayd, key)
        ]
        stays += ["stale"] if new.withdrawn() != old.withdrawn() else []
        relayd = replace(new.relayd, **{key: getattr(old.relayd, key) for key in parts})
        new = replace(new, relayd=relayd)
    return new, stays


def _programs(config: Config) -> Programs:
    """Return how relayctl and pfctl are run."""
    relayctl = [os.fspath(config.relayd.relayctl)]
    if config.relayd.socket is not None:
        relayctl += ["-s", os.fspath(config.relayd.socket)]
    pfctl = [os.fspath(config.relayd.pfctl)]
    return Local({"relayctl": relayctl, "pfctl": pfctl}, config.relayd.timeout)


def _totals(hosts: Hosts) -> dict[int, int]:
    """Return the checks made of each host that relayd checks by itself."""
    return {
        host.id: hosts.checks[host.id].total if host.id in hosts.checks else 0
        for table in hosts.tables
        for host in table.hosts
        if host.parent is None and host.status is not HostStatus.DISABLED
    }


def _complain(task: asyncio.Task[None]) -> None:
    """Tell of a fault of ours in a task that nobody waits for."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a look at pf failed by a fault of hactld's own: %r", error)


def _is_name(address: str) -> bool:
    """Tell a host name from an address."""
    return not (":" in address or address.replace(".", "").isdigit())
