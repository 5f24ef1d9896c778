"""The maillog check reads what OpenSMTPD, Postfix and spamd really write, over a rotation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from aiosmtplib import SMTP, SMTPRecipientsRefused

from checks.maillog import Maillog
from checks.smtp import Smtp
from checks.spamd import Spamd
from hactl.core.health import State
from hactl.core.model import Limit, Result, Verdict
from hactl.core.units import Duration
from tests.services import opensmtpd
from tests.services import spamd as spam
from tests.services.postfix import Postfix
from tests.services.servers import HOST, PATIENCE, Server, free_port
from tests.services.syslog import Syslog, syslog
from tests.services.watching import Watch, timed

pytestmark = pytest.mark.service

# What becomes of a message is in its recipient's name.
CONF = """\
table users {{ "well@example.org" = "nobody" }}
filter busy phase rcpt-to match rcpt-to regex "^busy@" reject "451 4.7.1 try again later"
listen on {host} port {port} filter busy hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
action "later" mda "cat >/dev/null; echo no room on disk; exit 75" virtual {{ "@later.test" = "nobody" }}
action "never" mda "cat >/dev/null; echo no such box; exit 1" virtual {{ "@never.test" = "nobody" }}
match from any for domain "example.org" action "store"
match from any for domain "later.test" action "later"
match from any for domain "never.test" action "never"
"""


def send(port: int, *recipients: str) -> None:
    """Hand over a message to each, one after another; some are refused."""

    async def session() -> None:
        async with SMTP(hostname=HOST, port=port, timeout=PATIENCE, start_tls=False) as client:
            for recipient in recipients:
                with suppress(SMTPRecipientsRefused):
                    await client.sendmail("", recipient, b"Subject: x\r\n\r\nx\r\n")

    asyncio.run(session())


def counted(server: Server, check: Maillog, wanted: Mapping[str, int]) -> Result:
    """Look until the log has these counts, and no more than these; return the result."""
    end = time.monotonic() + PATIENCE
    while True:
        result = server.look(check)
        counts = {
            name: int(result.measures[f"{name}_count"])
            for name in ("ok", "tempfail", "permfail", "accepted", "put_off", "refused", "unclear")
        }
        if counts == dict.fromkeys(counts, 0) | dict(wanted):
            return result
        assert time.monotonic() < end, (counts, result.reason, server.log)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def log(directory: Path) -> Iterator[Syslog]:
    (directory / "syslog").mkdir()
    with syslog(directory / "syslog") as log:
        yield log


@pytest.fixture(scope="module")
def logging(directory: Path, log: Syslog) -> Iterator[Server]:
    """Run an OpenSMTPD that logs there."""
    (directory / "logging").mkdir()
    check = Smtp(port=free_port(), depth="rcpt", mail_to="well@example.org")
    conf = CONF.format(host=HOST, port=check.port)
    programs = opensmtpd.newer()
    server = opensmtpd.start(directory / "logging", conf, check, programs, within=log.within)
    yield server
    server.stop()


def test_opensmtpd(log: Syslog, logging: Server) -> None:
    check = Maillog(file=log.file, least=4)
    counted(logging, check, {})
    port = logging.check.port
    send(port, "well@example.org", "well@example.org", "a@later.test", "busy@example.org")
    counted(logging, check, {"ok": 2, "tempfail": 1, "accepted": 3, "put_off": 1})
    log.rotate()
    send(port, "b@later.test", "a@never.test", "nobody@example.org", "stranger@elsewhere.test")
    wanted = {"ok": 2, "tempfail": 2, "permfail": 1, "accepted": 5, "put_off": 1, "refused": 2}
    result = counted(logging, check, wanted)
    assert result.verdict is Verdict.OK
    assert result.measures["tempfail_percent"] == 40
    assert result.measures["missed_bytes"] == 0
    assert "2: " in result.reason
    assert "no room on disk" in result.reason
    limits = {"tempfail_percent": Limit(warn=20, fail=60)}
    with Watch({"log": timed(check, 0.3, 5.0, limits=limits)}) as watch:  # what no look at it sees
        health = watch.until(State.DEGRADED)["log"]
    assert health.reason.startswith("tempfail_percent is 40")


def test_spamd(log: Syslog, directory: Path) -> None:
    (directory / "spam").mkdir()
    server = spam.launch(directory / "spam", Spamd(scan=False), within=log.within)
    try:
        check = Maillog(file=log.file)
        before = server.look(check).measures["scan_count"]
        assert server.look(Spamd(port=server.check.port)).verdict is Verdict.OK
        assert server.look(Spamd(port=server.check.port, gtube=Duration(1))).verdict is Verdict.OK
        end = time.monotonic() + PATIENCE
        while (found := server.look(check)).measures["scan_count"] < before + 2:
            assert time.monotonic() < end, found
            time.sleep(0.1)
        assert 0 < found.measures["scan_seconds"] <= found.measures["longest_scan_seconds"] < 20
    finally:
        server.stop()


def test_postfix(postfix: Postfix) -> None:
    check = Maillog(file=postfix.server.directory / "log", least=4)
    counted(postfix.server, check, {})
    send(postfix.check.port, "probe@example.org", "probe@example.org", "a@dead.test")
    assert postfix.server.look(postfix.check).verdict is Verdict.OK  # no message, and not counted
    send(postfix.check.port, "nobody@example.org")
    result = counted(postfix.server, check, {"ok": 2, "tempfail": 1, "accepted": 3, "refused": 1})
    assert "onnection refused" in result.reason
