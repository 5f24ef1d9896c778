"""A hactld process with real nodes and a relayctl that can be made to misbehave."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hactl.lab.nodes import Node

RELAYCTL = r"""#!/bin/sh
# A relayctl with two hosts in one redirect; `mode` says how it misbehaves.
dir=${0%/*}
echo "$*" >> "$dir/calls"
status() { if [ -e "$dir/disabled.$1" ]; then echo disabled; else echo up; fi; }
full() {
	up=0
	for id in 1 2; do [ -e "$dir/disabled.$id" ] || up=$((up + 1)); done
	if [ $up = 0 ]; then table=empty; else table="active ($up hosts)"; fi
	printf 'Id  \tType    \tName                    \tAvlblty\tStatus\n'
	printf '1   \tredirect\tmx-smtp                 \t       \tactive\n'
	printf '1   \ttable   \tmx:25                   \t       \t%s\n' "$table"
	printf '1   \thost    \t127.0.11.4              \t       \t%s\n' "$(status 1)"
	printf '2   \thost    \t127.0.11.5              \t       \t%s\n' "$(status 2)"
}
counted() { # what has no redirect, and the counts below each host
	count=5
	[ -e "$dir/checks" ] && read -r count < "$dir/checks"
	full | while IFS= read -r line; do
		case "$line" in
		*redirect*) continue ;;
		*host*up) printf '%s\n\t        \ttotal: %d/%d checks\n' "$line" "$count" "$count" ;;
		*) printf '%s\n' "$line" ;;
		esac
	done
}
read -r mode < "$dir/mode"
case "$mode $*" in
hang*) exec sleep 60 ;;
garbage*) echo 'Segmentation fault'; exit 0 ;;
half*summary) full | head -n 4; exit 0 ;;
gone*) echo 'relayctl: connect: /var/run/relayd.sock: Connection refused' >&2; exit 1 ;;
denied*) echo 'relayctl: connect: /var/run/relayd.sock: Permission denied' >&2; exit 1 ;;
*summary) full ;;
*"show hosts") counted ;;
"refuse host "* | refuse-2*" 2") echo 'command failed'; exit 1 ;;
stuck*host*) exec sleep 60 ;;
slow*host*) sleep 0.2; : > "$dir/disabled.$3"; echo 'command succeeded' ;;
late*"host "*) # nothing is said; relayd does it a second later
	case "$2" in disable) do=": >" ;; *) do="rm -f" ;; esac
	setsid sh -c "sleep 1; $do $dir/disabled.$3" >/dev/null 2>&1 </dev/null &
	exec sleep 60 ;;
*"host disable "*) : > "$dir/disabled.$3"; echo 'command succeeded' ;;
*"host enable "*) rm -f "$dir/disabled.$3"; echo 'command succeeded' ;;
*) echo 'command succeeded' ;;
esac
"""

PFCTL = r"""#!/bin/sh
# A pfctl for what that relayctl says; `pf` has what else is in pf's table, `pf.mode` how it fails.
dir=${0%/*}
echo "$*" >> "$dir/pf.calls"
[ -e "$dir/pf.mode" ] && { cat "$dir/pf.mode" >&2; exit 1; }
case "$*" in
*"-T show")
	[ -e "$dir/disabled.1" ] || echo '   127.0.11.4'
	[ -e "$dir/disabled.2" ] || echo '   127.0.11.5'
	[ -e "$dir/pf" ] && cat "$dir/pf" ;;
"-sr") echo 'anchor "relayd/*" all' ;;
*"-sr") echo 'pass in quick inet proto tcp from any to 127.0.11.1 port = 25' ;;
-sS) [ -e "$dir/sources" ] && cat "$dir/sources" ;;
-K*) rm -f "$dir/sources" ;;
esac
exit 0
"""

HACTL = """\
mode: relayctl
nodes: {{mx0: 127.0.11.4, mx1: 127.0.11.5}}
checks:
  smtp: {{type: smtp, port: {port}, interval: 300ms, timeout: 200ms, fast_interval: 100ms, fall: 2}}
services:
  mx-smtp: {{require: [smtp], grace: 1s}}
relayd: {{conf: {dir}/relayd.conf, relayctl: {dir}/relayctl, pfctl: {dir}/pfctl, timeout: 300ms}}
run_dir: {dir}/run
state_dir: {dir}/state
user: {user}
"""

RELAYD = """\
interval 2
table <mx> { 127.0.11.4 127.0.11.5 }
redirect mx-smtp {
	listen on 127.0.11.1 port 25
	forward to <mx> port 25 check tcp
}
"""


@dataclass
class Farm:
    """Two nodes, the pretended relayctl, and hactld; `async with Farm.make(dir) as farm`."""

    directory: Path
    nodes: dict[str, Node]
    prefix: tuple[str, ...] = ()  # what hactld is started through
    process: asyncio.subprocess.Process | None = None

    @classmethod
    def make(
        cls, directory: Path, port: int, user: str = "root", prefix: tuple[str, ...] = ()
    ) -> Farm:
        """Write every file that hactld needs."""
        for name, program in (("relayctl", RELAYCTL), ("pfctl", PFCTL)):
            (directory / name).write_text(program)
            (directory / name).chmod(0o755)
        (directory / "relayd.conf").write_text(RELAYD)
        (directory / "hactl.yaml").write_text(HACTL.format(port=port, dir=directory, user=user))
        nodes = {
            name: Node(name, {"smtp": (address, port)})
            for name, address in (("mx0", "127.0.11.4"), ("mx1", "127.0.11.5"))
        }
        farm = cls(directory, nodes, prefix)
        farm.misbehave("no")
        return farm

    async def __aenter__(self) -> Farm:
        for node in self.nodes.values():
            await node.start()
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for node in self.nodes.values():
            await node.stop()

    async def start(self, *options: str) -> None:
        """Start hactld and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(*self.prefix, sys.executable, "-m", "hactl.daemon.main", "-d", *options),
                *("-f", str(self.directory / "hactl.yaml")),
                stdout=log,
                stderr=log,
            )
        await self.until(self.answers)

    async def answers(self) -> bool:
        try:
            return bool((await self.ask("status"))["code"] == 0)
        except OSError:
            return False

    async def stop(self, kill: bool = False) -> int:
        """End hactld; return its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill() if kill else self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 5)

    def misbehave(self, mode: str) -> None:
        """Make relayctl behave like that from now on."""
        fresh = self.directory / "mode.new"
        fresh.write_text(f"{mode}\n")
        fresh.rename(self.directory / "mode")

    def disabled(self) -> set[str]:
        return {path.name[-1] for path in self.directory.glob("disabled.*")}

    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()

    def switches(self) -> list[str]:
        return [call for call in self.calls() if call.startswith("host")]

    def log(self) -> str:
        return (self.directory / "log").read_text()

    @property
    def socket(self) -> Path:
        return self.directory / "run" / "hactl.sock"

    async def ask(self, verb: str, *words: str, **options: str) -> Any:
        """Ask hactld over its socket."""
        reader, writer = await asyncio.open_unix_connection(self.socket, limit=1 << 22)
        request = {"protocol": 1, "verb": verb, "words": words, "options": options}
        writer.write(json.dumps(request).encode() + b"\n")
        try:
            return json.loads(await asyncio.wait_for(reader.readline(), 5))
        finally:
            writer.close()
            await writer.wait_closed()

    async def status(self) -> Any:
        return (await self.ask("status"))["data"]

    async def until(self, what: Callable[[], Any], limit: float = 8.0) -> None:
        """Wait until *what* (a function or coroutine function) is true; fail after *limit*."""
        end = asyncio.get_running_loop().time() + limit
        while asyncio.get_running_loop().time() < end:
            found = what()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never so; hactld's log:\n{self.log()}")

    async def settled(self) -> bool:
        """Tell whether every member has what it should have."""
        data = await self.status()
        return not data["relayd"] and all(
            m["as_wanted"] and m["want"] != "leave" for s in data["services"] for m in s["members"]
        )
