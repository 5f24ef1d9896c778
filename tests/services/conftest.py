from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from checks.smtp import Smtp
from checks.spamd import Spamd
from hactl.core.units import Secret
from tests.services.servers import HOST, NEWER, PATH, Server, free_port, need, speaks_tls

SMTPD_CONF = """\
table users {{ "@example.org" = "nobody" }}
listen on {host} port {port} hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain "example.org" action "store"
"""

# STARTTLS, implicit TLS, a login, and bad certificates on ports that follow each other.
TLS_CONF = """\
{pki}
table login {{ "probe" = "{hash}" }}
listen on {host} port {starttls} tls pki good hostname mx0.example.org
listen on {host} port {smtps} smtps pki good hostname mx0.example.org
listen on {host} port {submission} tls-require auth <login> pki good hostname mx0.example.org
listen on {host} port {expired} smtps pki expired hostname mx0.example.org
listen on {host} port {other} smtps pki other hostname mx0.example.org
action "relay" relay
match auth from any for any action "relay"
"""
PKI = 'pki {name} cert "{directory}/{name}.pem"\npki {name} key "{directory}/{name}.key"\n'
DAY = timedelta(days=1)

# smtpd's spool, socket and program are compiled in, so it gets a mount namespace of its own.
SMTPD = """\
for program in smtpd smtpctl; do
    [ -z "$1" ] || mount --bind "$1/$program" /usr/sbin/$program || exit
done
mount --bind "$0/spool" /var/spool && mount --bind "$0/mail" /var/mail &&
mount --bind "$0/run" /run && exec /usr/sbin/smtpd -d -v -f "$0/smtpd.conf"
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Return an empty directory that other users can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="hactl-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def smtpd(directory: Path, conf: str, check: Smtp, programs: Path | None = None) -> Server:
    """Start OpenSMTPD, the one whose *programs* these are."""
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    for name in ("spool/smtpd", "mail", "run"):
        (directory / name).mkdir(mode=0o711, parents=True)
    path = directory / "smtpd.conf"
    path.write_text(conf)
    path.chmod(0o600)
    unshare = ["unshare", "--mount", "--propagation", "private"]
    command = ["sh", "-c", SMTPD, str(directory), str(programs or "")]
    return Server([*unshare, *command], directory, check)


@pytest.fixture(scope="module")
def opensmtpd(directory: Path) -> Iterator[Server]:
    """Run OpenSMTPD; it takes mail for example.org."""
    check = Smtp(port=free_port(), depth="rcpt", mail_to="probe@example.org")
    server = smtpd(directory, SMTPD_CONF.format(host=HOST, port=check.port), check)
    yield server
    server.stop()


class Mail(NamedTuple):
    """OpenSMTPD with TLS: its ports by what they are for, its authority, a good and a bad login."""

    server: Server
    ports: dict[str, int]
    ca: Path
    login: Secret
    wrong: Secret


def _mail(directory: Path, programs: Path | None) -> Iterator[Mail]:
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    authority, now = trustme.CA(), datetime.now(UTC)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, host, days in (
        ("good", "mx0.example.org", 42.5),
        ("expired", "mx0.example.org", -3.5),
        ("other", "mx1.example.org", 42.5),
    ):
        leaf = authority.issue_cert(host, not_before=now - 90 * DAY, not_after=now + days * DAY)
        leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
        (directory / f"{name}.key").touch(0o600)
        leaf.private_key_pem.write_to_path(str(directory / f"{name}.key"))
    logins = []
    for name in ("secret", "wrong"):
        path = directory / name
        path.write_text(f"probe\n{name}\n")
        logins.append(Secret(str(path)))
    smtpctl = shutil.which("smtpctl", path=PATH) or ""
    hashed = subprocess.check_output([smtpctl, "encrypt", "secret"], text=True).strip()
    names = ("starttls", "smtps", "submission", "expired", "other")
    ports = {name: free_port() for name in names}
    pki = "".join(PKI.format(name=n, directory=directory) for n in ("good", "expired", "other"))
    conf = TLS_CONF.format(host=HOST, pki=pki, hash=hashed, **ports)
    server = smtpd(directory, conf, Smtp(port=ports["starttls"]), programs)
    yield Mail(server, ports, directory / "ca.pem", *logins)
    server.stop()


@pytest.fixture(scope="module")
def installed(directory: Path) -> Iterator[Mail]:
    """Run the OpenSMTPD that is installed, with TLS."""
    (directory / "installed").mkdir()
    yield from _mail(directory / "installed", None)


@pytest.fixture(scope="module")
def mail(directory: Path) -> Iterator[Mail]:
    """Run an OpenSMTPD whose TLS works."""
    need("smtpd")
    programs = None if speaks_tls() else NEWER
    if programs is not None and not (NEWER / "smtpd").exists():
        pytest.skip("no OpenSMTPD 7 here: run tests/services/install")
    (directory / "mail").mkdir()
    yield from _mail(directory / "mail", programs)


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
