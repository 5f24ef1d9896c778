"""The dns check against dnsmasq: right, wrong, refused and hung; and a server that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from msgspec import structs

from checks.dns import Dns
from hactl.core.model import Verdict
from tests.services.dnsmasq import Dnsmasq
from tests.services.opensmtpd import Resolver, resolver
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


def test_judges_what_a_real_server_says(dnsmasq: Dnsmasq) -> None:
    result = dnsmasq.look(dnsmasq.dns)
    assert (result.verdict, result.reason) == (Verdict.OK, "NOERROR 192.0.2.1")
    result = dnsmasq.look(structs.replace(dnsmasq.dns, ask="example.com"))
    assert (result.verdict, result.reason) == (Verdict.FAIL, "REFUSED")


@pytest.mark.parametrize(
    ("fault", "reason", "silent"),
    [
        (lambda server: server.frozen([server.process]), r"query: no answer in 500ms", True),
        (Dnsmasq.wrong, r"NOERROR 192\.0\.2\.9, but not 192\.0\.2\.1", False),
    ],
    ids=["hung", "wrong"],
)
def test_a_fault_is_found_out_in_time(
    dnsmasq: Dnsmasq,
    fault: Callable[[Dnsmasq], AbstractContextManager[None]],
    reason: str,
    silent: bool,
) -> None:
    with Watch({"dns": timed(dnsmasq.dns, 1.0, 0.5, 0.5)}) as watch:
        endure(watch, fault(dnsmasq), {"dns": reason}, silent=silent)


@contextmanager
def failing(server: Resolver) -> Iterator[None]:
    server.code, before = 2, server.code
    try:
        yield
    finally:
        server.code = before


def test_a_server_that_fails_is_found_out_in_time() -> None:
    """One of ours, as dnsmasq itself has no way to fail."""
    check = Dns(ask="mx.example.org", rcode="NXDOMAIN")
    with resolver() as server:
        checks = {"dns": timed(check, 1.0, 0.5, 0.5)}
        with Watch(checks, host=server.address) as watch:
            endure(watch, failing(server), {"dns": r"SERVFAIL"}, silent=False)
