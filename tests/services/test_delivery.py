"""The delivery check through OpenSMTPD, Postfix and Dovecot: mail that is taken, and does not arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from checks import delivery
from checks.delivery import Delivery, Mailbox
from checks.imap import Imap
from hactl.core.model import Result, Verdict
from tests.services import postfix as mta
from tests.services import relay as relay_
from tests.services.dovecot import Dovecot
from tests.services.postfix import Postfix
from tests.services.relay import Relay
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

SHORT = 2.0


@pytest.fixture(scope="module")
def relay(directory: Path, dovecot: Dovecot) -> Iterator[Relay]:
    (directory / "relay").mkdir()
    yield from relay_.run(directory / "relay", dovecot.checks["lmtp"].port)


@pytest.fixture(scope="module")
def check(relay: Relay) -> Delivery:
    """Return the check of the listener with the filter."""
    return Delivery(
        port=relay.filtered, mail_to="probe@example.org", maildir=relay.maildir,
        headers=("X-Spam-Status",),
    )  # fmt: skip


def left(maildir: Path) -> list[Path]:
    return [path for path in maildir.rglob("*") if path.is_file()]


def summary(result: Result) -> tuple[Verdict, str, str]:
    return result.verdict, result.step, result.reason


STEPS = ["connect", "greeting", "ehlo", "mail", "rcpt", "data", "arrival"]


def test_a_message_goes_round_and_nothing_is_left(relay: Relay, check: Delivery) -> None:
    result = relay.server.look(check)
    assert summary(result) == (Verdict.OK, "arrival", "arrived over 1 hop")
    assert [name for name, _ in result.steps] == STEPS
    assert -1 <= result.measures["hop1_seconds"] <= 10
    assert left(relay.maildir) == []
    assert relay.server.look(relay.queue).reason == "empty"


def test_a_filter_that_is_missing_shows_in_the_headers(relay: Relay, check: Delivery) -> None:
    result = relay.server.look(structs.replace(check, port=relay.plain))
    assert summary(result) == (Verdict.FAIL, "arrival", "arrived without X-Spam-Status")
    assert left(relay.maildir) == []


def test_a_filter_that_hangs_shows_at_the_end_of_data(relay: Relay, check: Delivery) -> None:
    with relay.server.frozen(relay.server.children("filter.py")):
        result = relay.server.look(check, SHORT)
        assert summary(result) == (Verdict.FAIL, "data", "data: no answer in 2s")
        plain = structs.replace(check, port=relay.plain, headers=())
        assert relay.server.look(plain).verdict is Verdict.OK
    assert relay.server.look(check).verdict is Verdict.OK


def test_a_hung_scheduler_takes_mail_and_does_not_deliver_it(
    relay: Relay, check: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As hactld sees it: down in time, and in the end every message is found and gone."""
    monkeypatch.setattr(delivery, "RATE", 0.5)
    with Watch({"delivery": timed(check, 1.5, 1.0)}) as watch:
        hung = relay.server.frozen(relay.server.children("smtpd: scheduler"))
        endure(watch, hung, {"delivery": r"arrival: no answer in 1s"})
    assert left(relay.maildir) == []


def test_a_message_is_found_by_imap(relay: Relay, dovecot: Dovecot, check: Delivery) -> None:
    imap = dovecot.checks["imap"]
    assert isinstance(imap, Imap)
    mailbox = Mailbox(**structs.asdict(imap))
    check = structs.replace(check, mail_to="probe@imap.test", maildir=None, imap=mailbox)
    result = relay.server.look(check)
    assert (result.verdict, result.step) == (Verdict.OK, "arrival"), result
    assert result.reason.startswith("arrived over 2 hops")
    found = dovecot.server.look(imap)
    assert found.measures["messages"] == 0
    with dovecot.server.frozen(dovecot.server.children("dovecot/auth")):
        result = relay.server.look(check, SHORT)
        assert result.verdict is Verdict.FAIL
    assert (
        relay.server.look(structs.replace(check, mail_to="probe@imap.test")).verdict is Verdict.OK
    )


@pytest.fixture(scope="module")
def virtual(directory: Path) -> Iterator[Postfix]:
    """Run Postfix with a Maildir."""
    home = directory / "virtual"
    (home / "mail").mkdir(parents=True)
    (home / "mail").chmod(0o777)
    yield from mta.run(
        home,
        "virtual:\nvirtual_mailbox_maps = inline:{probe@example.org=probe/}\n"
        "virtual_minimum_uid = 1\nvirtual_uid_maps = static:65534\nvirtual_gid_maps = static:65534",
    )


def test_a_hung_queue_manager_of_postfix_takes_mail_and_does_not_deliver_it(
    virtual: Postfix,
) -> None:
    maildir = virtual.postqueue.parent / "mail" / "probe"
    check = Delivery(port=virtual.check.port, mail_to="probe@example.org", maildir=maildir)
    for folder in ("new", "cur", "tmp"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)
    for path in (maildir, *maildir.iterdir()):
        path.chmod(0o777)
    result = virtual.server.look(check)
    assert summary(result) == (Verdict.OK, "arrival", "arrived over 1 hop")
    with virtual.server.frozen(virtual.server.children("qmgr")):
        result = virtual.server.look(check, SHORT)
        assert summary(result) == (Verdict.FAIL, "arrival", "arrival: no answer in 2s")
    assert virtual.server.look(check).verdict is Verdict.OK
