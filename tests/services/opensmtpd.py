"""OpenSMTPD in a mount namespace of its own, as its spool, socket and programs are compiled in."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from msgspec import structs

from checks.smtp import Smtp
from hactl.core.units import Secret
from tests.services.servers import HOST, NEWER, PATH, PATIENCE, Server, free_port, need, speaks_tls

NAME = "mx0.example.org"  # whom the good certificate is for

CONF = """\
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
# What is refused for its address, and what FILTER does; *directory* is one that `breakable` prepares.
FILTERS = """\
filter no_rdns phase connect match !rdns disconnect "550 no rDNS available"
filter no_dyn phase connect match rdns regex {{ ".*\\.dyn\\..*" }} disconnect "550 no dynamic address"
filter faults proc-exec "{directory}/faultfilter {directory}/fault"
filter all chain {{ no_rdns, no_dyn, faults }}
"""
# Everything that can be broken from outside; the filters are for the first port alone.
FAULTY_CONF = """\
{pki}
{filters}
table login {{ "probe" = "{hash}" }}
table users {{ "@example.org" = "nobody" }}
listen on {host} port {smtp} filter "all" hostname mx0.example.org
listen on {host} port {starttls} tls pki good hostname mx0.example.org
listen on {host} port {smtps} smtps pki good hostname mx0.example.org
listen on {host} port {submission} tls-require auth <login> pki good hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain "example.org" action "store"
match auth from any for any action "store"
"""
# Of smtpd-filters(7).  The file $1 says what goes wrong: `connect disconnect 421 4.3.2 busy`,
# `connect delay 2`, `mail-from hang`.
FILTER = """\
#!/bin/sh
while IFS='|' read -r kind version _ _ phase session token _; do
    case $kind$version in
    configready)
        for each in connect mail-from rcpt-to; do echo "register|filter|smtp-in|$each"; done
        echo 'register|ready' ;;
    filter*)
        at= what= text=
        if [ -s "$1" ]; then read -r at what text <"$1"; fi
        answer="filter-result|$session|$token|proceed"
        case $at:$what in
        "$phase:hang") ;;
        "$phase:delay") (sleep "$text"; echo "$answer") & ;;
        "$phase:"?*) echo "filter-result|$session|$token|$what|$text" ;;
        *) echo "$answer" ;;
        esac ;;
    esac
done
"""
# The tables are in a database, as in the talk: recipients and logins depend on it.
MYSQL_CONF = """\
{pki}
table domains mysql:{table}
table users mysql:{table}
table login mysql:{table}
listen on {host} port {smtp} hostname mx0.example.org
listen on {host} port {submission} tls-require auth <login> pki good hostname mx0.example.org
action "store" mda "cat >/dev/null" virtual <users>
match from any for domain <domains> action "store"
match auth from any for any action "store"
"""
MYSQL_TABLE = """\
host {database}
username smtpd
password smtpd
database mail
query_domain SELECT domain FROM domains WHERE domain=?;
query_alias SELECT destination FROM users WHERE source=?;
query_credentials SELECT login, password FROM logins WHERE login=?;
"""
PKI = 'pki {name} cert "{directory}/{name}.pem"\npki {name} key "{directory}/{name}.key"\n'
DAY = timedelta(days=1)

# $0 is the directory, $1 that of other programs, $2 how many files may be open, $3 where it logs.
START = """\
for program in smtpd smtpctl; do
    [ -z "$1" ] || mount --bind "$1/$program" /usr/sbin/$program || exit
done
for file in hosts resolv.conf; do
    [ ! -e "$0/$file" ] || mount --bind "$0/$file" /etc/$file || exit
done
[ -z "$2" ] || ulimit -n "$2" || exit
mount --bind "$0/spool" /var/spool && mount --bind "$0/mail" /var/mail &&
mount --bind "$0/run" /run && exec /usr/sbin/smtpd "$3" -v -f "$0/smtpd.conf"
"""


def start(
    directory: Path,
    conf: str,
    check: Smtp,
    programs: Path | None = None,
    files: int | None = None,
    host: str = HOST,
    within: Sequence[str] = (),
) -> Server:
    """Start OpenSMTPD, the one whose *programs* these are; at most so many *files* may be open.

    It writes to syslog where a `Syslog` has given what to run it *within*.
    """
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    for name in ("spool/smtpd", "mail", "run"):
        (directory / name).mkdir(mode=0o711, parents=True, exist_ok=True)
    path = directory / "smtpd.conf"
    path.write_text(conf)
    path.chmod(0o600)
    unshare = ["unshare", "--mount", "--propagation", "private"]
    command = [
        "sh",
        "-c",
        START,
        str(directory),
        str(programs or ""),
        str(files or ""),
        "-F" if within else "-d",
    ]
    return Server([*within, *unshare, *command], directory, check, host=host)


