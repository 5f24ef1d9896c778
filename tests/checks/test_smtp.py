from __future__ import annotations

from pathlib import Path
from typing import Literal
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import LOGIN, Target, _login
from checks._login import Login
from checks.smtp import Smtp, offers
from hactl.core.model import Verdict
from hactl.core.units import Secret
from tests.checks.feeding import feed, split

GREETING = b"220 mx0.example.org ESMTP OpenSMTPD\r\n"
EHLO = b"250-mx0.example.org Hello\r\n250-8BITMIME\r\n250 HELP\r\n"
OK = b"250 2.0.0 Ok\r\n"
NAME = "mx0.example.org ESMTP OpenSMTPD"

RCPT = Smtp(depth="rcpt", mail_to="probe@example.org")


@pytest.mark.parametrize(
    ("check", "server", "said", "step"),
    [
        (Smtp(depth="greeting"), GREETING, b"QUIT\r\n", "greeting"),
        (Smtp(), GREETING + EHLO, b"EHLO hactl.invalid\r\nQUIT\r\n", "ehlo"),
        (
            Smtp(depth="mail", helo="lb0.example.org", mail_from="a@example.org"),
            GREETING + EHLO + OK,
            b"EHLO lb0.example.org\r\nMAIL FROM:<a@example.org>\r\nQUIT\r\n",
            "mail",
        ),
        (
            RCPT,
            GREETING + EHLO + OK + OK,
            b"EHLO hactl.invalid\r\nMAIL FROM:<>\r\nRCPT TO:<probe@example.org>\r\nQUIT\r\n",
            "rcpt",
        ),
        (
            Smtp(),
            GREETING + b"502 5.5.1 what?\r\n250 hello\r\n",
            b"EHLO hactl.invalid\r\nHELO hactl.invalid\r\nQUIT\r\n",
            "helo",
        ),
    ],
)
def test_goes_as_deep_as_it_is_told_and_takes_leave(
    check: Smtp, server: bytes, said: bytes, step: str
) -> None:
    result, heard, last = feed(check.talk(), server)
    assert (result.verdict, result.reason, heard, last) == (Verdict.OK, NAME, said, step)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b"421 too busy\r\n", "greeting 421 too busy"),
        (b"421-too\r\n421 busy\r\n", "greeting 421 too"),
        (b"421\r\n", "greeting 421"),
        (b"550 no rDNS available\r\n", "refuses us (550 no rDNS available)"),
        (b"554 mx0 no service\n", "refuses us (554 mx0 no service)"),
        (b"354 go ahead\r\n", "greeting 354 go ahead"),
        (GREETING + b"421 4.3.0 Temporary Error\r\n", "EHLO 421 4.3.0 Temporary Error"),
        (GREETING + b"500 what?\r\n504 no\r\n", "EHLO 504 no"),
        (GREETING + EHLO + b"451 no queue\r\n", "MAIL 451 no queue"),
        (
            GREETING + EHLO + OK + b"451 4.3.0 temporary failure\r\n",
            "RCPT 451 4.3.0 temporary failure",
        ),
        (
            GREETING + EHLO + OK + b"550 \x1b[31mno\x00 user \xff\r\n",
            r"RCPT 550 \x1b[31mno\x00 user \xff",
        ),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "not an SMTP reply: SSH-2.0-OpenSSH_9.9"),
        (b"2200 hello\r\n", "not an SMTP reply: 2200 hello"),
        (b"120 hello\r\n", "not an SMTP reply: 120 hello"),
        (b"220-one\r\n250 two\r\n", "not an SMTP reply: 250 two"),
        (b"\r\n", "not an SMTP reply: "),
        (b"220 no end of line", "closed"),
        (b"220-and then\r\n", "closed"),
    ],
)
def test_says_which_step_was_refused_and_how(server: bytes, reason: str) -> None:
    result, _, _ = feed(RCPT.talk(), server)
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_other_greetings_can_count_as_alive() -> None:
    result, said, _ = feed(Smtp(greeting=(220, 554)).talk(), b"554 not for you\r\n")
    assert (result.verdict, result.reason, said) == (Verdict.OK, "not for you", b"QUIT\r\n")


def test_a_long_greeting_is_cut() -> None:
    result, _, _ = feed(Smtp(depth="greeting").talk(), b"220 " + b"x" * 500 + b"\r\n")
    assert result.reason == "x" * 57 + "..."


@pytest.mark.parametrize(
    ("check", "fields"),
    [
        (RCPT, []),
        (Smtp(depth="rcpt"), ["mail_to"]),
        (Smtp(mail_from="a@b>\r\nRCPT TO:<x@y"), ["mail_from"]),
        (Smtp(depth="rcpt", mail_to="a b@example.org"), ["mail_to"]),
        (Smtp(mail_to="<a@example.org>"), ["mail_to"]),
        (Smtp(helo="lb0\nMAIL"), ["helo"]),
        (Smtp(helo="b\u00fccher.example"), ["helo"]),
        (Smtp(helo=""), ["helo"]),
        (Smtp(greeting=()), ["greeting"]),
        (Smtp(greeting=(220, 42)), ["greeting"]),
    ],
)
def test_options_that_cannot_be_are_named(check: Smtp, fields: list[str]) -> None:
    assert [field for field, _ in check.problems()] == fields


