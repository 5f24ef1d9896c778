"""The smtp check against OpenSMTPD: well, and with one of its processes hung."""

from __future__ import annotations

import re
import subprocess

import pytest
from msgspec import structs

from checks.smtp import Smtp
from checks.tcp import Tcp
from hactl.core.model import Result, Verdict
from tests.services.servers import PATIENCE, Server

pytestmark = pytest.mark.service

NAME = "mx0.example.org ESMTP OpenSMTPD"
SHORT = 0.5


def summary(result: Result) -> tuple[Verdict, str, str]:
    return result.verdict, result.step, result.reason


def smtpctl(server: Server, *words: str) -> None:
    """Run smtpctl where the server's socket is."""
    command = ["nsenter", "--target", str(server.process.pid), "--mount", "smtpctl", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


@pytest.mark.parametrize("depth", ["greeting", "ehlo", "mail", "rcpt"])
def test_passes_at_each_depth(opensmtpd: Server, depth: str) -> None:
    check = structs.replace(opensmtpd.check, depth=depth)
    assert summary(opensmtpd.look(check)) == (Verdict.OK, depth, NAME)


def test_a_refused_recipient_is_named(opensmtpd: Server) -> None:
    check = structs.replace(opensmtpd.check, mail_to="probe@elsewhere.invalid")
    result = opensmtpd.look(check)
    assert (result.verdict, result.step) == (Verdict.FAIL, "rcpt")
    assert result.reason.startswith("RCPT 550 ")


def test_the_session_ends_in_order_for_the_server(opensmtpd: Server) -> None:
    before = len(opensmtpd.log)
    assert opensmtpd.look(opensmtpd.check).verdict is Verdict.OK
    opensmtpd.await_ready()  # a second session, so that the first one's end is written
    reasons = re.findall(r"disconnected reason=(\S+)", opensmtpd.log[before:])
    assert set(reasons) == {"quit"}


def test_a_paused_server_accepts_and_never_greets(opensmtpd: Server) -> None:
    port = opensmtpd.check.port
    smtpctl(opensmtpd, "pause", "smtp")
    try:
        assert summary(opensmtpd.look(Tcp(port=port), SHORT))[0] is Verdict.OK
        assert summary(opensmtpd.look(Smtp(port=port), SHORT)) == (
            Verdict.FAIL,
            "greeting",
            "greeting: no answer in 500ms",
        )
    finally:
        smtpctl(opensmtpd, "resume", "smtp")
    opensmtpd.await_ready()


@pytest.mark.parametrize(
    ("titles", "step"),
    [
        (("smtpd: dispatcher", "smtpd: pony express"), "greeting"),  # pony express up to 6.8
        (("smtpd: lookup",), "greeting"),
        (("smtpd: queue",), "mail"),
    ],
)
def test_a_hung_process_shows_at_its_step(
    opensmtpd: Server, titles: tuple[str, ...], step: str
) -> None:
    with opensmtpd.frozen(opensmtpd.children(*titles)):
        assert opensmtpd.look(Tcp(port=opensmtpd.check.port), SHORT).verdict is Verdict.OK
        assert summary(opensmtpd.look(opensmtpd.check, SHORT)) == (
            Verdict.FAIL,
            step,
            f"{step}: no answer in 500ms",
        )
    assert summary(opensmtpd.look(opensmtpd.check)) == (Verdict.OK, "rcpt", NAME)
