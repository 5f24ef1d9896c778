"""A mount that can be hung, broken and filled, with stand.py behind it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from checks.nfs import Nfs
from tests.services.servers import PATIENCE

STAND = Path(__file__).with_name("stand.py")
SOURCE, TYPE = "10.0.0.9:/export/mail", "fuse.nfstest"
FORCE, DETACH = 1, 2  # of umount2(2); umount(8) would hang as well


class Mount:
    """A mount point, and the program behind it."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            pytest.skip("FUSE needs root and /dev/fuse")
        self.path, self._word = directory / "mnt", directory / "word"
        self._root = directory / "root"
        self.path.mkdir()
        self._root.mkdir()
        self._root.chmod(0o777)
        self.check = Nfs(path=self.path, source=SOURCE, fstype=(TYPE,))
        self.say("ok")
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(STAND), str(self.path), str(self._word), str(self._root)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        end = time.monotonic() + PATIENCE
        while not self.mounted():
            if time.monotonic() > end or self.process.poll() is not None:
                assert self.process.stderr is not None
                pytest.fail(f"not mounted: {self.process.stderr.read().decode()}")
            time.sleep(0.01)

    def mounted(self) -> bool:
        return any(each.mountpoint == str(self.path) for each in psutil.disk_partitions(all=True))

    def stop(self) -> None:
        """End it; what hangs in it goes on."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        with suppress(OSError):
            libc = ctypes.CDLL(None, use_errno=True)
            libc.umount2(bytes(self.path), FORCE | DETACH)

    def say(self, word: str) -> None:
        fresh = self._word.with_suffix(".new")
        fresh.write_text(word)
        fresh.replace(self._word)

    @contextmanager
    def being(self, word: str) -> Iterator[None]:
        self.say(word)
        try:
            yield
        finally:
            self.say("ok")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)
