"""hactld and the emulated relayd as processes, under random events by operators, relayd and nodes.

After each event the desired state must be reached: what hactld decided holds in relayd, pf has what
relayd says, what operators did by hand stays, who fails is out where another serves, and nobody is
kept from clients for nothing.  relayd must never die of what hactld sends; the configuration has a
relay without a check, in which a disable is deadly.

    HACTL_SIEGE=1000 HACTL_SIEGE_SEED=1 pytest -s -m service tests/services/test_siege.py
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hactl.lab.model import Host
from hactl.lab.nodes import Mood, Node
from hactl.lab.relayd import Emulator
from hactl.lab.siege import Key, Knowledge, Wish, hosts, wrong
from tests.daemon.farm import Farm

COUNT = int(os.environ.get("HACTL_SIEGE", "50"))
SEED = int(os.environ.get("HACTL_SIEGE_SEED", "1"))
LIMIT = 25.0  # seconds until the desired state must be reached
CALM = 0.4  # seconds for which it must hold
FORGIVING = 12.0  # seconds after hactl relayd-reload in which hactld takes a load for that one
# Addresses of this run's own, so that runs side by side do not meet.
NET = f"127.{128 + (os.getpid() >> 8 & 63)}.{os.getpid() & 255}"
VIP, PORT = f"{NET}.10", 12600
NODES = {name: f"{NET}.{number}" for number, name in enumerate("abc", 4)}
A, B, C = NODES.values()

RELAYD = """\
interval 1
timeout 200
{first}table <mx> {{ {a} retry 1, {b} }}
table <spare> {{ {c} }}
table <two> {{ {b} }}
table <other> {{ {a} }}
table <bare> {{ {a}, {b} }}
{before}redirect mx {{
	listen on {vip} port 12601 sticky-address
	forward to <mx> port {port} check tcp
	forward to <spare> port {port} check tcp
}}
redirect two {{
	listen on {vip} port 12602
	forward to <two> port {port} check tcp
	forward to <other> port {port} check tcp
}}
relay proxy {{
	listen on {vip} port 12603
	forward to <bare> port {port}
}}
"""
EXTRA = """\
redirect extra {{
	listen on {vip} port 12604
	forward to <extra> port {port} check tcp
}}
"""
HACTL = """\
mode: relayctl
nodes: {{a: {a}, b: {b}, c: {c}}}
checks:
  smtp: {{type: smtp, port: {port}, interval: 300ms, timeout: 200ms, fast_interval: 100ms, rise: 2}}
defaults: {{service: {{require: [smtp], grace: 500ms, window: 2s, pace: 100% in 60s}}}}
services: {{mx: {{}}, two: {{}}, proxy: {{}}}}
relayd:
  conf: {dir}/relayd.conf
  relayctl: {dir}/relayctl
  pfctl: {dir}/pfctl
  socket: {dir}/relayd.sock
  timeout: 500ms
  clear_sources: true
  kill_states: true
