"""The smtp check against Postfix: well, with one of its processes hung, and full."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from msgspec import structs

from checks.smtp import Smtp
from hactl.core.model import Verdict
from tests.services.opensmtpd import NAME
from tests.services.postfix import Postfix
from tests.services.servers import HOST
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


def checks(postfix: Postfix) -> dict[str, Smtp]:
    plain = postfix.check
    tls = structs.replace(plain, tls="starttls", name=NAME, ca=postfix.ca)
    smtps = structs.replace(tls, tls="implicit", port=postfix.smtps)
    return {"smtp": plain, "starttls": tls, "smtps": smtps}


@pytest.fixture(scope="module")
def watch(postfix: Postfix) -> Iterator[Watch]:
    with Watch({name: timed(check, 1.0, 1.0) for name, check in checks(postfix).items()}) as watch:
        yield watch


@pytest.mark.parametrize("depth", ["greeting", "ehlo", "mail", "rcpt"])
def test_passes_at_each_depth(postfix: Postfix, depth: str) -> None:
    result = postfix.server.look(structs.replace(postfix.check, depth=depth))
    words = (result.verdict, result.step, result.reason)
    assert words == (Verdict.OK, depth, f"{NAME} ESMTP Postfix")


def test_a_refused_recipient_is_named(postfix: Postfix) -> None:
    result = postfix.server.look(structs.replace(postfix.check, mail_to="nobody@example.org"))
    assert (result.verdict, result.step) == (Verdict.FAIL, "rcpt")
    assert result.reason.startswith(
        "RCPT 550 5.1.1 <nobody@example.org>: Recipient address rejected"
    )


ALL = ("smtp", "starttls", "smtps")


@contextmanager
def hung(postfix: Postfix, *processes: str) -> Iterator[None]:
    """Stop each of *processes* and those that master starts in place of a busy one."""
    with ExitStack() as stack:
        looks = checks(postfix).values()
        while all(postfix.server.look(look, 1.0).verdict is Verdict.OK for look in looks):
            stack.enter_context(postfix.server.stopped(postfix.server.children(*processes)))
        yield
    postfix.server.await_ready()


@pytest.mark.parametrize(
    ("process", "names", "reason"),
    [
        ("anvil", ALL, r"(greeting|tls): no answer in 1s"),
        ("tlsmgr", ALL[1:], r"tls: no answer in 1s"),
        ("cleanup", ALL, r"rcpt: no answer in 1s"),
    ],
)
def test_a_hung_process_shows_at_its_step(
    postfix: Postfix, watch: Watch, process: str, names: tuple[str, ...], reason: str
) -> None:
    endure(watch, hung(postfix, process), dict.fromkeys(names, reason))


def test_a_hung_master_and_its_servers_accept_and_do_not_greet(
    postfix: Postfix, watch: Watch
) -> None:
    with postfix.server.stopped([postfix.server.process]):  # first, lest it starts others
        reason = r"(greeting|tls): no answer in 1s"
        endure(watch, hung(postfix, "smtpd"), dict.fromkeys(ALL, reason))


@contextmanager
def sessions(port: int, count: int) -> Iterator[None]:
    """Hold idle sessions; the last of them has been answered."""
    with ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((HOST, port)))
            sock.settimeout(10)
            assert sock.recv(100)
        yield


def test_too_many_connections_from_one_address_is_421(postfix: Postfix, watch: Watch) -> None:
    """The limit counts per service: the port behind TLS is another one."""
    reason = r"greeting 421 4.7.0 .* Error: too many connections from 127.0.0.1"
    expected = dict.fromkeys(("smtp", "starttls"), reason)
    endure(watch, sessions(postfix.check.port, 10), expected, silent=False)
