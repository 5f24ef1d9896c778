"""The benches run, end by themselves and say what they found in JSON; figures are not judged here."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
PROGRAMS = (
    "agent",
    "cluster",
    "cost",
    "detect",
    "farm",
    "harm",
    "hook",
    "peers",
    "scale",
    "types",
    "whole",
)


def run(script: str, *arguments: str) -> str:
    """Run a bench; return what it prints."""
    command = [sys.executable, str(BENCH / f"{script}.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def found(script: str, *arguments: str) -> Any:
    """Run a bench; return its JSON."""
    return json.loads(run(script, *arguments, "--json"))


@pytest.mark.long
@pytest.mark.parametrize("script", PROGRAMS)
def test_each_bench_explains_itself(script: str) -> None:
    text = run(script, "--help")
    assert "--json" in text
    assert (BENCH / f"{script}.py").read_text().startswith('"""')


def test_the_modules_of_the_standard_library_are_not_hidden_by_ours() -> None:
    # without site nothing has imported `types` before the script does
    command = [sys.executable, "-S", str(BENCH / "farm.py"), "--seconds", "0.1", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.service
def test_cost_counts_the_looks_of_a_real_hactld() -> None:
    data = found("cost", "--targets", "4", "--seconds", "2", "--peers", "hactl")
    assert data["ratio_to_haproxy"] is None
    (row,) = data["rows"]
    assert row["moves"] == 0
    assert row["whole"] == pytest.approx(1, abs=0.2)
    assert row["us"] > 0


def test_a_ratio_takes_only_rounds_that_both_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    cost = importlib.import_module("cost")
    rows = [
        {"peer": peer, "round": number, "us": us, "dropped": dropped}
        for peer, number, us, dropped in (
            ("hactl", 0, 100.0, False), ("haproxy", 0, 200.0, False),
            ("hactl", 1, 900.0, True), ("haproxy", 1, 100.0, False),
            ("hactl", 2, 300.0, False), ("haproxy", 2, 200.0, False),
        )
    ]  # fmt: skip
    assert cost.ratio(rows, "haproxy") == 1.0
    assert cost.ratio(rows, "monit") is None


def test_the_hook_is_compared_with_other_programs() -> None:
    data = found("hook", "--hosts", "2", "--rounds", "2")
    names = [row["program"] for row in data["rows"]]
    assert data["dropped"] == 2 or names[:2] == ["empty", "hactl-verdict"]
    assert all(row["wall_ms"] > 0 and row["cpu_ratio"] > 0 for row in data["rows"])


@pytest.mark.service
def test_a_dead_target_is_seen_from_the_fault_to_pf() -> None:
    data = found("detect", "--faults", "dead", "--repetitions", "1")
    (row,) = data["rows"]
    assert row["missed"]["pf"] == 0
    assert row["removed_wrongly"] == 0
    steps = row["steps"]
    assert 0 < steps["decision_to_started"]["median"] < steps["decision_to_acted"]["median"]
    assert row["seconds"]["decision"]["median"] < row["seconds"]["pf"]["median"]


@pytest.mark.service
def test_scale_asks_for_the_status_meanwhile() -> None:
    data = found("scale", "--probes", "20", "--seconds", "1")
    (row,) = data["rows"]
    assert row["probes"] == 20
    assert row["status_ms"]["median"] > 0
    assert row["moves"] == 0
    assert data["status"]["ratio"] > 1


@pytest.mark.long
def test_what_an_agents_answer_costs_both_sides() -> None:
    data = found("agent", "--answers", "5", "--rounds", "1")
    assert [row["side"] for row in data["rows"]] == ["balancer", "agent"]
    assert all(row["us"] > 0 for row in data["rows"])


@pytest.mark.long
def test_every_type_of_check_succeeds_against_the_fake_servers() -> None:
    data = found("types", "--seconds", "0.1")
    names = {row["check"].partition(",")[0] for row in data["rows"]}
    assert {"tcp", "banner", "smtp", "spamd", "tls", "mysql", "replication", "nfs_rpc"} <= names


def test_a_peer_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers, "PATH", "")
    assert "monit is not installed: apt-get install monit" in peers.missing()


def test_the_farm_breaks_as_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    module = importlib.import_module("farm")
    farm = module.Farm(2)
    try:
        where = (module.address(1), farm.port)
        with socket.create_connection(where, 5) as session:
            assert session.recv(100).startswith(b"220 ")
            session.sendall(b"EHLO x\r\nQUIT\r\n")
            farm_said = session.makefile("rb").read()
        assert farm_said.splitlines()[-1] == b"221 bye"
        farm.fault([1], "421")
        with socket.create_connection(where, 5) as session:
            assert session.recv(100).startswith(b"421 ")
        farm.fault([1], "well")
        with socket.create_connection(where, 5) as session:
            assert session.recv(100)
            farm.fault([1], "dead")
            with pytest.raises(ConnectionResetError):
                session.recv(100)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, 5)
        farm.fault([1], "silent")
        with socket.create_connection(where, 5) as session:
            session.settimeout(0.2)
            with pytest.raises(TimeoutError):
                session.recv(100)
        count = farm.count_up()
        assert (count["hellos"], count["quits"], count["seen"]) == (1, 1, 1)
    finally:
        farm.stop()
