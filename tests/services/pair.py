"""Two MariaDB servers that replicate from each other by GTID, each with its half of the keys."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pymysql

from hactl.core.units import Secret
from tests.services.mariadb import Greeting, free_address
from tests.services.servers import PATIENCE, Server, need

CONF = """\
[mariadbd]
datadir={directory}/data
socket={directory}/sock
pid-file={directory}/pid
bind-address={host}
port=3306
extra-port=3307
extra-max-connections=3
max-connections=20
user=mysql
server-id={number}
gtid-domain-id={number}
log-bin={directory}/data/bin
relay-log={directory}/data/relay
log-slave-updates=1
binlog-format=MIXED
binlog-do-db=dbispconfig
binlog-do-db=sogo
replicate-do-db=dbispconfig
replicate-do-db=sogo
auto_increment_increment=2
auto_increment_offset={number}
slave-net-timeout=4
skip-name-resolve
performance-schema=OFF
innodb-buffer-pool-size=16M
innodb-log-file-size=8M
innodb-flush-log-at-trx-commit=0
sync-binlog=0
aria-pagecache-buffer-size=1M
key-buffer-size=1M
"""
ACCOUNTS = (
    "SET SESSION sql_log_bin=0",
    "CREATE USER replica@'127.%' IDENTIFIED BY 'changeme'",
    "GRANT REPLICATION SLAVE ON *.* TO replica@'127.%'",
    "CREATE USER hactl@'127.%' IDENTIFIED BY 'check'",
    "GRANT SLAVE MONITOR, BINLOG MONITOR ON *.* TO hactl@'127.%'",
    "CREATE USER bare@'127.%' IDENTIFIED BY 'check'",
    "CREATE DATABASE dbispconfig",
    "CREATE DATABASE sogo",
    "CREATE TABLE sogo.users (id INT AUTO_INCREMENT PRIMARY KEY, login VARCHAR(64) UNIQUE)",
    "CREATE TABLE sogo.heartbeat (ts VARCHAR(26) NOT NULL, server_id INT PRIMARY KEY)",
    "GRANT SELECT ON sogo.* TO hactl@'127.%'",
)
FOLLOW = (
    "CHANGE MASTER TO MASTER_HOST='{host}', MASTER_PORT=3306, MASTER_USER='replica',"
    " MASTER_PASSWORD='changeme', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos"
)


class Side:
    """One of the two."""

    def __init__(
        self,
        directory: Path,
        number: int,
        template: Path,
        host: str,
        prefix: Sequence[str] = (),
        conf: str = "",
    ) -> None:
        """Start it, through *prefix*, with the lines of *conf* besides."""
        self.directory = directory
        self.host = host
        directory.mkdir()
        shutil.copytree(template, directory / "data")
        settings = CONF.format(directory=directory, host=self.host, number=number) + conf
        (directory / "my.cnf").write_text(settings)
        for path in (directory, *(directory / "data").rglob("*"), directory / "data"):
            shutil.chown(path, "mysql")
        command = [*prefix, "mariadbd", f"--defaults-file={directory}/my.cnf"]
        self.server = Server(command, directory, Greeting(host=host))

    def sql(self, *statements: str, database: str | None = "sogo") -> list[tuple[object, ...]]:
        """Run *statements* as root, and return what the last one finds."""
        with pymysql.connect(
            unix_socket=f"{self.directory}/sock", user="root", database=database, autocommit=True
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    @contextmanager
    def holding(self, *statements: str) -> Iterator[None]:
        """Run *statements* in a session that goes on until the block ends."""
        with pymysql.connect(
            unix_socket=f"{self.directory}/sock", user="root", database="sogo", autocommit=True
        ) as connection, connection.cursor() as cursor:  # fmt: skip
            for statement in statements:
                cursor.execute(statement)
            yield

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it as a hang would."""
        with self.server.frozen([self.server.process]):
            yield

    def dead(self) -> AbstractContextManager[None]:
        """Kill it, and start it again afterwards."""
        return self.server.ended()


class Pair:
    """Both sides, and the account that looks at them."""

    def __init__(self, directory: Path, hosts: Sequence[str] = ()) -> None:
        need("mariadbd", "mariadb-install-db")
        shutil.chown(directory, "mysql")
        template = directory / "template"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={template}", "--user=mysql",
             "--auth-root-authentication-method=normal", "--skip-test-db",
             "--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M"],
            check=True, capture_output=True, timeout=3 * PATIENCE,
        )  # fmt: skip
        self.sides: list[Side] = []
        try:
            for number in (1, 2):
                host = hosts[number - 1] if hosts else free_address()
                self.sides.append(Side(directory / f"db{number}", number, template, host))
            one, two = self.sides
            for side, other in ((one, two), (two, one)):
                side.sql(*ACCOUNTS, database=None)
                side.sql(FOLLOW.format(host=other.host), "START SLAVE")
        except BaseException:
            self.stop()
            raise
        self.directory = directory

    @property
    def addresses(self) -> tuple[str, str]:
        one, two = self.sides
        return one.host, two.host

    def login(self, user: str = "hactl", password: str = "check") -> Secret:
        """Return a file with a login."""
        file = self.directory / f"login-{user}-{password}"
        file.write_text(f"{user}\n{password}\n")
        file.chmod(0o600)
        return Secret(str(file))

    def stop(self) -> None:
        for side in self.sides:
            side.server.stop()


def run(directory: Path) -> Iterator[Pair]:
    """Run both."""
    pair = Pair(directory)
    try:
        yield pair
    finally:
        pair.stop()
