"""The smtp check against OpenSMTPD 7: each fault is found out in time, at its step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from checks.mysql import Mysql
from checks.smtp import Smtp
from hactl.core.health import State
from hactl.core.model import Verdict
from hactl.core.units import Secret
from tests.services import opensmtpd
from tests.services.mariadb import Database
from tests.services.opensmtpd import CONF, DYNAMIC, Faulty
from tests.services.servers import HOST, free_port
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


def watching(checks: Mapping[str, Smtp | Mysql]) -> Watch:
    return Watch({name: timed(check, 1.0, 1.0, 0.2) for name, check in checks.items()})


@pytest.fixture(scope="module")
def watch(faulty: Faulty) -> Iterator[Watch]:
    with watching(faulty.checks) as watch:
        yield watch


# Faults


def paused(faulty: Faulty) -> AbstractContextManager[None]:
    return opensmtpd.paused(faulty.server)


def hung(name: str) -> Callable[[Faulty], AbstractContextManager[None]]:
    return lambda faulty: faulty.server.frozen(faulty.server.children(f"smtpd: {name}"))


def filtering(fault: str) -> Callable[[Faulty], AbstractContextManager[None]]:
    return lambda faulty: opensmtpd.written(faulty.fault, fault + "\n")


def known_as(line: str) -> Callable[[Faulty], AbstractContextManager[None]]:
    """Change what the server finds for our address."""
    return lambda faulty: opensmtpd.written(faulty.hosts, line)


@contextmanager
def dns_silent(faulty: Faulty) -> Iterator[None]:
    """Have the resolver answer nothing, of us neither."""
    with opensmtpd.written(faulty.hosts, ""):
        faulty.resolver.silent = True
        try:
            yield
        finally:
            faulty.resolver.silent = False


@contextmanager
def backlog_full(faulty: Faulty) -> Iterator[None]:
    """Hang, and have more connections wait than the kernel keeps."""
    with hung("dispatcher")(faulty), opensmtpd.crowded(HOST, faulty.checks["smtp"].port):
        yield


@pytest.mark.parametrize("depth", ["greeting", "ehlo", "mail", "rcpt"])
def test_passes_at_each_depth(faulty: Faulty, depth: str) -> None:
    result = faulty.server.look(structs.replace(faulty.checks["smtp"], depth=depth))
    assert (result.verdict, result.step) == (Verdict.OK, depth)


ALL = ("smtp", "starttls", "smtps", "submission")
NO_GREETING = r"(greeting|tls): no answer in 1s"


@pytest.mark.parametrize(
    ("fault", "names", "reason", "silent"),
    [
        (paused, ALL, NO_GREETING, True),
        (hung("dispatcher"), ALL, NO_GREETING, True),
        (hung("lookup"), ALL, NO_GREETING, True),
        (hung("queue"), ("smtp",), r"mail: no answer in 1s", True),
        # A handshake waits for crypto, and everybody for the handshake: dispatcher is one process.
        (hung("crypto"), ALL[1:], NO_GREETING, True),
        (dns_silent, ALL, NO_GREETING, True),
        (known_as(""), ("smtp",), r"refuses us \(550 no rDNS available\)", False),
        (known_as(DYNAMIC), ("smtp",), r"refuses us \(550 no dynamic address\)", False),
        (filtering("connect delay 3"), ("smtp",), r"greeting: no answer in 1s", True),
        (
            filtering("connect disconnect 421 4.3.2 too busy"), ("smtp",),
            r"greeting 421 4.3.2 too busy", False,
        ),
        (filtering("mail-from hang"), ("smtp",), r"mail: no answer in 1s", True),
        (
            filtering("rcpt-to reject 451 4.7.1 try again"), ("smtp",),
            r"RCPT 451 4.7.1 try again", False,
        ),
        (backlog_full, ("smtp",), r"connect: no answer in 1s", True),
    ],
    ids=[
        "paused", "dispatcher", "lookup", "queue", "crypto", "dns", "no-rdns", "dynamic", "slow-filter",
        "421", "hung-filter", "451", "backlog",
    ],
)  # fmt: skip
def test_a_fault_is_found_out_in_time_at_its_step(
    faulty: Faulty,
    watch: Watch,
    fault: Callable[[Faulty], AbstractContextManager[None]],
    names: tuple[str, ...],
    reason: str,
    silent: bool,
) -> None:
    either = set(ALL) - set(names) if "no answer" in reason else ()
    expected = dict.fromkeys(names, reason)
    endure(watch, fault(faulty), expected, silent=silent, either=either)


@pytest.mark.parametrize("name", ["scheduler", "control"])
def test_what_hangs_behind_the_session_is_not_the_sessions_to_see(
    faulty: Faulty, watch: Watch, name: str
) -> None:
    """Mail is accepted, and not delivered: that is what the types delivery and queue are for."""
    with hung(name)(faulty):
        for check in ALL:
            watch.after(2, check)
        watch.until(State.UP, limit=0)


def test_a_filter_that_dies_takes_the_server_along(faulty: Faulty, watch: Watch) -> None:
    """The last test here."""
    watch.until(State.UP)
    for child in faulty.server.children("faultfilter"):
        child.kill()
    for health in watch.until(State.DOWN).values():
        assert health.last is not None
        assert health.last.reason == "connect: connection refused"


# An OpenSMTPD of its own for each of these


def test_no_room_for_more_sessions(directory: Path) -> None:
    """So few files may be open that 15 clients are served; the next is accepted, and that is all."""
    (directory / "small").mkdir()
    check = Smtp(port=free_port(), depth="rcpt", mail_to="probe@example.org")
    conf = CONF.format(host=HOST, port=check.port)
    server = opensmtpd.start(directory / "small", conf, check, opensmtpd.newer(), files=40)
    try:
        with watching({"smtp": check}) as watch:
            endure(
                watch, opensmtpd.sessions(HOST, check.port), {"smtp": r"greeting: no answer in 1s"}
            )
    finally:
        server.stop()


@pytest.fixture(scope="module")
def tables(directory: Path, database: Database) -> Iterator[dict[str, Smtp | Mysql]]:
    """Run an OpenSMTPD whose users are in the database; return how both are looked at."""
    (directory / "tables").mkdir()
    file = directory / "mysql.login"
    file.write_text("smtpd\nsmtpd\n")
    file.chmod(0o600)
    asked = Mysql(
        login=Secret(str(file)), socket=database.directory / "sock",
        query="SELECT * FROM mail.users", rows=1,
    )  # fmt: skip
    for _, checks in opensmtpd.with_database(directory / "tables", database.host):
        yield {**checks, "database": asked}


def test_a_dead_database_is_451_to_recipients_and_421_to_logins(
    tables: dict[str, Smtp | Mysql], database: Database
) -> None:
    expected = {
        "smtp": r"RCPT 451 .*",
        "submission": r"AUTH 421 4.3.0 .*",
        "database": r"connect: connection refused",
    }
    with watching(tables) as watch:
        endure(watch, database.dead(), expected, silent=False)


def test_a_hung_database_stops_every_greeting(
    tables: dict[str, Smtp | Mysql], database: Database
) -> None:
    """The first look that asks for a recipient or a login waits, and then nobody is greeted."""
    greeting = Smtp(port=tables["smtp"].port, depth="greeting")
    hung = database.server.frozen([database.server.process])
    waits = r"(rcpt|auth|greeting|mail): no answer in 1s"
    expected = {
        "smtp": waits,
        "submission": waits,
        "greeting": r"greeting: no answer in 1s",
        "database": r"greeting: no answer in 1s",
    }
    with watching({**tables, "greeting": greeting}) as watch:
        endure(watch, hung, expected)
