from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import LOGIN, Target, _login
from checks._login import Login
from checks.imap import Imap
from hactl.core.model import Verdict
from hactl.core.units import Secret
from tests.checks.feeding import feed, split

GREETING = b"* OK [CAPABILITY IMAP4rev1 SASL-IR STARTTLS LOGINDISABLED] Dovecot ready.\r\n"


def offer(step: bytes, words: bytes) -> bytes:
    return b"* CAPABILITY IMAP4rev1 " + words + b"\r\n" + step + b" OK Pre-login done.\r\n"


PLAIN = offer(b"capability", b"STARTTLS LOGINDISABLED")
UPGRADE = b"starttls OK Begin TLS negotiation now.\r\n"
OFFERS = offer(b"capability_tls", b"SASL-IR AUTH=PLAIN AUTH=LOGIN")
IN = b"* CAPABILITY IMAP4rev1 IDLE\r\nlogin OK Logged in\r\n"
STATUS = b"* STATUS INBOX (MESSAGES 3 UNSEEN 1)\r\nstatus OK Status completed.\r\n"
SELECT = (
    b"* FLAGS (\\Seen)\r\n* 3 EXISTS\r\n* OK [UIDVALIDITY 1] ok\r\nselect OK [READ-WRITE] done.\r\n"
)
SECRET = Secret("/etc/hactl/probe.login")
AHB = b"AHByb2JlAHDDpHNzIHdvcmQ="  # \0probe\0p(a umlaut)ss word

STARTTLS = Imap(tls="starttls", verify=False, login=SECRET)
IMPLICIT = Imap(port=993, tls="implicit", verify=False, login=SECRET)


@pytest.fixture(autouse=True)
def login() -> Iterator[None]:
    with patch.dict(_login._read, {SECRET: Login(b"probe", "p\u00e4ss word".encode())}):
        yield


def test_greets_and_says_what_it_can() -> None:
    result, said, step = feed(Imap().talk(), GREETING + PLAIN)
    assert (result.verdict, result.reason) == (Verdict.OK, "Dovecot ready.")
    assert (said, step) == (b"capability CAPABILITY\r\nlogout LOGOUT\r\n", "capability")


def test_opens_the_mailbox_under_tls_and_leaves() -> None:
    server = [OFFERS, IN, STATUS, SELECT]
    result, said, step = feed(STARTTLS.talk(), GREETING + PLAIN + UPGRADE, tls=server)
    assert (result.verdict, result.reason, step) == (Verdict.OK, "INBOX: 3 messages", "select")
    assert result.measures == {"messages": 3, "unseen": 1}
    assert said.splitlines() == [
        b"capability CAPABILITY",
        b"starttls STARTTLS",
        b"<TLS>capability_tls CAPABILITY",
        b"login AUTHENTICATE PLAIN " + AHB,
        b'status STATUS "INBOX" (MESSAGES UNSEEN)',
        b'select SELECT "INBOX"',
        b"logout LOGOUT",
    ]


@pytest.mark.parametrize(
    ("offers", "answers", "said"),
    [
        (b"AUTH=PLAIN SASL-IR", [IN], [b"login AUTHENTICATE PLAIN " + AHB]),
        (b"AUTH=PLAIN", [b"+ \r\n", IN], [b"login AUTHENTICATE PLAIN", AHB]),
        (b"AUTH=PLAIN", [b"* OK wait\r\n+\r\n", IN], [b"login AUTHENTICATE PLAIN", AHB]),
        (b"IDLE", [IN], ['login LOGIN "probe" "p\u00e4ss word"'.encode()]),
    ],
)
def test_logs_in_the_way_that_is_offered(
    offers: bytes, answers: list[bytes], said: list[bytes]
) -> None:
    server = [GREETING, offer(b"capability", offers), *answers]
    check = Imap(tls="implicit", verify=False, login=SECRET, mailbox="")
    result, heard, _ = feed(check.talk(), tls=server)
    assert (result.verdict, result.reason) == (Verdict.OK, "logged in")
    assert heard.splitlines()[1:-1] == said


def test_what_is_quoted_is_escaped() -> None:
    login = Login(b'pr"obe', rb"back\slash")
    server = [GREETING, offer(b"capability", b"IDLE"), IN]
    with patch.dict(_login._read, {SECRET: login}):
        _, said, _ = feed(IMPLICIT.talk(), tls=server)
    assert rb'login LOGIN "pr\"obe" "back\\slash"' in said


def test_who_is_known_already_does_not_log_in() -> None:
    server = [b"* PREAUTH hello\r\n", offer(b"capability", b"IDLE"), STATUS, SELECT]
    result, said, _ = feed(IMPLICIT.talk(), tls=server)
    assert result.verdict is Verdict.OK
    assert b"login" not in said


