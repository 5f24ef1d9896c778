from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks.smtp import Smtp
from hactl.core.model import Verdict
from tests.checks.feeding import feed

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


PIECES = [
    GREETING, EHLO, OK, b"421 busy\r\n", b"250-more\r\n", b"451 later\n", b"220", b" ", b"-", b"\r",
    b"\n", b"502 what\r\n", b"\x00\x1b", b"noise\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(server)), max_size=10)))
    ends = [*cuts, len(server)]
    chunks = [server[a:b] for a, b in zip([0, *cuts], ends, strict=True) if a < b]
    assert feed(RCPT.talk(), *chunks) == feed(RCPT.talk(), server)
