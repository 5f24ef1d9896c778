from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.smtp import Smtp
from checks.spamd import Spamd
from tests.services.servers import HOST, Server, free_port, need

SMTPD_CONF = """\
table users {{ "@example.org" = "nobody" }}
listen on {host} port {port} hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain "example.org" action "store"
"""

# smtpd's spool and socket are compiled in, so it gets a mount namespace with directories of its own.
SMTPD = """\
mount --bind "$0/spool" /var/spool && mount --bind "$0/mail" /var/mail &&
mount --bind "$0/run" /run && exec smtpd -d -v -f "$0/smtpd.conf"
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Return an empty directory that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hactl-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def opensmtpd(directory: Path) -> Iterator[Server]:
    """Run OpenSMTPD; it takes mail for example.org."""
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    for name in ("spool/smtpd", "mail", "run"):
        (directory / name).mkdir(mode=0o711, parents=True)
    check = Smtp(port=free_port(), depth="rcpt", mail_to="probe@example.org")
    conf = directory / "smtpd.conf"
    conf.write_text(SMTPD_CONF.format(host=HOST, port=check.port))
    conf.chmod(0o600)
    unshare = ["unshare", "--mount", "--propagation", "private"]
    server = Server([*unshare, "sh", "-c", SMTPD, str(directory)], directory, check)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def spamd(directory: Path) -> Iterator[Server]:
    """Run spamd with local rules only and one child."""
    need("spamd")
    home = directory / "home"
    home.mkdir()
    shutil.chown(home, "nobody")
    # Its port accepts seconds before the rules are compiled: ready is who answers.
    check = Spamd(port=free_port(), scan=False)
    listen = ["-i", f"{HOST}:{check.port}", "-A", HOST]
    children = ["-m", "1", "--min-children=1", "--min-spare=1", "--max-spare=1"]
    user = ["-u", "nobody", "-x", "-H", str(home)]
    command = ["spamd", "--local", "--syslog=stderr", *listen, *children, *user]
    server = Server(command, directory, check)
    yield server
    server.stop()
