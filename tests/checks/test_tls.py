from __future__ import annotations

import ast
import asyncio
import ssl
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from checks import Spoken, Target, _login, _tls
from checks._tls import Certificate, Policy
from checks._wire import converse
from checks.smtp import Smtp
from checks.tls import Tls
from hactl import config
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration, Secret
from tests.checks.feeding import feed
from tests.checks.peers import (
    GREETING,
    LONG,
    SESSION,
    hang,
    look,
    says,
    serving,
    summary,
    upgrades,
)  # fmt: skip
from tests.checks.pki import NAME, Pki, certified

ROOT = Path(__file__).parents[2]
DAY = 86400.0
NOW = 1_800_000_000.0


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
    for name, shown in (("127.0.0.1", "127.0.0.1"), ("a.example.org", "*.example.org")):
        check = Tls(port=1, ca=pki.ca, name=name)
        assert look(check, hang, tls=pki.server(shown)).verdict is Verdict.OK


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
    for server, why, days in [
        (pki.self_signed(), "self-signed certificate", None),
        (pki.server(by=pki.other), "unknown authority (the chain ends in its own root)", 42.5),
        (
            pki.server(by=pki.other.create_child_ca()),
            "unknown authority (the chain ends in its own root)",
            42.5,
        ),
    ]:
        result = look(check, hang, tls=server)
        assert (result.verdict, result.step) == (Verdict.FAIL, "tls")
        assert result.reason in {f"tls: {why}", f"tls: {_tls.WORDS[20]}"}
        assert left(result) == days if days else left(result) > 1000  # trustme's authorities last
    assert look(Tls(port=1), hang, tls=pki.server()).verdict is Verdict.FAIL  # the system's


@pytest.mark.parametrize(
    ("begins", "ends", "when"), [(-9, -3.1, "expired 3 days ago"), (1.1, 9, "begins in 1 day")]
)
def test_the_dates_of_a_certificate_that_nobody_vouches_for_are_told(
    pki: Pki, begins: float, ends: float, when: str
) -> None:
    server = pki.server(begins=begins, ends=ends, by=pki.other)
    result = look(Tls(port=1, ca=pki.ca), hang, tls=server)
    whys = (_tls.WORDS[19], _tls.WORDS[20])
    assert result.reason in {f"tls: {why}; the certificate {when}" for why in whys}
    assert left(result) == ends
    result = look(Tls(port=1, verify=False), hang, tls=server)
    assert summary(result) == (Verdict.OK, "tls", f"TLSv1.3, certificate {when}")
    assert left(result) == ends


def test_a_self_signed_certificate_can_be_its_own_authority(pki: Pki) -> None:
    ca = pki.file("own", pki.other)
    assert look(Tls(port=1, ca=ca), hang, tls=pki.server(by=pki.other)).verdict is Verdict.OK


def test_nothing_is_verified_when_told_so(pki: Pki) -> None:
    server = pki.server("elsewhere.example", ends=-1)
    check = Smtp(tls="implicit", verify=False)
    result = look(check, says(*SESSION), tls=server)
    assert summary(result) == (Verdict.OK, "ehlo", "mx0 ESMTP")
    assert left(result) == -1


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


# STARTTLS

IMAP = b"* OK [CAPABILITY IMAP4rev1 STARTTLS] ready\r\n"
SIEVE = b'"SIEVE" "fileinto"\r\n"STARTTLS"\r\nOK "ready"\r\n'
WAYS: dict[str, tuple[list[bytes], list[bytes]]] = {  # the node's lines, and ours
    "smtp": (
        [b"220-mx0\r\n220 ESMTP\r\n", b"250-mx0\r\n250 STARTTLS\r\n", b"220 go ahead\r\n"],
        [b"EHLO hactl.invalid\r\n", b"STARTTLS\r\n", b"QUIT\r\n"],
    ),
    "lmtp": (
        [b"220 mx0 LMTP\r\n", b"250-mx0\r\n250 STARTTLS\r\n", b"220\r\n"],
        [b"LHLO hactl.invalid\r\n", b"STARTTLS\r\n", b"QUIT\r\n"],
    ),
    "imap": (
        [IMAP, b"* CAPABILITY IMAP4rev1\r\na OK begin\r\n"],
        [b"a STARTTLS\r\n", b"b LOGOUT\r\n"],
    ),
    "pop3": ([b"+OK ready\r\n", b"+OK begin\r\n"], [b"STLS\r\n", b"QUIT\r\n"]),
    "sieve": ([SIEVE, b'OK "begin"\r\n'], [b"STARTTLS\r\n", b"LOGOUT\r\n"]),
}


def asks(way: str, ca: Path | None = None) -> Tls:
    kind = msgspec.convert({"type": "tls", "port": 1, "starttls": way}, Tls)
    return structs.replace(kind, ca=ca, verify=ca is not None)


@pytest.mark.parametrize("way", WAYS)
def test_tls_is_asked_for_in_the_protocol_and_leave_is_taken(pki: Pki, way: str) -> None:
    answers, ours = WAYS[way]
    context = pki.server()
    heard: list[bytes] = []
    left_in_order = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answers[0])
        for answer in answers[1:]:
            heard.append(await reader.readline())
            writer.write(answer)
        await writer.start_tls(context)
        heard.append(await reader.readline())
        left_in_order.set()

    async def main() -> Result:
        async with serving(serve) as port:
            talk = asks(way, pki.ca).talk(Target(NAME))
            result = await converse("127.0.0.1", port, talk, LONG)
            await asyncio.wait_for(left_in_order.wait(), LONG)
            return result

    result = asyncio.run(main())
    assert summary(result) == (Verdict.OK, "tls", "TLSv1.3, certificate ends in 42 days")
    assert heard == ours
    assert left(result) == 42.5


