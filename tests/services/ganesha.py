"""nfs-ganesha and rpcbind in a network of their own, as rpcbind takes port 111 of every address."""

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

from checks import NOBODY, Spoken, Target
from checks._wire import Dialogue, Say
from checks.nfs_rpc import NULL, PROGRAMS, Program, call, results
from hactl.core.model import ok
from tests.services.servers import Server, need

NET = 0x4000_0000  # CLONE_NEWNET
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

CONF = """\
NFS_CORE_PARAM {{
	NFS_Port = 2049;
	MNT_Port = 20048;
	Protocols = 3, 4;
	Enable_NLM = false;
	Enable_RQUOTA = false;
	mount_path_pseudo = true;
}}
EXPORT {{
	Export_Id = 1;
	Path = {directory}/export;
	Pseudo = /mail;
	Access_Type = RW;
	Protocols = 3, 4;
	Transports = TCP;
	SecType = sys;
	FSAL {{ Name = VFS; }}
}}
"""
# Both speak through a socket in /run; $0 is what is to be there.
START = 'mount --bind "$0" /run && exec "$@"'


@contextmanager
def own_network() -> Iterator[None]:
    """Be in a network that has a loopback and nothing else; so are threads and programs begun here."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(NET) != 0:
            pytest.skip(f"no network of our own here: {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
            yield
        finally:
            assert libc.setns(before, NET) == 0
    finally:
        os.close(before)


class Null(Spoken, frozen=True, kw_only=True, tag="null"):
    """*program* answers a call that does nothing."""

    program: Program

    def talk(self, target: Target = NOBODY) -> Dialogue:
        number, version, _ = PROGRAMS[self.program]
        answer = yield Say(call(1, number, version, NULL), _record, "null")
        results(1, version, answer[4:])
        return ok(self.program)


def _record(buffer: bytes) -> int:
    size = 4 + (int.from_bytes(buffer[:4], "big") & 0x7FFF_FFFF)
    return size if len(buffer) >= max(size, 5) else 0


class Ganesha:
    """The portmapper, and the server that is registered there."""

    def __init__(self, directory: Path) -> None:
        need("ganesha.nfsd", "rpcbind", "unshare", "mount")
        self.directory = directory
        self.export = directory / "export"
        for name in ("run", "export", "portmapper", "nfs"):
            (directory / name).mkdir()
        (directory / "ganesha.conf").write_text(CONF.format(directory=directory))
        self.portmapper = self._run("rpcbind", "portmapper", "-f")
        try:
            files = {"-f": "ganesha.conf", "-L": "nfs/log", "-p": "nfs/pid"}
            words = [word for flag, name in files.items() for word in (flag, str(directory / name))]
            self.server = self._run("ganesha.nfsd", "nfs", "-F", *words)
        except BaseException:
            self.portmapper.stop()
            raise

    def _run(self, file: str, program: Program, *words: str) -> Server:
        within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", START]
        command = [*within, str(self.directory / "run"), file, *words]
        check = Null(port=PROGRAMS[program][2], program=program)
        return Server(command, self.directory / program, check)

    def stop(self) -> None:
        """End both."""
        self.server.stop()
        self.portmapper.stop()


def run(directory: Path) -> Iterator[Ganesha]:
    """Run both, in a network of their own; so is who looks at them."""
    with own_network():
        ganesha = Ganesha(directory)
        try:
            yield ganesha
        finally:
            ganesha.stop()
