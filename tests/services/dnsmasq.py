"""dnsmasq, which knows one name and asks nobody else."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from checks.dns import Dns
from hactl.core.model import Verdict
from tests.services.servers import HOST, PATIENCE, Server, free_port, need


class Dnsmasq(Server):
    """A process that is not asked over TCP whether it is ready."""

    def __init__(self, directory: Path) -> None:
        self.directory, self._log = directory, directory / "log"
        self.dns = Dns(port=free_port(), ask="mx.example.org", expect=("192.0.2.1",))
        self._names = directory / "names"
        self._names.write_text("192.0.2.1 mx.example.org\n")
        listen = [f"--listen-address={HOST}", f"--port={self.dns.port}", "--bind-interfaces"]
        alone = ["--no-hosts", "--no-resolv", "--conf-file=/dev/null", "--keep-in-foreground"]
        who = ["--user=nobody", "--group=nogroup", "--pid-file="]
        known = [f"--addn-hosts={self._names}", "--log-queries", "--log-facility=-"]
        with self._log.open("ab") as log:
            command = ["dnsmasq", *alone, *listen, *who, *known]
            self._popen = subprocess.Popen(command, stdout=log, stderr=log)
        self.process = psutil.Process(self._popen.pid)
        self.await_ready()

    def await_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.look(self.dns, 1.0).verdict is not Verdict.OK:
            assert time.monotonic() < end, "dnsmasq is not ready"
            time.sleep(0.02)

    @contextmanager
    def wrong(self) -> Iterator[None]:
        """Have it know the name by another address."""
        right = self._names.read_text()
        self._tell(right.replace("192.0.2.1", "192.0.2.9"))
        try:
            yield
        finally:
            self._tell(right)

    def _tell(self, names: str) -> None:
        self._names.write_text(names)
        self.process.send_signal(signal.SIGHUP)


def run(directory: Path) -> Iterator[Dnsmasq]:
    """Run dnsmasq."""
    need("dnsmasq")
    directory.mkdir()
    server = Dnsmasq(directory)
    yield server
    server.stop()
