"""The replication check against two MariaDB servers that replicate from each other."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from checks import Target
from checks._tasks import look
from checks.replication import Replication
from hactl.core.model import Result
from tests.services.mariadb import free_address
from tests.services.pair import ACCOUNTS, FOLLOW, Pair, Side, run
from tests.services.servers import PATIENCE

pytestmark = pytest.mark.service

LIMIT = 5.0


@pytest.fixture(scope="module")
def pair(directory: Path) -> Iterator[Pair]:
    (directory / "pair").mkdir()
    yield from run(directory / "pair")


class Looking:
    """Looks at one side, and remembers."""

    def __init__(self, servers: Pair, side: int, **options: Any) -> None:
        self.check = Replication(login=servers.login(), **options)
        self.address = servers.addresses[side]
        self.memory: dict[str, float] = {}

    def once(self) -> Result:
        target = Target("db", self.address, time.time(), self.memory)
        return asyncio.run(look(self.check, target, LIMIT))

    def until(self, verdict: str, reason: str) -> Result:
        """Return the first result that is as it should be."""
        end = time.monotonic() + PATIENCE
        while True:
            result = self.once()
            if result.verdict == verdict and re.fullmatch(reason, result.reason):
                return result
            assert time.monotonic() < end, result
            time.sleep(0.05)


@pytest.fixture
def alone(pair: Pair) -> Looking:
    """Look at the first side by itself."""
    return well(Looking(pair, 0))


@pytest.fixture
def both(pair: Pair) -> list[Looking]:
    """Look at each side, and compare."""
    return [well(Looking(pair, side, pair=pair.addresses)) for side in (0, 1)]


def well(looking: Looking) -> Looking:
    looking.until("ok", "lag 0s")
    return looking


def write(pair: Pair, side: int, login: str) -> None:
    pair.sides[side].sql(f"INSERT INTO users (login) VALUES ('{login}')")


@contextmanager
def changed(pair: Pair, side: int, how: str, back: str) -> Iterator[None]:
    """Have a replica follow in another way."""
    pair.sides[side].sql("STOP SLAVE", how, "START SLAVE")
    try:
        yield
    finally:
        pair.sides[side].sql("STOP SLAVE", back, "START SLAVE")


def test_a_pair_is_well_and_has_measures(both: list[Looking]) -> None:
    for looking in both:
        measures = looking.once().measures
        assert measures["lag_seconds"] == measures["delay_seconds"] == 0
        assert measures["sources_count"] == 1


def test_a_stopped_thread_has_no_lag(pair: Pair, alone: Looking) -> None:
    pair.sides[0].sql("STOP SLAVE SQL_THREAD")
    result = alone.until("fail", "sql thread stopped, without an error")
    assert "lag_seconds" not in result.measures
    pair.sides[0].sql("STOP SLAVE")
    alone.until("fail", "stopped, without an error")
    pair.sides[0].sql("START SLAVE")
    well(alone)


def test_a_wanted_delay_is_no_lag(pair: Pair, alone: Looking) -> None:
    delay = "CHANGE MASTER TO MASTER_DELAY={}"
    with changed(pair, 0, delay.format(5), delay.format(0)):
        alone.until("ok", "lag 0s beyond the wanted 5s")
        write(pair, 1, "delayed")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            result = alone.once()
            assert (result.verdict, result.reason) == ("ok", "lag 0s beyond the wanted 5s")
            time.sleep(0.2)
        assert (result.measures["lag_seconds"], result.measures["delay_seconds"]) == (0, 5)
    well(alone)


@pytest.mark.parametrize(
    ("lock", "waits"),
    [("LOCK TABLES users WRITE", "table metadata lock"),
     ("FLUSH TABLES WITH READ LOCK", "backup lock")],
)  # fmt: skip
def test_a_lock_that_the_replica_waits_for_is_named(
    pair: Pair, alone: Looking, lock: str, waits: str
) -> None:
    with pair.sides[0].holding(lock):
        write(pair, 1, waits)
        result = alone.until("warn", rf"lag \d+s: Waiting for {waits}")
        assert result.measures["lag_seconds"] >= 1
    well(alone)


def test_read_only_is_no_matter_of_replication(pair: Pair, alone: Looking) -> None:
    pair.sides[0].sql("SET GLOBAL read_only=1")
    assert alone.once().verdict == "ok"
    pair.sides[0].sql("SET GLOBAL read_only=0")


def test_a_source_that_refuses_the_replica_is_a_fail(pair: Pair, alone: Looking) -> None:
    password = "CHANGE MASTER TO MASTER_PASSWORD='{}'"
    with changed(pair, 0, password.format("wrong"), password.format("changeme")):
        alone.until(
            "fail", r"io thread cannot connect: 1045 the source refuses the replica's login"
        )
    well(alone)


def test_the_survivor_of_a_dead_source_knows_no_lag(pair: Pair, both: list[Looking]) -> None:
    alone = Looking(pair, 0)
    with pair.sides[1].dead():
        result = alone.until(
            "unknown", r"lag is unknown: no connection to the source 127\S+( \(20\d\d [a-z ]+\))?"
        )
        assert "lag_seconds" not in result.measures
        assert both[0].once().verdict == "unknown"
        both[1].until("fail", "connect: connection refused")
    for looking in (alone, *both):
        well(looking)


def test_the_survivor_of_a_hung_source_does_not_believe_in_no_lag(
    pair: Pair, both: list[Looking]
) -> None:
    alone = Looking(pair, 0)
    with pair.sides[1].frozen():
        assert alone.once().reason == "lag 0s"
        both[0].until("unknown", r"the other side, 127\S+: no answer; not believed: lag 0s")
        alone.until("unknown", r"lag is unknown: no connection to the source .*")
    for looking in (alone, *both):
        well(looking)


def test_a_replica_that_gave_up_fails_once_its_source_answers(pair: Pair, directory: Path) -> None:
    template, host = directory / "pair" / "template", free_address()
    side = Side(directory / "impatient", 3, template, host, conf="master-retry-count=2\n")
    try:
        side.sql(*ACCOUNTS, database=None)
        source = pair.sides[1]
        side.sql(FOLLOW.format(host=source.host).replace("3306", "3309"), "START SLAVE")
        alone, both = Looking(pair, 0), Looking(pair, 0, pair=(host, source.host))
        alone.address = both.address = host
        alone.until("unknown", r"lag is unknown: io thread gave up \(2003 .*\): START SLAVE .*")
        both.until("fail", r"io thread gave up \(2003 .*\), and the source answers: START SLAVE .*")
        with source.frozen():
            both.until("unknown", r"lag is unknown: io thread gave up .*")
        side.sql("STOP SLAVE IO_THREAD")
        alone.until("unknown", r"lag is unknown: io thread gave up .*")
        side.sql("STOP SLAVE", FOLLOW.format(host=source.host), "START SLAVE")
        well(alone)
        side.sql("STOP SLAVE IO_THREAD")
        alone.until("fail", "io thread stopped, without an error")
    finally:
        side.server.stop()
    well(Looking(pair, 0))


def test_one_door_is_full_and_the_other_open(pair: Pair, alone: Looking) -> None:
    by_the_other = Looking(pair, 0, extra_port=3307)
    pair.sides[0].sql("SET GLOBAL max_connections=10")
    try:
        holders = [pair.sides[0].holding() for _ in range(30)]
        held = []
        try:
            for holder in holders:
                try:
                    holder.__enter__()
                except Exception:  # noqa: BLE001 - it is full
                    break
                held.append(holder)
            alone.until("fail", "1040 too many connections")
            by_the_other.until("ok", "lag 0s")
        finally:
            for holder in held:
                holder.__exit__(None, None, None)
    finally:
        well(alone)
        pair.sides[0].sql("SET GLOBAL max_connections=20")


def test_the_same_keys_on_both_sides_are_found(pair: Pair, both: list[Looking]) -> None:
    pair.sides[1].sql("SET GLOBAL auto_increment_offset=1")
    for looking in both:
        looking.until("warn", r"keys: both sides give out the same .*; lag 0s")
    pair.sides[1].sql("SET GLOBAL auto_increment_offset=2")
    for looking in both:
        well(looking)


def test_what_is_logged_and_not_replicated_is_found(pair: Pair, both: list[Looking]) -> None:
    filters = "SET GLOBAL replicate_do_db='{}'"
    with changed(pair, 0, filters.format("sogo"), filters.format("dbispconfig,sogo")):
        both[0].until("warn", r"filters: dbispconfig: .*; lag 0s")
    for looking in both:
        well(looking)


def test_a_heartbeat_tells_the_lag_that_the_replica_denies(pair: Pair) -> None:
    beats = Looking(pair, 0, heartbeat="sogo.heartbeat")
    beats.until("unknown", "heartbeat: none of the source's")
    pair.sides[1].sql(
        "REPLACE INTO heartbeat VALUES (DATE_FORMAT(NOW(6) - INTERVAL 100 SECOND, "
        "'%Y-%m-%dT%H:%i:%s.%f'), @@server_id)"
    )
    result = beats.until("ok", "lag 0s")
    assert 100 <= result.measures["heartbeat_seconds"] < 100 + PATIENCE


def test_a_missing_grant_is_named(pair: Pair) -> None:
    looking = Looking(pair, 0)
    looking.check = Replication(login=pair.login("bare"))
    looking.until("unknown", r"missing grant: .*SLAVE MONITOR")


def test_a_skipped_duplicate_is_divergence(pair: Pair, both: list[Looking]) -> None:
    """Last: nobody makes the data the same again."""
    for number, side in enumerate(pair.sides):  # so that each log knows both domains
        write(pair, number, f"from {number}")
        other, end = pair.sides[1 - number], time.monotonic() + PATIENCE
        while not other.sql(f"SELECT id FROM users WHERE login='from {number}'"):
            assert time.monotonic() < end, side.host
            time.sleep(0.02)
    for side in pair.sides:  # both before either has the other's
        side.sql("STOP SLAVE")
    for number in (0, 1):
        write(pair, number, "twice")
    for side in pair.sides:
        side.sql("START SLAVE")
    for looking in both:
        looking.until("fail", "sql thread stopped: 1062 duplicate key: both sides wrote .*")
    for side in pair.sides:
        side.sql("SET GLOBAL sql_slave_skip_counter=1", "START SLAVE")
    for looking in both:
        looking.until("warn", r"diverged: skipped here: .*diverged: skipped on 127.*lag 0s")
    write(pair, 0, "later")
    write(pair, 1, "later still")
    for looking in both:
        looking.until("warn", r"diverged: a transaction was skipped .* \(hactl reload\); lag 0s")
    assert Looking(pair, 0, pair=pair.addresses).once().verdict == "ok"  # no trace is left