user: root
run_dir: {dir}/run
state_dir: {dir}/state
"""


class Siege:
    """The cluster, and what a random operator knows of it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.dir = directory
        self.rng = random.Random(seed)
        self.nodes = {
            name: Node(name, {"smtp": (address, PORT)}) for name, address in NODES.items()
        }
        self.shifted = False
        self.write()
        (directory / "hactl.yaml").write_text(HACTL.format(dir=directory, port=PORT, a=A, b=B, c=C))
        self.emulator = Emulator(directory / "relayd.conf", directory, transit=0.0005)
        self.farm = Farm(directory, self.nodes)
        self.known = Knowledge()
        self.foreign, self.told = self.known.foreign, self.known.told
        self.events: list[str] = []
        self.took: list[float] = []
        self.safely = float("-inf")  # when hactl relayd-reload ended

    def write(self) -> None:
        """Write relayd.conf; shifted, another redirect stands before the others."""
        words = {"vip": VIP, "port": PORT, "a": A, "b": B, "c": C}
        first = f"table <extra> {{ {C} }}\n" if self.shifted else ""
        before = EXTRA.format(**words) if self.shifted else ""
        text = RELAYD.format(first=first, before=before, **words)
        (self.dir / "relayd.conf").write_text(text)

    async def start(self) -> None:
        for node in self.nodes.values():
            await node.start()
        await self.emulator.start()
        await self.farm.start()

    async def stop(self) -> None:
        await self.farm.stop(kill=True)
        await self.emulator.stop()
        for node in self.nodes.values():
            await node.stop()

    # What is

    def members(self) -> dict[Key, Host]:
        return {} if self.emulator.model is None else hosts(self.emulator.model)

    def bad(self, name: str) -> bool:
        return self.nodes[name].mood("smtp") is not Mood.WELL

    async def wrong(self) -> str:
        """Say what is not as it should be, "" if all is."""
        try:
            status = await self.farm.status()
        except (OSError, ValueError, TimeoutError):
            return "hactld does not answer"
        if status["relayd"] or status["pf"]:
            return f"blind: {status['relayd']} {status['pf']}"
        if self.emulator.model is None:
            return "relayd is dead"
        wants = {
            (m["service"], 0 if m["role"] == "main" else 1, m["host"]): Wish(
                m["want"],
                m["reason"],
                any(link["rule"] in ("guard", "pace") for link in m["chain"]),
            )
            for service in status["services"]
            for m in service["members"]
        }
        self.known.failing = {word for name, word in NODES.items() if self.bad(name)}
        if told := wrong(self.emulator.model, wants, NODES, self.known):
            return told
        return next((alert for alert in status["alerts"] if "pf" in alert), "")

    async def reached(self, event: str) -> None:
        """Wait until the desired state is reached and holds."""
        began = time.monotonic()
        since: float | None = None
        while time.monotonic() < began + LIMIT:
            wrong = await self.wrong()
            assert not self.emulator.deaths, f"{event}: relayd died: {self.emulator.deaths}"
            now = time.monotonic()
            if wrong:
                since = None
            elif since is None:
                since = now
            elif now >= since + CALM:
                self.took.append(since - began)
                return
            await asyncio.sleep(0.05)
        said = "\n".join(self.farm.log().splitlines()[-60:])
        story = "\n".join(self.events[-12:])
        raise AssertionError(f"after {event}: {wrong}\n{story}\n{said}")

    # What happens

    async def event(self) -> str:
        """Let something happen; return what."""
        weighted: list[tuple[int, Callable[[], Awaitable[str]]]] = [
            (8, self.node_turns),
            (5, self.by_hand),
            (3, self.order),
            (2, self.resume),
            (2, self.reload),
            (2, self.safe_reload),
            (1, self.reload_and_disable),
            (1, self.broken_file),
            (2, self.restart),
            (1, self.crash),
            (1, self.polls),
            (1, self.hide),
            (1, self.kill_hactld),
            (1, self.stall_hactld),
            (1, self.hangup),
            (2, self.strange_relayctl),
            (1, self.hang_relayd),
            (1, self.edit_pf),
            (1, self.lose_anchor),
        ]
        weights = [weight for weight, _ in weighted]
        return await self.rng.choices([each for _, each in weighted], weights)[0]()

    async def node_turns(self) -> str:
        name = self.rng.choice(list(NODES))
        moods = (Mood.HANG, Mood.REFUSE, Mood.SAY421, Mood.RESET)
        mood = self.rng.choice(moods) if not self.bad(name) else Mood.WELL
        self.nodes[name].set("smtp", mood)
        return f"{name} is {mood}"

    async def by_hand(self) -> str:
        """Switch a host with relayctl; never again within a second, as the manual says."""
        keys = sorted(key for key in self.members() if key[0] in ("mx", "two"))
        key = self.rng.choice(keys)
        host = self.members()[key]
        verb = "enable" if host.disabled else "disable"
        await asyncio.sleep(0.01)
        self.switch(key, verb)
        return f"host {verb} {key} by hand"

    def switch(self, key: Key, verb: str) -> None:
        host = self.members()[key]
        was = host.disabled
        reply = self.emulator.command(f"host {verb} {host.conf.id}")
        if reply.exit:
            return
        if verb == "enable":
            self.foreign.discard(key)
        elif not was:
            self.foreign.add(key)

    async def order(self) -> str:
        """Say something with hactl."""
        kind = self.rng.choice(("drain", "maint", "pin", "freeze"))
        targets = ["a", "b", "c", "mx/a", "two/b"] if kind != "freeze" else ["all"]
        target = self.rng.choice(targets)
        answer = await self.farm.ask(kind, target, yes="yes", **{"for": "1h"})
        if answer["code"] == 0 and kind == "freeze":
            self.known.frozen = True
        elif answer["code"] == 0:
            self.told[target] = kind
        return f"hactl {kind} {target}"

    async def resume(self) -> str:
        if self.known.frozen:
            self.known.frozen = False
            await self.farm.ask("thaw", "all")
            return "hactl thaw"
        if self.foreign and self.rng.random() < 0.5:
            key = self.rng.choice(sorted(self.foreign))
            name = next(n for n, a in NODES.items() if a == key[2])
            taken = await self.farm.ask("resume", f"{key[0]}/{name}", foreign="yes")
            self.foreign.difference_update([k for k in self.foreign if k[::2] == key[::2]])
            return f"hactl resume --foreign {key[0]}/{name}: {taken['text']}"
        for target in list(self.told):
            del self.told[target]
            await self.farm.ask("resume", target)
        return "hactl resume all"

    async def reload(self) -> str:
        if self.rng.random() < 0.4:
            self.shifted = not self.shifted
            self.write()
        await self.emulator.reload()
        self.foreign.clear()
        return f"relayd reloads, {'' if self.shifted else 'not '}shifted"

    async def safe_reload(self) -> str:
        """Reload with hactl: whatever is disabled stays so, whoever did it."""
        if self.rng.random() < 0.4:
            self.shifted = not self.shifted
            self.write()
        off = {k for k, h in self.members().items() if h.disabled and k[0] in ("mx", "two")}
        program = "from hactl.cli.main import main; main()"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "relayd-reload"),
            *("-f", self.dir / "hactl.yaml", "-s", self.farm.socket, "--relayd", "/bin/true"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        # 40 s where no host of a redirect comes up again
        said, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, said.decode()
        self.safely = time.monotonic()
        now = {k for k, h in self.members().items() if h.disabled and k[0] in ("mx", "two")}
        assert self.foreign <= now, said.decode()
        return f"hactl relayd-reload, {'' if self.shifted else 'not '}shifted, {len(off)} disabled"

    async def reload_and_disable(self) -> str:
        """Reload, and disable by hand what hactl had disabled, before hactl can look."""
        await asyncio.sleep(4.5)  # counts must have grown, or their fall cannot be seen
        counted = any(not h.disabled and h.table.conf.check for h in self.members().values())
        ours = [k for k, h in self.members().items() if h.disabled and k not in self.foreign]
        await self.emulator.reload()
        self.foreign.clear()
        sure = counted and time.monotonic() > self.safely + FORGIVING  # hactld(8), CAVEATS
        chosen = ours[:1] if sure else []
        for key in chosen:
            self.switch(key, "disable")
        return f"relayd reloads, and {chosen} is disabled by hand at once"

    async def broken_file(self) -> str:
        """Reload a broken file, and then the right one."""
        (self.dir / "relayd.conf").write_text("redirect {")
        await self.emulator.reload()
        await asyncio.sleep(self.rng.choice((0.1, 1.2)))
        self.write()
        await self.emulator.reload()
        self.foreign.clear()
        return "a broken file is loaded, and the right one after it"

    async def restart(self) -> str:
        self.emulator.command("stop")
        self.foreign.clear()
        await asyncio.sleep(self.rng.choice((0.0, 0.3, 1.5)))
        await self.emulator.boot()
        return "relayd restarts"

    async def crash(self) -> str:
        self.emulator.kill(self.rng.choice(("pfe: killed", "hce: killed")))
        self.foreign.clear()
        await asyncio.sleep(self.rng.choice((0.0, 0.5, 2.0)))
        await self.emulator.boot()
        return "relayd is killed, and started"

    async def polls(self) -> str:
        for _ in range(self.rng.randint(1, 4)):
            self.emulator.command("poll")
            await asyncio.sleep(self.rng.choice((0.0, 0.1, 0.3)))
        return "somebody polls"

    async def hide(self) -> str:
        """Disable a redirect or a table for a while."""
        what = self.rng.choice(("redirect 1", "redirect 2", "table 1", "table 2"))
        self.emulator.command(what.replace(" ", " disable "))
        await asyncio.sleep(self.rng.choice((0.0, 0.4, 1.5)))
        self.emulator.command(what.replace(" ", " enable "))
        return f"{what} is disabled for a while"

    async def kill_hactld(self) -> str:
        await self.farm.stop(kill=True)
        await asyncio.sleep(self.rng.choice((0.0, 0.5)))
        await self.farm.start()
        return "hactld is killed, and started"

    async def stall_hactld(self) -> str:
        process = self.farm.process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.rng.choice((0.3, 1.5)))
        process.send_signal(signal.SIGCONT)
        return "hactld stands still for a while"

    async def hangup(self) -> str:
        assert self.farm.process is not None
        self.farm.process.send_signal(signal.SIGHUP)
        return "hactld reads its files again"

    async def strange_relayctl(self) -> str:
        fault = self.emulator.fault
        kind = self.rng.choice(("garbage", "cut", "fail", "die"))
        if kind == "garbage":
            fault.garbage = self.rng.choice(("", "no table\n", "Segmentation fault\n"))
        elif kind == "cut":
            fault.cut = self.rng.randint(0, 400)
        elif kind == "fail":
            fault.fail = self.rng.randint(1, 3)
        else:
            fault.die = self.rng.randint(0, 400)
        await asyncio.sleep(self.rng.choice((0.2, 1.5)))
        fault.garbage = fault.cut = fault.die = None
        fault.fail = 0
        if self.emulator.model is None:
            self.foreign.clear()
            await self.emulator.boot()
        return f"relayctl is strange ({kind})"

    async def hang_relayd(self) -> str:
        """relayctl is killed at its deadline, and carried out later."""
        self.emulator.hang()
        if self.rng.random() < 0.7:
            await self.node_turns()
        await asyncio.sleep(self.rng.choice((0.3, 1.5)))
        self.emulator.resume()
        return "relayd answers nobody for a while"

    async def edit_pf(self) -> str:
        """Change pf's table by hand; hactld must tell, and somebody puts it right."""
        name = self.rng.choice(("mx", "two"))
        before = self.emulator.pf.tables.get(name, ())
        if not before or self.emulator.model is None:
            return "nothing"
        self.emulator.pf.tables[name] = ("192.0.2.99", *before[1:])

        async def told() -> bool:
            table = self.emulator.pf.tables.get(name, ())
            alerts = " ".join((await self.farm.status())["alerts"])
            return "192.0.2.99" not in table or "192.0.2.99" in alerts

        await self.farm.until(told, 15)
        if "192.0.2.99" in self.emulator.pf.tables.get(name, ()):
            self.emulator.pf.tables[name] = before
        return f"pf's table {name} is edited by hand, told, and put right"

    async def lose_anchor(self) -> str:
        served = any(self.emulator.pf.tables.get(name) for name in ("mx", "two"))
        self.emulator.pf.anchored = False

        async def told() -> bool:
            return "lacks anchor" in " ".join((await self.farm.status())["alerts"])

        if served:
            await self.farm.until(told, 25)
        self.emulator.pf.anchored = True
        return "pf.conf loses its anchor, which is told, and gets it back"


async def besiege(directory: Path, count: int, seed: int) -> Siege:
    siege = Siege(directory, seed)
    await siege.start()
    try:
        await siege.reached("the start")
        for number in range(1, count + 1):
            event = f"{number}: {await siege.event()}"
            siege.events.append(f"{time.strftime('%T')} {event}")
            await siege.reached(event)
            if number % 50 == 0:
                print(f"{number} events, {len(siege.farm.log())} bytes of log", flush=True)
    finally:
        await siege.stop()
    return siege


@pytest.mark.service
def test_the_desired_state_is_reached_after_each_of_many_events() -> None:
    with tempfile.TemporaryDirectory(prefix="siege") as name:
        siege = asyncio.run(besiege(Path(name), COUNT, SEED))
        log = siege.farm.log()
        assert "Traceback" not in log
        assert "hactld's own" not in log
    took = sorted(siege.took)
    print(
        f"{COUNT} events, seed {SEED}: reached after {took[len(took) // 2]:.1f} s (median),"
        f" {took[-1]:.1f} s at most; relayd died of nothing", file=sys.stderr,
    )  # fmt: skip
