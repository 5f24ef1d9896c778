"""A log daemon for programs that know nothing but syslog(3): /dev/log, and a file that can be rotated."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A /dev of their own, as there may be none who listens here, or one who should not hear this: $0 is
# where it is made, $1 the socket.
DEV = """\
mount -t tmpfs none "$0" && cd "$0" && chmod 755 . &&
for each in full null random tty urandom zero; do
    : >"$each" && mount --bind "/dev/$each" "$each" || exit
done &&
ln -s /proc/self/fd fd && ln -s fd/0 stdin && ln -s fd/1 stdout && ln -s fd/2 stderr &&
ln -s "$1" log && mount --move . /dev && cd / && shift && exec "$@"
"""
_PACKET = re.compile(rb"<\d+>(... .\d ..:..:.. )?(.*?)[\n\0]*", re.DOTALL)


class Syslog:
    """Writes what it is told to `maillog`, as syslogd does."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "maillog"
        self._path, self._dev = directory / "log.sock", directory / "dev"
        self._dev.mkdir()
        self.file.touch()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(self._path))
        self._path.chmod(0o666)
        self._sock.settimeout(0.2)
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def within(self) -> tuple[str, ...]:
        """Return what goes before a command, so that its /dev/log is ours."""
        unshare = ("unshare", "--mount", "--propagation", "private", "sh", "-c", DEV)
        return (*unshare, str(self._dev), str(self._path))

    def _serve(self) -> None:
        while not self._ending:
            try:
                packet = self._sock.recv(1 << 16)
            except TimeoutError:
                continue
            found = _PACKET.fullmatch(packet)
            assert found is not None, packet
            with self.file.open("ab") as file:  # each time anew, so that it can be rotated
                file.write((found[1] or b"Nov 22 20:31:01 ") + b"mx0 " + found[2] + b"\n")

    def rotate(self) -> None:
        """Begin a new file, as newsyslog(8) does."""
        self.file.replace(self.file.with_suffix(".0"))
        self.file.touch()

    def stop(self) -> None:
        """End it."""
        self._ending = True
        self._thread.join()
        self._sock.close()


@contextmanager
def syslog(directory: Path) -> Iterator[Syslog]:
    """Run it until the block ends."""
    found = Syslog(directory)
    try:
        yield found
    finally:
        found.stop()
