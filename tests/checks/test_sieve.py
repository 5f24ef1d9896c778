from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import Target, _login
from checks._login import Login
from checks.sieve import Sieve
from hactl.core.model import Verdict
from hactl.core.units import Secret
from tests.checks.feeding import feed, split

NAME = b'"IMPLEMENTATION" "Dovecot Pigeonhole"\r\n'
PLAIN = NAME + b'"SASL" ""\r\n"STARTTLS"\r\n"VERSION" "1.0"\r\nOK "Dovecot ready."\r\n'
TLS = NAME + b'"SASL" "PLAIN LOGIN"\r\n"VERSION" "1.0"\r\nOK "TLS negotiation successful."\r\n'
OK = b'OK "done."\r\n'
SCRIPTS = b'"vacation"\r\n{9}\r\nOK \r\nmore ACTIVE\r\nOK "Listscripts completed."\r\n'
SECRET = Secret("/etc/hactl/probe.login")
SAID = b"AHByb2JlAHBhc3Mgd29yZA=="

STARTTLS = Sieve(tls="starttls", verify=False, login=SECRET)
IMPLICIT = Sieve(tls="implicit", verify=False, login=SECRET)


@pytest.fixture(autouse=True)
def login() -> Iterator[None]:
    with patch.dict(_login._read, {SECRET: Login(b"probe", b"pass word")}):
        yield


def test_greets_with_what_it_can() -> None:
    result, said, step = feed(Sieve().talk(), PLAIN)
    assert (result.verdict, result.reason) == (Verdict.OK, "Dovecot Pigeonhole")
    assert (said, step) == (b"LOGOUT\r\n", "greeting")


def test_lists_scripts_under_tls_and_leaves() -> None:
    result, said, step = feed(STARTTLS.talk(), PLAIN + OK, tls=[TLS, OK, SCRIPTS])
    assert (result.verdict, result.reason, step) == (Verdict.OK, "2 scripts", "scripts")
    assert result.measures == {"scripts": 2}
    login = b'AUTHENTICATE "PLAIN" "' + SAID + b'"'
    assert said.splitlines() == [b"STARTTLS", b"<TLS>" + login, b"LISTSCRIPTS", b"LOGOUT"]


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (b'BYE "too many"\r\n', 'greeting BYE "too many"'),
        (b"* OK ready\r\n", "unexpected: * OK ready"),
        (b'"SASL" "PLAIN"\r\n', "closed"),
        (b'NO {4}\r\nOK\r\n "x"\r\n', r'greeting NO {4}\x0d\x0aOK\x0d\x0a "x"'),
        (NAME + OK, "offers no AUTHENTICATE PLAIN (none)"),
        (TLS + b'NO "Authentication failed."\r\n', 'login refused (NO "Authentication failed.")'),
        (TLS + b'NO "' + SAID + b'"\r\n', "login refused (NO)"),
        (TLS + b"echo " + SAID + b"\r\n", "not an answer to a login"),
        (TLS + b'NO (TRYLATER) "busy"\r\n', 'AUTHENTICATE NO (TRYLATER) "busy"'),
        (TLS + b'BYE "pass word"\r\n', "AUTHENTICATE BYE"),
        (TLS + OK + b'NO "Internal error"\r\n', 'LISTSCRIPTS NO "Internal error"'),
    ],
)
def test_says_what_was_refused_and_how(server: bytes, reason: str) -> None:
    result, _, _ = feed(IMPLICIT.talk(), tls=[server])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


@pytest.mark.parametrize(
    ("server", "tls", "reason"),
    [
        (TLS, b"", "offers no STARTTLS"),
        (PLAIN + b'NO "not now"\r\n', b"", 'STARTTLS NO "not now"'),
        (PLAIN + OK + OK, b"", "bytes after STARTTLS"),
        (PLAIN + OK, b'BYE "x"\r\n', 'greeting BYE "x"'),
    ],
)
def test_says_what_came_in_the_way_of_tls(server: bytes, tls: bytes, reason: str) -> None:
    result, _, _ = feed(STARTTLS.talk(), server, tls=[tls])
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


def test_after_a_refusal_it_does_not_log_in_for_a_while() -> None:
    memory: dict[str, float] = {}
    for now, verdict, tried in [(0.0, "fail", True), (29.0, "unknown", False), (30.0, "ok", True)]:
        answer = OK if verdict == "ok" else b'NO "no"\r\n'
        talk = IMPLICIT.talk(Target("mx0", "10.0.0.4", now, memory))
        result, said, _ = feed(talk, tls=[TLS + answer + SCRIPTS])
        assert (result.verdict, b"AUTHENTICATE" in said) == (verdict, tried)


PIECES = [
    PLAIN,
    TLS,
    OK,
    SCRIPTS,
    b'NO "x"\r\n',
    b"BYE\r\n",
    b'"x" {4+}\r\n',
    b"\r",
    b"\n",
    b"x\r\n",
]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    whole = feed(IMPLICIT.talk(), tls=[TLS + server])
    assert feed(IMPLICIT.talk(), tls=split(TLS + server, data)) == whole
