"""clamd with signatures of our own making."""

from __future__ import annotations

import gzip
import hashlib
import io
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from checks.clamd import SAMPLE, Clamd
from tests.services.servers import HOST, Server, free_port, need

VERSION = 27800  # of the signatures

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


def daily(directory: Path, age_days: float) -> None:
    """Write what clamd takes for ClamAV's own signatures of so many days ago, but unsigned.

    A header, and an archive with the header once more, the sum of what follows, and that.
    """
    made = time.time() - age_days * 86400
    text = time.strftime("%d %b %Y %H-%M +0000", time.gmtime(made))
    head = f"ClamAV-VDB:{text}:{VERSION}:1:90:X:X:hactl:{made:.0f}"
    known = f"Test.Daily:0:*:{b'HACTL-TEST-DAILY'.hex()}\n".encode()
    info = f"{head}\ndaily.ndb:{len(known)}:{hashlib.sha256(known).hexdigest()}\n".encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in (("COPYING", b"none\n"), ("daily.info", info), ("daily.ndb", known)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed = head.encode().ljust(512) + gzip.compress(archive.getvalue())
    (directory / "daily.cud").write_bytes(packed)


def run(directory: Path, host: str = HOST) -> Iterator[Server]:
    """Run clamd on a port and a Unix socket."""
    need("clamd")
    for name in ("db", "run"):
        (directory / name).mkdir()
    shutil.chown(directory / "run", "nobody")
    signatures(directory / "db", sample=True)
    daily(directory / "db", 5.0)
    check = Clamd(port=free_port())
    conf = directory / "clamd.conf"
    conf.write_text(CONF.format(directory=directory, host=host, port=check.port))
    server = Server(["clamd", "-c", str(conf)], directory, check, host=host)
    try:
        yield server
    finally:
        server.stop()
