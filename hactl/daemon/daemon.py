"""daemon: the loop around the core.  It reads relayd, asks the engine, acts, and reads again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec.structs import replace

import hactl
from hactl import config as config_
from hactl.config import Config, ConfigError
from hactl.core import explain
from hactl.core.engine import CYCLE, Engine, Event
from hactl.core.explain import Snapshot
from hactl.core.model import Action, Checked, Override, Probe, Verb
from hactl.core.units import Duration
from hactl.daemon import plan as plan_
from hactl.daemon.control import Answer, Control, Request
from hactl.daemon.runner import Runner
from hactl.daemon.store import BLOCK, Store, Stored, StoreError
from hactl.relayd import conf as conf_
from hactl.relayd.relayctl import Answer as Said
from hactl.relayd.relayctl import Relayctl, RelayctlError

log = logging.getLogger("hactld")

INTENT = 0.25  # seconds a removal waits for its intent to be on disk
UNSURE = 60.0  # seconds for which a command that outlived its deadline may still be carried out
NO_END = 2**31  # seconds; an override may not last longer


class Daemon:
    """Everything that hactld is while it runs."""

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._config = config
        self._stopping = False
        self._wake = asyncio.Event()
        self._relayctl = _relayctl(config)
        self._store = Store(config.state_dir / "hactl.db")
        self._runner = Runner(self._due, self._feed)
        self._control = Control(
            config.control.path, config.control.group, config.control.mode, self._handle
        )
        self._notes: list[str] = []  # what was wrong at load, shown until the next one
        self._trouble = ""  # what relayctl last refused
        self._counts = {"cycles": 0, "actions": 0, "failed_actions": 0}
        self._loop = asyncio.get_running_loop()
        try:
            stored = self._store.open()
        except StoreError as error:
            log.error("store unusable, nothing will survive a restart: %s", error)
            stored = Stored(counter=int(time.time()) & 0xFFFFFF)
        self._engine = Engine(
            plan_.plan(config), plan_.NO_CONF, self._loop.time(), counter=stored.counter
        )
        self._engine.owned = dict(stored.owned)
        self._reserved = stored.counter
        for override in stored.overrides:
            self._engine.override(self._timed(override))
        self._written = dict(self._engine.owned)

    # Life

    async def run(self, started: Callable[[], None]) -> None:
        """Run until told to stop; *started* is called once nothing can keep hactld from running.

        Raise OSError or LookupError if the control socket cannot be made.
        """
        await self._control.start()
        started()
        for number, handler in (
            (signal.SIGTERM, self._stop),
            (signal.SIGINT, self._stop),
            (signal.SIGHUP, self._hangup),
            (signal.SIGUSR1, self._tell),
        ):
            self._loop.add_signal_handler(number, handler)
        log.info("hactld %s started, mode %s", hactl.__version__, self._config.mode)
        await self._configure()
        try:
            await self._cycles()
            await self._release()
        finally:
            self._runner.stop()
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
        fixed = ("run_dir", "state_dir", "control")
        stays = [key for key in fixed if getattr(config, key) != getattr(self._config, key)]
        config = replace(config, **{key: getattr(self._config, key) for key in fixed})
        self._config = config
        self._relayctl = _relayctl(config)
        self._engine.replan(plan_.plan(config), self._loop.time())
        await self._configure()
        self._notes += [f"{key} changed: it takes a restart of hactld" for key in stays]
        log.info("%s loaded", self._path)
        self._wake.set()
        return []

    async def _configure(self) -> None:
        """Take what lies outside hactl.yaml: relayd.conf, and the addresses of named nodes."""
        self._runner.configure(self._config.checks)
        names = {a for node in self._config.nodes.values() for a in node.addresses}
        self._notes = await self._runner.resolve({a for a in names if _is_name(a)})
        path = self._config.relayd.conf
        try:
            conf = conf_.read(path)
        except (conf_.ConfError, OSError) as error:
            self._engine.facts = plan_.NO_CONF
            self._notes.append(
                f"relayd.conf: {error}; relays are left alone and relayd is never polled"
            )
        else:
            self._engine.facts = plan_.facts(conf)
            self._notes += plan_.mismatches(self._config, conf)
        for note in self._notes:
            log.warning("%s", note)

    # Looking

    def _due(self, now: float) -> list[Probe]:
        return self._engine.due(now)

    def _feed(self, checked: Checked) -> None:
        if checked.result.verdict == "unknown":
            self._runner.counts["unknown"] += 1
        log.debug("%s %s", checked.probe, checked.result)
        if self._engine.feed(checked):
            self._wake.set()
        elif checked.result.verdict == "fail":
            self._loop.call_soon(self._runner.hurry)
        self._report()

    # Steering

    async def _cycles(self) -> None:
        """Read relayd each second, and at once after a decision."""
        planned = self._loop.time()
        while not self._stopping:
            self._wake.clear()
            await self._cycle()
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
        while True:
            try:
                observation = await self._relayctl.show()
            except RelayctlError as error:
                self._engine.unseen(str(error))
                break
            self._engine.observed(observation, self._loop.time())
            actions = self._engine.actions(self._loop.time())
            self._report()  # the decision before its action
            if not actions or actions[0].words() in tried:
                break  # what was done and has not shown gets another try in the next cycle
            if actions[0].verb is not Verb.POLL:
                tried.add(actions[0].words())
            if not await self._act(actions[0]):
                break
            if actions[0].verb is Verb.POLL:
                tried.clear()
                break  # its results need a moment
        self._sync()
        self._report()

    async def _act(self, action: Action) -> bool:
        """Carry out one action, its intent written first; return whether relayd did it."""
        self._engine.intend(action)
        if action.verb is Verb.DISABLE and action.member is not None:
            written = self._store.own(action.member, self._engine.owned[action.member])
            self._written[action.member] = self._engine.owned[action.member]
            try:
                await asyncio.wait_for(written, INTENT)
            except TimeoutError:
                log.error("the intent of %08x is not on disk; acting all the same", action.decision)
        began = self._loop.time()
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
        return done

    async def _release(self) -> None:
        """At the end, give back the hosts of services with `on_exit: release`."""
        if any(service.release for service in self._engine.plan.services.values()):
            self._engine.releasing = True
            await self._cycle()

    def _sync(self) -> None:
        """Write what changed of ownership and overrides, and reserve decision ids in time."""
        owned = self._engine.owned
        for member in self._written.keys() - owned.keys():
            self._store.own(member, None)
        for member, record in owned.items():
            if self._written.get(member) != record:
                self._store.own(member, record)
        self._written = dict(owned)
        if self._engine.counter > self._reserved + BLOCK // 2:
            self._reserved = self._engine.counter
            self._store.reserve(self._reserved)

    def _report(self) -> None:
        """Write the engine's events to the log."""
        for event in self._engine.events():
            if event.name == "expired":
                self._store.override(dict(event.fields)["target"], None)
            log.log(_LEVELS[event.level], "%s", line(event))

    # Operators

    def snapshot(self) -> Snapshot:
        """Take a snapshot of everything that operators can ask about."""
        alerts = [*self._notes]
        if self._trouble:
            alerts.append(self._trouble)
        if self._store.problem:
            alerts.append(f"the store cannot be written: {self._store.problem}")
        counts = self._counts | self._runner.counts
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
            case ("drain" | "maint") as kind, (target,):
                return await self._override(kind, target, request.options)
            case "resume", (target,):
                return await self._resume(target)
            case _:
                words = " ".join((request.verb, *request.words))
                return Answer(2, f"hactld knows no request {words!r}")

    async def _override(self, kind: str, target: str, options: dict[str, str]) -> Answer:
        if (wrong := self._stranger(target)) is not None:
            return wrong
        now = time.time()
        until = None
        if options.get("for"):
            try:
                span = Duration.parse(options["for"])
            except ValueError as error:
                return Answer(2, f"--for: {error}")
            if not 0 < span < NO_END:
                return Answer(2, f"--for: expected a span between 0s and {NO_END}s (got {span})")
            until = now + span
        who, reason = options.get("who", "somebody")[:64], options.get("reason", "")[:256]
        override = self._timed(Override(target, kind, who, reason, now, until))
        empty = self._engine.would_empty(override)
        if empty and options.get("yes") != "yes":
            return Answer(
                1, f"this would leave {', '.join(empty)} without a member; say --yes to do it"
            )
        self._engine.override(override)
        kept = await self._kept(self._store.override(target, override))
        log.info(
            "override %s target=%s who=%s reason=%s", kind, *map(_value, (target, who, reason))
        )
        self._wake.set()
        return Answer(0, f"{target}: {kind}" + (f" for {options['for']}" if until else "") + kept)

    async def _kept(self, written: asyncio.Future[None]) -> str:
        """Wait until an operator's word is on disk; say so if it is not, for it holds all the same."""
        try:
            await asyncio.wait_for(written, INTENT)
        except TimeoutError:
            return "; it is not on disk and may be forgotten at a restart"
        return ""

    async def _resume(self, target: str) -> Answer:
        if not self._engine.resume(target):
            others = [o.target for o in self._engine.overrides.values()]
            hint = f"; there is one on {', '.join(others)}" if others else ""
            return Answer(1, f"{target}: no override to end{hint}")
        kept = await self._kept(self._store.override(target, None))
        log.info("override resume target=%s", _value(target))
        self._wake.set()
        return Answer(0, f"{target}: resumed{kept}")

    def _stranger(self, target: str) -> Answer | None:
        """Answer that *target* is nothing we know, and what would have been."""
        services, nodes = self._config.services, self._config.nodes
        service, slash, node = target.partition("/")
        known = target in services or target in nodes or (
            bool(slash) and service in services and node in nodes
        )  # fmt: skip
        if known:
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
        ended: asyncio.Future[Checked] = self._loop.create_future()
        self._runner.look(probe, ended.set_result)
        return await ended

    def _timed(self, override: Override) -> Override:
        """Put the end of an override on the loop's clock."""
        if override.until is None:
            return override
        return replace(override, ends=self._loop.time() + (override.until - time.time()))


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
    return f"service={service} table={table} host={host} id={action.host} verb={action.verb}"


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


def _relayctl(config: Config) -> Relayctl:
    socket = config.relayd.socket
    return Relayctl(
        [os.fspath(config.relayd.relayctl)],
        os.fspath(socket) if socket is not None else None,
        config.relayd.timeout,
    )


def _is_name(address: str) -> bool:
    """Tell a host name from an address."""
    return not (":" in address or address.replace(".", "").isdigit())
