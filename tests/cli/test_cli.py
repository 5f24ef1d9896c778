"""hactl as operators type it: what it prints, and the exit codes that scripts rely on."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hactl.cli.ask import Reply
from hactl.cli.status import Status, nagios_line
from hactl.lab.nodes import Mood
from hactl.show import Progress, safe, table
from tests.daemon.farm import Farm
from tests.daemon.test_daemon import play

HACTL = "from hactl.cli.main import main; main()"
# As another user, who may not be able to read the interpreter's other files any more.
NOBODY = """
import os, sys
from hactl.cli.ask import AskError, ask
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    ask(sys.argv[1], "status")
except AskError as error:
    sys.exit(f"{error}")
"""


class Ran(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


async def hactl(*words: str, program: str = HACTL, **environment: str) -> Ran:
    """Run hactl in a process of its own, without a terminal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *words),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    assert b"Traceback" not in err
    return Ran(process.returncode, out.decode(), err.decode())


@pytest.mark.long
def test_a_day_of_an_operator(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        at = ("-s", str(farm.socket))
        well = await hactl("status", *at)
        assert well.code == 0
        head, *rows = well.out.splitlines()
        assert head.split() == [
            "SERVICE",
            "TABLE",
            "NODE",
            "STATE",
            "FOR",
            "WANT",
            "CHECKS",
            "REASON",
        ]
        assert [row.split()[:4] for row in rows] == [
            ["mx-smtp", "mx:25", "mx0", "up"],
            ["mx-smtp", "mx:25", "mx1", "up"],
        ]
        assert (await hactl("status", "mx9", *at)).code == 1
        data = json.loads((await hactl("status", "mx0", "--json", *at)).out)
        assert [m["node"] for s in data["services"] for m in s["members"]] == ["mx0"]

        drained = await hactl("drain", "mx0", "--for", "1h", "--reason", "upgrade", *at)
        assert drained == Ran(0, "mx0: drain for 1h\n", "")
        await farm.until(lambda: farm.disabled() == {"1"})
        page = await hactl("status", *at)
        assert page.code == 0, "an override is wanted"
        assert "drain!" in page.out
        assert "upgrade" in page.out
        told = await hactl("explain", "mx-smtp/mx0", *at)
        assert told.code == 0
        assert told.out.startswith("mx-smtp/mx0: disabled in relayd, wanted out\n")
        refused = await hactl("maint", "mx1", *at)
        assert (refused.code, "--yes" in refused.err) == (0, False), "mx0 is drained, not gone"
        assert (await hactl("resume", "mx1", *at)).code == 0
        assert (await hactl("resume", "mx0", *at)).out == "mx0: resumed\n"
        assert (await hactl("resume", "mx0", *at)).code == 1
        emptied = await hactl("maint", "mx-smtp", *at)
        assert (emptied.code, "say --yes" in emptied.err) == (1, True)

        await farm.until(lambda: farm.disabled() == set())
        await farm.until(farm.settled)
        farm.nodes["mx1"].set("smtp", Mood.SAY421)
        await farm.until(lambda: farm.disabled() == {"2"})
        sick = await hactl("status", *at)
        assert (sick.code, "421" in sick.out) == (1, True)
        look = await hactl("check", "mx1", "smtp", *at)
        assert (look.code, "stopped here" in look.out) == (1, True)
        plugin = await hactl("check", "mx1", "--nagios", *at)
        assert (plugin.code, plugin.out[:9]) == (2, "CRITICAL:")
        assert (await hactl("check", "mx0", "--nagios", *at)).out.startswith("OK: smtp ok")
        assert (await hactl("explain", "nobody", *at)).code == 1

        farm.misbehave("gone")

        async def gone() -> bool:
            return (await hactl("status", *at)).code == 3

        await farm.until(gone)
        assert "! relayd cannot be read" in (await hactl("status", *at)).out
        assert (await hactl("explain", "mx0", *at)).code == 3
        farm.misbehave("no")
        (farm.directory / "hactl.yaml").write_text("mode: loud\n")
        reloaded = await hactl("reload", *at)
        assert (reloaded.code, "hactl.yaml:1:7: mode" in reloaded.err) == (1, True)
        if os.getuid() == 0:
            for parent in (farm.directory, *farm.directory.parents):
                if parent.is_relative_to(tmp_path.parents[2]) and parent != tmp_path.parents[2]:
                    parent.chmod(0o755)
            denied = await hactl(str(farm.socket), program=NOBODY)
            assert (denied.code, "permission denied" in denied.err) == (1, True)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    "words", [("status",), ("explain", "mx0"), ("check", "mx0"), ("drain", "mx0"), ("reload",)]
)
def test_without_hactld_every_command_says_so(tmp_path: Path, words: tuple[str, ...]) -> None:
    ran = asyncio.run(hactl(*words, HACTL_SOCKET=str(tmp_path / "none.sock")))
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.startswith("hactl: hactld does not run")


