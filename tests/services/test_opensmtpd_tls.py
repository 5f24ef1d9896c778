"""The smtp and tls checks against OpenSMTPD: STARTTLS, implicit TLS, logins, bad certificates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from checks.smtp import Smtp
from checks.tls import Tls
from hactl.core.model import Verdict
from tests.services import opensmtpd
from tests.services.opensmtpd import Certified, Mail
from tests.services.servers import HOST, free_port, speaks_tls
from tests.services.test_opensmtpd import NAME, SHORT, summary
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

GOOD = "mx0.example.org"


def starttls(mail: Mail) -> Smtp:
    return Smtp(port=mail.ports["starttls"], tls="starttls", name=GOOD, ca=mail.ca)


def smtps(mail: Mail) -> Smtp:
    return Smtp(port=mail.ports["smtps"], tls="implicit", name=GOOD, ca=mail.ca)


def submission(mail: Mail) -> Smtp:
    return structs.replace(starttls(mail), port=mail.ports["submission"], login=mail.login)


def test_a_server_that_greets_and_has_no_tls_is_seen_as_such(installed: Mail) -> None:
    """OpenSMTPD 6.8, as Debian 12 has it, cannot sign; a newer one is well."""
    assert installed.server.look(installed.server.check).verdict is Verdict.OK
    for check in (starttls(installed), smtps(installed)):
        result = installed.server.look(check)
        if speaks_tls():
            assert result.verdict is Verdict.OK
        else:
            why = "tls: the node sent an alert: internal error"
            assert summary(result) == (Verdict.FAIL, "tls", why)


def test_passes_under_tls(mail: Mail) -> None:
    assert summary(mail.server.look(starttls(mail))) == (Verdict.OK, "ehlo_tls", NAME)
    assert summary(mail.server.look(smtps(mail))) == (Verdict.OK, "ehlo", NAME)
    implicit = Tls(port=mail.ports["smtps"], name=GOOD, ca=mail.ca)
    asked = Tls(port=mail.ports["starttls"], starttls="smtp", name=GOOD, ca=mail.ca)
    for check in (implicit, asked):
        result = mail.server.look(check)
        assert summary(result) == (Verdict.OK, "tls", "TLSv1.3, certificate ends in 42 days")
        assert result.measures["left_days"] == pytest.approx(42.5, abs=0.1)


@pytest.mark.parametrize(
    ("port", "why"),
    [
        ("expired", "certificate expired 3 days ago, fine but for the date"),
        ("other", f"certificate is for mx1.example.org, not {GOOD}"),
    ],
)
def test_a_bad_certificate_is_told_exactly(mail: Mail, port: str, why: str) -> None:
    for check in (smtps(mail), Tls(port=1, name=GOOD, ca=mail.ca)):
        result = mail.server.look(structs.replace(check, port=mail.ports[port]))
        assert summary(result) == (Verdict.FAIL, "tls", f"tls: {why}")
        assert "left_days" in result.measures


CERTIFIED = """\
{pki}
listen on {host} port {port} smtps pki good hostname mx0.example.org
action "relay" relay
match auth from any for any action "relay"
"""


@pytest.fixture(scope="module")
def certified(directory: Path) -> Iterator[tuple[Certified, Smtp]]:
    """Run an OpenSMTPD whose certificate can be changed, and say how to look at it."""
    home = directory / "certified"
    home.mkdir()
    ca = opensmtpd.certificates(home)
    check = Smtp(port=free_port(), tls="implicit", name=GOOD, ca=ca)
    pki = opensmtpd.PKI.format(name="good", directory=home)
    conf = CERTIFIED.format(pki=pki, host=HOST, port=check.port)
    smtpd = Certified(home, conf, structs.replace(check, verify=False, ca=None))
    yield smtpd, check
    smtpd.server.stop()


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ("expired", r"tls: certificate expired 3 days ago, fine but for the date"),
        ("other", rf"tls: certificate is for mx1\.example\.org, not {re.escape(GOOD)}"),
    ],
)
def test_a_bad_certificate_is_found_out_in_time(
    certified: tuple[Certified, Smtp], pair: str, reason: str
) -> None:
    """smtpd reads its certificates when it starts: so it was started with a bad one."""
    smtpd, check = certified
    tls = Tls(port=check.port, name=GOOD, ca=check.ca)
    checks = {"smtp": timed(check, 1.0, 1.0), "tls": timed(tls, 1.0, 1.0)}
    with Watch(checks) as watch:
        endure(watch, smtpd.by(pair), dict.fromkeys(checks, reason), silent=False)


def test_logs_in(mail: Mail) -> None:
    assert summary(mail.server.look(submission(mail))) == (Verdict.OK, "auth", NAME)


def test_a_wrong_password_is_a_refused_login(mail: Mail) -> None:
    result = mail.server.look(structs.replace(submission(mail), login=mail.wrong))
    assert (result.verdict, result.step) == (Verdict.FAIL, "auth")
    assert result.reason.startswith("login refused (535 ")


def test_sessions_end_in_order_for_the_server(mail: Mail) -> None:
    before = len(mail.server.log)
    for check in (starttls(mail), smtps(mail), submission(mail)):
        assert mail.server.look(check).verdict is Verdict.OK
    mail.server.await_ready()  # a session more, so that the end of the others is written
    assert mail.server.log[before:].count("disconnected reason=quit") >= 3


def test_a_hung_keeper_of_the_keys_shows_in_the_handshake(mail: Mail) -> None:
    with mail.server.frozen(mail.server.children("smtpd: crypto")):
        assert mail.server.look(mail.server.check, SHORT).verdict is Verdict.OK
        why = "tls: no answer in 500ms"
        for check in (starttls(mail), smtps(mail)):
            assert summary(mail.server.look(check, SHORT)) == (Verdict.FAIL, "tls", why)
    assert summary(mail.server.look(smtps(mail))) == (Verdict.OK, "ehlo", NAME)
