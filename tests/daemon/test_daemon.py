"""hactld as a process: what it does with real nodes and a relayctl that misbehaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from hactl.lab.nodes import Mood
from tests.daemon.farm import Farm

Scene = Callable[[Farm], Awaitable[None]]


def play(directory: Path, scene: Scene) -> None:
    """Run *scene* with a farm on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.11.4", 0))
        port = probe.getsockname()[1]

    async def run() -> None:
        async with Farm.make(directory, port) as farm:
            await farm.until(farm.settled)
            await scene(farm)

    asyncio.run(run())


def test_a_node_that_never_greets_is_disabled_and_comes_back(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set())
        assert farm.switches() == ["host disable 1", "host enable 1"]

    play(tmp_path, scene)


@pytest.mark.long
def test_kill_9_and_restart_move_nothing_though_the_clock_was_stepped(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        await farm.ask("drain", "mx1", who="test", reason="upgrade", **{"for": "1h"})
        await farm.until((farm.directory / "run" / "epoch").exists)
        await farm.stop(kill=True)
        two_hours_ahead(farm.directory)
        await farm.start()

        async def decided() -> bool:
            members = (await farm.status())["services"][0]["members"]
            return [m["want"] for m in members] == ["out", "in"]

        await farm.until(decided)
        assert farm.switches() == ["host disable 1"]
        await farm.until(lambda: "the clock was stepped by +7200 s" in farm.log())
        (drain,) = (await farm.status())["overrides"]
        assert (drain["target"], drain["who"], drain["reason"]) == ("mx1", "test", "upgrade")
        assert 3500 < drain["until"] - time.time() <= 3600

    play(tmp_path, scene)


def two_hours_ahead(directory: Path) -> None:
    """Make all that is stored two hours older, as a step of the clock would."""
    epoch = directory / "run" / "epoch"
    epoch.write_text(str(float(epoch.read_text()) - 7200))
    db = sqlite3.connect(directory / "state" / "hactl.db", isolation_level=None)
    db.execute("update overrides set since = since - 7200, until = until - 7200")
    db.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("hang", "no answer"),
        ("garbage", "relayctl: show summary"),
        ("half", "relayctl: show summary"),
        ("gone", "Connection refused"),
        ("denied", "Permission denied"),
    ],
)
def test_a_relayctl_that_cannot_be_believed_moves_nothing_and_status_says_so(
    tmp_path: Path, mode: str, says: str
) -> None:
    async def scene(farm: Farm) -> None:
        farm.misbehave(mode)
        farm.nodes["mx0"].set("smtp", Mood.HANG)

        async def seen() -> bool:
            data = await farm.status()
            down = any(p["state"] == "down" for p in data["probes"])
            return down and says in data["relayd"] and says in data["alerts"][0]

        await farm.until(seen)
        assert farm.switches() == []
        farm.misbehave("no")
        await farm.until(lambda: farm.switches() == ["host disable 1"])

    play(tmp_path, scene)


@pytest.mark.long
def test_a_missing_relayctl_is_said_and_found_again(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        relayctl = farm.directory / "relayctl"
        relayctl.rename(farm.directory / "elsewhere")

        async def missed() -> bool:
            return "No such file" in (await farm.status())["relayd"]

        await farm.until(missed)
        (farm.directory / "elsewhere").rename(relayctl)
        await farm.until(farm.settled)

    play(tmp_path, scene)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["refuse", "stuck"])
def test_a_switch_that_fails_is_tried_once_a_cycle_and_shown(tmp_path: Path, mode: str) -> None:
    async def scene(farm: Farm) -> None:
        farm.misbehave(mode)
        farm.nodes["mx0"].set("smtp", Mood.HANG)

        async def shown() -> bool:
            alerts = (await farm.status())["alerts"]
            return any("host disable 1" in alert for alert in alerts)

        await farm.until(shown)
        await farm.until(lambda: len(farm.switches()) >= 2)
        shows = [n for n, call in enumerate(farm.calls()) if call.startswith("host")]
        assert all(b - a > 1 for a, b in pairwise(shows)), "no show between"
        farm.misbehave("no")
        await farm.until(lambda: farm.disabled() == {"1"})

        async def calm() -> bool:
            return not (await farm.status())["alerts"]

        await farm.until(calm)

    play(tmp_path, scene)


