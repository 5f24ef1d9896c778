from __future__ import annotations

import pytest

from checks.lmtp import Lmtp
from hactl.core.model import Verdict
from tests.checks.feeding import feed

GREETING = b"220 mx0.example.org Dovecot ready.\r\n"
LHLO = b"250-mx0.example.org\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
OK = b"250 2.1.0 OK\r\n"
RCPT = Lmtp(depth="rcpt", mail_to="probe@example.org")


@pytest.mark.parametrize(
    ("check", "server", "said", "step"),
    [
        (Lmtp(depth="greeting"), GREETING, b"QUIT\r\n", "greeting"),
        (Lmtp(), GREETING + LHLO, b"LHLO hactl.invalid\r\nQUIT\r\n", "lhlo"),
        (
            RCPT,
            GREETING + LHLO + OK + OK,
            b"LHLO hactl.invalid\r\nMAIL FROM:<>\r\nRCPT TO:<probe@example.org>\r\nQUIT\r\n",
            "rcpt",
        ),
    ],
)
def test_goes_as_deep_as_it_is_told_and_takes_leave(
    check: Lmtp, server: bytes, said: bytes, step: str
) -> None:
    result, heard, last = feed(check.talk(), server)
    assert (result.verdict, heard, last) == (Verdict.OK, said, step)


def test_goes_on_under_tls_and_says_hello_again() -> None:
    check = Lmtp(tls="starttls", verify=False)
    result, said, step = feed(check.talk(), GREETING + LHLO + b"220 go\r\n", tls=[LHLO])
    assert (result.verdict, step) == (Verdict.OK, "lhlo_tls")
    assert said.count(b"LHLO hactl.invalid\r\n") == 2


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b"421 4.3.2 Too many\r\n", "greeting 421 4.3.2 Too many"),
        (GREETING + b"500 what?\r\n", "LHLO 500 what?"),  # HELO is no way out here
        (GREETING + LHLO + OK + b"451 4.3.0 later\r\n", "RCPT 451 4.3.0 later"),
        (GREETING + LHLO + OK + b"550 5.1.1 no such user\r\n", "RCPT 550 5.1.1 no such user"),
    ],
)
def test_says_which_step_was_refused_and_how(server: bytes, reason: str) -> None:
    result, _, _ = feed(RCPT.talk(), server)
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_a_recipient_is_needed_to_go_that_far() -> None:
    assert [field for field, _ in Lmtp(depth="rcpt").problems()] == ["mail_to"]
