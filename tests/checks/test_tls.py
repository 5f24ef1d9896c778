from __future__ import annotations

import ast
import asyncio
import ssl
from pathlib import Path

import pytest

from checks import Spoken, _tls
from checks._tls import Certificate, Policy
from checks.smtp import Smtp
from checks.tls import Tls
from hactl import config
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration
from tests.checks.peers import GREETING, SESSION, hang, look, says, summary, upgrades
from tests.checks.pki import NAME, Pki

ROOT = Path(__file__).parents[2]
DAY = 86400.0


def left(result: Result) -> float:
    """Return days until the certificate expires, to a tenth of a day."""
    return round(result.measures["left_days"], 1)


# The handshake


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_a_good_certificate_passes_with_the_days_it_has_left(
    pki: Pki, host: str, version: str
) -> None:
    server = pki.server()
    server.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    result = look(Tls(port=1, ca=pki.ca), hang, host=host, tls=server)
    assert summary(result) == (Verdict.OK, "tls", f"{version}, certificate ends in 42 days")
    assert (left(result), [step for step, _ in result.steps]) == (42.5, ["connect", "tls"])
    assert list(result.measures) == [
        "connect_seconds", "tls_seconds", "left_days", "total_seconds",
    ]  # fmt: skip


def test_the_name_can_be_an_address_or_a_wildcard(pki: Pki) -> None:
    for name, certified in (("127.0.0.1", "127.0.0.1"), ("a.example.org", "*.example.org")):
        check = Tls(port=1, ca=pki.ca, name=name)
        assert look(check, hang, tls=pki.server(certified)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("names", "begins", "ends", "why", "days"),
    [
        ((NAME,), -9, -3.1, "certificate expired 3 days ago, fine but for the date", -3.1),
        ((NAME,), 1.1, 9, "certificate begins in 1 day, fine but for the date", 9),
        (("mx1.example.org",), -9, 42, f"certificate is for mx1.example.org, not {NAME}", 42),
        (("10.0.0.4", "a.b"), -9, 9, f"certificate is for 10.0.0.4, a.b, not {NAME}", 9),
        (
            ("mx1.example.org",), -9, -0.1,
            f"certificate is for mx1.example.org, not {NAME} and expired 2 hours ago", -0.1,
        ),
        (("a.b", "b.c", "c.d", "d.e"), -9, 9, f"certificate is for a.b, b.c, c.d ..., not {NAME}", 9),
    ],
)  # fmt: skip
def test_a_bad_certificate_is_told_exactly(
    pki: Pki, names: tuple[str, ...], begins: float, ends: float, why: str, days: float
) -> None:
    server = pki.server(*names, begins=begins, ends=ends)
    for check, handler, tls in [
        (Tls(port=1, ca=pki.ca), hang, server),
        (Smtp(tls="implicit", ca=pki.ca), says(*SESSION), server),
        (Smtp(tls="starttls", ca=pki.ca), upgrades(server), None),
    ]:
        result = look(check, handler, tls=tls)
        assert summary(result) == (Verdict.FAIL, "tls", f"tls: {why}")
        assert left(result) == days


def test_an_unknown_authority_and_a_self_signed_certificate_are_told_apart(pki: Pki) -> None:
    check = Tls(port=1, ca=pki.ca)
    for server, why in [
        (pki.self_signed(), "self-signed certificate"),
        (pki.server(by=pki.other), "unknown authority (the chain ends in its own root)"),
        (
            pki.server(by=pki.other.create_child_ca()),
            "unknown authority (the chain ends in its own root)",
        ),
    ]:
        result = look(check, hang, tls=server)
        assert (result.verdict, result.step) == (Verdict.FAIL, "tls")
        assert result.reason in {f"tls: {why}", f"tls: {_tls.WORDS[20]}"}
    assert look(Tls(port=1), hang, tls=pki.server()).verdict is Verdict.FAIL  # the system's


