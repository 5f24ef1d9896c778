"""MariaDB with the tables that OpenSMTPD asks for recipients and logins."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from checks import NOBODY, Spoken, Target
from checks._wire import Dialogue, Say, quote
from hactl.core.model import ok
from tests.services.opensmtpd import encrypted
from tests.services.servers import PATIENCE, Server, need

CONF = """\
[mariadbd]
datadir={directory}/data
socket={directory}/sock
pid-file={directory}/pid
init-file={directory}/init.sql
bind-address={host}
port=3306
user=mysql
skip-name-resolve
performance-schema=OFF
innodb-buffer-pool-size=16M
innodb-log-file-size=8M
aria-pagecache-buffer-size=1M
key-buffer-size=1M
"""
# A statement a line; it is read at each start.
TABLES = """\
CREATE DATABASE IF NOT EXISTS mail;
CREATE OR REPLACE TABLE mail.domains (domain VARCHAR(64)) AS SELECT 'example.org' AS domain;
CREATE OR REPLACE TABLE mail.users (source VARCHAR(64), destination VARCHAR(64)) AS SELECT 'probe@example.org' AS source, 'nobody' AS destination;
CREATE OR REPLACE TABLE mail.logins (login VARCHAR(64), password VARCHAR(255)) AS SELECT 'probe' AS login, '{hash}' AS password;
CREATE USER IF NOT EXISTS smtpd@'127.%' IDENTIFIED BY 'smtpd';
GRANT SELECT ON mail.* TO smtpd@'127.%';
CREATE USER IF NOT EXISTS smtpd@localhost IDENTIFIED BY 'smtpd';
GRANT SELECT ON mail.* TO smtpd@localhost;
"""


class Greeting(Spoken, frozen=True, kw_only=True, tag="mariadb"):
    """The server at *host* says its version in a packet with its length in front."""

    port: int = 3306
    host: str

    def where(self, address: str) -> tuple[str, int]:
        return self.host, self.port

    def talk(self, target: Target = NOBODY) -> Dialogue:
        packet = yield Say(b"", _packet, "greeting")
        return ok(quote(packet[5:30]))


def _packet(buffer: bytes) -> int:
    size = 4 + int.from_bytes(buffer[:3], "little")
    return size if len(buffer) >= max(size, 5) else 0


def free_address() -> str:
    """Return an address whose port 3306 is free: table-mysql knows no other."""
    for last in range(2, 255):
        with socket.socket() as sock, suppress(OSError):
            sock.bind((f"127.33.0.{last}", 3306))
            return f"127.33.0.{last}"
    pytest.fail("port 3306 is taken everywhere")


class Database:
    """MariaDB on an address of its own; it can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        need("mariadbd", "mariadb-install-db")
        self.directory = directory
        self.host = free_address()
        shutil.chown(directory, "mysql")
        (directory / "init.sql").write_text(TABLES.format(hash=encrypted("secret")))
        (directory / "my.cnf").write_text(CONF.format(directory=directory, host=self.host))
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={directory}/data", "--user=mysql",
             "--auth-root-authentication-method=normal", "--skip-test-db",
             "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"],
            check=True, capture_output=True, timeout=3 * PATIENCE,
        )  # fmt: skip
        command = ["mariadbd", f"--defaults-file={directory}/my.cnf"]
        self.server = Server(command, directory, Greeting(host=self.host))

    def dead(self) -> AbstractContextManager[None]:
        """End it, and start it again afterwards."""
        return self.server.ended(signal.SIGTERM)


def run(directory: Path) -> Iterator[Database]:
    """Run MariaDB."""
    database = Database(directory)
    try:
        yield database
    finally:
        database.server.stop()