def test_a_plugin_without_hactld_is_unknown_on_standard_output(tmp_path: Path) -> None:
    ran = asyncio.run(hactl("check", "mx0", "--nagios", "-s", str(tmp_path / "none")))
    assert (ran.code, ran.out[:8], ran.err) == (3, "UNKNOWN:", "")


@pytest.mark.parametrize("answer", [b"", b"hello\n", b"{}\n", b"[1]\n", b'{"protocol": 9}\n'])
def test_a_stranger_on_the_socket_is_told_from_hactld(tmp_path: Path, answer: bytes) -> None:
    async def scene() -> Ran:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(answer)
            writer.close()

        path = tmp_path / "s"
        async with await asyncio.start_unix_server(serve, path):
            return await hactl("status", "-s", str(path))

    ran = asyncio.run(scene())
    assert ran.code == 3
    assert "what answered is not hactld" in ran.err


@pytest.mark.parametrize(
    "words", [("statsu",), ("drain",), ("status", "--colour"), ("lab", "relayd"), ("config",)]
)
def test_wrong_usage_ends_with_2(words: tuple[str, ...]) -> None:
    assert asyncio.run(hactl(*words)).code == 2


@pytest.mark.long
def test_config_show_and_schema(tmp_path: Path) -> None:
    path = tmp_path / "hactl.yaml"
    path.write_text("mode: observe\nnodes: {mx0: 127.0.0.4}\n")
    shown = asyncio.run(hactl("config", "show", "-f", str(path)))
    assert (shown.code, "timeout: 5s" in shown.out) == (0, True)
    path.write_text("mode: observe\nnods: {}\n")
    wrong = asyncio.run(hactl("config", "show", "-f", str(path)))
    assert (wrong.code, 'did you mean "nodes"' in wrong.err) == (1, True)
    assert json.loads(asyncio.run(hactl("config", "schema")).out)["type"] == "object"


async def hactld(*words: str) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hactl.daemon.main", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@pytest.mark.long
def test_hactld_n_checks_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "hactl.yaml"
    path.write_text("mode: observe\n")
    assert asyncio.run(hactld("-n", "-f", str(path))) == Ran(0, "", "configuration OK\n")
    path.write_text("mode: observe\nmode: observe\n")
    ran = asyncio.run(hactld("-n", "-f", str(path)))
    assert (ran.code, f"{path}:2:1:" in ran.err) == (1, True)
    missing = asyncio.run(hactld("-n", "-f", str(tmp_path / "none.yaml")))
    assert (missing.code, "No such file" in missing.err) == (1, True)


def test_what_a_node_says_cannot_command_the_terminal() -> None:
    assert safe("220 \x1b[2J\u202e\x07mx") == "220 \\x1b[2J\\u202e\\x07mx"
    lines = table(("NODE", "REASON"), [("mx0", "a\nb\tc")])
    assert lines[1] == "mx0   a\\nb\\tc"