def newer() -> Path | None:
    """Return where an OpenSMTPD whose TLS works is, None if it is the installed one."""
    need("smtpd")
    if speaks_tls():
        return None
    if not (NEWER / "smtpd").exists():
        pytest.skip("no OpenSMTPD 7 here: run tests/services/install")
    return NEWER


def smtpctl(server: Server, *words: str) -> str:
    """Run smtpctl where the server's socket is; return what it says."""
    command = ["nsenter", "--target", str(server.process.pid), "--mount", "smtpctl", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Certified:
    """OpenSMTPD that shows the pair good, or for a while what another pair has."""

    def __init__(self, directory: Path, conf: str, check: Smtp, files: int | None = None) -> None:
        self.directory = directory
        self._start = partial(start, directory, conf, check, newer(), files)
        self.server: Server = self._start()

    @contextmanager
    def by(self, pair: str) -> Iterator[None]:
        """Have it started again with *pair*, and later with a good one: it reads them once."""
        self._restart(pair)
        try:
            yield
        finally:
            self._restart("renewed")

    def _restart(self, pair: str) -> None:
        self.server.stop()
        for what in ("pem", "key"):
            shutil.copy(self.directory / f"{pair}.{what}", self.directory / f"good.{what}")
        self.server = self._start()


class Mail(NamedTuple):
    """OpenSMTPD with TLS: its ports by what they are for, its authority, a good and a bad login."""

    server: Server
    ports: dict[str, int]
    ca: Path
    login: Secret
    wrong: Secret


def certificates(directory: Path) -> Path:
    """Write pairs into *directory*; return the file of their authority.

    They are called good, renewed, which is as good, expired and other.
    """
    authority, now = trustme.CA(), datetime.now(UTC)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, host, days in (
        ("good", NAME, 42.5),
        ("renewed", NAME, 42.5),
        ("expired", NAME, -3.5),
        ("other", "mx1.example.org", 42.5),
    ):
        leaf = authority.issue_cert(host, not_before=now - 90 * DAY, not_after=now + days * DAY)
        leaf.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
        (directory / f"{name}.key").touch(0o600)
        leaf.private_key_pem.write_to_path(str(directory / f"{name}.key"))
    return directory / "ca.pem"


def logins(directory: Path) -> tuple[Secret, Secret]:
    """Write a good and a wrong login of `probe` into *directory*."""
    found = []
    for name in ("secret", "wrong"):
        path = directory / name
        path.touch(0o600)
        path.write_text(f"probe\n{name}\n")
        found.append(Secret(str(path)))
    return found[0], found[1]


def encrypted(password: str) -> str:
    """Return *password* as smtpd keeps it."""
    program = shutil.which("smtpctl", path=PATH) or ""
    return subprocess.check_output([program, "encrypt", password], text=True).strip()


def mail(directory: Path, programs: Path | None) -> Iterator[Mail]:
    """Run OpenSMTPD with TLS."""
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    ca = certificates(directory)
    names = ("starttls", "smtps", "submission", "expired", "other")
    ports = {name: free_port() for name in names}
    pki = "".join(PKI.format(name=n, directory=directory) for n in ("good", "expired", "other"))
    conf = TLS_CONF.format(host=HOST, pki=pki, hash=encrypted("secret"), **ports)
    server = start(directory, conf, Smtp(port=ports["starttls"]), programs)
    yield Mail(server, ports, ca, *logins(directory))
    server.stop()


class Faulty(NamedTuple):
    """OpenSMTPD that can be broken: its checks, the file that its filter obeys, and its resolver."""

    server: Server
    checks: dict[str, Smtp]
    fault: Path
    hosts: Path
    resolver: Resolver


def _checks(directory: Path, ports: dict[str, int], ca: Path) -> dict[str, Smtp]:
    login, _ = logins(directory)
    smtp = Smtp(port=ports["smtp"], depth="rcpt", mail_to="probe@example.org")
    tls = Smtp(port=ports["submission"], tls="starttls", name=NAME, ca=ca)
    return {"smtp": smtp, "submission": structs.replace(tls, login=login)}


HOSTS = f"{HOST} client.example.org\n"
DYNAMIC = f"{HOST} host-7.dyn.example.net\n"


def breakable(directory: Path, dns: Resolver) -> None:
    """Write what FILTERS need into *directory*, who we are, and which resolver there is."""
    (directory / "faultfilter").write_text(FILTER)
    (directory / "faultfilter").chmod(0o755)
    (directory / "fault").touch()
    (directory / "hosts").write_text(HOSTS)
    (directory / "resolv.conf").write_text(f"nameserver {dns.address}\n")


@contextmanager
def written(path: Path, text: str) -> Iterator[None]:
    """Have *path* say something else for a while, without being another file."""
    before = path.read_text()
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)


