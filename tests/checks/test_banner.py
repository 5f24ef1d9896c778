from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from checks.banner import Banner, Step
from hactl.core.model import Verdict
from tests.checks.feeding import feed
from tests.checks.peers import hang, look, says, summary
from tests.checks.pki import Pki

IMAP = Banner(
    port=143,
    expect="* OK",
    then=(Step(send="a NOOP", expect="a OK", skip="* "), Step(send="b LOGOUT")),
)
SIEVE = Banner(port=4190, expect="OK", skip='/^"[A-Z]+"/')
CLAMD = Banner(port=3310, then=(Step(send="PING", expect="/^PONG$/"),))


@pytest.mark.parametrize(
    ("check", "server", "said", "step", "reason"),
    [
        (IMAP, b"* OK hi\r\n* 3 EXISTS\r\na OK done\r\n", b"a NOOP\r\nb LOGOUT\r\n", "step1", "a OK done"),
        (SIEVE, b'"SIEVE" "fileinto"\r\n"SASL" ""\r\nOK "ready"\r\n', b"", "greeting", 'OK "ready"'),
        (CLAMD, b"PONG\n", b"PING\r\n", "step1", "PONG"),
        (Banner(port=1, expect="/E[SX]MTP/"), b"220 mx0 ESMTP\r\n", b"", "greeting", "220 mx0 ESMTP"),
        (Banner(port=1, expect="/"), b"/\xff\x1b\r\n", b"", "greeting", r"/\xff\x1b"),
    ],
)  # fmt: skip
def test_takes_what_is_expected(
    check: Banner, server: bytes, said: bytes, step: str, reason: str
) -> None:
    result, heard, last = feed(check.talk(), server)
    assert (result.verdict, result.reason, heard, last) == (Verdict.OK, reason, said, step)


@pytest.mark.parametrize(
    ("check", "server", "reason"),
    [
        (IMAP, b"* BYE 421 too many\x07\r\n", r"unexpected: * BYE 421 too many\x07"),
        (IMAP, b"* OK hi\r\n* 3 EXISTS\r\na NO sorry\r\n", "unexpected: a NO sorry"),
        (IMAP, b"* OK hi\r\n* 3 EXISTS\r\n", "closed"),
        (CLAMD, b"PONG PONG\n", "unexpected: PONG PONG"),
        (Banner(port=1, expect="/end/"), b"x" * 1000 + b"end\n", "unexpected: " + "x" * 77 + "..."),
    ],
)
def test_fails_with_the_line_that_was_not_expected(
    check: Banner, server: bytes, reason: str
) -> None:
    result, _, _ = feed(check.talk(), server)
    assert (result.verdict, result.reason) == (Verdict.FAIL, reason)


@pytest.mark.parametrize(
    ("check", "problems"),
    [
        (IMAP, []),
        (CLAMD, []),
        (
            Banner(port=1),
            [("expect", "expects nothing; to be connected is all that type tcp asks for")],
        ),
        (
            Banner(port=1, expect="/[/", skip="/+/", then=(Step(send="", expect="/(/"),)),
            [
                ("expect", "not a regular expression (unterminated character set at position 0)"),
                ("skip", "not a regular expression (nothing to repeat at position 0)"),
                (
                    "then",
                    "not a regular expression (missing ), unterminated subpattern at position 0)",
                ),
            ],
        ),
        (
            structs.replace(CLAMD, skip="*"),
            [("skip", "there is no greeting to skip to; expect one")],
        ),
        (
            structs.replace(IMAP, tls="implicit", name="-"),
            [("name", "expected a host name or an IP address, as in the certificate")],
        ),
    ],
)
def test_options_that_cannot_be_are_named(check: Banner, problems: list[tuple[str, str]]) -> None:
    assert list(check.problems()) == problems


def test_speaks_under_tls_when_told_so(pki: Pki) -> None:
    check = structs.replace(IMAP, tls="implicit", ca=pki.ca)
    peer = says(b"* OK hi\r\n", b"a OK done\r\n", then=hang)
    result = look(check, peer, tls=pki.server())
    assert summary(result) == (Verdict.OK, "step1", "a OK done")
    assert [step for step, _ in result.steps] == ["connect", "tls", "greeting", "step1"]


PIECES = [b"* OK hi\r\n", b"* 3\r\n", b"a OK\n", b"a NO\r\n", b"a", b" ", b"OK", b"\n", b"\x00\xff"]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), st.data())
def test_where_the_bytes_are_split_changes_nothing(server: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(server)), max_size=10)))
    ends = [*cuts, len(server)]
    chunks = [server[a:b] for a, b in zip([0, *cuts], ends, strict=True) if a < b]
    assert feed(IMAP.talk(), *chunks) == feed(IMAP.talk(), server)
