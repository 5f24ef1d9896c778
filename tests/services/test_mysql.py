"""The mysql check against MariaDB: well, full, read-only, hung and gone, and without its grants."""

from __future__ import annotations

import asyncio
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
from tests.services.pair import Pair, Side, run
from tests.services.servers import PATIENCE
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
