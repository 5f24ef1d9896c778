"""The dns check against dnsmasq: right, wrong, refused and hung."""

from __future__ import annotations

import pytest
from msgspec import structs

from hactl.core.model import Result, Verdict
from tests.services.dnsmasq import Dnsmasq
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


def summary(result: Result) -> tuple[Verdict, str]:
    return result.verdict, result.reason


def test_judges_what_a_real_server_says(dnsmasq: Dnsmasq) -> None:
    check = dnsmasq.dns
    assert summary(dnsmasq.look(check)) == (Verdict.OK, "NOERROR 192.0.2.1")
    wrong = structs.replace(check, ask="wrong.example.org")
    why = "NOERROR 192.0.2.9, but not 192.0.2.1"
    assert summary(dnsmasq.look(wrong)) == (Verdict.FAIL, why)
    stranger = structs.replace(check, ask="example.com")
    assert summary(dnsmasq.look(stranger)) == (Verdict.FAIL, "REFUSED")


def test_a_hung_server_is_seen_in_time(dnsmasq: Dnsmasq) -> None:
    with Watch({"dns": timed(dnsmasq.dns, 1.0, 0.5, 0.5)}) as watch:
        endure(watch, dnsmasq.frozen([dnsmasq.process]), {"dns": "query: no answer in 500ms"})
