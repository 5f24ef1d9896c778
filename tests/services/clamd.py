"""clamd with signatures of our own making."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from checks.clamd import SAMPLE, Clamd
from tests.services.servers import HOST, Server, free_port, need

CONF = """\
TCPAddr {host}
TCPSocket {port}
LocalSocket {directory}/run/clamd.sock
DatabaseDirectory {directory}/db
User nobody
Foreground yes
LogTime yes
MaxThreads 2
MaxQueue 4
ReadTimeout 60
SelfCheck 0
"""


def database(server: Server) -> Path:
    """Return the directory of the signatures."""
    return server.directory / "db"


def signatures(directory: Path, *, sample: bool) -> None:
    """Write signatures into *directory*: of a marker, and of EICAR's *sample*."""
    known = {"Test.Marker": b"HACTL-TEST-MALWARE-MARKER"} | (
        {"Test.Eicar": SAMPLE} if sample else {}
    )
    lines = [f"{name}:0:*:{text.hex()}\n" for name, text in known.items()]
    (directory / "test.ndb").write_text("".join(lines))


def run(directory: Path) -> Iterator[Server]:
    """Run clamd on a port and a Unix socket."""
    need("clamd")
    for name in ("db", "run"):
        (directory / name).mkdir()
    shutil.chown(directory / "run", "nobody")
    signatures(directory / "db", sample=True)
    check = Clamd(port=free_port())
    conf = directory / "clamd.conf"
    conf.write_text(CONF.format(directory=directory, host=HOST, port=check.port))
    server = Server(["clamd", "-c", str(conf)], directory, check)
    try:
        yield server
    finally:
        server.stop()
