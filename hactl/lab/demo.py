"""demo: two mail nodes, one relayd steered by a real hactld, and a twin that has only `check tcp`.

The twin reads the same relayd.conf and sees the same nodes at the same time; a client opens ten
SMTP sessions a second through each.  Six acts; each says what must happen, and the program ends
with 0 only if all of it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from checks._wire import Wire
from checks.smtp import Smtp
from hactl.core.model import Result, Verdict
from hactl.lab.nodes import Mood, Node
from hactl.lab.relayd import Emulator
from hactl.show import paint, safe, table

NODES = {"mx0": "127.0.10.4", "mx1": "127.0.10.5"}
VIPS = {"twin": "127.0.10.1", "hactl": "127.0.10.2"}
RATE = 10  # sessions a second, through each relayd
PATIENCE = 1.5  # seconds a client waits for a session to end

RELAYD_CONF = """\
interval 2
timeout 400

table <mx0> {{ {mx0} }}
table <mx1> {{ {mx1} }}
table <fallback-mx0> {{ {mx1} }}
table <fallback-mx1> {{ {mx0} }}

redirect mx0-smtp {{
	listen on $vip port {front0} sticky-address
	forward to <mx0> port {smtp} check tcp
	forward to <fallback-mx0> port {smtp} check tcp
}}

redirect mx1-smtp {{
	listen on $vip port {front1} sticky-address
	forward to <mx1> port {smtp} check tcp
	forward to <fallback-mx1> port {smtp} check tcp
}}
"""

HACTL_YAML = """\
mode: relayctl
nodes:
  mx0: {mx0}
  mx1: {mx1}
checks:
  smtp: {{type: smtp, port: {smtp}, interval: 1s, timeout: 500ms}}
services:
  mx0-smtp: &mx {{require: [smtp], grace: 3s, pace: 100% in 60s}}
  mx1-smtp: *mx
relayd:
  conf: {dir}/hactl.conf
  relayctl: {dir}/relayd/relayctl
  pfctl: {dir}/relayd/pfctl
  socket: {dir}/relayd/relayd.sock