def test_a_self_signed_certificate_can_be_its_own_authority(pki: Pki) -> None:
    ca = pki.file("own", pki.other)
    assert look(Tls(port=1, ca=ca), hang, tls=pki.server(by=pki.other)).verdict is Verdict.OK


def test_nothing_is_verified_when_told_so(pki: Pki) -> None:
    server = pki.server("elsewhere.example", ends=-1)
    check = Smtp(tls="implicit", verify=False)
    assert summary(look(check, says(*SESSION), tls=server)) == (Verdict.OK, "ehlo", "mx0 ESMTP")


def test_a_second_look_that_fails_leaves_the_first_one_standing(pki: Pki) -> None:
    server, looks = pki.server(ends=-1), 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            await upgrades(server)(reader, writer)
        else:
            await hang(reader, writer)

    result = look(Smtp(tls="starttls", ca=pki.ca), once, 0.2)
    assert summary(result) == (Verdict.FAIL, "tls", "tls: certificate has expired")
    assert looks == 2


@pytest.mark.parametrize("size", [1, 5000, 16384, 40000])
def test_records_of_any_size_are_read_whole(pki: Pki, size: int) -> None:
    greeting = b"".join(b"220-%060d\r\n" % n for n in range(size // 66)) + GREETING
    check = Smtp(depth="greeting", tls="implicit", ca=pki.ca)
    result = look(check, says(greeting, then=hang), tls=pki.server())
    assert (result.verdict, result.step) == (Verdict.OK, "greeting")


def test_a_session_under_starttls_names_its_steps(pki: Pki) -> None:
    check = Smtp(tls="starttls", ca=pki.ca, depth="rcpt", mail_to="probe@example.org")
    result = look(check, upgrades(pki.server(), *SESSION[1:], then=hang))
    assert summary(result) == (Verdict.OK, "rcpt", "mx0 ESMTP")
    assert [step for step, _ in result.steps] == [
        "greeting", "ehlo", "starttls", "tls", "ehlo_tls", "mail", "rcpt",
    ]  # fmt: skip


def test_the_protocol_is_no_older_than_asked_for(pki: Pki) -> None:
    server = pki.server()
    check = Tls(port=1, ca=pki.ca, min_version="TLSv1.3")
    assert look(check, hang, tls=server).verdict is Verdict.OK
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    assert look(check, hang, tls=server).verdict is Verdict.FAIL
    assert look(Tls(port=1, ca=pki.ca), hang, tls=server).verdict is Verdict.OK


# Words

NOW = 1_800_000_000.0
GOOD = Certificate(NOW - DAY, NOW + DAY, ("*.example.org", "::1"))


@pytest.mark.parametrize(
    ("code", "name", "found", "text"),
    [
        (10, "a.example.org", GOOD, "a certificate above this one in the chain has expired"),
        (9, "0::1", GOOD, "a certificate above this one in the chain is not valid yet"),
        (62, "b.a.example.org", GOOD, "certificate is for *.example.org, ::1, not b.a.example.org"),
        (62, "a.b", GOOD._replace(names=()), "certificate is for no name, not a.b"),
        (
            10, "A.EXAMPLE.ORG", GOOD._replace(ends=NOW - 60),
            "certificate expired less than an hour ago, fine but for the date",
        ),
        (
            10, "a.b", GOOD._replace(ends=NOW - DAY * 2),
            "certificate is for *.example.org, ::1, not a.b and expired 2 days ago",
        ),
    ],
)  # fmt: skip
def test_details(code: int, name: str, found: Certificate, text: str) -> None:
    assert _tls.details(code, found, name, NOW) == text


@pytest.mark.parametrize(
    ("kind", "reason", "verdict", "text"),
    [
        (ssl.SSLError, "WRONG_VERSION_NUMBER", Verdict.FAIL, "not TLS"),
        (ssl.SSLError, "UNSUPPORTED_PROTOCOL", Verdict.FAIL, "no protocol in common"),
        (
            ssl.SSLError, "TLSV1_ALERT_INTERNAL_ERROR", Verdict.FAIL,
            "the node sent an alert: internal error",
        ),
        (ssl.SSLError, "NO_CIPHERS_AVAILABLE", Verdict.FAIL, "TLS failed: no ciphers available"),
        (ssl.SSLError, None, Verdict.FAIL, "TLS failed: no reason given"),
        (ssl.SSLError, "MALLOC_FAILURE", Verdict.UNKNOWN, "out of memory"),
        (ssl.SSLEOFError, "", Verdict.FAIL, "closed in the middle of TLS"),
    ],
)  # fmt: skip
def test_whose_fault_an_error_of_tls_is(
    kind: type[ssl.SSLError], reason: str | None, verdict: Verdict, text: str
) -> None:
    error = kind(1, "")
    error.reason = reason  # type: ignore[assignment]
    assert _tls.trouble(error) == (verdict, text)


# Contexts


def test_contexts_are_made_once_and_again_when_the_file_changes(pki: Pki, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(pki.ca.read_bytes())
    policy = Policy(ca=ca)
    first = _tls.load(policy)
    assert _tls.get(policy) is _tls.load(policy) is first
    assert _tls.get(Policy(verify=False, ca=ca)) is not first
    ca.write_bytes(pki.file("other", pki.other).read_bytes() * 2)
    assert _tls.get(policy) is first
    assert _tls.load(policy) is not first
    assert _tls.get(policy) is _tls.load(policy)


@pytest.mark.parametrize(
    ("check", "problems"),
    [
        (Tls(port=1), []),
        (Tls(port=1, name="mx_0.example.org"), []),
        (Tls(port=1, name="::1"), []),
        (
            Tls(port=1, name="a..b"),
            [("name", "expected a host name or an IP address, as in the certificate")],
        ),
        (
            Tls(port=1, ca=Path("/nonexistent/ca")),
            [("ca", "cannot be read (No such file or directory)")],
        ),
        (
            Tls(port=1, ca=Path(__file__)),
            [("ca", "expected certificates in PEM format (no certificate or crl found)")],
        ),
        (Smtp(ca=Path("/nonexistent/ca")), []),  # not used
    ],
)
def test_names_and_authorities_that_cannot_be_are_named(
    check: Spoken, problems: list[tuple[str, str]]
) -> None:
    assert list(check.problems()) == problems


def test_contexts_are_made_in_one_place_only() -> None:
    """A default one costs 20 ms of CPU: one made for each look would be all that hactld does."""
    makers = {"SSLContext", "create_default_context", "_create_unverified_context"}
    found = {
        str(file.relative_to(ROOT))
        for top in ("checks", "hactl")
        for file in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers
    }
    assert found == {"checks/_tls.py"}


# In hactl.yaml


def parsed(check: str) -> config.Check:
    return config.parse(f"mode: observe\nchecks: {{x: {{{check}}}}}", "f").checks["x"]


def test_what_cannot_be_loaded_is_an_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError) as error:
        parsed("type: tls, port: 465, ca: /nonexistent/ca")
    assert str(error.value) == ("f:2:40: checks.x.ca: cannot be read (No such file or directory)")
    login = tmp_path / "login"
    login.write_text("probe")
    login.chmod(0o600)
    with pytest.raises(config.ConfigError) as error:
        parsed(f"type: smtp, tls: implicit, login: {login}")
    assert str(error.value) == ("f:2:48: checks.x.login: expected two lines, a user and a password")


def test_off_needs_no_quotes_and_a_login_its_own_times(tmp_path: Path) -> None:
    assert parsed("type: smtp, tls: off") == parsed("type: smtp")
    login = tmp_path / "login"
    login.write_text("probe\nsecret\n")
    login.chmod(0o600)
    check = parsed(f"type: smtp, tls: starttls, login: {login}")
    assert (check.interval, check.timeout, check.fast_interval) == (
        Duration(5),
        Duration(3),
        Duration(1),
    )
    check = parsed(f"type: smtp, tls: starttls, login: {login}, interval: 2s")
    assert (check.interval, check.timeout, check.fast_interval) == (
        Duration(2),
        Duration(2),
        Duration(1),
    )