@pytest.mark.parametrize(
    ("way", "answers", "why"),
    [
        ("smtp", [b"421 busy\r\n"], "greeting: unexpected: 421 busy"),
        ("smtp", [*WAYS["smtp"][0][:2], b"454 no key\r\n"], "starttls: unexpected: 454 no key"),
        ("lmtp", [b"220 mx0\r\n", b"500 who?\r\n"], "ehlo: unexpected: 500 who?"),
        ("imap", [b"* PREAUTH in\r\n"], "greeting: unexpected: * PREAUTH in"),
        ("imap", [IMAP, b"a BAD what\r\n"], "starttls: unexpected: a BAD what"),
        ("pop3", [b"+OK\r\n", b"-ERR \x1b\r\n"], r"starttls: unexpected: -ERR \x1b"),
        ("sieve", [b'BYE "no"\r\n'], 'greeting: unexpected: BYE "no"'),
        ("sieve", [SIEVE, b'OK "go"\r\n"more"\r\n'], "tls: bytes after STARTTLS"),
    ],
)
def test_a_node_that_will_not_speak_tls_is_told_by_its_line(
    way: str, answers: list[bytes], why: str
) -> None:
    result = look(asks(way), says(*answers, then=hang))
    assert (result.verdict, result.reason) == (Verdict.FAIL, why)


PIECES = sorted({line for answers, _ in WAYS.values() for text in answers
                 for line in text.splitlines(keepends=True)} | {b"\n", b"a ", b"\x00\x1b"})  # fmt: skip


@given(
    st.sampled_from(sorted(WAYS)),
    st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join),
    st.booleans(),
    st.data(),
)
def test_where_the_bytes_are_split_changes_nothing(
    way: str, noise: bytes, begun: bool, data: st.DataObject
) -> None:
    server = b"".join(WAYS[way][0][:1] * begun) + noise
    cuts = sorted(data.draw(st.lists(st.integers(0, len(server)), max_size=10)))
    chunks = [server[a:b] for a, b in zip([0, *cuts], [*cuts, len(server)], strict=True) if a < b]
    check = asks(way)
    assert feed(check.talk(), *chunks) == feed(check.talk(), server)


# Dates in a certificate that nobody vouches for


CERTIFIED = certified(NOW, NOW + DAY)


def test_dates_are_read_from_the_bytes_of_a_certificate() -> None:
    for begins, ends in ((NOW, NOW + DAY), (-9 * DAY, NOW * 2)):  # 2027; 1969 and 2084
        der = certified(begins, ends)
        assert _tls.dates(der) == (begins, ends)


@given(st.integers(0, 2000), st.integers(0, 255), st.integers(0, 2000))
def test_a_broken_certificate_has_dates_or_is_refused(at: int, byte: int, size: int) -> None:
    broken = bytearray(CERTIFIED[:size])
    broken[at : at + 1] = bytes([byte])
    with suppress(ValueError):
        assert len(_tls.dates(bytes(broken))) == 2


@given(st.binary(max_size=60))
def test_noise_is_no_certificate(noise: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _tls.dates(noise)


# Words

ABOVE = ": not the one seen next, but one above it, or another server's"
GOOD = Certificate(NOW - DAY, NOW + DAY, ("*.example.org", "::1"))


@pytest.mark.parametrize(
    ("code", "name", "found", "text"),
    [
        (18, "a.b", GOOD, "why"),
        (18, "a.b", GOOD._replace(ends=NOW - DAY * 2), "why; the certificate expired 2 days ago"),
        (10, "a.example.org", GOOD, f"why{ABOVE}"),
        (9, "0::1", GOOD, f"why{ABOVE}"),
        (62, "b.a.example.org", GOOD, "certificate is for *.example.org, ::1, not b.a.example.org"),
        (62, "a.example.org", GOOD, "why, but the one seen next is: another server's"),
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
    assert _tls.details(code, "why", found, name, NOW) == text


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
    # agents' contexts have no authorities to load, and are made at load too
    assert found == {"checks/_tls.py", "hactl/agent/keys.py"}


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


def test_a_file_that_is_refused_leaves_authorities_and_logins_as_they_were(
    pki: Pki, tmp_path: Path
) -> None:
    ca, login = tmp_path / "ca.pem", tmp_path / "login"
    text = f"type: smtp, tls: implicit, ca: {ca}, login: {login}"
    policy, secret = Policy(ca=ca), Secret(str(login))
    ca.write_bytes(pki.ca.read_bytes())
    login.write_text("probe\nold\n")
    login.chmod(0o600)
    parsed(text)
    before = _tls.get(policy), _login.get(secret)
    pki.other.cert_pem.write_to_path(str(ca))
    login.write_text("probe\nnew\n")
    with pytest.raises(config.ConfigError):
        parsed(f"{text}, port: 0")
    assert (_tls.get(policy), _login.get(secret)) == before
    parsed(text)
    assert _tls.get(policy) is not before[0]
    assert _login.get(secret).password == b"new"


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