# TLS and login

UPGRADE = b"250-mx0.example.org Hello\r\n250-starttls\r\n250 HELP\r\n"
READY = b"220 2.0.0 Ready to start TLS\r\n"
AUTH = b"250-mx0.example.org\r\n250 AUTH PLAIN LOGIN\r\n"
IN = b"235 2.7.0 Authentication succeeded\r\n"
TLS = Smtp(tls="starttls", verify=False)


@pytest.fixture
def login(tmp_path: Path) -> Secret:
    path = tmp_path / "login"
    path.write_text("probe\np\u00e4ss word\n")
    return Secret(str(path))


def words(*lines: bytes) -> bytes:
    return b"".join(line if line == b"<TLS>" else line + b"\r\n" for line in lines)


def test_goes_on_under_tls_and_says_hello_again() -> None:
    result, said, step = feed(TLS.talk(), GREETING + UPGRADE + READY, tls=[EHLO])
    assert (result.verdict, result.reason, step) == (Verdict.OK, NAME, "ehlo_tls")
    hello = b"EHLO hactl.invalid"
    assert said == words(hello, b"STARTTLS", b"<TLS>", hello, b"QUIT")


def test_begins_under_tls_when_told_so() -> None:
    check = Smtp(tls="implicit", verify=False, depth="greeting")
    result, said, step = feed(check.talk(), tls=[GREETING])
    assert (result.verdict, said, step) == (Verdict.OK, words(b"<TLS>", b"QUIT"), "greeting")


@pytest.mark.parametrize(
    ("server", "tls", "reason"),
    [
        (GREETING + EHLO, b"", "offers no STARTTLS"),
        (GREETING + b"500 what?\r\n250 STARTTLS\r\n", b"", "offers no STARTTLS"),
        (
            GREETING + UPGRADE + b"454 4.7.0 TLS not available\r\n", b"",
            "STARTTLS 454 4.7.0 TLS not available",
        ),
        (GREETING + UPGRADE + READY + OK, b"", "bytes after STARTTLS"),
        (GREETING + UPGRADE + READY, b"421 4.3.2 no\r\n", "EHLO 421 4.3.2 no"),
        (GREETING + UPGRADE + READY, b"", "closed"),
    ],
)  # fmt: skip
def test_says_what_came_in_the_way_of_tls(server: bytes, tls: bytes, reason: str) -> None:
    result, _, _ = feed(TLS.talk(), server, tls=[tls])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_logs_in_by_plain(login: Secret) -> None:
    check = Smtp(tls="implicit", verify=False, login=login)
    result, said, step = feed(check.talk(), tls=[GREETING, AUTH, IN])
    assert (result.verdict, step) == (Verdict.OK, "auth")
    plain = b"AUTH PLAIN AHByb2JlAHDDpHNzIHdvcmQ="
    assert said == words(b"<TLS>", b"EHLO hactl.invalid", plain, b"QUIT")


