"""dnsmasq, which knows two names and asks nobody else."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import psutil

from checks.dns import Dns
from hactl.core.model import Verdict
from tests.services.servers import HOST, PATIENCE, Server, free_port, need

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


def run() -> Iterator[Dnsmasq]:
    """Run dnsmasq."""
    need("dnsmasq")
    server = Dnsmasq(Dns(port=free_port(), ask="mx.example.org", expect=("192.0.2.1",)))
    yield server
    server.stop()
