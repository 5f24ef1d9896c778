"""The delivery check: what is sent, found and removed, and that it never makes a storm."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from checks import Target
from checks._maildir import OLD, visit
from checks._tasks import look
from checks.delivery import MOST, Delivery, Errand, Mailbox, Visitor, rewritten, waits
from hactl.core.model import Result, Verdict
from hactl.core.units import Secret
from tests.checks.feeding import feed
from tests.checks.peers import GREETING, LONG, Handler, serving, summary
from tests.checks.pki import NAME, Pki

NOW = 1_700_000_000
HEADERS = b"""\
Return-Path: <SRS0=ab+c=X7=Example.org=Probe@fwd.test>
Received: from fwd.test by mx0.example.org with ESMTP; Tue, 14 Nov 2023 22:13:29 +0000
Received: from lb (lb [192.0.2.1]) by fwd.test;
\tTue, 14 Nov 2023 23:13:22 +0100 (CET)
DKIM-Signature: v=1; a=rsa-sha256
Subject: hactl probe
"""
PROBE = Delivery(mail_to="probe@example.org", mail_from="probe@example.org", maildir=Path("/x"))


# What arrived


def test_judges_hops_headers_and_sender() -> None:
    check = structs.replace(PROBE, headers=("dkim-signature",))
    result = check.judge(HEADERS, NOW + 0.9)
    srs = "sender rewritten by SRS to <SRS0=ab+c=X7=Example.org=Probe@fwd.test>"
    assert (result.verdict, result.reason) == (Verdict.OK, f"arrived over 2 hops, {srs}")
    assert result.measures == {"hop1_seconds": 2, "hop2_seconds": 7}


def test_a_header_that_is_missing_is_a_failure() -> None:
    check = structs.replace(PROBE, headers=("X-Spam-Status", "DKIM-Signature", "X-Virus"))
    result = check.judge(HEADERS, NOW)
    assert (result.verdict, result.reason) == (
        Verdict.FAIL,
        "arrived without X-Spam-Status, X-Virus",
    )


@pytest.mark.parametrize(
    ("sender", "ours", "kind"),
    [
        ("probe@example.org", "Probe@Example.org", "ours"),
        ("", "", "ours"),
        ("SRS0=HHH=TT=example.org=probe@fwd.test", "probe@example.org", "SRS"),
        ("srs0+HHH=TT=example.org=probe@fwd.test", "probe@example.org", "SRS"),
        ("SRS1=HHH=fwd.test==HHH=TT=example.org=probe@two.test", "probe@example.org", "SRS"),
        ("SRS0=HHH=TT=example.org=probe=x@fwd.test", "probe=x@example.org", "SRS"),
        ("SRS0=HHH=TT=other.org=probe@fwd.test", "probe@example.org", "other"),
        ("SRS0=HHH=TT=example.org=nobody@fwd.test", "probe@example.org", "other"),
        ("somebody@else.test", "probe@example.org", "other"),
        ("SRS0===@", "", "other"),
    ],
)
def test_a_sender_that_srs_rewrote_is_recognised(sender: str, ours: str, kind: str) -> None:
    assert rewritten(sender, ours) == kind


def test_a_sender_that_is_another_is_a_warning() -> None:
    result = PROBE.judge(b"Return-Path: <a\x1b@b>\n", NOW)
    assert (result.verdict, result.reason) == (
        Verdict.WARN,
        r"arrived over 0 hops, from <a\x1b@b>",
    )


@pytest.mark.parametrize(
    "received",
    ["", ";", "; yesterday", "; Tue, 99 Nov 2023 22:13:29 +0000", "; 1e999"],
)
def test_a_hop_without_a_date_is_no_hop(received: str) -> None:
    good = "by a; Tue, 14 Nov 2023 22:13:21 +0000"
    assert list(waits([good, received], NOW)) == [1.0]


@pytest.mark.parametrize("head", [b"", b"\xff\0\n\n", b"Received: \xff; \xff\nReturn-Path: \xff\n"])
def test_strange_headers_break_nothing(head: bytes) -> None:
    result = PROBE.judge(head, NOW)
    assert result.verdict in (Verdict.OK, Verdict.WARN)
    assert result.reason.isprintable()


# A Maildir


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for name in ("new", "cur", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


def put(maildir: Path, name: str, mark: str, folder: str = "new") -> Path:
    path = maildir / folder / name
    path.write_text(f"Subject: x\nX-Hactl-Probe: {mark}\n\nX-Hactl-Probe: 1.aa\n")
    return path


def test_what_is_ours_is_found_and_removed_and_nothing_else(maildir: Path) -> None:
    now = int(time.time())
    foreign = maildir / "new" / "foreign"
    foreign.write_text(f"Subject: x\n\nX-Hactl-Probe: {now}.aa\n")
    other = put(maildir, "other", f"{now}.bb")  # of another hactld
    put(maildir, "ours", f"{now}.aa")
    put(maildir, "late:2,S", f"{now - 60}.aa", "cur")
    put(maildir, "forgotten", f"{now - int(OLD) - 9}.cc")
    seen: set[str] = set()
    keys = [f"{now}.aa".encode(), f"{now - 60}.aa".encode()]
    found = visit(str(maildir), keys, seen)
    assert found == {key: b"Subject: x\nX-Hactl-Probe: " + key for key in keys}
    assert sorted(maildir.rglob("*/*")) == [foreign, other]
    assert visit(str(maildir), keys, seen) == {}


# From end to end, with a server that delivers by hand

Deliver = Callable[[bytes], None]


def smtpd(
    deliver: Deliver, seen: list[bytes], answers: dict[bytes, bytes] | None = None
) -> Handler:
    """Answer what a client says, and hand on what it sends."""

    async def handler(reader: Reader, writer: Writer) -> None:
        writer.write((answers or {}).get(b"", GREETING))
        while line := await reader.readline():
            verb = line[:4].upper().rstrip()
            seen.append(line)
            answer = (answers or {}).get(verb, b"250 Ok\r\n")
            if verb == b"EHLO":
                answer = (answers or {}).get(verb, b"250-mx0\r\n250 AUTH PLAIN\r\n")
            if verb == b"DATA":
                writer.write(b"354 go ahead\r\n")
                message = await reader.readuntil(b"\r\n.\r\n")
                deliver(message[:-3].replace(b"\r\n", b"\n"))
            writer.write(answer)
            if verb == b"QUIT":
                return

    return handler


def asked(
    check: Delivery,
    handler: Handler,
    limit: float = LONG,
    memory: dict[str, float] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Result:
    async def main() -> Result:
        async with serving(handler, tls=tls) as port:
            target = Target(NAME, "127.0.0.1", time.time(), memory)
            return await look(structs.replace(check, port=port), target, limit)

    return asyncio.run(main())


def into(maildir: Path) -> Deliver:
    def deliver(message: bytes) -> None:
        (maildir / "new" / str(time.time_ns())).write_bytes(b"Return-Path: <>\n" + message)

    return deliver


def nowhere(_message: bytes) -> None:
    """Take a message, and lose it."""


def left(maildir: Path) -> list[Path]:
    return [path for path in maildir.rglob("*") if path.is_file()]


def test_a_message_goes_round_and_nothing_of_it_is_left(maildir: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    seen: list[bytes] = []
    messages: list[bytes] = []

    def deliver(message: bytes) -> None:
        messages.append(message)
        into(maildir)(message)

    memory: dict[str, float] = {}
    result = asked(check, smtpd(deliver, seen), memory=memory)
    assert (result.verdict, result.reason) == (Verdict.OK, "arrived over 0 hops")
    names = ["connect", "greeting", "ehlo", "mail", "rcpt", "data", "arrival"]
    assert [name for name, _ in result.steps] == names
    assert result.step == "arrival"
    assert seen == [
        b"EHLO hactl.invalid\r\n",
        b"MAIL FROM:<>\r\n",
        b"RCPT TO:<probe@example.org>\r\n",
        b"DATA\r\n",
        b"QUIT\r\n",
    ]
    assert re.search(rb"^X-Hactl-Probe: [0-9]+\.[0-9a-f]{16}$", messages[0], re.MULTILINE)
    assert left(maildir) == []
    assert memory.keys() == {"newest"}


def test_a_message_that_is_taken_and_not_delivered_stops_at_its_arrival(maildir: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    result = asked(check, smtpd(nowhere, []), limit=0.5)
    assert summary(result) == (Verdict.FAIL, "arrival", "arrival: no answer in 500ms")


def test_many_looks_at_a_server_that_loses_mail_send_few_messages(maildir: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    seen: list[bytes] = []
    memory: dict[str, float] = {}
    at = 1_000_000.0
    results = []

    async def main() -> None:
        nonlocal at
        async with serving(smtpd(nowhere, seen)) as port:
            here = structs.replace(check, port=port)
            for _ in range(MOST + 2):
                at += 60
                target = Target(NAME, "127.0.0.1", at, memory)
                if "newest" in memory:
                    memory["newest"] = at - 60
                results.append(await look(here, target, 0.15))

    asyncio.run(main())
    assert seen.count(b"DATA\r\n") <= MOST
    assert {result.verdict for result in results} == {Verdict.FAIL}


def test_one_look_after_another_does_not_send_sooner_than_it_may(maildir: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    seen: list[bytes] = []
    memory: dict[str, float] = {}
    first = asked(check, smtpd(into(maildir), seen), memory=memory)
    second = asked(check, smtpd(into(maildir), seen), memory=memory)
    assert (first.verdict, second.verdict) == (Verdict.OK, Verdict.UNKNOWN)
    assert second.reason.startswith("the last message was sent 0.")
    memory["flying"] = time.time()
    third = asked(check, smtpd(into(maildir), seen), memory=memory)
    assert (third.verdict, third.reason) == (Verdict.UNKNOWN, "a message is on its way already")
    assert seen.count(b"DATA\r\n") == 1


def test_what_arrives_late_is_removed_and_the_way_is_free_again(maildir: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    now = time.time()
    memory = {f"sent {int(now) - n}.aa": now - n for n in range(60, 60 * (MOST + 1), 60)}
    memory["newest"] = now - 60
    seen: list[bytes] = []
    result = asked(check, smtpd(into(maildir), seen), memory=memory)
    assert result.verdict is Verdict.FAIL
    assert result.reason == f"late: {MOST} messages have not arrived in 5m00s"
    assert seen == []
    put(maildir, "late", f"{int(now) - 120}.aa")
    result = asked(check, smtpd(into(maildir), seen), memory=memory)
    assert result.verdict is Verdict.OK
    assert [name for name, _ in result.steps][:2] == ["late", "connect"]
    assert left(maildir) == []
    assert memory.keys() == {"newest"}


@pytest.mark.parametrize(
    ("answers", "step", "reason"),
    [
        ({b"": b"421 too busy\r\n"}, "greeting", "greeting: 421 too busy"),
        ({b"": b""}, "greeting", "greeting: no answer in 400ms"),
        ({b"EHLO": b"502 what\r\n", b"HELO": b"502 what\r\n"}, "ehlo", "EHLO: 502 what"),
        ({b"MAIL": b"452 4.3.1 no space\r\n"}, "mail", "MAIL: 452 4.3.1 no space"),
        ({b"RCPT": b"550 5.1.1 nobody\x1b\r\n"}, "rcpt", r"RCPT: 550 5.1.1 nobody\x1b"),
        ({b"DATA": b"550 5.7.1 spam\r\n"}, "data", "DATA: 550 5.7.1 spam"),
        ({b"DATA": b""}, "data", "data: no answer in 400ms"),
    ],
)
def test_what_is_refused_or_hangs_is_named(
    maildir: Path, answers: dict[bytes, bytes], step: str, reason: str
) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    memory: dict[str, float] = {}
    result = asked(check, smtpd(nowhere, [], answers), limit=0.4, memory=memory)
    assert summary(result) == (Verdict.FAIL, step, reason)
    on_their_way = sum(key.startswith("sent ") for key in memory)
    assert on_their_way == (answers == {b"DATA": b""})  # what hangs may still go in


def test_a_server_that_closes_is_a_failure(maildir: Path) -> None:
    async def closes(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        await reader.readline()

    check = Delivery(mail_to="probe@example.org", maildir=maildir)
    assert summary(asked(check, closes)) == (Verdict.FAIL, "ehlo", "ehlo: closed in mid-answer")


def test_a_refused_login_is_not_tried_again_at_once(
    maildir: Path, tmp_path: Path, pki: Pki
) -> None:
    path = tmp_path / "login"
    path.write_text("probe\nhunter2\n")
    check = Delivery(
        mail_to="probe@example.org", maildir=maildir, tls="implicit", ca=pki.ca,
        login=Secret(str(path)),
    )  # fmt: skip
    memory: dict[str, float] = {}
    seen: list[bytes] = []
    handler = smtpd(nowhere, seen, {b"AUTH": b"535 5.7.8 no: AHByb2JlAGh1bnRlcjI=\r\n"})
    result = asked(check, handler, memory=memory, tls=pki.server())
    assert summary(result) == (Verdict.FAIL, "auth", "login refused (535)")
    result = asked(check, handler, memory=memory, tls=pki.server())
    assert result.verdict is Verdict.UNKNOWN
    assert result.reason.startswith("not logged in: refused 0.")
    assert len([line for line in seen if line.startswith(b"AUTH")]) == 1


def test_under_tls_a_bad_certificate_is_told(maildir: Path, pki: Pki) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=maildir, tls="implicit", ca=pki.ca)
    result = asked(check, smtpd(into(maildir), []), tls=pki.server())
    assert (result.verdict, result.reason) == (Verdict.OK, "arrived over 0 hops")
    result = asked(check, smtpd(into(maildir), []), tls=pki.server(ends=-1))
    assert summary(result) == (Verdict.FAIL, "greeting", "tls: certificate has expired")


def test_a_maildir_that_cannot_be_read_says_nothing_of_the_node(tmp_path: Path) -> None:
    check = Delivery(mail_to="probe@example.org", maildir=tmp_path / "no")
    result = asked(check, smtpd(nowhere, []))
    assert result.verdict is Verdict.UNKNOWN
    assert result.reason.startswith(f"maildir: {tmp_path}/no/new: No such file")


# A mailbox by IMAP, by bytes

VISIT = (
    b"* PREAUTH ready\r\n",  # so that no login is needed
    b"capability OK done\r\n",
    b"* STATUS INBOX (MESSAGES 3 UNSEEN 3)\r\nstatus OK done\r\n",
    b"* 3 EXISTS\r\nselect OK done\r\n",
)


def visited(*answers: bytes, keys: tuple[str, ...] = ("1.aa",)) -> tuple[Result, bytes, Errand]:
    errand = Errand(keys)
    mailbox = Visitor(login=Secret("/dev/null"), errand=errand)
    result, said, _ = feed(mailbox.talk(), *VISIT, *answers)
    return result, said, errand


def test_a_mailbox_is_searched_read_and_cleaned() -> None:
    head = b"Subject: x\r\nX-Hactl-Probe: 1.aa\r\n\r\n"
    result, said, errand = visited(
        b"* SEARCH 7\r\nsearch OK done\r\n",
        b"* 3 FETCH (UID 7 BODY[HEADER]<0> {%d}\r\n%s)\r\nfetch OK done\r\n" % (len(head), head),
        b"* SEARCH 3 4\r\nsearch_old OK done\r\n",
        b"store OK done\r\n",
        b"* 1 EXPUNGE\r\nexpunge OK done\r\n",
    )
    assert result.verdict is Verdict.OK
    assert errand.found == {"1.aa": head}
    assert b'search UID SEARCH HEADER X-Hactl-Probe "1.aa"\r\n' in said
    assert b"store UID STORE 7,3,4 +FLAGS.SILENT (\\Deleted)\r\nexpunge EXPUNGE\r\n" in said


def test_a_mailbox_with_nothing_of_ours_is_left_as_it_is() -> None:
    result, said, errand = visited(
        b"* SEARCH\r\nsearch OK done\r\n", b"* SEARCH\r\nsearch_old OK done\r\n"
    )
    assert (result.verdict, errand.found) == (Verdict.OK, {})
    assert b"STORE" not in said


def test_a_mailbox_that_cannot_be_searched_is_told() -> None:
    result, _, _ = visited(b"search NO [SERVERBUG] internal error\r\n")
    assert (result.verdict, result.reason) == (
        Verdict.FAIL,
        "SEARCH NO [SERVERBUG] internal error",
    )


def test_options_that_cannot_be_are_said_at_load(tmp_path: Path) -> None:
    assert list(PROBE.problems()) == []
    path = tmp_path / "login"
    path.write_text("a\nb\n")
    mailbox = Mailbox(tls="implicit", login=Secret(str(path)))
    assert list(structs.replace(PROBE, maildir=None, imap=mailbox).problems()) == []
    for check, fields in (
        (structs.replace(PROBE, maildir=None), ["maildir"]),
        (structs.replace(PROBE, imap=mailbox), ["maildir"]),
        (structs.replace(PROBE, mail_to="a b", headers=("X Y",)), ["mail_to", "headers"]),
        (structs.replace(PROBE, maildir=None, imap=Mailbox(mailbox="\n")), ["imap", "imap"]),
    ):
        assert [name for name, _ in check.problems()] == fields