@contextmanager
def paused(server: Server) -> Iterator[None]:
    """Have it take no connections, as an operator does."""
    smtpctl(server, "pause", "smtp")
    try:
        yield
    finally:
        smtpctl(server, "resume", "smtp")


@contextmanager
def crowded(address: str, port: int) -> Iterator[None]:
    """Have more connections wait than the kernel keeps for one who does not take them."""
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex((address, port))
        yield


@contextmanager
def sessions(address: str, port: int) -> Iterator[None]:
    """Hold as many sessions as are greeted."""
    with ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.create_connection((address, port)))
            sock.settimeout(1.0)
            try:
                assert sock.recv(100).startswith(b"220 ")
            except TimeoutError:
                break
        yield


def faulty(directory: Path) -> Iterator[Faulty]:
    """Run an OpenSMTPD that can be broken."""
    programs = newer()
    ca = certificates(directory)
    ports = {name: free_port() for name in ("smtp", "starttls", "smtps", "submission")}
    pki = PKI.format(name="good", directory=directory)
    filters = FILTERS.format(directory=directory)
    conf = FAULTY_CONF.format(
        host=HOST, pki=pki, filters=filters, hash=encrypted("secret"), **ports
    )
    checks = _checks(directory, ports, ca)
    tls = structs.replace(checks["submission"], port=ports["starttls"], login=None)
    checks["starttls"] = tls
    checks["smtps"] = structs.replace(tls, port=ports["smtps"], tls="implicit")
    with resolver() as dns:
        breakable(directory, dns)
        server = start(directory, conf, checks["smtp"], programs)
        yield Faulty(server, checks, directory / "fault", directory / "hosts", dns)
        server.stop()


def mysql_table(directory: Path, database: str) -> Path:
    """Write into *directory* how the database at an address is asked; return the file."""
    if not Path("/usr/libexec/opensmtpd/table-mysql").exists():
        pytest.skip("no table-mysql here: run tests/services/install")
    table = directory / "mysql.conf"
    table.touch(0o640)
    table.write_text(MYSQL_TABLE.format(database=database))
    shutil.chown(table, "root", "opensmtpd")
    return table


def with_database(directory: Path, database: str) -> Iterator[tuple[Server, dict[str, Smtp]]]:
    """Run an OpenSMTPD whose tables are in the database at an address."""
    programs = newer()
    ca = certificates(directory)
    ports = {name: free_port() for name in ("smtp", "submission")}
    pki = PKI.format(name="good", directory=directory)
    table = mysql_table(directory, database)
    conf = MYSQL_CONF.format(host=HOST, pki=pki, table=table, **ports)
    checks = _checks(directory, ports, ca)
    server = start(directory, conf, checks["smtp"], programs)
    yield server, checks
    server.stop()


# A DNS server that knows nobody, or says nothing


class Resolver:
    """Answers on port 53 of an address of its own with *code*, that there is no such name, or is *silent*."""

    def __init__(self) -> None:
        self.silent = False
        self.code = 3  # NXDOMAIN
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for last in range(2, 255):
            self.address = f"127.53.0.{last}"
            try:
                self._sock.bind((self.address, 53))
                break
            except OSError:
                continue
        self._sock.settimeout(0.2)
        self._ending = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ending:
            try:
                query, client = self._sock.recvfrom(512)
            except TimeoutError:
                continue
            if not self.silent:
                end = query.index(b"\0", 12) + 5  # of the question
                head = bytes([0x81, 0x80 | self.code]) + b"\0\1\0\0\0\0\0\0"
                self._sock.sendto(query[:2] + head + query[12:end], client)

    def stop(self) -> None:
        """End it."""
        self._ending = True
        self._thread.join()
        self._sock.close()


@contextmanager
def resolver() -> Iterator[Resolver]:
    """Run a resolver until the block ends."""
    found = Resolver()
    try:
        yield found
    finally:
        found.stop()
