"""The mysql check against MariaDB: well, full, read-only, hung, gone, blocking, without grants."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from checks import Target
from checks._tasks import look
from checks.mysql import Mysql
from hactl.core.health import State
from hactl.core.model import Result
from tests.services.network import covering, own_network
from tests.services.pair import Pair, Side, run
from tests.services.servers import PATIENCE, Server
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def pair(directory: Path) -> Iterator[Pair]:
    (directory / "pair").mkdir()
    yield from run(directory / "pair")


@pytest.fixture(scope="module")
def side(pair: Pair) -> Side:
    return pair.sides[0]


def options(pair: Pair) -> dict[str, Mysql]:
    login = pair.login()
    return {
        "plain": Mysql(login=login),
        "query": Mysql(login=login, query="SELECT COUNT(*) FROM sogo.users", measure="users_count"),
        "extra": Mysql(login=login, extra_port=3307),
        "socket": Mysql(login=login, socket=pair.sides[0].directory / "sock", writable=False),
    }


@pytest.fixture(scope="module")
def watch(pair: Pair, side: Side) -> Iterator[Watch]:
    side.sql(
        "SET SESSION sql_log_bin=0",
        "CREATE USER hactl@localhost IDENTIFIED BY 'check'",
        "GRANT SELECT ON sogo.* TO hactl@localhost",
    )
    checks = {name: timed(check, 1.0, 1.0, 0.2) for name, check in options(pair).items()}
    with Watch(checks, side.host) as watch:
        yield watch


def once(check: Mysql, side: Side) -> Result:
    return asyncio.run(look(check, Target("db", side.host, time.time(), {}), PATIENCE))


def test_logs_in_by_port_and_by_socket(watch: Watch) -> None:
    for name, health in watch.until(State.UP).items():
        assert health.last is not None
        assert health.last.reason.startswith("10."), name
        assert health.last.measures.keys() >= {"connections_count", "connections_percent"}
    assert watch.after(1, "query").last.measures["users_count"] == 0  # type: ignore[union-attr]


def test_a_dead_one_refuses(side: Side, watch: Watch) -> None:
    names = ("plain", "query", "extra", "socket")
    refused = dict.fromkeys(names, "connect: connection refused")
    endure(watch, side.dead(), refused, silent=False)


def test_a_hung_one_greets_nobody_and_blocks_nobody_afterwards(side: Side, watch: Watch) -> None:
    """Each connection that is given up without a login counts until one is not; ours are kept."""
    before = aborted(side)
    names = ("plain", "query", "extra", "socket")
    endure(watch, side.frozen(), dict.fromkeys(names, "greeting: no answer in 1s"))
    assert aborted(side) <= before + 1  # the test's own, which waits until it greets


def aborted(side: Side) -> int:
    """Return how many connections ended before a login."""
    ((_, count),) = side.sql("SHOW GLOBAL STATUS LIKE 'Aborted_connects_preauth'")
    return int(str(count))


@contextmanager
def full(side: Side) -> Iterator[None]:
    """Hold as many connections as there may be, and one more for root."""
    side.sql("SET GLOBAL max_connections=10")
    with ExitStack() as stack:
        for _ in range(30):
            try:
                stack.enter_context(side.holding())
            except Exception:  # noqa: BLE001 - it is full
                break
        yield
    side.sql("SET GLOBAL max_connections=20")


def test_a_full_one_says_so_and_by_the_other_door_how_full(side: Side, watch: Watch) -> None:
    expected = dict.fromkeys(("plain", "query", "socket"), "1040 too many connections")
    expected["extra"] = r"1040 too many connections: 1\d of 10"
    endure(watch, full(side), expected, silent=False)


@contextmanager
def read_only(side: Side) -> Iterator[None]:
    side.sql("SET GLOBAL read_only=1")
    yield
    side.sql("SET GLOBAL read_only=0")


def test_read_only_is_seen_where_writes_are_wanted(side: Side, watch: Watch) -> None:
    expected = dict.fromkeys(("plain", "query", "extra"), "read_only: writes get error 1290")
    endure(watch, read_only(side), expected, silent=False)


@contextmanager
def locked(side: Side) -> Iterator[None]:
    with side.holding("LOCK TABLES users WRITE"):
        yield


def test_a_statement_that_waits_for_a_lock_is_silence_and_goes_away(
    side: Side, watch: Watch
) -> None:
    endure(watch, locked(side), {"query": "query: no answer in 1s"})


BALANCER = "10.9.8.7"


@pytest.fixture
def strict(pair: Pair, directory: Path) -> Iterator[Side]:
    """Be where a server asks for the names of its clients, and blocks who breaks off four times."""
    hosts = directory / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{BALANCER} balancer.example.org\n")
    conf = "skip-name-resolve=0\nmax-connect-errors=3\n"
    with own_network(BALANCER):
        template, prefix = pair.directory / "template", covering("/etc/hosts", hosts)
        side = Side(directory / "strict", 3, template, BALANCER, prefix, conf)
        try:
            side.sql("CREATE USER hactl@'%.example.org' IDENTIFIED BY 'check'", database=None)
            yield side
        finally:
            side.server.stop()


def test_a_block_is_told_and_none_comes_of_our_looks(pair: Pair, strict: Side) -> None:
    check = timed(Mysql(login=pair.login()), 0.5, 0.4, 0.1)
    with Watch({"plain": check}, strict.host) as watch:
        # more looks without a login than may be; what is lost of them is the test's own
        watch.until(State.UP)
        with strict.frozen():
            watch.until(State.DOWN)
            watch.after(5, "plain")
        watch.until(State.UP)
        for _ in range(4):  # as a bare check of the port does
            with socket.create_connection((strict.host, 3306)) as sock:
                assert sock.recv(1)
        watch.until(State.DOWN)
        told = watch.after(1, "plain").last
        assert told is not None
        assert told.reason.startswith("1129 our address is blocked"), told
        strict.sql("FLUSH HOSTS", database=None)
        watch.until(State.UP)


def test_another_protocol_is_told_from_a_database(opensmtpd: Server, pair: Pair) -> None:
    check = Mysql(login=pair.login(), port=opensmtpd.check.port)
    result = opensmtpd.look(check)
    assert (result.verdict, result.reason[:22]) == ("fail", "not an answer of MySQL")


@pytest.mark.parametrize(
    ("account", "check", "verdict", "reason"),
    [
        (("hactl", "wrong"), {}, "fail", "login refused (1045 Access denied for user 'hactl'@"),
        (("nobody", "check"), {}, "fail", "login refused (1045 Access denied for user 'nobody'@"),
        (("bare", "check"), {"query": "SELECT * FROM sogo.users"}, "unknown",
         "missing grant: SELECT on `sogo`.`users`"),
        (("hactl", "check"), {"query": "SELECT * FROM sogo.nothing"}, "fail", "1146 Table"),
        (("hactl", "check"), {"query": "SELEKT"}, "unknown", "1064 You have an error"),
        (("hactl", "check"), {"tls": "starttls", "verify": False}, "fail",
         "login: the server offers no TLS"),
    ],
)  # fmt: skip
def test_what_the_server_says_is_judged(
    pair: Pair,
    side: Side,
    account: tuple[str, str],
    check: dict[str, Any],
    verdict: str,
    reason: str,
) -> None:
    result = once(Mysql(login=pair.login(*account), **check), side)
    assert (result.verdict, result.reason[: len(reason)]) == (verdict, reason)