run_dir: {dir}/run
state_dir: {dir}/state
user: root
"""


class DemoError(Exception):
    """The demo cannot be set up; the text says what is missing."""


@dataclass
class Client:
    """Opens sessions through one balancer and counts those that were lost."""

    name: str
    address: str
    ports: tuple[int, ...]
    done: int = 0
    lost: int = 0
    last: str = ""
    _task: asyncio.Task[None] | None = None
    _wire: Wire | None = None

    def start(self) -> None:
        """Begin to open sessions."""
        self._wire = Wire(asyncio.get_running_loop(), cap=1000, excuse=lambda began: None)
        self._task = asyncio.create_task(self._run(self._wire))

    async def stop(self) -> None:
        """Open no more, and forget those that are open."""
        if self._task is not None and self._wire is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._wire.close()

    async def _run(self, wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(1 << 30):
            await asyncio.sleep(start + number / RATE - loop.time())
            port = self.ports[number % len(self.ports)]
            talk = Smtp(depth="rcpt", mail_to="postmaster@mx.example").talk()
            wire.start(self.address, port, talk, PATIENCE, self._ended)

    def _ended(self, result: Result, began: float, ended: float) -> None:
        self.done += 1
        if result.verdict is not Verdict.OK:
            self.lost += 1
            self.last = result.reason


@dataclass
class Hactld:
    """A real hactld in a process of its own, with its log in a file."""

    directory: Path
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until its socket answers."""
        with (self.directory / "hactld.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "hactl.daemon.main", "-d"),
                *("-f", str(self.directory / "hactl.yaml")),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for _ in range(200):
            with contextlib.suppress(OSError, DemoError):
                return await self._ready()
            if self.process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise DemoError(f"hactld does not start; see {self.directory}/hactld.log")

    async def _ready(self) -> None:
        await self.ask("status")

    async def ask(self, verb: str, *words: str, **options: str) -> dict[str, object]:
        """Ask it as `hactl` does.  Raise OSError or DemoError."""
        path = self.directory / "run" / "hactl.sock"
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
        try:
            request = {"protocol": 1, "verb": verb, "words": words, "options": options}
            writer.write(json.dumps(request).encode() + b"\n")
            answer = json.loads(await asyncio.wait_for(reader.readline(), 5) or "{}")
        finally:
            writer.close()
        if answer.get("code") != 0:
            raise DemoError(f"hactld: {verb} {' '.join(words)}: {answer.get('text')}")
        assert isinstance(answer, dict)
        return answer

    async def kill(self) -> None:
        """Kill it as `kill -9` does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Ask it to end."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            await self.process.wait()


@dataclass
class Act:
    """What an act is called, what happened in it, and what should not have."""

    number: int
    title: str
    lost_twin: int = 0
    lost_hactl: int = 0
    sessions: int = 0
    seconds: float | None = None
    changes: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Stage:
    """Everything that plays."""

    directory: Path
    quiet: bool
    nodes: dict[str, Node]
    relayds: dict[str, Emulator]
    clients: dict[str, Client]
    hactld: Hactld
    acts: list[Act] = field(default_factory=list)
    started: float = 0.0
    drawn: int = 0

    # What is seen

    def serving(self, relayd: str, service: str) -> tuple[str, ...]:
        """Return the names of the nodes in pf's table of a service."""
        names = {address: name for name, address in NODES.items()}
        return tuple(names[a] for a in self.relayds[relayd].pf.tables.get(service, ()))

    def changes(self) -> int:
        """Return how often hactld has switched a host by now, by its own log."""
        return (self.directory / "hactld.log").read_text().count(" acted service=")

    async def until(self, what: Callable[[], bool], limit: float) -> float | None:
        """Wait until something is so; return the seconds it took, None if it never was."""
        began = time.monotonic()
        while time.monotonic() - began < limit:
            if what():
                return time.monotonic() - began
            await asyncio.sleep(0.01)
        return None

    def out(self, node: str) -> bool:
        """Tell whether pf sends no new connection to *node* any more."""
        return all(node not in self.serving("hactl", s) for s in ("mx0-smtp", "mx1-smtp"))

    def back(self) -> bool:
        """Tell whether each service is served by its own node."""
        return all(self.serving("hactl", f"{node}-smtp") == (node,) for node in NODES)

    def disabled(self) -> list[str]:
        """Return the nodes that relayd shows disabled, once for each table they are in."""
        names = {address: name for name, address in NODES.items()}
        rows = self.relayds["hactl"].command("show hosts").stdout.splitlines()
        cells = [[cell.strip() for cell in row.split("\t")] for row in rows]
        return [names[row[2]] for row in cells if row[-1] == "disabled"]

    async def alerts(self) -> list[str]:
        """Return hactld's alerts."""
        data = (await self.hactld.ask("status"))["data"]
        assert isinstance(data, dict)
        return [str(alert) for alert in data["alerts"]]

    # What is shown

    def say(self, text: str, colour: str = "") -> None:
        """Print a line, above the live table if there is one."""
        if self.quiet:
            return
        self.wipe()
        stamp = f"{time.monotonic() - self.started:6.1f}s"
        print(f"{stamp}  {paint(safe(text), colour)}", flush=True)

    def wipe(self) -> None:
        """Take the live table from the terminal."""
        if self.drawn:
            print(f"\x1b[{self.drawn}F\x1b[J", end="", flush=True)
            self.drawn = 0

    async def watch(self) -> None:
        """Show who serves: a live table on a terminal, a line at each change without one."""
        live = sys.stdout.isatty() and not self.quiet and os.environ.get("TERM") != "dumb"
        shown: Mapping[str, str] = {}
        while True:
            now = {
                f"{r} {s}": " ".join(self.serving(r, s)) or "nobody"
                for r in ("twin", "hactl")
                for s in ("mx0-smtp", "mx1-smtp")
            }
            for key, who in now.items():
                if shown and who != shown[key] and not live:
                    self.say(f"  pf, {_side(key.split()[0])}: {key.split()[1]} -> {who}")
            shown = now
            if live:
                self.draw(now)
            await asyncio.sleep(0.25)

    def draw(self, now: Mapping[str, str]) -> None:
        """Draw the live table over the one before."""
        self.wipe()
        rows = [
            (
                _side(name),
                now[f"{name} mx0-smtp"],
                now[f"{name} mx1-smtp"],
                f"{client.done - client.lost}",
                f"{client.lost}",
                client.last if client.lost else "",
            )
            for name, client in self.clients.items()
        ]
        moods = [f"{n.name}: {n.mood('smtp')}" for n in self.nodes.values()]
        lines = ["", *table(("BALANCER", "mx0-smtp ->", "mx1-smtp ->", "OK", "LOST", "LAST"), rows)]
        lines.append("nodes  " + "  ".join(moods))
        print("\n".join(lines), flush=True)
        self.drawn = len(lines)

    # The play

    @contextlib.asynccontextmanager
    async def act(self, title: str) -> AsyncIterator[Act]:
        """Play an act: count what is lost from its first second to its last."""
        act = Act(len(self.acts) + 1, title)
        self.acts.append(act)
        self.say(f"act {act.number}: {title}", "bold")
        before = {name: (c.done, c.lost) for name, c in self.clients.items()}
        switches = self.changes()
        yield act
        act.changes = self.changes() - switches
        act.sessions = self.clients["hactl"].done - before["hactl"][0]
        act.lost_twin = self.clients["twin"].lost - before["twin"][1]
        act.lost_hactl = self.clients["hactl"].lost - before["hactl"][1]

    def must(self, act: Act, so: bool, otherwise: str) -> None:
        """Note a problem unless something is as it should be."""
        if not so:
            act.problems.append(otherwise)
            self.say(f"  not as it should be: {otherwise}", "red")


def _side(name: str) -> str:
    return {"twin": "check tcp alone", "hactl": "with hactl"}[name]


# The acts


async def all_well(stage: Stage) -> None:
    """Nothing happens, and nothing is done."""
    async with stage.act("all is well") as act:
        await asyncio.sleep(4)
    stage.must(act, act.changes == 0, f"{act.changes} table changes where none was needed")
    stage.must(act, act.lost_hactl == 0, f"{act.lost_hactl} sessions lost with hactl")
    stage.must(act, act.lost_twin == 0, f"{act.lost_twin} sessions lost with check tcp")


async def hang(stage: Stage) -> None:
    """mx0 accepts connections and never greets: check tcp is content, hactl is not."""
    async with stage.act("mx0 accepts connections and never greets") as act:
        stage.nodes["mx0"].set("smtp", Mood.HANG)
        act.seconds = await stage.until(lambda: stage.out("mx0"), 8)
        stage.say(f"  hactl took mx0 out after {_seconds(act.seconds)}")
        await asyncio.sleep(8)
    stage.must(act, act.seconds is not None, "mx0 was not taken out")
    stage.must(act, act.changes == 2, f"{act.changes} table changes instead of 2")
    stage.must(act, stage.serving("twin", "mx0-smtp") == ("mx0",), "the twin left mx0 by itself")
    stage.must(act, act.lost_twin > 2 * act.lost_hactl > 0, "the twin lost no more than hactl")


async def recover(stage: Stage) -> None:
    """mx0 is well again and returns."""
    async with stage.act("mx0 greets again") as act:
        stage.nodes["mx0"].set("smtp", Mood.WELL)
        act.seconds = await stage.until(stage.back, 12)
        stage.say(f"  mx0 serves again after {_seconds(act.seconds)}")
        await asyncio.sleep(1)
    stage.must(act, act.seconds is not None, "mx0 did not return")
    stage.must(act, act.changes == 2, f"{act.changes} table changes instead of 2")
    # sessions that hung in the act before may end in this one: only the twin's can be many
    stage.must(act, act.lost_hactl == 0, f"{act.lost_hactl} sessions lost with hactl")


async def together(stage: Stage) -> None:
    """Both nodes turn everybody away at once: that is no news of a node, so nobody moves."""
    async with stage.act("both nodes say 421 at once") as act:
        for node in stage.nodes.values():
            node.set("smtp", Mood.SAY421)
        told: list[str] = []

        async def shared() -> None:
            while not told:
                told.extend(a for a in await stage.alerts() if "at once" in a)
                await asyncio.sleep(0.05)

        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(shared(), 8)
            act.seconds = time.monotonic() - began
        stage.say(f"  hactl says: {told[0] if told else 'nothing'}")
        await asyncio.sleep(2)
        for node in stage.nodes.values():
            node.set("smtp", Mood.WELL)
        await asyncio.sleep(5)  # the grace after a shared fate is 3s here
    stage.must(act, bool(told), "no line says why nothing moves")
    stage.must(act, act.changes == 0, f"{act.changes} table changes where none could help")


async def reload(stage: Stage) -> None:
    """relayd is reloaded while mx0 is drained, and forgets the drain: it is repaired."""
    async with stage.act("relayd is reloaded and forgets that mx0 is drained") as act:
        await stage.hactld.ask("drain", "mx0", who="demo", reason="kernel upgrade")
        drained = await stage.until(lambda: stage.disabled() == ["mx0", "mx0"], 3)
        for relayd in stage.relayds.values():
            await relayd.reload()
        began = time.monotonic()
        repaired = await stage.until(lambda: stage.disabled() == ["mx0", "mx0"], 6)
        filled = await stage.until(lambda: stage.serving("hactl", "mx0-smtp") == ("mx1",), 6)
        act.seconds = time.monotonic() - began
        stage.say(f"  the drain is repaired, and pf filled again, after {_seconds(act.seconds)}")
        await asyncio.sleep(4)
        kept = stage.out("mx0")
        await stage.hactld.ask("resume", "mx0")
        returned = await stage.until(stage.back, 10)
        await asyncio.sleep(1)
    stage.must(act, drained is not None, "mx0 was not drained")
    stage.must(act, repaired is not None, "the drain was not repaired")
    stage.must(act, filled is not None and act.seconds < 3, "pf was not filled again in time")
    stage.must(act, kept, "mx0 came back into pf")
    stage.must(act, returned is not None, "mx0 did not return after the resume")
    stage.must(act, act.changes == 6, f"{act.changes} table changes instead of 6")
    stage.must(act, act.lost_hactl <= act.lost_twin, "more was lost than with check tcp")


async def killed(stage: Stage) -> None:
    """hactld is killed while it keeps mx0 out, and started again: nothing moves."""
    async with stage.act("hactld is killed with -9 while mx0 hangs, and started again") as act:
        stage.nodes["mx0"].set("smtp", Mood.HANG)
        act.seconds = await stage.until(lambda: stage.out("mx0"), 8)
        await asyncio.sleep(1)
        switches = stage.changes()
        await stage.hactld.kill()
        stage.say("  hactld is dead")
        await asyncio.sleep(2)
        await stage.hactld.start()
        stage.say("  hactld is back")
        await asyncio.sleep(5)
        moved = stage.changes() - switches
        still = stage.disabled()
    stage.must(act, act.seconds is not None, "mx0 was not taken out")
    stage.must(act, moved == 0, f"{moved} table changes because of the restart")
    stage.must(act, still == ["mx0", "mx0"], "mx0 is not out any more")


ACTS: tuple[Callable[[Stage], Awaitable[None]], ...] = (
    all_well,
    hang,
    recover,
    together,
    reload,
    killed,
)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}s"


