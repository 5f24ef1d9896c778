"""A node's hactld, asked by a balancer's and by HAProxy, in both of the ways that HAProxy has."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hactl.agent import keys
from tests.services.servers import PATH, PATIENCE, free_port, need

pytestmark = pytest.mark.service

NODE = """\
mode: observe
user: root
node: mx0
run_dir: {directory}/run
state_dir: {directory}/state
agent: {{listen: 127.0.0.1:{port}, keys: {directory}/keys, haproxy: 127.0.0.1:{line}}}
checks:
  smtp: {{type: tcp, port: {smtp}, interval: 200ms, fall: 2, rise: 2}}
  other: {{type: tcp, port: {port}, interval: 200ms}}
"""

BALANCER = """\
mode: observe
user: root
run_dir: {directory}/run
state_dir: {directory}/state
relayd: {{relayctl: /bin/false, conf: {directory}/relayd.conf}}
agent: {{keys: {directory}/keys}}
nodes: {{mx0: {{address: 127.0.0.1, agent: "https://127.0.0.1:{port}"}}}}
checks: {{smtp: {{from: agent, type: tcp, interval: 300ms, fall: 2, rise: 2}}}}
watch: {{mx0: [smtp]}}
"""

HAPROXY = """\
global
    stats socket {directory}/haproxy.sock level admin
defaults
    mode tcp
    timeout connect 1s
    timeout client 5s
    timeout server 5s
backend line
    server mx0 127.0.0.1:{smtp} check port {port} inter 1s agent-check agent-port {line} agent-inter 1s
backend ready
    option httpchk GET /ready
    server mx0 127.0.0.1:{smtp} check port {port} inter 1s fall 1 rise 1 {tls}
"""


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; end it by its pid."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": PATH},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def hactld(directory: Path, text: str, **values: object) -> list[str]:
    """Write a configuration; return how hactld is run with it."""
    directory.mkdir(exist_ok=True)
    file = directory / "hactl.yaml"
    file.write_text(text.format(directory=directory, **values))
    return [sys.executable, "-m", "hactl.daemon.main", "-d", "-f", str(file)]


def until(true: Callable[[], bool], log: Path) -> None:
    """Wait until it is."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def statistics(directory: Path) -> dict[str, dict[str, str]]:
    """Return what HAProxy says of each backend's server."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(directory / "haproxy.sock"))
            sock.sendall(b"show stat\n")
            text = sock.makefile().read().lstrip("# ")
    except OSError:
        return {}
    return {
        row["pxname"]: row for row in csv.DictReader(text.splitlines()) if row["svname"] == "mx0"
    }


def asked(directory: Path) -> dict[str, Any]:
    """Return hactld's status."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(directory / "run" / "hactl.sock"))
            sock.sendall(b'{"verb": "status"}\n')
            data: dict[str, Any] = json.loads(sock.makefile().readline())["data"]
            return data
    except OSError:
        return {"probes": [], "alerts": []}


def state(directory: Path) -> str:
    return next((probe["state"] for probe in asked(directory)["probes"]), "")


def paired(node: Path, balancer: Path) -> None:
    """Make keys on both sides, and have each trust the other's."""
    for place, name in ((node, "mx0"), (balancer, "lb0")):
        keys.keygen(place / "keys", name)
    keys.trust(node / "keys", keys.own(balancer / "keys")[0])
    keys.trust(balancer / "keys", keys.own(node / "keys")[0])


class Server(socketserver.TCPServer):
    """Takes connections and ends them."""

    allow_reuse_address = True


@contextmanager
def listening(port: int) -> Iterator[None]:
    """Be a server that can be connected to."""
    with Server(("127.0.0.1", port), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_balancer_sees_what_the_agent_saw_and_keeps_it_when_the_agent_dies(
    tmp_path: Path,
) -> None:
    node, balancer, log = tmp_path / "node", tmp_path / "lb", tmp_path / "log"
    paired(node, balancer)
    port, smtp, line = free_port(), free_port(), free_port()
    agent = hactld(node, NODE, port=port, smtp=smtp, line=line)
    with running(hactld(balancer, BALANCER, port=port), log):
        with listening(smtp), running(agent, log) as process:
            until(lambda: state(balancer) == "up", log)
            process.kill()
            process.wait()
            newest = "hung up", "refused", "reset"
            until(
                lambda: any(
                    word in asked(balancer)["probes"][0]["newest_reason"] for word in newest
                ),
                log,
            )
            until(lambda: "agent silent node=mx0" in log.read_text(), log)
            assert state(balancer) == "up"
            assert any("the agent of mx0 is silent for" in a for a in asked(balancer)["alerts"])
        with running(agent, log):
            until(lambda: state(balancer) == "down", log)
            assert "agent answers node=mx0" in log.read_text()
            assert not any("is silent" in alert for alert in asked(balancer)["alerts"])
            with listening(smtp):
                until(lambda: state(balancer) == "up", log)


@pytest.mark.parametrize("secure", [True, False], ids=["https", "http"])
def test_haproxy_follows_the_agents_line_and_ready(tmp_path: Path, secure: bool) -> None:
    need("haproxy")
    node, balancer, log = tmp_path / "node", tmp_path / "lb", tmp_path / "log"
    port, smtp, line = free_port(), free_port(), free_port()
    tls = ""
    if secure:
        paired(node, balancer)
        pair = balancer / "pair.pem"
        pair.write_text("".join(path.read_text() for path in keys.own(balancer / "keys")))
        trusted = balancer / "keys" / "trusted" / "mx0.pem"
        tls = f"check-ssl crt {pair} ca-file {trusted} verify required"
    file = tmp_path / "haproxy.cfg"
    file.write_text(HAPROXY.format(directory=tmp_path, port=port, smtp=smtp, line=line, tls=tls))

    def both(word: str) -> bool:
        rows = statistics(tmp_path)
        return len(rows) == 2 and all(row["status"].startswith(word) for row in rows.values())

    agent = hactld(node, NODE, port=port, smtp=smtp, line=line)
    with running(agent, log), running(["haproxy", "-db", "-f", str(file)], log):
        with listening(smtp):
            until(
                lambda: both("UP") and statistics(tmp_path)["line"]["agent_status"] == "L7OK", log
            )
        until(lambda: both("DOWN"), log)
        rows = statistics(tmp_path)
        assert "smtp: connect: connection refused" in rows["line"]["last_agt"]
        assert rows["ready"]["check_code"] == "503"
        with listening(smtp):
            until(lambda: both("UP"), log)
