"""hactld in two processes, as root starts it: the helper, and the one that does the work.

The interpreter may lie where only root gets, so hactld runs in a mount namespace in which the way
to it is open.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from hactl.lab.nodes import Mood
from tests.daemon.farm import Farm
from tests.services.servers import need

pytestmark = pytest.mark.service

USER = "nobody"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return an empty directory that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hactl-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


Scene = Callable[[Farm], Awaitable[None]]


def openly(directory: Path) -> tuple[str, ...]:
    """Return what starts a program so that every user gets to the interpreter and to hactl."""
    need("unshare", "mount")
    paths = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT.resolve()}
    script = []
    for number, shut in enumerate(sorted({p for path in paths for p in path.parents if closed(p)})):
        kept = directory / f"kept{number}"
        script += [f"mkdir -p {kept}", f"mount --bind {shut} {kept}"]
        script += [f"mount -t tmpfs -o mode=755 none {shut}"]
        for path in sorted(paths):
            if shut in path.parents:
                real = kept / path.relative_to(shut)
                script += [f"mkdir -p {path}", f"mount --bind {real} {path}"]
    command = " && ".join([*script, 'exec "$@"'])
    return ("unshare", "--mount", "--propagation", "private", "sh", "-c", command, "openly")


def closed(path: Path) -> bool:
    return not path.stat().st_mode & 0o001


def play(directory: Path, scene: Scene) -> None:
    """Run *scene* with a hactld that root has started and that becomes nobody."""
    with socket.socket() as probe:
        probe.bind(("127.0.11.4", 0))
        port = probe.getsockname()[1]

    async def run() -> None:
        farm = Farm.make(directory, port, USER, openly(directory))
        (directory / "relayd.conf").chmod(0o600)
        (directory / "hactl.yaml").chmod(0o644)
        relayctl = (directory / "relayctl").read_text()
        (directory / "relayctl").write_text(
            relayctl.replace("\nread", '\nid -u >> "$dir/who"\nread')
        )
        async with farm:
            await farm.until(farm.settled)
            await scene(farm)

    asyncio.run(run())


def worker(farm: Farm) -> psutil.Process:
    """Return the process that the helper keeps alive."""
    assert farm.process is not None
    children = psutil.Process(farm.process.pid).children()
    return next(child for child in children if "--helped" in child.cmdline())


def proc(process: psutil.Process, name: str) -> str:
    return Path(f"/proc/{process.pid}/{name}").read_text()


def open_files(process: psutil.Process) -> dict[int, int]:
    """Return the flags of each open descriptor."""
    found = {}
    for info in Path(f"/proc/{process.pid}/fdinfo").iterdir():
        flags = re.search(r"^flags:\s*([0-7]+)$", info.read_text(), re.MULTILINE)
        found[int(info.name)] = int(flags[1], 8) if flags else 0
    return found


def status(process: psutil.Process) -> dict[str, str]:
    pairs = (line.partition(":") for line in proc(process, "status").splitlines())
    return {name: value.strip() for name, _, value in pairs}


def test_the_worker_has_no_right_left_and_relayctl_runs_as_root(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        user = pwd.getpwnam(USER)
        child = worker(farm)
        found = status(child)
        assert found["Uid"].split() == [str(user.pw_uid)] * 4
        assert found["Gid"].split() == [str(user.pw_gid)] * 4
        assert "0" not in found["Groups"].split()
        assert (int(found["CapEff"], 16), int(found["CapPrm"], 16)) == (0, 0)
        assert (found["NoNewPrivs"], found["Umask"]) == ("1", "0022")
        assert child.cwd() == "/"
        assert re.search(r"^Max core file size +0 +0 ", proc(child, "limits"), re.MULTILINE)
        kept = [fd for fd in open_files(child) if fd > 2]
        assert len(kept) > 6
        assert [fd for fd in kept if not open_files(child)[fd] & os.O_CLOEXEC] == []
        modes = {
            path: (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777)
            for path in (
                farm.directory / "run",
                farm.directory / "state",
                farm.directory / "state" / "lock",
                farm.directory / "state" / "hactl.db",
                farm.socket,
            )
        }
        assert list(modes.values()) == [
            (user.pw_uid, user.pw_gid, mode) for mode in (0o755, 0o750, 0o640, 0o644, 0o660)
        ]
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        assert set((farm.directory / "who").read_text().split()) == {"0"}
        # relayd.conf is root's alone, and is known all the same
        assert (await farm.status())["alerts"] == []
        assert farm.process is not None
        farm.process.send_signal(signal.SIGHUP)
        await farm.until(lambda: f"{farm.directory}/hactl.yaml loaded" in farm.log())
        assert (await farm.status())["alerts"] == []
        (farm.directory / "relayd.conf").unlink()
        assert (await farm.ask("reload"))["code"] == 0
        assert "No such file or directory" in (await farm.status())["alerts"][0]
        assert await farm.stop() == 0
        assert not farm.socket.exists()
        assert not child.is_running()

    play(directory, scene)


def test_a_killed_worker_is_started_again_and_moves_nothing(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        yaml = farm.directory / "hactl.yaml"  # what takes a restart of both
        text = yaml.read_text().replace("/run\n", "/elsewhere\n")
        yaml.write_text(text.replace("/relayctl,", "/none,"))
        for count in range(1, 4):
            worker(farm).kill()
            await farm.until(partial(logged, farm, f"started again in {2**count / 4:g}s"))
            await farm.until(partial(decided, farm), 30)
        assert farm.switches() == ["host disable 1"]
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set(), 30)

    def logged(farm: Farm, what: str) -> bool:
        return what in farm.log()

    async def decided(farm: Farm) -> bool:
        members = (await farm.status())["services"][0]["members"]
        return [m["want"] for m in members] == ["out", "in"]

    play(directory, scene)


def test_a_worker_that_is_stopped_is_taken_for_dead(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        before = worker(farm)
        before.suspend()
        await farm.until(lambda: not before.is_running(), 30)
        await farm.until(farm.answers, 30)
        assert "hactld is silent; it is killed" in farm.log()
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set())

    play(directory, scene)


def test_a_worker_goes_with_its_helper_and_leaves_room_for_the_next(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        before = worker(farm)
        await farm.stop(kill=True)
        await farm.until(lambda: not before.is_running())
        await farm.start()
        await farm.until(farm.settled)

    play(directory, scene)


def test_two_on_one_state_dir_are_one_too_many(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        before = worker(farm)
        ran = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hactl.daemon.main", "-f", str(farm.directory / "hactl.yaml")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(ran.communicate(), 20)
        assert said.decode() == f"hactld: another hactld runs with {farm.directory}/state\n"
        assert ran.returncode == 1
        assert before.is_running()
        assert await farm.answers()

    play(directory, scene)


def test_both_leave_the_terminal_once_hactld_answers(directory: Path) -> None:
    async def scene(farm: Farm) -> None:
        await farm.stop()
        yaml = str(farm.directory / "hactl.yaml")
        ran = await asyncio.create_subprocess_exec(
            *(*farm.prefix, sys.executable, "-m", "hactl.daemon.main", "-f", yaml),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(ran.communicate(), 30)
        assert (ran.returncode, said) == (0, b"")
        await farm.until(farm.settled)
        both = [p for p in psutil.process_iter(["cmdline"]) if yaml in (p.info["cmdline"] or [])]
        helper, before = sorted(both, key=lambda process: process.pid)
        try:
            standard = [Path(f"/proc/{p.pid}/fd/{n}") for p in both for n in range(3)]
            assert {str(path.readlink()) for path in standard} == {"/dev/null"}
            assert os.getsid(helper.pid) == os.getsid(before.pid) != os.getsid(0)
            before.kill()
            await farm.until(lambda: not before.is_running())
            await farm.until(farm.answers, 20)
            await farm.until(farm.settled, 20)
        finally:
            helper.terminate()
        await farm.until(lambda: not helper.is_running(), 20)
        assert not farm.socket.exists()

    play(directory, scene)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("user: _no-such", 'hactld: there is no user "_no-such" to run as; make it with\n'),
        ("control: {group: none-such}", 'control: group: there is no group "none-such"'),
        ("state_dir: /etc", '/etc belongs to root, and hactld runs as nobody; run "chown'),
    ],
)
def test_what_keeps_it_from_starting_is_said(directory: Path, change: str, says: str) -> None:
    key = change.partition(":")[0]
    settings = {
        "mode": "mode: observe",
        "run_dir": f"run_dir: {directory}/run",
        "state_dir": f"state_dir: {directory}/state",
        "user": f"user: {USER}",
        key: change,
    }
    assert says in start(directory, "\n".join(settings.values()))


def test_a_configuration_that_the_user_cannot_read_is_said(directory: Path) -> None:
    text = f"mode: observe\nrun_dir: {directory}/run\nstate_dir: {directory}/state\nuser: {USER}\n"
    said = start(directory, text, 0o600)
    assert f"{directory}/hactl.yaml: Permission denied" in said


def start(directory: Path, text: str, mode: int = 0o644) -> str:
    """Start hactld as a daemon; return what it says, which is why it does not run."""
    path = directory / "hactl.yaml"
    path.write_text(text)
    path.chmod(mode)
    command = [*openly(directory), sys.executable, "-m", "hactl.daemon.main", "-f", str(path)]

    async def run() -> str:
        ran = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        _, said = await asyncio.wait_for(ran.communicate(), 30)
        assert ran.returncode == 1, shlex.join(command)
        return said.decode()

    return asyncio.run(run())