# Setting up


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses on any of the demo's addresses.  Raise DemoError."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind((VIPS["twin"], 0))
                port = probe.getsockname()[1]
                for address in (VIPS["hactl"], *NODES.values()):
                    stack.enter_context(socket.socket()).bind((address, port))
            except OSError as error:
                raise DemoError(
                    f"the demo needs addresses such as {VIPS['twin']} on the loopback interface:"
                    f" {error.strerror}"
                ) from error
            found.append(port)
    return found


def _write(directory: Path) -> tuple[int, int, int]:
    """Write the configurations; return the nodes' port and the two services' ports."""
    smtp, front0, front1 = _free_ports(3)
    text = RELAYD_CONF.format(smtp=smtp, front0=front0, front1=front1, **NODES)
    (directory / "relayd.conf").write_text(text)
    (directory / "hactl.conf").write_text(f'vip="{VIPS["hactl"]}"\n{text}')  # as hactld reads it
    (directory / "hactl.yaml").write_text(HACTL_YAML.format(smtp=smtp, dir=directory, **NODES))
    return smtp, front0, front1


async def play(directory: Path, *, quiet: bool) -> Stage:
    """Play all acts in *directory*; return the stage with what happened.  Raise DemoError."""
    smtp, *fronts = _write(directory)
    stage = Stage(
        directory,
        quiet,
        {name: Node(name, {"smtp": (address, smtp)}) for name, address in NODES.items()},
        {
            name: Emulator(
                directory / "relayd.conf",
                directory / ("relayd" if name == "hactl" else name),
                {"vip": vip},
            )
            for name, vip in VIPS.items()
        },
        {name: Client(name, vip, tuple(fronts)) for name, vip in VIPS.items()},
        Hactld(directory),
        started=time.monotonic(),
    )
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with contextlib.AsyncExitStack() as stack:
        for node in stage.nodes.values():
            await node.start()
            stack.push_async_callback(node.stop)
        for relayd in stage.relayds.values():
            await relayd.start()
            stack.push_async_callback(relayd.stop)
        stage.say("relayd starts, twice: once with hactl, once with check tcp alone")
        await stage.hactld.start()
        stack.push_async_callback(stage.hactld.stop)
        if await stage.until(stage.back, 10) is None:
            raise DemoError("relayd never served")
        if (
            await stage.until(lambda: all(stage.serving("twin", f"{n}-smtp") for n in NODES), 10)
            is None
        ):
            raise DemoError("the twin never served")
        for client in stage.clients.values():
            client.start()
            stack.push_async_callback(client.stop)
        watch = asyncio.create_task(stage.watch())
        try:
            for act in ACTS:
                await act(stage)
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            stage.wipe()
    return stage


