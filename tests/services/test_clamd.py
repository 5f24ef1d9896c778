"""The clamd check against ClamAV's clamd: well, hung, busy, and with signatures that do not help."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from msgspec import structs

from checks.clamd import Clamd
from hactl.core.health import State
from hactl.core.model import Limit, Verdict
from hactl.core.units import Duration
from tests.services.clamd import VERSION, database, signatures
from tests.services.servers import HOST, Server
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

NO_ANSWER = r"ping: no answer in 1s"


@pytest.fixture(scope="module")
def watch(clamd: Server) -> Iterator[Watch]:
    tcp = clamd.check
    assert isinstance(tcp, Clamd)
    unix = structs.replace(tcp, socket=database(clamd).parent / "run" / "clamd.sock")
    always = structs.replace(tcp, sample=Duration(0.01))
    checks = {"tcp": tcp, "unix": unix, "sample": always}
    with Watch({name: timed(check, 1.0, 1.0, 0.2) for name, check in checks.items()}) as watch:
        yield watch


def test_asks_scans_and_finds_by_either_socket(watch: Watch) -> None:
    for name, health in watch.until(State.UP).items():
        assert health.last is not None
        assert health.last.verdict is Verdict.OK, name
        assert re.fullmatch(rf"ClamAV [0-9.]+, signatures {VERSION}", health.last.reason)
        assert health.last.measures.keys() >= {"queue_items", "threads", "threads_busy"}
    assert watch.after(2, "tcp").last.step == "scan"  # type: ignore[union-attr]
    assert watch.after(2, "sample").last.step == "sample"  # type: ignore[union-attr]


def test_a_hung_clamd_accepts_and_says_nothing(clamd: Server, watch: Watch) -> None:
    endure(
        watch, clamd.frozen([clamd.process]), dict.fromkeys(("tcp", "unix", "sample"), NO_ANSWER)
    )


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """Hold more scans that never get their bytes than threads and queue take."""
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(socket.create_connection((HOST, server.check.port)))
            sock.sendall(b"zINSTREAM\0" + struct.pack(">I", 1000) + b"x")
        yield


def test_a_busy_clamd_is_seen_as_such(clamd: Server, watch: Watch) -> None:
    reason = r"(ping|stats|scan|sample): no answer in 1s"
    endure(watch, busy(clamd), dict.fromkeys(("tcp", "unix", "sample"), reason))


def reload(server: Server) -> None:
    """Have the signatures read again, and wait for it."""
    before = server.log.count("Database correctly reloaded")
    with socket.create_connection((HOST, server.check.port)) as sock:
        sock.sendall(b"zRELOAD\0")
        assert sock.recv(100) == b"RELOADING\0"
    server.await_ready()
    end = time.monotonic() + 20
    while server.log.count("Database correctly reloaded") == before:
        assert time.monotonic() < end, server.log
        server.await_ready()  # it reloads when it is asked something


@contextmanager
def without_sample(server: Server) -> Iterator[None]:
    signatures(database(server), sample=False)
    reload(server)
    try:
        yield
    finally:
        signatures(database(server), sample=True)
        reload(server)


def test_signatures_without_the_sample_are_found_out(clamd: Server, watch: Watch) -> None:
    """The other checks scan the sample once in ten minutes, and so stay up."""
    reason = r"the EICAR sample is not found: stream: OK"
    endure(watch, without_sample(clamd), {"sample": reason}, silent=False)


def test_the_age_of_signatures_has_limits(clamd: Server) -> None:
    limits = {"signatures_age_days": Limit(warn=3.0, clear=2.0)}
    with Watch({"clamd": timed(clamd.check, 0.3, 5.0, limits=limits)}) as watch:
        health = watch.until(State.DEGRADED)["clamd"]
    assert health.last is not None
    assert 4 < health.last.measures["signatures_age_days"] < 6  # it is written in local time
    assert health.reason.startswith("signatures_age_days is ")
