"""The replication check: what rows of MariaDB and MySQL mean, and what two sides say of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checks import Target
from checks._mysql import Row
from checks.replication import Replication, View, apart, named, skipped, source
from hactl.core.model import Result, Verdict, fail
from hactl.core.units import Secret

HERE, THERE = "192.0.2.1", "192.0.2.2"
PAIR = Replication(login=Secret("/nonexistent"), pair=(HERE, THERE))
ALONE = Replication(login=Secret("/nonexistent"))


def row(**changes: str | None) -> Row:
    """Return what SHOW ALL SLAVES STATUS has of a healthy source, with changes."""
    healthy: Row = {
        "Connection_name": "", "Master_Host": THERE, "Master_Server_Id": "2",
        "Slave_IO_State": "Waiting for master to send event",
        "Slave_IO_Running": "Yes", "Slave_SQL_Running": "Yes", "Seconds_Behind_Master": "0",
        "Slave_SQL_Running_State": "Slave has read all relay log; waiting for more updates",
        "Last_IO_Errno": "0", "Last_IO_Error": "", "Last_SQL_Errno": "0", "Last_SQL_Error": "",
        "SQL_Delay": "0", "SQL_Remaining_Delay": None, "Replicate_Do_DB": "dbispconfig,sogo",
        "Replicate_Ignore_DB": "", "Using_Gtid": "Slave_Pos",
    }  # fmt: skip
    return healthy | changes


AWAY: dict[str, Any] = {"Slave_IO_Running": "Connecting", "Seconds_Behind_Master": None}
GAVE_UP = {**AWAY, "Slave_IO_Running": "No", "Last_IO_Errno": "2003"}
LOCKED = "Waiting for table metadata lock"


@pytest.mark.parametrize(
    ("changes", "verdict", "text", "lag"),
    [
        ({}, "ok", "lag 0s", 0),
        ({"Seconds_Behind_Master": "7"}, "ok", "lag 7s", 7),
        ({"Slave_SQL_Running": "No", "Seconds_Behind_Master": None}, "fail",
         "sql thread stopped, without an error", None),
        ({"Slave_IO_Running": "No", "Slave_SQL_Running": "No"}, "fail",
         "stopped, without an error", None),
        ({"Slave_IO_Running": "No"}, "fail", "io thread stopped, without an error", None),
        ({"SQL_Delay": "4", "SQL_Remaining_Delay": "2", "Seconds_Behind_Master": "2"}, "ok",
         "lag 0s beyond the wanted 4s", 0),
        ({"SQL_Delay": "4", "Seconds_Behind_Master": "9"}, "ok",
         "lag 5s beyond the wanted 4s", 5),
        ({"Seconds_Behind_Master": "3", "Slave_SQL_Running_State": LOCKED}, "warn",
         f"lag 3s: {LOCKED}", 3),
        ({"Seconds_Behind_Master": "3", "Slave_SQL_Running_State": "Waiting for backup lock"},
         "warn", "lag 3s: Waiting for backup lock", 3),
        ({"Slave_SQL_Running_State": LOCKED}, "ok", "lag 0s", 0),
        ({"Slave_SQL_Running_State": "Waiting for the next event in relay log",
          "Seconds_Behind_Master": "1"}, "ok", "lag 1s", 1),
        ({**AWAY, "Last_IO_Errno": "1045"}, "fail",
         "io thread cannot connect: 1045 the source refuses the replica's login", None),
        ({**AWAY, "Last_IO_Errno": "2013"}, "unknown",
         f"lag is unknown: no connection to the source {THERE} (2013 connection lost)", None),
        (AWAY, "unknown", f"lag is unknown: no connection to the source {THERE}", None),
        ({**AWAY, "Last_IO_Errno": "1040"}, "unknown",
         f"lag is unknown: no connection to the source {THERE} (1040 not reached)", None),
        ({**AWAY, "Last_IO_Errno": "9999"}, "unknown",
         f"lag is unknown: no connection to the source {THERE} (9999 not reached)", None),
        ({**AWAY, "Slave_IO_Running": "No", "Last_IO_Errno": "1236"}, "fail",
         "io thread stopped: 1236 the source no longer has what is asked for", None),
        ({**AWAY, "Last_IO_Errno": "2003"}, "unknown",
         f"lag is unknown: no connection to the source {THERE} (2003 nobody answers)", None),
        (GAVE_UP, "unknown", "lag is unknown: io thread gave up (2003 nobody answers): "
         "START SLAVE or REPLICA", None),
        ({"Slave_SQL_Running": "No", "Last_SQL_Errno": "1062", "Seconds_Behind_Master": None},
         "fail", "sql thread stopped: 1062 duplicate key: both sides wrote the same one", None),
        ({"Slave_SQL_Running": "No", "Last_SQL_Errno": "1950", "Last_SQL_Error": "\x1b what"},
         "fail", r"sql thread stopped: 1950 \x1b what", None),
        ({"Seconds_Behind_Master": None}, "unknown",
         "lag is unknown: the replica does not say", None),
        ({"Seconds_Behind_Master": "-1"}, "unknown",
         "lag is unknown: the replica does not say", None),
        ({"Seconds_Behind_Master": "\N{SUPERSCRIPT TWO}"}, "unknown",
         "lag is unknown: the replica does not say", None),
        ({"Seconds_Behind_Master": "9" * 400}, "unknown",
         f"lag is unknown: {'9' * 17}... is no number of seconds", None),
        ({"SQL_Delay": "\N{SUPERSCRIPT TWO}"}, "ok", "lag 0s", 0),
        ({"Slave_IO_Running": None}, "unknown", "status without threads", None),
    ],
)  # fmt: skip
def test_judges_a_source(
    changes: dict[str, str | None], verdict: str, text: str, lag: float | None
) -> None:
    found = source(row(**changes))
    assert (found.verdict, found.text, found.lag) == (Verdict(verdict), text, lag)


def test_rows_of_mysql_mean_the_same() -> None:
    """As SHOW REPLICA STATUS of 8.4 and 9 has them."""
    mysql = {
        "Replica_IO_State": "", "Source_Host": THERE, "Replica_IO_Running": "Connecting",
        "Replica_SQL_Running": "Yes", "Replicate_Do_DB": "", "Last_Errno": "0",
        "Seconds_Behind_Source": None, "Source_Server_Id": "2", "Last_IO_Errno": "2003",
        "Last_IO_Error": "error connecting", "Last_SQL_Errno": "0", "SQL_Delay": "0",
        "Replica_SQL_Running_State": LOCKED, "Channel_Name": "there", "Source_UUID": "u",
    }  # fmt: skip
    found = named(mysql)
    assert (found["Connection_name"], found["Master_Server_Id"]) == ("there", "2")
    assert source(found).text.startswith(
        f"lag is unknown: no connection to the source {THERE} (2003"
    )
    behind = named({**mysql, "Replica_IO_Running": "Yes", "Seconds_Behind_Source": "3"})
    assert source(behind) == (Verdict.WARN, f"lag 3s: {LOCKED}", 3, 0)
    assert named(row()) == row()


# Both sides

LOGS = frozenset({"dbispconfig", "sogo"})


def view(
    start: str, *sources: Row, logged: str = "1-1-5,2-2-9", logs: frozenset[str] | None = LOGS,
    step: str = "2", applied: str = "1-1-5,2-2-9", **more: Any,
) -> View:  # fmt: skip
    state: Row = {
        "step": step, "start": start, "applied": applied, "logged": logged, "relays": "1"
    }  # fmt: skip
    return View(state, sources or (row(),), logs, **more)


def judged(
    mine: View, peer: View | Result | str | None = None, memory: dict[str, float] | None = None,
    at: float = 0.0, check: Replication = PAIR,
) -> tuple[str, str]:  # fmt: skip
    target = Target("db", HERE, at, {} if memory is None else memory)
    result = check.judge(mine, target, THERE, peer)
    return result.verdict, result.reason


DIVERGED = "2-*-9 is done and 2-*-8 the last in the log"


@pytest.mark.parametrize(
    ("mine", "peer", "verdict", "reason"),
    [
        (view("1"), view("2"), "ok", "lag 0s"),
        (view("1", logged="1-1-5,2-2-8"), view("2"), "warn",
         f"diverged: skipped here: {DIVERGED}; lag 0s"),
        (view("1"), view("2", logged="1-1-5,2-2-8"), "warn",
         f"diverged: skipped on {THERE}: {DIVERGED}; lag 0s"),
        (view("1", logged="1-1-5,2-2-8"), view("2", logs=LOGS | {"mail"}), "warn",
         "filters: mail: in binlog-do-db there and not in replicate-do-db here, or reversed; lag 0s"),
        (view("1", logged="1-1-5,2-2-8"), view("2", logs=frozenset()), "ok", "lag 0s"),
        (view("1"), view("1"), "warn", "keys: both sides give out the same "
         "(auto_increment_increment 2 and 2, offset 1 and 1); lag 0s"),
        (view("1", step="1"), view("2", step="1"), "warn", "keys: both sides give out the same "
         "(auto_increment_increment 1 and 1, offset 1 and 2); lag 0s"),
        (view("1"), "no answer", "unknown",
         f"the other side, {THERE}: no answer; not believed: lag 0s"),
        (view("1"), fail("login refused (1045)"), "ok",
         f"lag 0s; not compared with {THERE}: login refused (1045)"),
        (view("1", row(Slave_SQL_Running="No", Last_SQL_Errno="1032")), "no answer", "fail",
         "sql thread stopped: 1032 a row is missing: the data differ"),
    ],
)  # fmt: skip
def test_both_sides_are_compared(
    mine: View, peer: View | Result | str, verdict: str, reason: str
) -> None:
    assert judged(mine, peer) == (verdict, reason)


@pytest.mark.parametrize(
    ("sources", "peer", "verdict"),
    [
        ([row(**GAVE_UP)], view("2"), "fail"),
        ([row(**GAVE_UP)], "no answer", "unknown"),
        ([row(**GAVE_UP)], fail("login refused (1045)"), "unknown"),
        ([row(**AWAY, Last_IO_Errno="2003")], view("2"), "unknown"),
        ([row(), row(**GAVE_UP, Master_Host="192.0.2.3")], view("2"), "unknown"),
        ([row(**GAVE_UP), row(Master_Host="192.0.2.3")], view("2"), "fail"),
    ],
)
def test_a_thread_that_gave_up_is_a_fail_once_its_source_answers(
    sources: list[Row], peer: View | Result | str, verdict: str
) -> None:
    found, reason = judged(view("1", *sources), peer)
    assert found == verdict
    assert ("gave up (2003 nobody answers), and the source answers" in reason) == (found == "fail")


@pytest.mark.parametrize(
    "filters",
    [
        {"Replicate_Ignore_DB": "mail"},
        {"Replicate_Do_Table": "sogo.users"},
        {"Replicate_Ignore_Table": "sogo.sessions"},
        {"Replicate_Wild_Do_Table": "sogo.%"},
        {"Replicate_Wild_Ignore_Table": "%.cache_%", "Replicate_Do_DB": ""},
        {"Replicate_Do_DB": "sogo"},
    ],
)
def test_what_a_filter_leaves_out_is_not_skipped(filters: dict[str, str]) -> None:
    gap, filtered = "1-1-5,2-2-8", row(**filters)
    for mine, peer in (
        (view("1", filtered, logged=gap), view("2")),
        (view("1"), view("2", filtered, logged=gap)),
    ):
        assert "diverged" not in judged(mine, peer)[1]


def test_what_a_replica_does_not_log_itself_is_not_skipped() -> None:
    gap, most = "1-1-5,2-2-8", row(Replicate_Do_DB="dbispconfig,mail,sogo")
    more = LOGS | {"mail"}
    assert judged(view("1", most, logged=gap), view("2", logs=more)) == ("ok", "lag 0s")
    less = view("2", logged=gap, logs=frozenset({"sogo"}))
    assert judged(view("1", row(Replicate_Do_DB="sogo")), less) == ("ok", "lag 0s")
    verdict, reason = judged(view("1", most, logged=gap, logs=more), view("2", logs=more))
    assert (verdict, reason.split(": ")[0]) == ("warn", "diverged")


def test_divergence_is_remembered_when_the_next_transaction_hides_it() -> None:
    memory: dict[str, float] = {}
    assert judged(view("1", logged="1-1-5,2-2-8"), view("2"), memory, 100.0)[0] == "warn"
    verdict, reason = judged(view("1"), view("2"), memory, 190.0)
    assert verdict == "warn"
    assert reason.startswith("diverged: a transaction was skipped 1m30s ago, and nobody")


def test_a_skipped_transaction_shows_only_where_all_are_logged() -> None:
    state = dict(view("1", logged="2-2-8", applied="1-1-5,2-2-9").state)
    assert list(skipped(state)) == [DIVERGED]  # nothing is known of what came before domain 1
    assert list(skipped({**state, "relays": "0"})) == []
    assert (
        list(
            skipped(
                {
                    **state,
                    "applied": "x,1-2,1-1-\N{SUPERSCRIPT TWO},9-9-" + "9" * 30,
                    "logged": None,
                }
            )
        )
        == []
    )
    unfiltered = row(Replicate_Do_DB="")
    gap = view("1", unfiltered, logged="1-1-5,2-2-8", logs=None)
    assert judged(gap, check=ALONE) == ("warn", f"diverged: skipped here: {DIVERGED}; lag 0s")
    filtered = view("1", logged="1-1-5,2-2-8", logs=None)
    assert judged(filtered, check=ALONE) == ("ok", "lag 0s")
    assert apart(unfiltered, LOGS) == apart(row(), None) == frozenset()


def test_several_sources_are_judged_by_the_worst() -> None:
    a, b = row(Connection_name="a", Seconds_Behind_Master="3"), row(Connection_name="b", **AWAY)
    assert judged(view("1", a, row(Connection_name="b")), check=ALONE) == (
        "ok", "a: lag 3s, b: lag 0s")  # fmt: skip
    mixed = ALONE.judge(view("1", a, b), Target())
    assert (mixed.verdict, "lag_seconds" in mixed.measures) == (Verdict.UNKNOWN, False)
    stopped = row(Connection_name="c", Slave_SQL_Running="No")
    assert judged(view("1", a, b, stopped), check=ALONE)[0] == "fail"
    one = Replication(login=ALONE.login, channel="a")
    assert judged(view("1", a, stopped), check=one) == ("ok", "a: lag 3s")
    assert judged(view("1", b), check=one) == ("fail", "no source called a: no replica")
    assert judged(View({}, ()), check=ALONE) == ("fail", "no source: no replica")


@pytest.mark.parametrize(
    ("beats", "verdict", "age"),
    [
        ([{"server_id": "2", "age": "1.5"}, {"server_id": "7", "age": "999"}], "ok", 1.5),
        ([{"server_id": "7", "age": "1"}], "unknown", None),
        ([{"server_id": "2", "age": None}], "unknown", None),
        ([], "unknown", None),
    ],
)
def test_the_sources_own_heartbeat_counts(
    beats: list[Row], verdict: str, age: float | None
) -> None:
    result = ALONE.judge(view("1", beats=tuple(beats)), Target())
    assert (result.verdict, result.measures.get("heartbeat_seconds")) == (Verdict(verdict), age)


def test_options_that_cannot_be_are_said_at_load(tmp_path: Path) -> None:
    file = tmp_path / "login"
    file.write_text("user\npassword\n")
    login = Secret(str(file))
    assert (
        list(Replication(login=login, pair=(HERE, "2001:db8::1"), heartbeat="a.b").problems()) == []
    )
    for pair in (
        (HERE,), (HERE, "db2.example.org"), (HERE, HERE), ("2001:db8::1", "2001:DB8:0::1"),
    ):  # fmt: skip
        wrong = Replication(login=login, pair=pair, heartbeat="a.b; drop table a.b")
        assert [field for field, _ in wrong.problems()] == ["pair", "heartbeat"]
