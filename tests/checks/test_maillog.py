"""The maillog check: lines of servers and strangers, files that are rotated, and what it comes to."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from checks import NOBODY, maillog
from checks._tasks import look
from checks.maillog import CHUNK, Follower, Maillog, Said, said
from hactl.core.model import Result, Verdict
from hactl.core.units import Duration, Size

HEAD = "Nov 22 20:31:01 mx0 "
MDA = (
    HEAD + "smtpd[4711]: 0f3a5b7c9d1e2f30 mda delivery evpid=1122334455667788 from=<a@b.test>"
    " to=<c@d.test> rcpt=<c@d.test> user=c delay=3s result=Ok stat=Delivered"
)
MTA = (
    HEAD + "smtpd[4711]: 0f3a5b7c9d1e2f30 mta delivery evpid=1122334455667788 from=<a@b.test>"
    ' to=<c@d.test> rcpt=<-> source="10.0.0.4" relay="192.0.2.9 (mx.d.test)" delay=1m2s'
    ' result="TempFail" stat="451 4.7.1 try again later, ticket 8812345"'
)
SENT = (
    HEAD + "postfix/smtp[99]: 4F2A91C0: to=<c@d.test>, relay=mx.d.test[192.0.2.9]:25, delay=1.2,"
    " delays=0.1/0/0.5/0.6, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as 1234ABCD)"
)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (MDA, Said("ok")),
        (MDA.replace("Ok stat=Delivered", "TempFail stat=no mailbox"), Said("tempfail", "no mailbox")),
        (MTA, Said("tempfail", "451 4.7.1 try again later, ticket ...")),
        (MTA.replace("TempFail", "PermFail"), Said("permfail", "451 4.7.1 try again later, ticket ...")),
        (MDA.replace("from=<a@b.test>", 'from=<"x delay=1s result=TempFail stat="@b>'), Said("unclear")),
        (HEAD + "smtpd[1]: 0f3a5b7c9d1e2f30 smtp message msgid=11223344 size=321 nrcpt=1 proto=ESMTP",
         Said("accepted")),
        (HEAD + 'smtpd[1]: 0f3a5b7c9d1e2f30 smtp failed-command command="RCPT TO:<x@y>" result="421 4.3.0 Temporary Error"',
         Said("put_off", "4.3.0 Temporary Error")),
        (HEAD + 'smtpd[1]: 0f3a5b7c9d1e2f30 smtp failed-command command="RCPT TO:<x@y>" result="550 Invalid recipient"',
         Said("refused", "Invalid recipient")),
        (HEAD + "smtpd[1]: 0f3a5b7c9d1e2f30 smtp connected address=192.0.2.1 host=x", None),
        (HEAD + "spamd[2]: spamd: clean message (-15.9/6.0) for (unknown):506 in 2.7 seconds, 3062 bytes.",
         Said("scan", seconds=2.7)),
        (HEAD + "spamd[2]: spamd: identified spam (999.9/6.0) for u:506 in 12 seconds, 1 bytes.",
         Said("scan", seconds=12.0)),
        (HEAD + "spamd[2]: spamd: result: . -15 - ALL_TRUSTED scantime=2.7,size=3062", None),
        (HEAD + "filter-spamassassin[3]: 0f3a5b7c9d1e2f30 result Spam: False ; -15.9 / 6.0", Said("ham")),
        (HEAD + "filter-spamassassin[3]: 0f3a5b7c9d1e2f30 result Spam: True ; 9.1 / 6.0", Said("spam")),
        (SENT, Said("ok")),
        (SENT.replace("status=sent (250 2.0.0 Ok: queued as 1234ABCD)",
                      "status=deferred (connect to mx.d.test[192.0.2.9]:25: Connection refused)"),
         Said("tempfail", "(connect to mx.d.test...: Connection refused)")),
        (SENT.replace("sent", "bounced"), Said("permfail", "(250 2.0.0 Ok: queued as ...)")),
        (HEAD + "postfix/smtpd[9]: NOQUEUE: reject: RCPT from x.test[192.0.2.1]: 451 4.3.0 <c@d>: Temporary"
         " lookup failure; from=<a@b> to=<c@d> proto=ESMTP helo=<x>",
         Said("put_off", "4.3.0 ...: Temporary lookup failure")),
        (HEAD + "postfix/smtpd[9]: 4F2A91C0: client=x.test[192.0.2.1]", None),
        (HEAD + "postfix/cleanup[9]: 4F2A91C0: message-id=<x@y.test>", Said("accepted")),
        (HEAD + "postfix/cleanup[9]: 4F2A91C0: warning: header Subject: message-id=", None),
        (HEAD + "postfix/qmgr[9]: 4F2A91C0: from=<a@b>, size=1, nrcpt=1 (queue active)", None),
        ("2026-11-22T20:31:01.123456+00:00 " + MDA[16:], Said("ok")),
        (HEAD + "sshd[1]: Failed password for root from 192.0.2.1", None),
        ("", None),
    ],
)  # fmt: skip
def test_lines_of_servers(line: str, what: Said | None) -> None:
    assert said(line) == what


@pytest.mark.parametrize(
    "head",
    [
        "Nov  2 20:31:01 mx0 ",
        "<22>Nov 22 20:31:01 mx0.example.org ",
        "Nov 22 20:31:01.123456 2001:db8::25 ",
        "Nov 22 20:31:01 <mail.info> mx0 ",
        "Nov 22 20:31:01 <2.6> mx0 ",
        "Nov 22 20:31:01 mx0 mail.info ",
        "2026-11-22T20:31:01Z mx0 ",
        "2026-11-22T20:31:01.123Z mx0 ",
        "2026-11-22T20:31:01+0100 mx0 ",
        "<22>2026-11-22T20:31:01.123456-03:30 mx0 ",
    ],
)
def test_lines_as_log_daemons_write_them(head: str) -> None:
    assert said(MDA.replace(HEAD, head)) == Said("ok")
    assert said(SENT.replace(HEAD, head).replace("postfix/", "postfix-out/relay/")) == Said("ok")


@pytest.mark.parametrize(
    "own", ["dovecot: imap-login: Login failed: user=<x ", "dovecot[7]: ", "sshd[1]: ", ""]
)
@pytest.mark.parametrize(
    "words",
    [
        "smtpd[1]: x delivery evpid= delay=3 result=TempFail stat=x",
        MTA.removeprefix(HEAD),
        MTA,
        "spamd[1]: spamd: clean message (1/1) for x:1 in 999.0 seconds, 1 bytes.",
        "filter-spamassassin[3]: 0f3a5b7c9d1e2f30 result Spam: True ; 9.1 / 6.0",
        SENT.removeprefix(HEAD),
        "postfix/cleanup[9]: 4F2A91C0: message-id=<x@y.test>",
    ],
)
def test_a_strangers_words_in_another_programs_line_count_as_nothing(own: str, words: str) -> None:
    assert said(f"{HEAD}{own}/{words}>, method=PLAIN, rip=192.0.2.1") is None
    assert said(f"{HEAD}{own or 'x '}{words}") is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (
            'smtpd[1]: {} smtp failed-command command="RCPT TO:<x smtp message y>" result="451 x"',
            Said("put_off", "x"),
        ),
        (
            'smtpd[1]: {} smtp envelope evpid=1122334455667788 from=<"x delivery evpid= delay=3'
            ' result=TempFail stat="@b.test> to=<c@d.test>',
            None,
        ),
        ("smtpd[1]: {} mta error reason=x delivery evpid= delay=3 result=TempFail stat=x", None),
        ('smtpd[1]: {} mta error reason=x failed-command result="451 x"', None),
        (
            'postfix/qmgr[9]: 4F2A91C0: from=<", dsn=4.0.0, status=deferred (x"@b.test>, size=1,'
            " nrcpt=1 (queue active)",
            None,
        ),
    ],
)
def test_a_strangers_words_do_not_change_what_a_line_is(text: str, what: Said | None) -> None:
    assert said(HEAD + text.format("0f3a5b7c9d1e2f30")) == what


@given(st.text(max_size=80), st.sampled_from([MDA, MTA, SENT]), st.integers(0, 200))
def test_no_line_is_too_strange(odd: str, line: str, place: int) -> None:
    found = said(line[:place] + odd + line[place:])
    assert found is None or (len(found.why) < 200 and found.seconds >= 0)


# Files


class Log:
    """A log, and looks at it."""

    def __init__(self, directory: Path, **options: object) -> None:
        self.path = directory / "maillog"
        self.path.touch()
        self.option = Maillog(file=self.path, least=4, **options)  # type: ignore[arg-type]

    def write(self, *lines: str, end: str = "\n") -> None:
        with self.path.open("a") as file:
            file.write("\n".join(lines) + end)

    def look(self) -> Result:
        return asyncio.run(look(self.option, NOBODY, 20))

    def count(self, what: str) -> float:
        return self.look().measures[f"{what}_count"]


def test_what_is_written_after_the_first_look_counts(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(MTA)
    assert log.count("tempfail") == 0
    log.write(MTA, MDA, MDA)
    log.write(MTA, end="")
    found = log.look()
    assert found.verdict is Verdict.OK
    assert (found.measures["ok_count"], found.measures["tempfail_count"]) == (2, 1)
    assert found.measures["tempfail_percent"] == 0.0, "too few to tell"
    log.write("")  # the end of the line
    found = log.look()
    assert found.measures["tempfail_percent"] == 50.0
    assert found.reason.startswith("2 delivered, 2 tempfail in ")
    assert found.reason.endswith("2: 451 4.7.1 try again later, ticket ...")


def rename(log: Log) -> None:
    log.path.rename(log.path.with_suffix(".0"))
    log.path.touch()


def truncate(log: Log) -> None:
    assert log.count("ok") == 3  # copytruncate loses what was not read before
    os.truncate(log.path, 0)


@pytest.mark.parametrize("rotate", [rename, truncate])
def test_a_rotated_log_is_followed(tmp_path: Path, rotate: Callable[[Log], None]) -> None:
    log = Log(tmp_path)
    log.look()
    log.write(MDA, MDA, MDA)
    rotate(log)
    log.write(MTA)
    found = log.look()
    assert (found.measures["ok_count"], found.measures["tempfail_count"]) == (3, 1)


def test_scans_and_their_times(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.look()
    line = HEAD + "spamd[2]: spamd: clean message (1.0/6.0) for u:5 in {} seconds, 3 bytes."
    log.write(line.format("2.0"), line.format("6.0"))
    measures = log.look().measures
    assert (measures["scan_seconds"], measures["longest_scan_seconds"]) == (4.0, 6.0)


def test_a_log_that_is_missing_is_unknown_and_noticed_again(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.look()
    log.path.unlink()
    found = log.look()
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, "read: no such file or directory")
    log.write(MDA)
    assert log.count("ok") == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(os.devnull)])
def test_what_is_no_file_is_unknown_at_each_look(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    log = Log(tmp_path)
    log.look()
    log.path.unlink()
    make(log.path)
    before = sorted(Path("/dev/fd").iterdir())
    fresh = structs.replace(log.option, least=5)  # which has never seen a file there
    for check in (log.option, log.option, fresh, fresh):
        found = asyncio.run(look(check, NOBODY, 20))
        assert (found.verdict, found.reason) == (Verdict.UNKNOWN, "read: not a regular file")
    assert sorted(Path("/dev/fd").iterdir()) == before


def test_of_too_much_the_end_is_read(tmp_path: Path) -> None:
    log = Log(tmp_path, most=Size(CHUNK))
    log.look()
    log.write(*[MTA] * 1000, *[MDA] * 10)
    found = log.look()
    assert found.measures["ok_count"] == 10
    assert 0 < found.measures["tempfail_count"] < 1000
    assert found.measures["missed_bytes"] > 0


def test_what_is_past_the_window_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    option = Maillog(file=Log(tmp_path).path, window=Duration(60))
    follower = Follower(option)
    follower._take(MDA.encode() + b"\n")
    assert follower.judge(now + 58).measures["ok_count"] == 1
    assert follower.judge(now + 62).measures["ok_count"] == 0
    assert follower.judge(now + 62).measures["quiet_seconds"] == 62.0


def test_memory_does_not_grow_with_strange_lines(tmp_path: Path) -> None:
    follower = Follower(Maillog(file=Log(tmp_path).path))
    gc.collect()
    tracemalloc.start()
    for number in range(1000):
        line = MTA.replace(
            "try again later", "".join(map(chr, (97 + number % 26,) * (number % 90)))
        )
        follower._take(line.encode() + b"\n")
    follower._take(b"x" * 10 * CHUNK)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(follower._parts) <= maillog.PARTS
    assert all(len(part.reasons) <= maillog.REASONS + 1 for part in follower._parts)
    assert peak < 4 << 20
    follower._take(b"\n" + MDA.encode() + b"\n")
    assert follower.judge(follower.used).measures["ok_count"] == 1


def test_what_cannot_be_counted_over_is_refused() -> None:
    odd = Maillog(window=Duration(1), least=0, most=Size(1))
    assert [name for name, _ in odd.problems()] == ["window", "least", "most"]
