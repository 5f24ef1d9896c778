"""The delivery check through OpenSMTPD, Postfix and Dovecot: mail that is taken, and does not arrive."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have messages sent sooner than hactld would."""
    monkeypatch.setattr(delivery, "RATE", 0.5)


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


@contextmanager
def forgetting(relay: Relay) -> Iterator[None]:
    """Have the filter let mail pass as if it was not there."""
    relay.forget.touch()
    try:
        yield
    finally:
        relay.forget.unlink()


def hung(title: str) -> Callable[[Relay], AbstractContextManager[None]]:
    return lambda relay: relay.server.frozen(relay.server.children(title))


@pytest.mark.parametrize(
    ("fault", "reason", "silent"),
    [
        (hung("smtpd: scheduler"), r"arrival: no answer in 1s", True),
        (hung("filter.py"), r"data: no answer in 1s", True),
        (forgetting, r"arrived without X-Spam-Status", False),
    ],
    ids=["scheduler", "hung-filter", "no-filter"],
)
def test_what_takes_mail_and_does_not_deliver_it_whole_is_found_out_in_time(
    relay: Relay,
    check: Delivery,
    quick: None,
    fault: Callable[[Relay], AbstractContextManager[None]],
    reason: str,
    silent: bool,
) -> None:
    """As hactld sees it; in the end every message is found and gone."""
    with Watch({"delivery": timed(check, 1.5, 1.0)}) as watch:
        endure(watch, fault(relay), {"delivery": reason}, silent=silent)
    assert left(relay.maildir) == []


def test_only_mail_by_way_of_a_hung_filter_hangs(relay: Relay, check: Delivery) -> None:
    plain = structs.replace(check, port=relay.plain, headers=())
    with hung("filter.py")(relay):
        assert relay.server.look(plain).verdict is Verdict.OK


def test_a_sender_that_srs_rewrote_on_the_way_is_recognised(relay: Relay, check: Delivery) -> None:
    away = structs.replace(check, mail_from="probe@origin.test", mail_to="away@example.org")
    result = relay.server.look(away)
    assert (result.verdict, result.step) == (Verdict.OK, "arrival"), result
    assert re.fullmatch(
        r"arrived over 2 hops, sender rewritten by SRS to <SRS0=.*=origin\.test=probe@.*>",
        result.reason,
    )


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
    virtual: Postfix, quick: None
) -> None:
    maildir = virtual.postqueue.parent / "mail" / "probe"
    check = Delivery(port=virtual.check.port, mail_to="probe@example.org", maildir=maildir)
    for folder in ("new", "cur", "tmp"):
        (maildir / folder).mkdir(parents=True, exist_ok=True)
    for path in (maildir, *maildir.iterdir()):
        path.chmod(0o777)
    result = virtual.server.look(check)
    assert summary(result) == (Verdict.OK, "arrival", "arrived over 1 hop")
    with Watch({"delivery": timed(check, 1.5, 1.0)}) as watch:
        hung = virtual.server.frozen(virtual.server.children("qmgr"))
        endure(watch, hung, {"delivery": r"arrival: no answer in 1s"})