@pytest.mark.long
def test_a_failed_write_of_a_record_is_made_up_for(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        db = sqlite3.connect(farm.directory / "state" / "hactl.db", isolation_level=None)
        db.execute("begin immediate")  # nobody else can write now
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        assert "is not on disk" in farm.log()
        await farm.until(lambda: problem(farm))
        db.execute("rollback")
        await farm.until(lambda: stored(db))
        db.close()
        await farm.stop(kill=True)
        await farm.start()
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.until(lambda: farm.disabled() == set())

    async def problem(farm: Farm) -> bool:
        return any("database is locked" in alert for alert in (await farm.status())["alerts"])

    def stored(db: sqlite3.Connection) -> bool:
        return bool(db.execute("select 1 from owned").fetchall())

    play(tmp_path, scene)


@pytest.mark.long
def test_a_failure_after_the_first_of_two_actions_leaves_the_second_to_the_next_cycle(
    tmp_path: Path,
) -> None:
    async def scene(farm: Farm) -> None:
        farm.misbehave("refuse-2")
        assert (await farm.ask("maint", "mx-smtp", yes="yes"))["code"] == 0

        async def shown() -> bool:
            return any(
                "host disable 2: command failed" in a for a in (await farm.status())["alerts"]
            )

        await farm.until(shown)
        assert farm.disabled() == {"1"}
        assert farm.switches()[:2] == ["host disable 1", "host disable 2"]
        farm.misbehave("no")
        await farm.until(lambda: farm.disabled() == {"1", "2"})
        assert farm.switches().count("host disable 1") == 1

    play(tmp_path, scene)


def test_a_bad_new_file_is_refused_and_the_old_one_kept(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        path = farm.directory / "hactl.yaml"
        good = path.read_text()
        path.write_text(good.replace("type: smtp", "type: smpt"))
        answer = await farm.ask("reload")
        assert answer["code"] == 1
        assert 'did you mean "smtp"' in answer["text"]
        assert farm.process is not None
        farm.process.send_signal(signal.SIGHUP)
        await farm.until(lambda: farm.log().count("is refused, the old one is kept") == 2)
        before = {p["node"]: p["for_seconds"] for p in (await farm.status())["probes"]}
        path.write_text(good.replace("grace: 1s", "grace: 2s"))
        assert (await farm.ask("reload"))["code"] == 0
        after = {p["node"]: p["for_seconds"] for p in (await farm.status())["probes"]}
        assert all(after[node] >= before[node] for node in before), "health was forgotten"
        path.write_text(good.replace("type: smtp", "type: smtp, depth: greeting"))
        assert (await farm.ask("reload"))["code"] == 0
        probes = (await farm.status())["probes"]
        assert all(p["for_seconds"] < before[p["node"]] for p in probes), "another check now"

    play(tmp_path, scene)


@pytest.mark.long
def test_check_looks_now_and_shows_each_step(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        answer = await farm.ask("check", "mx0")
        (look,) = answer["data"]
        assert look["probe"][:2] == ["mx0", "smtp"]
        assert look["result"]["verdict"] == "ok"
        assert [step for step, _ in look["result"]["steps"]] == ["greeting", "ehlo"]
        assert (await farm.ask("check", "mx0", "nfs"))["code"] == 1
        assert "it has: smtp" in (await farm.ask("check", "mx0", "nfs"))["text"]
        assert (await farm.ask("check", "mx9"))["code"] == 1
        path = farm.directory / "hactl.yaml"
        limits = "type: smtp, limits: {ehlo_seconds: {warn: 0}}"
        path.write_text(path.read_text().replace("type: smtp", limits))
        assert (await farm.ask("reload"))["code"] == 0
        (look,) = (await farm.ask("check", "mx0"))["data"]
        assert (look["result"]["verdict"], look["result"]["step"]) == ("warn", "")
        assert look["result"]["reason"].startswith("ehlo_seconds is ")

    play(tmp_path, scene)


def test_overrides_act_ask_and_end(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        assert (await farm.ask("drain", "mx0", who="me", **{"for": "1h"}))["code"] == 0
        await farm.until(lambda: farm.disabled() == {"1"})
        assert (await farm.ask("drain", "mx7"))["code"] == 1
        assert (await farm.ask("drain", "mx1", **{"for": "soon"}))["code"] == 2
        never = await farm.ask("drain", "mx1", **{"for": "0s"})
        assert (never["code"], "more than 0s, and at most 24855d" in never["text"]) == (2, True)
        emptying = await farm.ask("maint", "mx-smtp")
        assert (emptying["code"], "--yes" in emptying["text"]) == (1, True)
        assert farm.disabled() == {"1"}
        assert (await farm.ask("resume", "mx1"))["code"] == 1
        assert (await farm.ask("resume", "mx0"))["code"] == 0
        await farm.until(lambda: farm.disabled() == set())

    play(tmp_path, scene)


@pytest.mark.long
def test_what_is_sent_to_the_socket_breaks_nothing(tmp_path: Path) -> None:
    async def send(farm: Farm, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(farm.socket)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.readline(), 5)
        finally:
            writer.close()

    async def scene(farm: Farm) -> None:
        for data in (
            b"\n",
            b"status\n",
            b"[]\n",
            b"\xff\xfe\x00\n",
            b'{"verb": 7}\n',
            b'{"verb": "status", "words": "mx0"}\n',
            b'{"verb": "reboot"}\n',
            b'{"verb": "drain", "words": []}\n',
            b"[" * 60000 + b"\n",
            b"x" * 200_000 + b"\n",
        ):
            answer = json.loads(await send(farm, data))
            assert answer["code"] == 2, data[:40]
            assert answer["text"]
        strange = json.loads(await send(farm, b'{"verb": "status", "protocol": 7}\n'))
        assert strange["text"] == "hactl speaks protocol 7, this hactld 1"
        many = [await asyncio.open_unix_connection(farm.socket) for _ in range(70)]
        for _, writer in many:
            writer.close()
        await farm.until(farm.answers)

    play(tmp_path, scene)


def test_the_socket_has_its_mode_and_goes_with_hactld(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        assert farm.socket.stat().st_mode & 0o7777 == 0o660
        assert await farm.stop() == 0
        assert not farm.socket.exists()

    play(tmp_path, scene)


@pytest.mark.long
def test_it_leaves_the_terminal_and_says_first_what_keeps_it_from_running(tmp_path: Path) -> None:
    path = tmp_path / "hactl.yaml"
    text = f"mode: observe\nrun_dir: {tmp_path}/run\nstate_dir: {tmp_path}/state\nuser: root\n"
    run = (sys.executable, "-m", "hactl.daemon.main", "-f", str(path))
    path.write_text(text + "control: {group: no-such-group}\n")
    failed = subprocess.run(run, capture_output=True, text=True, timeout=20, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no-such-group" in failed.stderr
    assert "Traceback" not in failed.stderr
    path.write_text(text)
    ran = subprocess.run(run, capture_output=True, text=True, timeout=20, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(5)
        asked.connect(str(tmp_path / "run" / "hactl.sock"))
        credentials = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = struct.unpack("3i", credentials)[0]
        assert os.getsid(pid) != os.getsid(0)
        os.kill(pid, signal.SIGTERM)
        with suppress(ConnectionResetError):
            assert asked.recv(1) == b""


@pytest.mark.long
def test_a_second_hactld_is_refused(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hactl.daemon.main", "-d"),
            *("-f", str(farm.directory / "hactl.yaml")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(second.communicate(), 20)
        assert (second.returncode, b"another hactld runs" in said) == (1, True)
        assert await farm.answers()

    play(tmp_path, scene)


# What stands behind relayd's words


async def alerts(farm: Farm) -> str:
    return "\n".join((await farm.status())["alerts"])


@pytest.mark.long
def test_a_table_that_is_not_what_relayd_says_is_shown_polled_for_and_told(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        (farm.directory / "pf").write_text("   192.0.2.9\n")

        async def shown() -> bool:
            text = "mx-smtp: pf's table has 192.0.2.9, which relayd does not have in use"
            data = await farm.status()
            return text in data["alerts"] and not data["services"][0]["members"][0]["as_wanted"]

        await farm.until(shown)
        await farm.until(lambda: farm.calls().count("poll") >= 2)
        assert farm.switches() == []
        assert "difference service=mx-smtp host=- state=begins" in farm.log()
        (farm.directory / "pf").unlink()
        await farm.until(farm.settled)
        assert "difference service=mx-smtp host=- state=ends" in farm.log()

    play(tmp_path, scene)


@pytest.mark.long
def test_a_pf_that_cannot_be_read_moves_nothing_and_status_says_so(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        (farm.directory / "pf.mode").write_text("pfctl: /dev/pf: Permission denied\n")

        async def said() -> bool:
            data = await farm.status()
            return "Permission denied" in data["pf"] and data["services"][0]["serving"] == 2

        await farm.until(said)
        assert "pf cannot be read: pfctl" in await alerts(farm)
        assert farm.switches() == []
        assert farm.calls().count("poll") == 0

    play(tmp_path, scene)


def test_source_entries_of_a_removed_host_are_cleared_if_wanted(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        config = farm.directory / "hactl.yaml"
        config.write_text(
            config.read_text().replace("timeout: 300ms}", "timeout: 300ms, clear_sources: true}")
        )
        assert (await farm.ask("reload"))["code"] == 0
        entry = "192.0.2.77 rdr-to 127.0.11.4 ( states 1, connections 0, rate 0.0/0s )\n"
        (farm.directory / "sources").write_text(entry)
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: not (farm.directory / "sources").exists())
        asked = (farm.directory / "pf.calls").read_text().splitlines()
        kills = {call for call in asked if call.startswith(("-k", "-K"))}
        assert kills == {"-K 0.0.0.0/0 -K 127.0.11.4"}

    play(tmp_path, scene)


# Whose disable it is


async def marks(farm: Farm) -> list[str]:
    return [m["mark"] for m in (await farm.status())["services"][0]["members"]]


@pytest.mark.long
def test_a_reboot_makes_every_disable_somebody_elses_and_resume_takes_it_over(
    tmp_path: Path,
) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        farm.nodes["mx0"].set("smtp", Mood.WELL)
        await farm.stop(kill=True)
        (farm.directory / "run" / "owned.json").unlink()  # as a reboot does
        await farm.start()

        async def foreign() -> bool:
            return await marks(farm) == ["foreign", ""]

        await farm.until(foreign)
        assert "this machine was started anew" in farm.log()
        assert farm.switches() == ["host disable 1"]
        assert (await farm.ask("resume", "mx1", foreign="yes"))["code"] == 1
        taken = await farm.ask("resume", "mx0", foreign="yes")
        assert taken["text"] == "mx0: taken over: mx-smtp/127.0.11.4"
        await farm.until(lambda: farm.disabled() == set())

    play(tmp_path, scene)


@pytest.mark.long
def test_either_record_of_a_disable_will_do(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.nodes["mx0"].set("smtp", Mood.HANG)
        await farm.until(lambda: farm.disabled() == {"1"})
        for lost in ("state/hactl.db", "run/owned.json"):
            await farm.stop(kill=True)
            (farm.directory / lost).write_text("")
            await farm.start()

            async def out() -> bool:
                members = (await farm.status())["services"][0]["members"]
                return [(m["mark"], m["want"]) for m in members] == [("", "out"), ("", "in")]

            await farm.until(out)
        assert farm.switches() == ["host disable 1"]

    play(tmp_path, scene)


@pytest.mark.long
def test_a_disable_by_hand_right_after_a_reload_is_not_taken_for_ours(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        assert (await farm.ask("maint", "mx0"))["code"] == 0
        await farm.until(lambda: farm.disabled() == {"1"})
        before = farm.calls().count("show hosts")
        await farm.until(lambda: farm.calls().count("show hosts") > before + 1)
        # a reload forgets the disable, and somebody disables the host before hactld looks:
        # it shows disabled as before, and only the counts tell
        (farm.directory / "checks").write_text("1\n")
        await farm.until(lambda: "reloaded sign=" in farm.log())

        async def foreign() -> bool:
            return await marks(farm) == ["foreign", ""]

        await farm.until(foreign)

    play(tmp_path, scene)


@pytest.mark.long
def test_it_leaves_a_terminal_though_nothing_of_it_is_open(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        await farm.stop()
        file = str(farm.directory / "hactl.yaml")
        command = [sys.executable, "-m", "hactl.daemon.main", "-f", file]
        for closed in ("<&- >&- 2>&-", "<&- >&-"):
            start = await asyncio.create_subprocess_exec(
                "sh", "-c", f'exec "$@" {closed}', "sh", *command
            )
            assert await start.wait() == 0
            every = psutil.process_iter(["cmdline"])
            daemon = next(p for p in every if file in (p.info["cmdline"] or ()))
            try:
                assert (await farm.ask("maint", "mx0"))["code"] == 0
                await farm.until(lambda: farm.disabled() == {"1"})
                again = await asyncio.create_subprocess_exec(*command, "-d", stderr=subprocess.PIPE)
                _, said = await again.communicate()
                assert b"another hactld runs" in said
            finally:
                daemon.terminate()
                daemon.wait(10)

    play(tmp_path, scene)


@pytest.mark.long
def test_no_command_is_under_way_when_relayd_is_left_to_a_reload(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        farm.misbehave("slow")
        assert (await farm.ask("maint", "mx0"))["code"] == 0
        await farm.until(lambda: farm.switches() == ["host disable 1"])
        assert (await farm.ask("relayd-reload", "begin"))["code"] == 0
        assert farm.disabled() == {"1"}  # the id that it had is told of no other host

    play(tmp_path, scene)


@pytest.mark.long
def test_the_counts_are_read_before_the_last_host_that_has_any_is_disabled(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        file = farm.directory / "hactl.yaml"
        file.write_text(file.read_text().replace("grace: 1s", "grace: 1s, floor: closed"))
        assert (await farm.ask("reload"))["code"] == 0
        assert (await farm.ask("maint", "mx0"))["code"] == 0
        await farm.until(lambda: farm.disabled() == {"1"})
        before = farm.calls().count("show hosts")
        await farm.until(lambda: farm.calls().count("show hosts") > before + 1)
        # as above, but the one host whose count tells is disabled before the next look
        (farm.directory / "checks").write_text("1\n")
        farm.nodes["mx1"].set("smtp", Mood.REFUSE)
        await farm.until(lambda: farm.disabled() == {"1", "2"})
        assert await marks(farm) == ["foreign", ""]

    play(tmp_path, scene)
