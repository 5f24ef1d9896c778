from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import Target, _login
from checks._login import Login
from checks.pop3 import Pop3
from hactl.core.model import Verdict
from hactl.core.units import Secret
from tests.checks.feeding import feed, split

GREETING = b"+OK Dovecot ready. <1.2@mx0>\r\n"
PLAIN = b"+OK\r\nCAPA\r\nSTLS\r\nSASL\r\n.\r\n"
UPGRADE = b"+OK Begin TLS negotiation now.\r\n"
USER = b"+OK\r\nCAPA\r\nUSER\r\nSASL PLAIN\r\n.\r\n"
SASL = b"+OK\r\nSASL PLAIN\r\n.\r\n"
OK = b"+OK\r\n"
STAT = b"+OK 3 1234\r\n"
SECRET = Secret("/etc/hactl/probe.login")
PLAIN_SECRET = b"AHByb2JlAHBhc3Mgd29yZA=="

STARTTLS = Pop3(tls="starttls", verify=False, login=SECRET)
IMPLICIT = Pop3(port=995, tls="implicit", verify=False, login=SECRET)


@pytest.fixture(autouse=True)
def login() -> Iterator[None]:
    with patch.dict(_login._read, {SECRET: Login(b"probe", b"pass word")}):
        yield


@pytest.mark.parametrize("offers", [PLAIN, b"-ERR Unknown command.\r\n"])
def test_greets_and_says_what_it_can(offers: bytes) -> None:
    result, said, step = feed(Pop3().talk(), GREETING + offers)
    assert (result.verdict, result.reason) == (Verdict.OK, "Dovecot ready.")
    assert (said, step) == (b"CAPA\r\nQUIT\r\n", "capability")


def test_counts_the_mailbox_under_tls_and_leaves() -> None:
    tls = [USER, OK, OK, STAT]
    result, said, step = feed(STARTTLS.talk(), GREETING + PLAIN + UPGRADE, tls=tls)
    assert (result.verdict, result.reason, step) == (Verdict.OK, "3 messages", "stat")
    assert result.measures == {"messages": 3, "mailbox_bytes": 1234}
    words = [b"CAPA", b"STLS", b"<TLS>CAPA", b"USER probe", b"PASS pass word", b"STAT", b"QUIT"]
    assert said.splitlines() == words


def test_logs_in_by_plain_where_user_is_not_offered() -> None:
    result, said, _ = feed(IMPLICIT.talk(), tls=[GREETING, SASL, b"+ \r\n", OK, STAT])
    assert result.verdict is Verdict.OK
    assert b"AUTH PLAIN\r\n" + PLAIN_SECRET + b"\r\n" in said


HELLO = GREETING + USER


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b"-ERR [SYS/TEMP] going down\r\n", "greeting -ERR [SYS/TEMP] going down"),
        (b"220 mx ESMTP\r\n", "not a POP3 answer: 220 mx ESMTP"),
        (b"+OKAY\r\n", "not a POP3 answer: +OKAY"),
        (GREETING + b"+OK\r\nUSER\r\n", "closed"),
        (HELLO + OK + b"-ERR [AUTH] no\r\n", "login refused (-ERR [AUTH] no)"),
        (HELLO + b"-ERR no\r\n", "login refused (-ERR no)"),
        (HELLO + OK + b"-ERR pass word?\r\n", "login refused (-ERR)"),
        (HELLO + OK + b"pass word?\r\n", "not an answer to a login"),
        (HELLO + OK + b"-ERR [SYS/TEMP] no\r\n", "LOGIN -ERR [SYS/TEMP] no"),
        (HELLO + OK + b"-ERR [IN-USE] locked\r\n", "LOGIN -ERR [IN-USE] locked"),
        (HELLO + OK + OK + b"-ERR \x1bno\r\n", r"STAT -ERR \x1bno"),
        (HELLO + OK + OK + b"+OK many\r\n", "STAT +OK many"),
    ],
)
def test_says_what_was_refused_and_how(server: bytes, reason: str) -> None:
    result, _, _ = feed(IMPLICIT.talk(), tls=[server])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (GREETING + SASL, "offers no STLS"),
        (GREETING + PLAIN + b"-ERR not now\r\n", "STLS -ERR not now"),
        (GREETING + PLAIN + UPGRADE + OK, "bytes after STARTTLS"),
    ],
)
def test_says_what_came_in_the_way_of_tls(server: bytes, reason: str) -> None:
    result, _, _ = feed(STARTTLS.talk(), server, tls=[USER])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_after_a_refusal_it_does_not_log_in_for_a_while() -> None:
    memory: dict[str, float] = {}
    for now, verdict, tried in [(0.0, "fail", True), (29.0, "unknown", False), (30.0, "ok", True)]:
        answer = STAT if verdict == "ok" else b"-ERR [AUTH] no\r\n"
        talk = IMPLICIT.talk(Target("mx0", "10.0.0.4", now, memory))
        result, said, _ = feed(talk, tls=[HELLO + OK + answer + STAT])
        assert (result.verdict, b"PASS" in said) == (verdict, tried)


PIECES = [
    GREETING,
    PLAIN,
    USER,
    SASL,
    OK,
    STAT,
    b"-ERR no\r\n",
    b"+ \r\n",
    b".",
    b"\r",
    b"\n",
    b"x\r\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    whole = feed(IMPLICIT.talk(), tls=[GREETING + server])
    assert feed(IMPLICIT.talk(), tls=split(GREETING + server, data)) == whole
