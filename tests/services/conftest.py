from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.smtp import Smtp
from checks.spamd import Spamd
from tests.services import clamd as clamav
from tests.services import dnsmasq as named
from tests.services import dovecot as imapd
from tests.services import mariadb
from tests.services import opensmtpd as smtpd
from tests.services import postfix as mta
from tests.services import spamd as spam
from tests.services.dnsmasq import Dnsmasq
from tests.services.dovecot import Dovecot
from tests.services.mariadb import Database
from tests.services.opensmtpd import Faulty, Mail
from tests.services.postfix import Postfix
from tests.services.servers import HOST, Server, free_port


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
    check = Smtp(port=free_port(), depth="rcpt", mail_to="probe@example.org")
    server = smtpd.start(directory, smtpd.CONF.format(host=HOST, port=check.port), check)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def installed(directory: Path) -> Iterator[Mail]:
    """Run the OpenSMTPD that is installed, with TLS."""
    (directory / "installed").mkdir()
    yield from smtpd.mail(directory / "installed", None)


@pytest.fixture(scope="module")
def mail(directory: Path) -> Iterator[Mail]:
    """Run an OpenSMTPD whose TLS works."""
    (directory / "mail").mkdir()
    yield from smtpd.mail(directory / "mail", smtpd.newer())


@pytest.fixture(scope="module")
def faulty(directory: Path) -> Iterator[Faulty]:
    """Run an OpenSMTPD that can be broken in many ways."""
    (directory / "faulty").mkdir()
    yield from smtpd.faulty(directory / "faulty")


@pytest.fixture(scope="module")
def database(directory: Path) -> Iterator[Database]:
    """Run MariaDB with OpenSMTPD's tables."""
    (directory / "database").mkdir()
    yield from mariadb.run(directory / "database")


@pytest.fixture(scope="module")
def spamd(directory: Path) -> Iterator[Server]:
    """Run spamd with local rules only."""
    server = spam.launch(directory, Spamd(scan=False))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def postfix(directory: Path) -> Iterator[Postfix]:
    """Run Postfix; it takes mail for probe@example.org."""
    (directory / "postfix").mkdir()
    yield from mta.run(directory / "postfix")


@pytest.fixture(scope="module")
def dovecot(directory: Path) -> Iterator[Dovecot]:
    """Run Dovecot with one user."""
    (directory / "dovecot").mkdir()
    yield from imapd.run(directory / "dovecot")


@pytest.fixture(scope="module")
def clamd(directory: Path) -> Iterator[Server]:
    """Run clamd with signatures of our own."""
    (directory / "clamd").mkdir()
    yield from clamav.run(directory / "clamd")


@pytest.fixture(scope="module")
def dnsmasq(directory: Path) -> Iterator[Dnsmasq]:
    """Run dnsmasq."""
    yield from named.run(directory / "dnsmasq")
