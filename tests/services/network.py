"""A network of a test's own, and servers that see a file or directory of ours in another's place."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services.servers import need

NET = 0x4000_0000  # CLONE_NEWNET
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SIOCSIFADDR = 0x8916


@contextmanager
def own_network(address: str = "") -> Iterator[None]:
    """Be in a network that has a loopback and nothing else; so are threads and programs begun here.

    Loopback has *address* too, from which it is spoken to: nobody takes that for localhost.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(NET) != 0:
            pytest.skip(f"no network of our own here: {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
                if address:
                    alias = struct.pack(
                        "16sHH4s16x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(address)
                    )
                    fcntl.ioctl(sock, SIOCSIFADDR, alias)
            yield
        finally:
            assert libc.setns(before, NET) == 0
    finally:
        os.close(before)


def covering(place: str, ours: Path) -> list[str]:
    """Return what runs the command after it with *ours* mounted at *place*, for it alone."""
    need("unshare", "mount")
    mount = f'mount --bind "$0" {place} && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(ours)]