HELLO = GREETING + offer(b"capability", b"AUTH=PLAIN SASL-IR")


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b"* BYE too many connections\r\n", "greeting BYE too many connections"),
        (b"220 mx ESMTP\r\n", "not an IMAP greeting: 220 mx ESMTP"),
        (b"* OK", "closed"),
        (GREETING + b"capability BAD what?\r\n", "CAPABILITY BAD what?"),
        (GREETING + b"* BYE going down\r\n", "unexpected: * BYE going down"),
        (GREETING + b"250 Ok\r\n", "unexpected: 250 Ok"),
        (GREETING + offer(b"capability", b"LOGINDISABLED"), "offers no login (LOGINDISABLED)"),
        (HELLO + b"login BAD what?\r\n", "LOGIN BAD what?"),
        (
            HELLO + b"login NO [AUTHENTICATIONFAILED] Authentication failed.\r\n",
            "login refused (NO [AUTHENTICATIONFAILED] Authentication failed.)",
        ),
        (HELLO + b"login NO no " + AHB + b"\r\n", "login refused (NO)"),
        (
            HELLO + b"login NO [UNAVAILABLE] Temporary authentication failure.\r\n",
            "LOGIN NO [UNAVAILABLE] Temporary authentication failure.",
        ),
        (HELLO + b"echo " + AHB + b"\r\n", "not an answer to a login"),
        (
            HELLO + IN + b"status NO [SERVERBUG] Internal error occurred.\r\n",
            "STATUS NO [SERVERBUG] Internal error occurred.",
        ),
        (HELLO + IN + b"status OK done\r\n", "STATUS says nothing of the mailbox: status OK done"),
        (HELLO + IN + STATUS + b"select NO \x1b[31mno\r\n", r"SELECT NO \x1b[31mno"),
    ],
)
def test_says_what_was_refused_and_how(server: bytes, reason: str) -> None:
    result, _, _ = feed(IMPLICIT.talk(), tls=[server])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (GREETING + offer(b"capability", b"IDLE"), "offers no STARTTLS"),
        (GREETING + PLAIN + b"starttls NO not now\r\n", "STARTTLS NO not now"),
        (GREETING + PLAIN + UPGRADE + b"* OK more\r\n", "bytes after STARTTLS"),
    ],
)
def test_says_what_came_in_the_way_of_tls(server: bytes, reason: str) -> None:
    result, _, _ = feed(STARTTLS.talk(), server, tls=[OFFERS])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_a_literal_may_hold_anything() -> None:
    literal = b"select OK no\r\n* BYE\r\n+ "
    listing = b'* LIST () "/" {%d}\r\n%s {1+}\r\nx (more)\r\n' % (len(literal), literal)
    result, _, step = feed(IMPLICIT.talk(), tls=[HELLO + IN + STATUS + listing + SELECT])
    assert (result.verdict, step) == (Verdict.OK, "select")


def test_after_a_refusal_it_looks_without_logging_in_for_longer_each_time() -> None:
    memory: dict[str, float] = {}
    no = b"login NO [AUTHENTICATIONFAILED] no\r\n"

    def look(now: float, answer: bytes) -> tuple[Verdict, str, bool]:
        talk = IMPLICIT.talk(Target("mx0", "10.0.0.4", now, memory))
        result, said, _ = feed(talk, tls=[HELLO + answer])
        return result.verdict, result.reason, b"AUTHENTICATE" in said

    refused = (Verdict.FAIL, "login refused (NO [AUTHENTICATIONFAILED] no)", True)
    assert look(1000.0, no) == refused
    waits = "not logged in: refused {} ago, tried again in {}".format
    assert look(1001.0, no) == (Verdict.UNKNOWN, waits("1.0s", "29s"), False)
    assert look(1030.0, no) == refused
    assert look(1080.0, no) == (Verdict.UNKNOWN, waits("50s", "10s"), False)
    assert look(1090.0, no) == refused
    now = 1090.0
    for _ in range(9):
        now += 900
        assert look(now, no) == refused
    assert look(now + 899, no)[0] is Verdict.UNKNOWN
    assert look(now - 1, no) == refused  # the clock was set back
    assert look(now + 899, IN + STATUS + SELECT) == (Verdict.OK, "INBOX: 3 messages", True)
    assert look(now + 900, no) == refused
    assert look(now + 931, no) == refused


def test_a_temporary_failure_is_tried_again_at_once() -> None:
    target = Target("mx0", "10.0.0.4", 1000.0, {})
    for _ in range(2):
        result, _, _ = feed(IMPLICIT.talk(target), tls=[HELLO + b"login NO [UNAVAILABLE] no\r\n"])
        assert result.verdict is Verdict.FAIL


def test_before_the_login_a_resting_look_sees_what_others_see() -> None:
    target = Target("mx0", "10.0.0.4", 1000.0, {"refused": 999.0, "refusals": 1})
    result, _, _ = feed(IMPLICIT.talk(target), tls=[b"* BYE down\r\n"])
    assert (result.verdict, result.reason) == (Verdict.FAIL, "greeting BYE down")


def test_options_that_cannot_be_are_named() -> None:
    assert [f for f, _ in Imap(login=SECRET).problems()] == ["login", "login"]
    assert [f for f, _ in Imap(mailbox="Entw\u00fcrfe").problems()] == ["mailbox"]
    assert list(Imap().problems()) == []
    assert (Imap(login=SECRET).times(), Imap().times()) == (LOGIN, Imap.timing)


PIECES = [
    GREETING, HELLO, offer(b"capability", b"AUTH=PLAIN"), IN, STATUS, SELECT, b"+ \r\n", b"* 1 EXISTS\r\n",
    b"* X {9}\r\n", b"{2+}\r\n", b"login NO no\r\n", b"select ", b"\r", b"\n", b"\x00", b"noise\r\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    whole = feed(IMPLICIT.talk(), tls=[HELLO + server])
    assert feed(IMPLICIT.talk(), tls=split(HELLO + server, data)) == whole
    assert "word" not in whole[0].reason
