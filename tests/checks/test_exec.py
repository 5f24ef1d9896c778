"""The exec check: how exit code, first line and figures are read, and what a program cannot do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from checks import Target
from checks._process import Ended
from checks._tasks import look
from checks.exec import Exec, measures
from hactl.core.model import Result, Verdict
from tests.checks.peers import LONG, SHORT, summary

MX0 = Target("mx0", "192.0.2.1")
SH = "/bin/sh"


def run(*command: str, limit: float = LONG, invert: bool = False) -> Result:
    return asyncio.run(look(Exec(command=command, invert=invert), MX0, limit))


@pytest.mark.parametrize(
    ("code", "out", "err", "verdict", "reason"),
    [
        (0, b"OK - fine|time=0.1s\n", b"", "ok", "OK - fine"),
        (1, b"WARNING - slow\nlong text\n", b"", "warn", "WARNING - slow"),
        (2, b"CRITICAL - dead", b"", "fail", "CRITICAL - dead"),
        (3, b"UNKNOWN - usage\n", b"", "unknown", "UNKNOWN - usage"),
        (4, b"what?\n", b"", "unknown", "run: exit 4: what?"),
        (127, b"", b"", "unknown", "run: exit 127"),
        (-9, b"OK\n", b"", "unknown", "run: ended by signal 9"),
        (2, b"", b"Traceback\nmore\n", "fail", "Traceback"),
        (2, b"", b"", "fail", "exit 2"),
        (0, b"\x1b[2J\xff\n", b"", "ok", r"\x1b[2J\xff"),
    ],
)
def test_judges_what_a_plugin_says(
    code: int, out: bytes, err: bytes, verdict: str, reason: str
) -> None:
    result = Exec(command=(SH,)).judge(Ended(code, out, err))
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)


@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "fail"), (1, "ok"), (2, "ok"), (255, "ok"), (-11, "unknown")]
)
def test_a_script_of_relayd_says_it_the_other_way_round(code: int, verdict: str) -> None:
    assert Exec(command=(SH,), invert=True).judge(Ended(code, b"", b"")).verdict == verdict


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (b"time=2.5s;5;10;0", {"time_seconds": 2.5}),
        (b"'scan time'=250ms rta=1500us", {"scan_time_seconds": 0.25, "rta_seconds": 0.0015}),
        (b"size=3KB used=40% hits=7c users=-3", {
            "size_bytes": 3072, "used_percent": 40, "hits_count": 7, "users": -3}),
        (b"time_seconds=1s", {"time_seconds": 1}),
        (b"'it''s'=1 a=U b= =3 c=1x d=1e3 e=1e999 /=5MB 'open=2 f=4", {
            "it_s": 1, "d": 1000, "value_bytes": 5 << 20, "open": 2, "f": 4}),
        (b"\xff\x00=1 " + b"=" * 5000, {"value": 1}),
        (b"x" * 5000 + b"=1s", {"x" * 64 + "_seconds": 1}),
        (b"", {}),
    ],
)  # fmt: skip
def test_figures_become_measures_with_their_units(
    figures: bytes, expected: dict[str, float]
) -> None:
    assert dict(measures(figures)) == pytest.approx(expected)


def test_figures_on_later_lines_count_too_and_there_is_an_end_to_them() -> None:
    out = b"OK|a=1\nlong text\nmore|b=2\nc=3\n"
    assert Exec(command=(SH,)).judge(Ended(0, out, b"")).measures == {"a": 1, "b": 2, "c": 3}
    assert len(dict(measures(b" ".join(b"x%d=1" % n for n in range(5000))))) == 100


def test_runs_a_script_and_says_who_is_meant(tmp_path: Path) -> None:
    script = tmp_path / "plugin"
    script.write_text('#!/bin/sh\necho "$1 $2|words=$#"\nexit 1\n')
    script.chmod(0o755)
    result = run(str(script), "{node}:{address}", "$(id); {4,}")
    assert summary(result) == (Verdict.WARN, "run", "mx0:192.0.2.1 $(id); {4,}")
    assert result.measures["words"] == 2
    assert [name for name, _ in result.steps] == ["run"]


def test_a_plugin_that_hangs_is_silence() -> None:
    result = run(SH, "-c", "trap '' TERM; echo OK; sleep 600 & sleep 600", limit=SHORT)
    assert summary(result) == (Verdict.FAIL, "run", "run: no answer in 100ms")


def test_a_plugin_that_says_too_much_says_nothing() -> None:
    result = run(SH, "-c", "yes")
    assert summary(result) == (Verdict.UNKNOWN, "run", "run: more than 16 MiB of output")


def test_what_cannot_be_run_says_nothing_of_the_node(tmp_path: Path) -> None:
    script = tmp_path / "plugin"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    result = run(str(script))
    assert summary(result) == (Verdict.UNKNOWN, "run", "run: no such file or directory")


def test_what_is_no_command_is_said_at_load(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o644)
    assert list(Exec(command=(SH, "{node}", "{", "{4}")).problems()) == []
    for command, why in (
        ((), "expected an absolute path and its arguments"),
        (("check_smtp",), "expected an absolute path and its arguments"),
        ((f"{file}.no",), f"there is no {file}.no"),
        ((str(file),), f"{file} is no program"),
        ((str(tmp_path),), f"{tmp_path} is no program"),
        ((SH, "{adress}"), "{adress} means nothing here; there are {address} and {node}"),
    ):
        assert list(Exec(command=command).problems()) == [("command", why)]
    assert os.access(SH, os.X_OK)
