"""The queue check against OpenSMTPD and Postfix: a queue that grows, and those who should empty it hung."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from checks.queue import Queue
from hactl.core.health import Health, State
from hactl.core.model import Limit, Verdict
from tests.services import relay as relay_
from tests.services.postfix import LIBRARIES, UNPACKED, Postfix
from tests.services.relay import Relay, fill
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


def reason(health: Health) -> str:
    assert health.last is not None
    return health.last.reason


LIMITS = {"messages": Limit(warn=10, fail=20, clear=5), "untried_seconds": Limit(fail=3)}


@pytest.fixture(scope="module")
def relay(directory: Path) -> Iterator[Relay]:
    (directory / "relay").mkdir()
    yield from relay_.run(directory / "relay")


@pytest.fixture(scope="module")
def watch(relay: Relay) -> Iterator[Watch]:
    with Watch({"queue": timed(relay.queue, 1.0, 1.0, limits=LIMITS)}) as watch:
        yield watch


def test_an_empty_queue_is_told_as_such(relay: Relay) -> None:
    result = relay.server.look(relay.queue)
    assert (result.verdict, result.reason) == (Verdict.OK, "empty")
    assert [step for step, _ in result.steps] == ["stats", "status", "queue"]


def test_what_waits_is_counted_with_its_age(relay: Relay) -> None:
    relay.fill(3)
    result = relay.server.look(structs.replace(relay.queue, most=2))
    assert (result.reason, result.step) == ("3 messages, too many to read", "stats")
    result = relay.server.look(relay.queue)
    assert result.measures["messages"] == 3
    assert 0 < result.measures["oldest_seconds"] < 30
    relay.smtpctl("remove", "all")


@contextmanager
def growing(relay: Relay) -> Iterator[None]:
    relay.fill(25)
    try:
        yield
    finally:
        relay.smtpctl("remove", "all")


def test_a_queue_that_grows_is_beyond_its_limit(relay: Relay, watch: Watch) -> None:
    expected = {"queue": r"messages is 2\d \(limit 20\)"}  # some of the test before still go
    endure(watch, growing(relay), expected, silent=False)


@pytest.mark.parametrize(
    ("process", "step"), [("control", "stats"), ("scheduler", "queue"), ("queue", "queue")]
)
def test_a_hung_process_shows_at_its_step(
    relay: Relay, watch: Watch, process: str, step: str
) -> None:
    """And smtpd lives on: it ends when smtpctl is killed in the middle of an answer."""
    relay.fill(1)  # of an empty queue the scheduler tells alone
    hung = relay.server.frozen(relay.server.children(f"smtpd: {process}"))
    endure(watch, hung, {"queue": rf"{step}: no answer (in 1s|for \d\.\ds)"})
    relay.smtpctl("remove", "all")


def test_a_paused_relay_is_a_warning_and_what_waits_for_it_a_failure(
    relay: Relay, watch: Watch
) -> None:
    watch.until(State.UP)
    relay.smtpctl("pause", "mta")
    try:
        health = watch.until(State.DEGRADED)["queue"]
        assert reason(health) == "MTA paused, empty"
        relay.fill(1)
        health = watch.until(State.DOWN)["queue"]
        assert reason(health).startswith("untried_seconds is ")
    finally:
        relay.smtpctl("resume", "mta")
    relay.smtpctl("remove", "all")
    watch.until(State.UP)


def test_a_server_that_is_gone_is_a_failure(relay: Relay) -> None:
    """As seen from outside of its namespace, where no smtpd runs."""
    check = Queue(command=("/usr/sbin/smtpctl",))
    result = relay.server.look(check)
    assert (result.verdict, result.step) == (Verdict.FAIL, "stats")


# Postfix


@pytest.fixture(scope="module")
def postqueue(postfix: Postfix) -> Queue:
    return Queue(server="postfix", command=(str(postfix.postqueue),))


@pytest.fixture(scope="module")
def watch_postfix(postqueue: Queue) -> Iterator[Watch]:
    with Watch({"queue": timed(postqueue, 1.0, 1.0, limits=LIMITS)}) as watch:
        yield watch


@contextmanager
def emptied(postfix: Postfix) -> Iterator[None]:
    try:
        yield
    finally:
        remove_all(postfix)


def remove_all(postfix: Postfix) -> None:
    where = str(postfix.postqueue.parent)
    command = [str(UNPACKED / "usr/sbin/postsuper"), "-c", where, "-d", "ALL"]
    environment = {"LD_LIBRARY_PATH": str(LIBRARIES)}
    subprocess.run(command, check=True, capture_output=True, timeout=20, env=environment)


def test_postfix_tells_its_queue(postfix: Postfix, postqueue: Queue) -> None:
    result = postfix.server.look(postqueue)
    assert (result.verdict, result.reason) == (Verdict.OK, "empty")
    with emptied(postfix):
        fill(postfix.check.port, 2)
        end = time.monotonic() + 20
        while (result := postfix.server.look(postqueue)).measures["deferred_messages"] < 2:
            assert time.monotonic() < end, result
            time.sleep(0.1)
        assert "2 deferred (2: connect to 127.0.0.99" in result.reason


def test_a_queue_of_postfix_that_grows_is_beyond_its_limit(
    postfix: Postfix, watch_postfix: Watch
) -> None:
    @contextmanager
    def growing() -> Iterator[None]:
        with emptied(postfix):
            fill(postfix.check.port, 25)
            yield

    endure(watch_postfix, growing(), {"queue": r"messages is 25 \(limit 20\).*"}, silent=False)


def test_a_hung_queue_manager_is_seen_by_what_nobody_takes(
    postfix: Postfix, watch_postfix: Watch
) -> None:
    watch_postfix.until(State.UP)
    with emptied(postfix), postfix.server.frozen(postfix.server.children("qmgr")):
        fill(postfix.check.port, 1)
        health = watch_postfix.until(State.DOWN)["queue"]
        assert reason(health).startswith("untried_seconds is ")
    watch_postfix.until(State.UP)
