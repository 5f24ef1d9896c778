"""When pf changes: polls, the poll trap, guards, reloads, demotion and what ends relayd.

Figures in comments are those recorded from the real relayd; the model has no delays of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hactl.lab.model import Check, Model, Pf
from hactl.relayd.conf import RelaydConf, parse
from tests.lab.replay import Lab, World

A, B = "127.0.0.4", "127.0.0.5"


def configured(
    hosts: str, *, interval: int = 10, timeout: int = 500, check: str = "tcp", options: str = ""
) -> RelaydConf:
    return parse(
        f"interval {interval}\ntimeout {timeout}\ntable <mx> {{ {hosts} }}\ntable <fb> {{ {B} }}\n"
        f"redirect smtp {{\n\tlisten on 127.0.0.10 port 25\n"
        f"\tforward to <mx> check {check} {options}\n}}\n",
        "relayd.conf",
    )


def healthy(check: Check, now: float) -> str:
    return "ok"


def silent(address: str, since: float = 0.0) -> World:
    """A world in which SYNs to *address* are dropped."""
    return lambda check, now: "silent" if check.address == address and now >= since else "ok"


def in_pf(lab: Lab, address: str, since: float, redirect: str = "smtp") -> list[tuple[float, bool]]:
    """When *address* came into pf and left it."""
    changes: list[tuple[float, bool]] = []
    inside = False
    for at, tables in lab.history:
        if (address in tables.get(redirect, ())) is not inside:
            inside = not inside
            if at > since:
                changes.append((round(at - since, 2), inside))
    return changes


@pytest.mark.parametrize("retry", [0, 1, 2])
@pytest.mark.parametrize(
    ("delay", "spacing", "seconds"),
    [
        (0.0, (0.0, 0.0), 0.0),  # 0.005-0.017
        (0.0, (0.0, 0.6), 0.6),  # 0.606-0.638
        (0.0, (0.0,), 10.0),  # 10.01-10.02: the poll restarts the interval
        (1.0, (0.0, 0.0), 10.0),  # 10.01-10.02: the second poll aborts the first one's checks
        (1.0, (0.0, 0.5), 10.5),  # 10.51-10.53
        (1.0, (0.0, 1.6), 1.6),  # 1.61
    ],
)
def test_a_poll_pair_after_an_enable(
    retry: int, delay: float, spacing: tuple[float, ...], seconds: float
) -> None:
    conf = configured(f"{A} retry {retry}, {B}", timeout=1500)
    lab = Lab(conf, healthy, delays={A: delay})
    lab.command("host disable 1", 23.0)
    lab.command("host enable 1", 25.0)
    for wait in spacing:
        lab.command("poll", 25.0 + wait)
    lab.until(60.0)
    assert in_pf(lab, A, 24.0) == [(seconds + 1.0, True)]


@pytest.mark.parametrize(
    ("retry", "spacing", "expected"),
    [
        (0, 0.0, []),
        (1, 0.0, [(10.0, True), (10.5, False)]),  # 10.02, for 0.5
        (1, 0.45, [(10.45, True), (10.95, False)]),  # 10.47, for 0.5
        (1, 0.6, []),
        (2, 0.6, []),
    ],
)
def test_two_polls_within_a_timeout_put_a_dead_host_in_service(
    retry: int, spacing: float, expected: list[tuple[float, bool]]
) -> None:
    lab = Lab(configured(f"{A} retry {retry}, {B}"), silent(A))
    lab.until(now := 11.0)
    lab.command("poll")
    lab.command("poll", now + spacing)
    lab.until(now + 60)
    assert in_pf(lab, A, now) == expected


def test_with_two_retries_the_hidden_counter_says_for_how_long() -> None:
    lengths: set[tuple[tuple[float, bool], ...]] = set()
    for start in (11.0, 21.0, 31.0):  # the counter runs on while the host is down
        lab = Lab(configured(f"{A} retry 2, {B}"), silent(A))
        lab.command("poll", start)
        lab.command("poll", start)
        lab.until(start + 60)
        lengths.add(tuple(in_pf(lab, A, start)))
    assert lengths == {
        (),
        ((10.0, True), (10.5, False)),
        ((10.0, True), (20.5, False)),
    }


def test_show_believes_the_trap() -> None:
    lab = Lab(configured(f"{A} retry 1, {B}"), silent(A))
    lab.command("poll", 11.0)
    lab.command("poll")
    shown = lab.command("show summary", 11.6).stdout
    assert shown.splitlines()[3] == f"1   \thost    \t{A:24}\t50.00% \tup"
    assert lab.model.pf.tables["smtp"] == (B,)


@pytest.mark.parametrize("retry", [0, 1, 2])
def test_a_poll_more_often_than_the_timeout_never_takes_a_dead_host_out(retry: int) -> None:
    lab = Lab(configured(f"{A} retry {retry}, {B}"), silent(A, since=20.2))
    for tick in range(140):
        lab.command("poll", 21.0 + tick * 0.3)
    assert in_pf(lab, A, 20.0) == []


def test_pairs_at_once_in_a_loop_make_it_flap() -> None:
    three = "".join(
        f"table <r{retry}> {{ {A} retry {retry}, {B} }}\n"
        f"redirect r{retry} {{\n\tlisten on 127.0.0.10 port {25 + retry}\n"
        f"\tforward to <r{retry}> check tcp\n}}\n"
        for retry in range(3)
    )
    lab = Lab(parse(f"interval 10\ntimeout 500\n{three}", "relayd.conf"), silent(A, since=20.2))
    for pair in range(27):
        lab.command("poll", 21.0 + pair * 1.5)
        lab.command("poll")
    lab.until(61.0)
    seen = [in_pf(lab, A, 21.0, f"r{retry}") for retry in range(3)]
    assert [changes[0] for changes in seen] == [(0.5, False), (2.0, False), (3.5, False)]
    assert [len(changes) for changes in seen] == [1, 26, 17]  # the very numbers recorded


def test_the_guard_leaves_no_empty_moment() -> None:
    lab = Lab(configured(f"{A}, {B}"), healthy)
    lab.command("host disable 1", 23.0)
    lab.command("host enable 1", 24.0)
    lab.command("poll")
    assert lab.model.pf.tables["smtp"] == (B,)
    lab.command("host disable 2")
    assert [tables["smtp"] for at, tables in lab.history if at > 20] == [(B,), (A,)]


def test_without_the_guard_pf_is_empty_for_more_than_an_interval() -> None:
    lab = Lab(configured(f"{A}, {B}"), healthy)
    lab.command("host disable 1", 23.0)
    lab.command("host enable 1", 24.0)
    lab.command("host disable 2", 27.0)
    assert not lab.model.pf.rules
    lab.until(60.0)
    assert lab.history[-1] == (40.0, {"smtp": (A,)})  # empty for 13 s; 11.3-13.3


def test_a_table_interval_is_one_round_longer_than_configured() -> None:
    started: list[float] = []

    def world(check: Check, now: float) -> str:
        started.append(now)
        return "ok"

    Lab(configured(A, options="interval 20"), world).until(95.0)
    assert started == [0.0, 30.0, 60.0, 90.0]


def test_a_check_under_way_puts_the_host_of_a_disabled_table_back() -> None:
    lab = Lab(configured(A), healthy, delays={A: 0.3})
    lab.command("table disable 1", 20.1)
    assert lab.model.pf.tables == {"smtp": ()}
    lab.until(60.0)
    assert lab.model.pf.tables["smtp"] == (A,)


def test_a_redirect_gone_from_the_file_stays_in_pf() -> None:
    both = "".join(
        f"redirect r{name} {{\n\tlisten on 127.0.0.10 port {port}\n"
        f"\tforward to <{name}> check tcp\n}}\n"
        for name, port in (("a", 25), ("b", 26))
    )
    tables = f"interval 2\ntable <a> {{ {A} }}\ntable <b> {{ {B} }}\n"
    lab = Lab(parse(tables + both, "relayd.conf"), healthy)
    lab.until(3.0)
    lab.load(parse(tables + both[: both.index("redirect rb")], "relayd.conf"))
    assert lab.model.pf.tables == {"ra": (), "rb": (B,)}
    lab.until(7.0)
    assert lab.model.pf.tables == {"ra": (A,), "rb": (B,)}
    assert list(lab.model.pf.rules) == ["rb", "ra"]
    lab.model.stop()
    assert (lab.model.pf.tables, list(lab.model.pf.rules)) == ({"rb": (B,)}, ["rb"])


def test_a_missing_file_leaves_all_of_pf_and_nothing_to_show() -> None:
    lab = Lab(configured(A), healthy)
    lab.until(15.0)
    lab.load(RelaydConf(10.0, 0.2, (), None, ()))
    lab.until(60.0)
    assert lab.model.pf.tables == {"smtp": (A,)}
    assert lab.command("show summary").stdout.count("\n") == 1


def test_demotion_goes_up_with_a_drain_and_with_a_reload() -> None:
    conf = configured(A, options="demote carp")
    lab = Lab(conf, healthy)
    seen = [lab.model.demotions.copy()]
    for command in ("", "host disable 1", "host enable 1", ""):
        lab.until(lab.now + 25.0)
        if command:
            lab.command(command)
        seen.append(lab.model.demotions.copy())
    lab.load(conf)
    lab.until(lab.now + 0.5)
    seen.append(lab.model.demotions.copy())
    assert [each["carp"] for each in seen] == [1, 0, 1, 1, 0, 1]


def test_a_demoted_table_leaks_its_demotion_when_reloaded() -> None:
    conf = configured(A, options="demote carp")
    lab = Lab(conf, lambda check, now: "tcp connect failed")
    lab.until(5.0)
    lab.load(conf)
    lab.until(6.0)
    assert lab.model.demotions == {"carp": 2}


def test_the_log_says_what_relayd_would() -> None:
    lines: list[str] = []
    lab = Lab(configured(f"{A}, {B}", interval=2), silent(A, since=3.0), log=lines.append)
    lab.until(5.0)
    assert lines == [
        f"host {A}, check tcp (0ms,tcp connect ok), state unknown -> up, availability 100.00%",
        f"host {B}, check tcp (0ms,tcp connect ok), state unknown -> up, availability 100.00%",
        "table smtp: 2 added, 0 deleted, 0 changed, 0 killed",
        f"host {A}, check tcp (500ms,tcp connect timeout), state up -> down, availability 66.67%",
        "table smtp: 0 added, 1 deleted, 0 changed, 0 killed",
    ]


# Scripts


def scripted(count: int, variant: str = "later") -> tuple[Model, list[Check]]:
    """A model with the checks of its first round under way."""
    hosts = " ".join(f"127.0.1.{number}" for number in range(1, count + 1))
    model = Model("later" if variant == "later" else "2019")
    model.load(configured(hosts, check='script "/checks/hook"'), 0.0)
    return model, model.advance(0.0)


@pytest.mark.parametrize(("variant", "runs"), [("later", 0), ("2019", 3)])
def test_a_script_still_running_is_started_again_in_the_old_release(
    variant: str, runs: int
) -> None:
    model, _ = scripted(3, variant)
    model.command(["poll"], 0.1)
    assert len(model.advance(0.1)) == runs


@pytest.mark.parametrize(
    ("count", "fatal"), [(1, None), (2, "pfe: pfe_dispatch_hce: invalid host id")]
)
def test_a_reload_waits_for_scripts_and_meets_their_results(count: int, fatal: str | None) -> None:
    model, checks = scripted(count)
    model.load(configured(A), 0.1)
    assert model.command(["show", "summary"], 0.1).stdout.count("host") == count
    for check in checks:
        model.check_done(check, True, 0.4)
    assert model.crashed == fatal


def test_the_late_result_of_a_disabled_host_is_ignored() -> None:
    model, checks = scripted(1)
    model.command(["host", "disable", "1"], 0.1)
    model.check_done(checks[0], True, 0.2)
    assert model.command(["show", "hosts"], 0.2).stdout.splitlines()[2].endswith("disabled")


# What ends relayd


def unchecked() -> RelaydConf:
    return parse(
        f"table <mx> {{ {A} }}\n"
        "relay smtp {\n\tlisten on 127.0.0.10 port 25\n\tforward to <mx> port 25\n}\n",
        "relayd.conf",
    )


@pytest.mark.parametrize("words", ["host disable 1", f"host disable {A}", "table disable 1"])
def test_switching_in_an_unchecked_table_ends_relayd(words: str) -> None:
    lab = Lab(unchecked(), healthy)
    assert lab.command(words, 5.0).stdout == "command succeeded\n"
    assert lab.model.crashed == "hce: hce_dispatch_pfe: desynchronized"
    assert lab.model.next_event_time is None


def test_an_enable_right_after_a_disable_meets_the_result_between() -> None:
    model = Model(transit=0.001)
    model.load(configured(A), 0.0)
    for now in (0.0, 10.0):
        for check in model.advance(now):
            model.check_done(check, True, now)
    model.command(["host", "disable", "1"], 10.0004)
    model.command(["host", "enable", "1"], 10.0008)
    assert model.crashed == "pfe: pfe_dispatch_hce: desynchronized"


@pytest.mark.parametrize(
    ("end", "tables"),
    [
        (lambda model: model.crash("pfe: pfe_dispatch_hce: desynchronized"), {"smtp": (A,)}),
        (lambda model: model.crash("hce: hce_dispatch_pfe: desynchronized"), {}),
        (lambda model: model.stop(), {}),
    ],
)
def test_only_pfe_cleans_pf(end: Callable[[Model], None], tables: dict[str, object]) -> None:
    lab = Lab(configured(A), healthy)
    lab.until(15.0)
    end(lab.model)
    assert lab.model.pf.tables == tables


def test_a_start_empties_what_the_last_one_left() -> None:
    pf = Pf(tables={"smtp": (A,), "other": (B,)})
    Model(pf=pf).load(configured(A), 0.0)
    assert pf.tables == {"smtp": (), "other": (B,)}
