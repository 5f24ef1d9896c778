"""imap, pop3, sieve and lmtp against Dovecot: well, and with one of its processes hung."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import convert, structs

from checks.imap import Imap
from checks.tls import Tls
from hactl.core.health import State
from hactl.core.model import Verdict
from tests.services.dovecot import Dovecot
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

NAMES = ("imap", "imaps", "pop3", "pop3s", "sieve", "lmtp")
# A login process that waits already takes one more client before it asks who hangs.
GREETING = r"(greeting|tls|capability): no answer in 1s"
HUNG = dict.fromkeys(("imap", "imaps", "pop3", "pop3s", "sieve"), GREETING)


@pytest.fixture(scope="module")
def watch(dovecot: Dovecot) -> Iterator[Watch]:
    checks = {name: timed(check, 1.0, 1.0, 0.2) for name, check in dovecot.checks.items()}
    with Watch(checks) as watch:
        yield watch


@pytest.mark.parametrize("name", NAMES)
def test_passes_with_a_look_into_the_mailbox(dovecot: Dovecot, name: str) -> None:
    result = dovecot.server.look(dovecot.checks[name])
    last = {"imap": "select", "pop3": "stat", "sieve": "scripts", "lmtp": "rcpt"}
    assert (result.verdict, result.step) == (Verdict.OK, last[name.removesuffix("s")])
    counts = {"imap": {"messages", "unseen"}, "pop3": {"messages", "mailbox_bytes"}}
    assert counts.get(name.removesuffix("s"), set()) <= result.measures.keys()


@pytest.mark.parametrize("name", NAMES)
def test_passes_without_a_login(dovecot: Dovecot, name: str) -> None:
    check = dovecot.checks[name]
    assert dovecot.server.look(structs.replace(check, login=None)).verdict is Verdict.OK


@pytest.mark.parametrize("name", ["imap", "pop3", "sieve"])
def test_the_certificate_is_seen_where_tls_is_asked_for(dovecot: Dovecot, name: str) -> None:
    check = dovecot.checks[name]
    asked = {"type": "tls", "port": check.port, "starttls": name, "name": check.name}
    tls = structs.replace(convert(asked, Tls), ca=check.ca)
    result = dovecot.server.look(tls)
    assert (result.verdict, result.step) == (Verdict.OK, "tls")
    assert result.measures["left_days"] == pytest.approx(42.5, abs=0.1)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        ("/auth", HUNG | {"lmtp": r"rcpt: no answer in 1s"}),
        (
            "/anvil",
            dict.fromkeys(("imap", "imaps", "sieve"), r"login: no answer in 1s")
            | dict.fromkeys(("pop3", "pop3s"), r"pass: no answer in 1s"),
        ),
        ("/config", HUNG),
        ("/stats", HUNG),
        ("/lmtp", {"lmtp": r"greeting: no answer in 1s"}),
    ],
)
def test_a_hung_process_shows_at_its_step(
    dovecot: Dovecot, watch: Watch, process: str, expected: dict[str, str]
) -> None:
    children = dovecot.server.children(process)
    # LMTP asks anvil in its own time, and gives up on it after 5s: 451.
    either = ("lmtp",) if process == "/anvil" else ()
    endure(watch, dovecot.server.frozen(children), expected, either=either)


@contextmanager
def unreadable(directory: Path) -> Iterator[None]:
    directory.chmod(0)
    try:
        yield
    finally:
        directory.chmod(0o700)


def test_a_mailbox_that_cannot_be_opened_shows_after_the_login(
    dovecot: Dovecot, watch: Watch
) -> None:
    expected = {
        "imap": r"STATUS NO \[SERVERBUG\] Internal error .*",
        "imaps": r"STATUS NO \[SERVERBUG\] Internal error .*",
        "pop3": r"STAT -ERR \[SYS/TEMP\] Internal error .*",
        "pop3s": r"STAT -ERR \[SYS/TEMP\] Internal error .*",
        "sieve": r'AUTHENTICATE BYE "Internal error .*',
    }
    endure(watch, unreadable(dovecot.mailbox), expected, silent=False)


def test_looks_leave_nothing_in_the_mailbox_and_no_password_in_the_log(dovecot: Dovecot) -> None:
    def files() -> dict[str, int]:
        return {str(f): f.stat().st_size for f in dovecot.mailbox.rglob("*") if f.is_file()}

    for check in dovecot.checks.values():
        dovecot.server.look(check)
    before = files()
    for check in dovecot.checks.values():
        assert dovecot.server.look(check).verdict is Verdict.OK
    assert files() == before
    assert not re.search("secret", dovecot.server.log)


def test_a_wrong_password_is_tried_once_and_then_not_for_a_while(dovecot: Dovecot) -> None:
    """The last test here: Dovecot now makes everybody from this address wait."""
    right = dovecot.checks["imap"]
    assert isinstance(right, Imap)
    wrong = structs.replace(right, login=dovecot.wrong)
    before = len(dovecot.server.log)
    with Watch({"imap": timed(wrong, 0.5, 3.0, 0.2)}) as watch:
        watch.until(State.UNKNOWN)
        health = watch.after(5, "imap")
    assert health.state is State.UNKNOWN
    assert health.last is not None
    assert health.last.reason.startswith("not logged in: refused ")
    assert health.reason == ("login refused (NO [AUTHENTICATIONFAILED] Authentication failed.)")
    assert dovecot.server.log[before:].count("Password mismatch") == 1