def run(*, as_json: bool, keep: Path | None) -> int:
    """Play the demo and print its table; return the exit code."""
    directory = keep or Path(tempfile.mkdtemp(prefix="hactl-demo."))
    directory.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        stage = asyncio.run(play(directory.absolute(), quiet=as_json))
    except DemoError as error:
        print(f"hactl: demo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("hactl: demo: interrupted", file=sys.stderr)
        return 1
    else:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    took = time.monotonic() - began
    if as_json:
        print(
            json.dumps(
                {"seconds": round(took, 1), "acts": [_figures(a) for a in stage.acts]}, indent=1
            )
        )
    else:
        print("\n".join(_page(stage.acts, took)))
    return 1 if any(act.problems for act in stage.acts) else 0


def _figures(act: Act) -> dict[str, object]:
    return {
        "act": act.number,
        "title": act.title,
        "sessions": act.sessions,
        "lost_check_tcp": act.lost_twin,
        "lost_hactl": act.lost_hactl,
        "seconds_to_decide": None if act.seconds is None else round(act.seconds, 2),
        "table_changes": act.changes,
        "problems": act.problems,
    }


def _page(acts: list[Act], took: float) -> list[str]:
    """Lay out the table at the end."""
    head = (
        "ACT",
        "WHAT HAPPENED",
        "LOST, CHECK TCP",
        "LOST, HACTL",
        "OF",
        "SECONDS",
        "CHANGES",
        "",
    )
    rows = [
        (
            str(act.number),
            act.title,
            str(act.lost_twin),
            str(act.lost_hactl),
            str(act.sessions),
            "-" if act.seconds is None else f"{act.seconds:.1f}",
            str(act.changes),
            "as it should be" if not act.problems else "; ".join(act.problems),
        )
        for act in acts
    ]
    colours = ["red" if act.problems else "" for act in acts]
    return ["", *table(head, rows, colours), f"({took:.0f} seconds)"]