def test_logs_in_by_login_where_plain_is_not_offered(login: Secret) -> None:
    check = Smtp(tls="implicit", verify=False, login=login)
    offer = b"250-mx0\r\n250 AUTH=LOGIN CRAM-MD5\r\n"
    asks = [b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n"]
    result, said, step = feed(check.talk(), tls=[GREETING, offer, *asks, IN])
    assert (result.verdict, step) == (Verdict.OK, "auth_password")
    assert said.endswith(words(b"AUTH LOGIN", b"cHJvYmU=", b"cMOkc3Mgd29yZA==", b"QUIT"))


@pytest.mark.parametrize(
    ("offer", "answer", "reason"),
    [
        (AUTH, b"535 5.7.8 Authentication failed\r\n", "login refused (535 5.7.8 Authentication failed)"),
        (AUTH, b"454 4.7.0 try later\r\n", "AUTH 454 4.7.0 try later"),
        (AUTH, b"AHByb2JlAHDDpHNzIHdvcmQ=\r\n", "not an answer to a login"),
        (AUTH, b"535 AHByb2JlAHDDpHNzIHdvcmQ=? no\r\n", "login refused (535)"),
        (AUTH, "535 p\u00e4ss word?\r\n".encode(), "login refused (535)"),
        (AUTH, b"454 cMOkc3Mgd29yZA==\r\n", "AUTH 454"),
        (b"250-mx0\r\n250 AUTH LOGIN\r\n", b"535 no\r\n", "login refused (535 no)"),
        (
            b"250-mx0\r\n250 AUTH CRAM-MD5\r\n", b"",
            "offers no AUTH PLAIN or LOGIN (CRAM-MD5)",
        ),
        (b"250 mx0\r\n", b"", "offers no AUTH PLAIN or LOGIN (none)"),
    ],
)  # fmt: skip
def test_a_refused_login_says_why_and_not_the_password(
    login: Secret, offer: bytes, answer: bytes, reason: str
) -> None:
    check = Smtp(tls="implicit", verify=False, login=login)
    result, _, _ = feed(check.talk(), tls=[GREETING, offer, answer])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_after_a_refusal_it_does_not_log_in_for_a_while(login: Secret) -> None:
    check, memory = Smtp(tls="implicit", verify=False, login=login), dict[str, float]()
    for now, verdict, tried in [
        (0.0, "fail", True),
        (29.0, "unknown", False),
        (30.0, "fail", True),
    ]:
        talk = check.talk(Target("mx0", "10.0.0.4", now, memory))
        result, said, _ = feed(talk, tls=[GREETING, AUTH, b"535 5.7.8 no\r\n"])
        assert (result.verdict, b"AUTH PLAIN" in said) == (verdict, tried)


def test_a_login_takes_longer_than_a_greeting(login: Secret) -> None:
    assert Smtp(tls="starttls", login=login).times() == LOGIN
    assert Smtp(tls="starttls").times() == Smtp.timing


def test_nothing_shows_the_password(login: Secret) -> None:
    check = Smtp(tls="starttls", login=login)
    assert list(check.problems()) == []
    assert "ss word" not in repr(check) + repr(_login.get(login)) + str(vars(_login)["_read"])


def test_a_login_is_read_again_only_at_load(login: Secret) -> None:
    check = Smtp(tls="starttls", login=login)
    assert list(check.problems()) == []
    Path(login.path).write_text("probe\nother\n")
    assert _login.get(login).password == "p\u00e4ss word".encode()
    assert list(check.problems()) == []
    assert _login.get(login).password == b"other"


@pytest.mark.parametrize("text", ["", "probe\n", "probe\n\n", "\nsecret\n", "a\nb\nc\n", "a\n\0\n"])
def test_a_login_is_two_lines(login: Secret, text: str) -> None:
    Path(login.path).write_text(text)
    why = [("login", "expected two lines, a user and a password")]
    assert list(Smtp(tls="starttls", login=login).problems()) == why


def test_a_login_goes_over_tls_only(login: Secret) -> None:
    why = "a password needs TLS: say tls: starttls or tls: implicit"
    assert list(Smtp(login=login).problems()) == [("login", why)]
    assert [field for field, _ in Smtp(tls="starttls", depth="greeting").problems()] == ["depth"]
    missing = Secret("/nonexistent/login")
    problems = list(Smtp(tls="implicit", login=missing).problems())
    assert problems == [("login", "cannot be read (No such file or directory)")]


def test_offers_are_keywords_in_any_case() -> None:
    hello = b"250-mx0 PIPELINING\r\n250-size 100\r\n250-Auth=plain\r\n250 HELP\r\n"
    assert offers(hello) == {"SIZE": "100", "AUTH": "PLAIN", "HELP": ""}


def test_the_certificate_is_for_the_node_unless_another_name_is_given() -> None:
    for check, name in [
        (Smtp(tls="implicit"), "mx0"),
        (Smtp(tls="implicit", name="mx.example.org"), "mx.example.org"),
        (Smtp(tls="implicit", verify=False), None),
    ]:
        assert check.secure(Target("mx0", "10.0.0.4")).name == name


PIECES = [
    GREETING, EHLO, OK, b"421 busy\r\n", b"250-more\r\n", b"451 later\n", b"220", b" ", b"-", b"\r",
    b"\n", b"502 what\r\n", b"\x00\x1b", b"noise\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    assert feed(RCPT.talk(), *split(server, data)) == feed(RCPT.talk(), server)


PROBE = Secret("/etc/hactl/probe.login")
TLS_PIECES = [*PIECES, UPGRADE, READY, AUTH, b"334 \r\n", IN, b"535 5.7.8 no\r\n"]


@given(
    st.lists(st.sampled_from(TLS_PIECES), max_size=4).map(b"".join),
    st.lists(st.sampled_from(TLS_PIECES), max_size=8).map(b"".join),
    st.sampled_from(["starttls", "implicit"]),
    st.data(),
)
def test_where_the_bytes_are_split_changes_nothing_under_tls(
    plain: bytes, under: bytes, tls: Literal["starttls", "implicit"], data: st.DataObject
) -> None:
    with patch.dict(_login._read, {PROBE: Login(b"probe", b"secret")}):
        check = Smtp(tls=tls, verify=False, login=PROBE, depth="mail")
        plain = b"" if tls == "implicit" else GREETING + UPGRADE + plain
        under = GREETING + under if tls == "implicit" else under
        result = feed(check.talk(), *split(plain, data), tls=split(under, data))
        assert result == feed(check.talk(), plain, tls=[under])
        assert b"secret" not in result[0].reason.encode()
