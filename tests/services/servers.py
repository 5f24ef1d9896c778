"""Start real servers on loopback, in private directories, and stop them by pid."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from checks import Probed, Spoken, Target, _tasks
from checks._wire import converse
from hactl.core.model import Result, Verdict

HOST = "127.0.0.1"
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NEWER = Path("/usr/local/lib/hactl-tests/opensmtpd/usr/sbin")  # see install
STILL = {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP, psutil.STATUS_ZOMBIE}  # who does no more
PATIENCE = 60.0  # seconds to become ready, or to end; this machine may have other work


def need(*programs: str) -> None:
    """Skip the test that needs *programs*, if one is missing or cannot be used here."""
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"no {program} here: run tests/services/install")
    if os.geteuid() != 0:
        pytest.skip(f"{programs[0]} needs root")


def speaks_tls() -> bool:
    """Tell whether the installed smtpd does: 6.8 and OpenSSL 3 do not go together."""
    smtpd = shutil.which("smtpd", path=PATH) or ""
    usage = subprocess.run([smtpd, "-h"], capture_output=True, text=True, check=False).stderr
    version = re.search(r"OpenSMTPD (\d+)", usage)
    return version is not None and int(version[1]) >= 7


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


class Server:
    """A process with children; *check* is what tells that it is ready, at *host*."""

    host = HOST

    def __init__(
        self,
        command: list[str],
        directory: Path,
        check: Spoken,
        environment: Mapping[str, str] | None = None,
        host: str = HOST,
    ) -> None:
        self.check = check
        self.host = host
        self.directory = directory
        self._log = directory / "log"
        self._command, self._environment = (
            command,
            {**os.environ, "PATH": PATH, **(environment or {})},
        )
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:  # some write to it themselves as well
            self._popen = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.process = psutil.Process(self._popen.pid)
        try:
            self.await_ready()
        except BaseException:
            self.stop()
            raise

    @property
    def log(self) -> str:
        """Return what the server has printed."""
        return self._log.read_text(errors="replace")

    def look(self, check: Spoken | Probed, limit: float = PATIENCE) -> Result:
        """Run *check* once."""
        if isinstance(check, Probed):
            return asyncio.run(_tasks.look(check, Target("mx0", self.host), limit))
        return asyncio.run(converse(*check.where(self.host), check.talk(Target()), limit))

    def await_ready(self) -> None:
        """Return as soon as the check passes."""
        end = time.monotonic() + PATIENCE
        while (result := self.look(self.check)).verdict is not Verdict.OK:
            if time.monotonic() > end or self._popen.poll() is not None:
                pytest.fail(f"{self._popen.args!r} is not ready: {result.reason}\n{self.log}")
            time.sleep(0.05)

    def children(self, *titles: str) -> list[psutil.Process]:
        """Return the children whose command line has one of *titles*."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(title in " ".join(child.cmdline()) for title in titles):
                    found.append(child)
        assert found, f"no process called {titles}"
        return found

    @contextmanager
    def frozen(self, processes: Iterable[psutil.Process]) -> Iterator[None]:
        """Stop *processes* as a hang would; afterwards they go on and the server is ready."""
        with self.stopped(processes):
            yield
        self.await_ready()

    @contextmanager
    def stopped(self, processes: Iterable[psutil.Process]) -> Iterator[None]:
        """Stop *processes*; afterwards they go on."""
        processes = list(processes)
        try:
            for process in processes:
                with suppress(psutil.NoSuchProcess):  # some end when they have served enough
                    process.suspend()
                    while process.status() not in STILL:
                        time.sleep(0.001)
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def ended(self, how: signal.Signals = signal.SIGKILL) -> Iterator[None]:
        """End it in this way; afterwards it is started again and ready."""
        family = self.process.children(recursive=True)
        self.process.send_signal(how)
        self._popen.wait(PATIENCE)
        for process in psutil.wait_procs(family, timeout=1)[1]:
            process.kill()
        psutil.wait_procs(family, timeout=PATIENCE)
        try:
            yield
        finally:
            self.start()

    def stop(self) -> None:
        """End the server and all its children."""
        family = [self.process]
        with suppress(psutil.NoSuchProcess):
            family += self.process.children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self._popen.terminate()
        _, left = psutil.wait_procs(family[1:], timeout=PATIENCE)
        for process in left:
            process.kill()
        self._popen.wait(PATIENCE)
