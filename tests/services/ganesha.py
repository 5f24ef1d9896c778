"""nfs-ganesha and rpcbind in a network of their own, as rpcbind takes port 111 of every address."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checks import NOBODY, Spoken, Target
from checks._wire import Dialogue, Say
from checks.nfs_rpc import NULL, PROGRAMS, Program, call, results
from hactl.core.model import ok
from tests.services.network import covering, own_network
from tests.services.servers import Server, need

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
        need("ganesha.nfsd", "rpcbind")
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
        # both speak through a socket in /run
        command = [*covering("/run", self.directory / "run"), file, *words]
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
