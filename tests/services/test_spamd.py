"""The spamd check against SpamAssassin's spamd: well, hung, busy, and not ready yet."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from checks.spamd import HAM, Spamd
from checks.tcp import Tcp
from hactl.core.health import State
from hactl.core.model import Limit, Verdict
from hactl.core.units import Duration
from tests.services.servers import HOST, Server
from tests.services.spamd import CHILDREN, launch
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


SILENT = {
    "ping": r"ping: no answer in 1s",
    "scan": r"(scan|gtube): no answer in 1s",
    "socket": r"ping: no answer in 1s",
}


@pytest.fixture(scope="module")
def watch(spamd: Server) -> Iterator[Watch]:
    checks = {
        "ping": spamd.check,
        "scan": Spamd(port=spamd.check.port),
        "socket": Spamd(socket=spamd.directory / "spamd.sock", scan=False),
    }
    with Watch({name: timed(check, 1.0, 1.0, 0.2) for name, check in checks.items()}) as watch:
        yield watch


def test_answers_ping(spamd: Server) -> None:
    result = spamd.look(spamd.check)
    assert (result.verdict, result.reason) == (Verdict.OK, "PONG")


def test_scans_and_says_how_long_it_took(spamd: Server) -> None:
    result = spamd.look(Spamd(port=spamd.check.port))
    assert (result.verdict, result.step) == (Verdict.OK, "scan")
    assert 0 < result.measures["scan_seconds"] <= result.measures["total_seconds"]
    assert -5 < result.measures["score"] < 5


def test_our_message_is_no_spam_and_gtube_is(spamd: Server) -> None:
    before = len(spamd.log)
    assert spamd.look(Spamd(port=spamd.check.port)).verdict is Verdict.OK
    assert "identified spam" not in spamd.log[before:]
    always = Spamd(port=spamd.check.port, gtube=Duration(0.01))
    with Watch({"gtube": timed(always, 0.5, 5.0)}) as watch:
        health = watch.until(State.UP)["gtube"]
    assert health.last is not None
    assert (health.last.step, health.last.reason) == ("gtube", "GTUBE is spam")


@pytest.mark.parametrize("who", ["parent", "children"])
def test_a_hung_process_answers_neither_scan_nor_ping(
    spamd: Server, watch: Watch, who: str
) -> None:
    hung = [spamd.process] if who == "parent" else spamd.children("spamd child")
    endure(watch, spamd.frozen(hung), SILENT)


@contextmanager
def busy(server: Server) -> Iterator[None]:
    """Hold a scan that never gets its message for each child."""
    with ExitStack() as stack:
        for _ in range(CHILDREN):
            sock = stack.enter_context(socket.create_connection((HOST, server.check.port)))
            sock.sendall(b"CHECK SPAMC/1.5\r\nContent-length: %d\r\n\r\n" % (len(HAM) + 1000))
        yield


def test_children_that_are_all_busy_answer_neither_scan_nor_ping(
    spamd: Server, watch: Watch
) -> None:
    endure(watch, busy(spamd), SILENT)


def test_a_dead_one_refuses_by_either_socket(spamd: Server, watch: Watch) -> None:
    expected = dict.fromkeys(SILENT, r"connect: connection refused")
    endure(watch, spamd.ended(), expected, silent=False)


def test_a_slow_scan_is_degraded_by_its_limit(spamd: Server) -> None:
    limits = {"scan_seconds": Limit(warn=1e-6)}
    never = Spamd(port=spamd.check.port, gtube=Duration(0))
    with Watch({"scan": timed(never, 0.5, 5.0, limits=limits)}) as watch:
        health = watch.until(State.DEGRADED)["scan"]
    assert health.reason.startswith("scan_seconds is ")


def test_a_spamd_without_its_rules_lets_all_pass_and_is_found_out(directory: Path) -> None:
    """It starts only if there is one at least."""
    rules = directory / "rules"
    rules.mkdir()
    (rules / "one.pre").write_text(
        "loadplugin Mail::SpamAssassin::Plugin::Check\nutil_rb_tld org test\n"
    )
    (rules / "one.cf").write_text("header ONE Subject =~ /one/\nscore ONE 0.1\n")
    (directory / "lax").mkdir()
    server = launch(directory / "lax", Spamd(scan=False), rules=rules)
    try:
        assert server.look(Spamd(port=server.check.port, gtube=Duration(0))).verdict is Verdict.OK
        check = Spamd(port=server.check.port)
        with Watch({"spamd": timed(check, 1.0, 1.0, 0.2)}) as watch:
            since = time.monotonic()
            health = watch.down("spamd", since, silent=False)
        assert health.last is not None
        assert health.last.reason.startswith("GTUBE is no spam (scanned, score ")
    finally:
        server.stop()


def test_a_port_that_is_open_before_the_rules_are_ready_does_not_pass(directory: Path) -> None:
    (directory / "early").mkdir()
    server = launch(directory / "early", ready=Tcp(port=1))
    try:
        assert isinstance(server.check, Tcp)
        scan = Spamd(port=server.check.port)
        result = server.look(scan, 0.3)
        assert (result.verdict, result.reason) == (Verdict.FAIL, "scan: no answer in 300ms")
        server.check = structs.replace(scan, scan=False)
        server.await_ready()
        assert server.look(scan).verdict is Verdict.OK
    finally:
        server.stop()
