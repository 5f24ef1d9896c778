"""A FUSE file system that does what the word in a file says: a stand-in for NFS, hung or broken.

Run with a mount point, that file, and the directory where the files really are.  The word is read at
each call: ok, hang (never answered), eio, estale, full, ro (nothing can be written), or slow and
seconds.
"""

# mypy: disable-error-code="import-untyped, misc"
from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuse import FUSE, FuseOSError, Operations

ERRORS = {"eio": errno.EIO, "estale": errno.ESTALE}
STAT = ("st_mode", "st_nlink", "st_size", "st_ino", "st_uid", "st_gid", "st_atime", "st_mtime", "st_ctime")  # fmt: skip


class Stand(Operations):
    """Files of another directory, behind a gate."""

    def __init__(self, word: Path, root: Path) -> None:
        self._word = word
        self._root = str(root)

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

    def __call__(self, name: str, path: str, *arguments: Any) -> Any:
        """Do what was asked for, with the path as it is behind the gate."""
        return super().__call__(name, self._root + path, *arguments)

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        self.gate()
        found = os.lstat(path)
        return {name: getattr(found, name) for name in STAT}

    def statfs(self, path: str) -> dict[str, int]:
        free = 0 if self.gate() == "full" else 500_000
        return {
            "f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1_000_000, "f_bfree": free,
            "f_bavail": free, "f_files": 1000, "f_ffree": 900, "f_favail": 900, "f_namemax": 255,
        }  # fmt: skip

    def readdir(self, path: str, fh: Any) -> list[str]:
        self.gate()
        return [".", "..", *os.listdir(path)]  # noqa: PTH208 - names

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self.gate(write=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode)

    def open(self, path: str, flags: int) -> int:
        self.gate()
        return os.open(path, flags)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.gate()
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if self.gate(write=True) == "full":
            raise FuseOSError(errno.ENOSPC)
        return os.pwrite(fh, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self.gate(write=True)
        return 0

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        self._change(os.truncate, path, length)

    def unlink(self, path: str) -> None:
        self._change(os.unlink, path)

    def mkdir(self, path: str, mode: int) -> None:
        self._change(os.mkdir, path, mode)

    def rmdir(self, path: str) -> None:
        self._change(os.rmdir, path)

    def rename(self, old: str, new: str) -> None:
        self._change(os.rename, old, self._root + new)

    def link(self, target: str, source: str) -> None:
        self._change(os.link, self._root + source, target)

    def chmod(self, path: str, mode: int) -> None:
        self._change(os.chmod, path, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._change(os.chown, path, uid, gid)

    def utimens(self, path: str, times: Any = None) -> None:
        self._change(os.utime, path, times)

    def _change(self, how: Callable[..., None], path: str, *arguments: Any) -> None:
        self.gate(write=True)
        how(path, *arguments)


if __name__ == "__main__":
    place, word, root = sys.argv[1:]
    FUSE(
        Stand(Path(word), Path(root)), place, foreground=True, nothreads=False,
        fsname="10.0.0.9:/export/mail", subtype="nfstest", attr_timeout=0, entry_timeout=0,
        allow_other=True,
    )  # fmt: skip
