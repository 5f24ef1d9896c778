"""The spamd check against SpamAssassin's spamd: well, and hung."""

from __future__ import annotations

import pytest

from checks.spamd import Spamd
from hactl.core.model import Verdict
from tests.services.servers import Server

pytestmark = pytest.mark.service

SHORT = 0.5


def scan(server: Server) -> Spamd:
    return Spamd(port=server.check.port)


def test_answers_ping(spamd: Server) -> None:
    result = spamd.look(spamd.check)
    assert (result.verdict, result.reason) == (Verdict.OK, "PONG")


def test_scans_and_says_how_long_it_took(spamd: Server) -> None:
    result = spamd.look(scan(spamd))
    assert (result.verdict, result.step) == (Verdict.OK, "scan")
    assert 0 < result.measures["scan_seconds"] <= result.measures["total_seconds"]


def test_our_message_is_no_spam(spamd: Server) -> None:
    assert spamd.look(scan(spamd)).verdict is Verdict.OK
    assert "identified spam" not in spamd.log


@pytest.mark.parametrize("who", ["parent", "child"])
def test_a_hung_process_answers_neither_scan_nor_ping(spamd: Server, who: str) -> None:
    hung = [spamd.process] if who == "parent" else spamd.children("spamd child")
    with spamd.frozen(hung):
        result = spamd.look(scan(spamd), SHORT)
        assert (result.verdict, result.reason) == (Verdict.FAIL, "scan: no answer in 500ms")
        result = spamd.look(spamd.check, SHORT)
        assert (result.verdict, result.reason) == (Verdict.FAIL, "ping: no answer in 500ms")
    assert spamd.look(scan(spamd)).verdict is Verdict.OK