@pytest.mark.long
def test_what_a_node_says_is_escaped_wherever_it_is_shown(tmp_path: Path) -> None:
    async def scene(farm: Farm) -> None:
        at = ("-s", str(farm.socket))
        farm.nodes["mx0"].set("smtp", Mood.LIE)
        await farm.until(lambda: farm.disabled() == {"1"})
        for words in (
            ("status",),
            ("status", "--json"),
            ("explain", "mx0"),
            ("check", "mx0"),
            ("check", "mx0", "--json"),
            ("check", "mx0", "--nagios"),
        ):
            out = (await hactl(*words, *at)).out
            assert "owned" in out, words
            assert out.replace("\n", "").isascii(), words
            assert out.replace("\n", "").isprintable(), words
        log = farm.log().replace("\n", "")
        assert "owned" in log
        assert (log.isascii(), log.isprintable()) == (True, True)

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("used", "capped", "line"),
    [
        (7, 0, None),
        (8, 0, "! 8 of at most 10 sockets are open"),
        (2, 3, "! 2 of at most 10 sockets are open; 3 times there was none left"),
    ],
)
def test_sockets_are_shown_when_they_become_scarce(
    used: int, capped: int, line: str | None
) -> None:
    counts = {"open": used, "cap": 10, "capped": capped}
    data = {"relayd": "", "services": [], "probes": [], "overrides": [], "alerts": []}
    assert [*Status({**data, "counts": counts}, None).lines()][1:] == (["", line] if line else [])


def test_status_without_services_is_as_its_probes_are() -> None:
    probe = {"node": "vip", "check": "smtp", "address": "127.0.0.1", "state": "up"}
    data = {"relayd": "", "services": [], "probes": [probe], "overrides": [], "alerts": []}
    assert Status(data, None).code == 0
    assert Status(data, "vip").code == 0
    assert Status(data, "mx0").code == 1
    probe["state"] = "down"
    assert Status(data, "vip").code == 1


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [(["ok"], 0), (["ok", "warn"], 1), (["unknown", "ok"], 3), (["unknown", "fail"], 2)],
)
def test_nagios_takes_the_gravest(verdicts: list[str], code: int) -> None:
    looks = [
        {"probe": ["mx0", f"c{n}"], "started": 0, "ended": 0.5,
         "result": {"verdict": verdict, "reason": "why"}}
        for n, verdict in enumerate(verdicts)
    ]  # fmt: skip
    line, found = nagios_line(Reply(0, "", looks))
    assert found == code
    assert line.endswith("c0=0.5000s" if len(verdicts) == 1 else "c1=0.5000s")


def test_no_word_of_a_server_becomes_a_figure() -> None:
    looks = [{"probe": ["mx0", "smtp", ""], "started": 0.0, "ended": 0.1,
              "result": {"verdict": "fail", "reason": "421 busy | smtp=0.0001s"}}]  # fmt: skip
    line, _ = nagios_line(Reply(0, "", looks))
    assert line.split(" | ")[1:] == ["smtp=0.1000s"]


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [(">/dev/full", 3, b"hactl: standard output: No space left on device\n"), (">&-", 0, b"")],
)
def test_an_output_that_cannot_be_written_is_told(output: str, code: int, said: bytes) -> None:
    command = ["sh", "-c", f'exec "$0" -c "$1" config schema {output}', sys.executable, HACTL]
    ended = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert (ended.returncode, ended.stderr) == (code, said)


@pytest.mark.parametrize("words", [("freeze", "--for", ""), ("drain", "mx0", "--for", " ")])
def test_an_empty_span_is_not_taken_for_one_without_an_end(words: tuple[str, ...]) -> None:
    ran = asyncio.run(hactl(*words))
    assert ran.code == 2
    assert "expected a span such as 30m, got nothing" in ran.err


def test_nagios_is_unknown_when_hactld_says_no() -> None:
    assert nagios_line(Reply(1, "no node 'x'", None)) == ("UNKNOWN: no node 'x'", 3)


def test_a_socket_file_that_nobody_serves_is_hactld_gone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert asyncio.run(hactl("status", "-s", str(path))).code == 3


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_only_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    for stream in (Terminal(), io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        line = Progress(after=0)
        line.show(0.5, "schedules and more of them")
        line.show(0.6, "too soon to be shown")
        line.clear()
        bar = "[##########..........] schedu" if isinstance(stream, Terminal) else ""
        shown = f"\r{bar}\x1b[K\r\x1b[K" if bar else ""
        assert (stream.getvalue() if stream is not None else "") == shown
        assert len(bar) < 30
