"""The dns check against dnsmasq: right, wrong, refused and hung."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from msgspec import structs

from checks.dns import Dns
from hactl.core.model import Result, Verdict
from tests.services.servers import HOST, PATIENCE, Server, free_port, need
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

NAMES = ("mx.example.org,192.0.2.1", "wrong.example.org,192.0.2.9")


class Dnsmasq(Server):
    """A process that is not asked over TCP whether it is ready."""

    def __init__(self, check: Dns) -> None:
        self.dns = check
        listen = [f"--listen-address={HOST}", f"--port={check.port}", "--bind-interfaces"]
        names = [f"--host-record={name}" for name in NAMES]
        alone = ["--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--keep-in-foreground"]
        who = ["--user=nobody", "--group=nogroup", "--pid-file="]
        self._popen = subprocess.Popen(["dnsmasq", *alone, *listen, *names, *who])
        self.process = psutil.Process(self._popen.pid)
        self.await_ready()

    def await_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.look(self.dns, 1.0).verdict is not Verdict.OK:
            assert time.monotonic() < end, "dnsmasq is not ready"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def dnsmasq() -> Iterator[Dnsmasq]:
    need("dnsmasq")
    server = Dnsmasq(Dns(port=free_port(), ask="mx.example.org", expect=("192.0.2.1",)))
    yield server
    server.stop()


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
