"""A FUSE file system that does what the word in a file says: a stand-in for NFS, hung or broken.

Run with a mount point and that file.  The word is read at each call: ok, hang (never answered), eio,
estale, full, ro (nothing can be written), or slow and seconds.
"""

# mypy: disable-error-code="import-untyped, misc"
from __future__ import annotations

import errno
import stat
import sys
import time
from pathlib import Path
from typing import Any

from fuse import FUSE, FuseOSError, Operations

ERRORS = {"eio": errno.EIO, "estale": errno.ESTALE}


class Stand(Operations):
    """Files in memory, behind a gate."""

    def __init__(self, word: Path) -> None:
        self._word = word
        self._files: dict[str, bytes] = {}

    def gate(self, *, write: bool = False) -> str:
        """Return the word, unless it says that there is no answer or an error."""
        while True:
            word, _, more = self._word.read_text().strip().partition(" ")
            if word in ERRORS:
                raise FuseOSError(ERRORS[word])
            if word == "ro" and write:
                raise FuseOSError(errno.EROFS)
            if word == "slow":
                time.sleep(float(more))
            if word != "hang":
                return word
            time.sleep(0.05)

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        self.gate()
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o777, "st_nlink": 2}
        if path in self._files:
            size = len(self._files[path])
            return {"st_mode": stat.S_IFREG | 0o666, "st_nlink": 1, "st_size": size}
        raise FuseOSError(errno.ENOENT)

    def statfs(self, path: str) -> dict[str, int]:
        free = 0 if self.gate() == "full" else 500_000
        return {
            "f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1_000_000, "f_bfree": free,
            "f_bavail": free, "f_files": 1000, "f_ffree": 900, "f_favail": 900, "f_namemax": 255,
        }  # fmt: skip

    def readdir(self, path: str, fh: Any) -> list[str]:
        self.gate()
        return [".", "..", *(name[1:] for name in self._files)]

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self.gate(write=True)
        self._files[path] = b""
        return 1

    def open(self, path: str, flags: int) -> int:
        self.gate()
        return 1

    def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
        self.gate()
        return self._files[path][offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
        if self.gate(write=True) == "full":
            raise FuseOSError(errno.ENOSPC)
        old = self._files.get(path, b"")
        self._files[path] = old[:offset] + data + old[offset + len(data) :]
        return len(data)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        self.gate(write=True)
        self._files[path] = self._files.get(path, b"")[:length]

    def unlink(self, path: str) -> None:
        self.gate(write=True)
        self._files.pop(path, None)

    def fsync(self, path: str, datasync: int, fh: Any) -> int:
        self.gate(write=True)
        return 0


if __name__ == "__main__":
    FUSE(
        Stand(Path(sys.argv[2])), sys.argv[1], foreground=True, nothreads=False,
        fsname="10.0.0.9:/export/mail", subtype="nfstest", attr_timeout=0, entry_timeout=0,
        allow_other=True,
    )  # fmt: skip
