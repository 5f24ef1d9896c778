"""What relayctl printed when it was recorded is understood; what it never prints is refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.core.model import Host, HostStatus, Kind, Observation, Service, Table
from hactl.relayd.command import LIMIT, Local
from hactl.relayd.relayctl import (
    Answer,
    Checks,
    Hosts,
    Nonsense,
    Outcome,
    Relayctl,
    RelayctlError,
    judge,
    parse,
    parse_hosts,
)

T = TypeVar("T")


class Call(msgspec.Struct):
    """One recorded call of relayctl with its exact bytes."""

    words: str
    exit: int
    stdout: str
    stderr: str


DATA = Path(__file__).parent.parent / "data" / "relayd-transcripts" / "calls.json"
CALLS = msgspec.json.decode(DATA.read_bytes(), type=list[Call])
DUMPS = [call for call in CALLS if call.stdout.startswith("Id")]
SUMMARIES = [call.stdout for call in DUMPS if "sum" in call.words or call.words == "sh s"]

HEADER = "Id  \tType    \tName                    \tAvlblty\tStatus\n"


def row(id: int, type: str, name: str, status: str, availability: float | None = None) -> str:
    """Write a row as relayctl does."""
    shown = "" if availability is None else f"{availability:.2f}%"
    return f"{id:<4}\t{type:<8}\t{name:<24}\t{shown:<7}\t{status}\n"


def table_rows(table: Table, checks: dict[int, Checks] | None = None) -> str:
    """Write a table and its hosts, with the counts if there are any."""
    text = row(table.id, "table", table.name, table.status)
    for host in table.hosts:
        name = host.name if host.parent is None else f"{host.name} parent {host.parent}"
        text += row(host.id, "host", name, host.status, host.availability)
        if checks and (count := checks.get(host.id)):
            text += f"\t        \ttotal: {count.up}/{count.total} checks"
            text += f", {count.retries} retries" if count.retries else ""
            text += f", error: {count.error}\n" if count.error else "\n"
    return text


def summary(seen: Observation) -> str:
    """Write the dump that an observation was read from."""
    text = HEADER
    for service in seen.services:
        text += row(service.id, service.kind, service.name, service.status)
        text += "".join(table_rows(table) for table in service.tables)
    return text


# What it prints


@pytest.mark.parametrize("call", DUMPS, ids=lambda call: call.words)
def test_every_recorded_dump_is_read_without_loss(call: Call) -> None:
    if "hosts" in call.words:
        shown = parse_hosts(call.stdout)
        rows = "".join(table_rows(table, dict(shown.checks)) for table in shown.tables)
        assert HEADER + rows == call.stdout
    else:
        counted = [line for line in call.stdout.splitlines(True) if not line.startswith("\t")]
        assert summary(parse(call.stdout, 1.0)) == "".join(counted)


def test_recordings_have_what_matters() -> None:
    assert len(SUMMARIES) > 20
    assert {call.words for call in DUMPS} >= {"show hosts", "show redirects", "show relays"}
    assert any("disabled" in text for text in SUMMARIES)
    assert any("using backup table" in text for text in SUMMARIES)


def test_tables_come_under_their_service_and_hosts_under_their_table() -> None:
    dump = (
        HEADER
        + row(1, "redirect", "mx in", "active (using backup table)")
        + row(1, "table", "mx0:25", "empty")
        + row(1, "host", "10.0.0.4", "disabled")
        + row(2, "table", "fallback-mx0:25", "active (1 hosts up)")
        + row(2, "host", "10.0.0.5 parent 1", "up", 99.52)
        + row(1, "relay", "proxy", "active")
    )
    main = Table(1, "mx0:25", "empty", (Host(1, "10.0.0.4", HostStatus.DISABLED),))
    child = Host(2, "10.0.0.5", HostStatus.UP, parent=1, availability=99.52)
    backup = Table(2, "fallback-mx0:25", "active (1 hosts up)", (child,))
    assert parse(dump, 7.0) == Observation(
        7.0,
        (
            Service(Kind.REDIRECT, 1, "mx in", "active (using backup table)", (main, backup)),
            Service(Kind.RELAY, 1, "proxy", "active"),
        ),
    )


def test_header_alone_is_a_relayd_that_has_just_started() -> None:
    assert parse(HEADER, 2.0, whole=True) == Observation(2.0, ())


def test_table_of_a_router_is_no_table_of_the_relay_above() -> None:
    proxy = row(1, "relay", "proxy", "active")
    router = row(1, "router", "uplinks", "active") + "\t        \troute: 0.0.0.0/0\n"
    gateways = row(1, "table", "gateways:0", "empty") + row(1, "host", "10.0.0.1", "down", 0.0)
    seen = parse(HEADER + proxy + router + gateways, 0.0)
    assert seen.services == (Service(Kind.RELAY, 1, "proxy", "active"),)


MX = row(1, "table", "mx:25", "active (1 hosts)") + row(1, "host", "10.0.0.4", "up", 100.0)


def test_table_shared_by_two_redirects_is_under_both() -> None:
    one, two = row(1, "redirect", "a", "active"), row(2, "redirect", "b", "active")
    seen = parse(HEADER + one + MX + two + MX, 0.0)
    assert seen.services[0].tables == seen.services[1].tables


def test_counts_of_checks_are_kept_by_host_id() -> None:
    count = "\t        \ttotal: 6317/8642 checks, 2 retries, error: tcp connect timeout\n"
    table = row(3, "table", "imap:143", "empty")
    shown = parse_hosts(HEADER + table + row(3, "host", "10.0.0.4", "down", 73.1) + count)
    host = Host(3, "10.0.0.4", HostStatus.DOWN, availability=73.1)
    assert shown == Hosts(
        (Table(3, "imap:143", "empty", (host,)),),
        {3: Checks(6317, 8642, 2, "tcp connect timeout")},
    )


REDIRECT = row(1, "redirect", "mx", "active")
UP = row(1, "host", "10.0.0.4", "up", 100.0)


@pytest.mark.parametrize(
    ("dump", "line", "what"),
    [
        ("", 1, "no header"),
        ("command succeeded\n", 1, "no header"),
        (HEADER[:-1], 1, "the last line is cut"),
        (HEADER + REDIRECT + MX[:-3], 4, "the last line is cut"),
        (HEADER + UP, 2, "host 10.0.0.4 comes before any redirect"),
        (HEADER + MX, 2, "table mx:25 comes before any redirect"),
        (HEADER + REDIRECT + UP, 3, "host 10.0.0.4 comes before any table"),
        (HEADER + "1\thost\tx\tup\n", 2, "4 columns where a row has 5"),
        (HEADER + REDIRECT + "\n", 3, "1 columns where a row has 5"),
        (HEADER + row(1, "session", "x", "up"), 2, "unknown type 'session'"),
        (HEADER + REDIRECT.replace("1   ", "one "), 2, "'one' is no id"),
        (HEADER + row(1, "redirect", "", "active"), 2, "redirect 1 has no name"),
        (HEADER + row(1, "relay", "x", "down"), 2, "relay x has unknown status 'down'"),
        (HEADER + row(1, "relay", "x", "active", 1.0), 2, "relay x has availability '1.00%'"),
        (HEADER + REDIRECT + MX.replace("100.", "100"), 4, "host 10.0.0.4 has availability '10000%'"),
        (HEADER + REDIRECT + MX.replace("mx:", "m\0:"), 3, "a control character"),
        (HEADER + REDIRECT + MX + "\t\ttotal: 3/2 checks\n", 5, "host 10.0.0.4 is followed by 'total: 3/2 checks'"),
        (HEADER + REDIRECT + MX + "\t\tbyes\n", 5, "host 10.0.0.4 is followed by 'byes'"),
        (HEADER + REDIRECT + MX + "bye\n", 5, "1 columns where a row has 5"),
        (HEADER + REDIRECT + MX + REDIRECT + MX, 5, "redirect 1 is shown twice"),
        (HEADER + REDIRECT + MX + UP, 3, "table mx:25 shows a host twice"),
        (HEADER + REDIRECT + MX + MX.replace("mx", "mz"), 5, "table 1 is shown twice and differs"),
        (HEADER + REDIRECT + MX + "2" + MX[1:], 6, "host 1 is in tables 1, 2"),
        (HEADER + REDIRECT + MX.replace("(1", "(2"), 3, "table mx:25 is active (2 hosts) and shows 1 up"),
        (HEADER + REDIRECT + MX.replace("active (1 hosts)", "empty"), 3, "table mx:25 is empty and shows 1 up"),
        (HEADER + REDIRECT + row(1, "table", "mx:25", "empty"), 3, "table mx:25 is empty and shows 0 up"),
        (HEADER + REDIRECT + MX + row(2, "redirect", "b", "down"), 5, "redirect b has no table"),
        (HEADER + "x" * LIMIT, 1, "more than 16 MiB"),
    ],
    ids=lambda value: value[-40:] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_no_complete_dump_is_refused_with_its_line(dump: str, line: int, what: str) -> None:
    with pytest.raises(Nonsense) as refused:
        parse(dump, 0.0)
    assert (refused.value.line, refused.value.what) == (line, what)


def test_redirect_without_table_is_right_in_show_redirects_alone() -> None:
    assert len(parse(HEADER + REDIRECT, 0.0).services) == 1
    with pytest.raises(Nonsense, match="line 2: redirect mx has no table"):
        parse(HEADER + REDIRECT, 0.0, whole=True)


def test_dump_cut_anywhere_inside_a_row_is_refused() -> None:
    text = max(SUMMARIES, key=len)
    for end in range(len(text)):
        if text[end - 1 : end] != "\n":
            with pytest.raises(Nonsense):
                parse(text[:end], 0.0)


@settings(deadline=None)
@given(st.data())
def test_mutated_dump_is_read_or_refused(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(DUMPS)).stdout.splitlines(True)
    others = data.draw(st.sampled_from(DUMPS)).stdout.splitlines(True)
    text = "".join(data.draw(st.permutations(lines[1:] + others[1:4])))
    text = lines[0] + data.draw(st.sampled_from(["".join(lines[1:]), text]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    text = text[:start] + data.draw(st.text(max_size=5)) + text[end:]
    for read in (lambda text: parse(text, 0.0), parse_hosts):
        with contextlib.suppress(Nonsense):
            read(text)


# How a call ends


def expected(call: Call) -> Answer:
    """Say what the reference says of a recorded call, by its words alone."""
    if "No such file" in call.stderr or "refused" in call.stderr:
        return Answer.GONE
    if "Permission denied" in call.stderr:
        return Answer.DENIED
    if "pipe closed" in call.stderr:
        return Answer.UNKNOWN
    answers = {"command succeeded\n": Answer.DONE, "command failed\n": Answer.REFUSED}
    return answers.get(call.stdout, Answer.NONSENSE)


@pytest.mark.parametrize("call", [c for c in CALLS if c not in DUMPS], ids=lambda call: call.words)
def test_every_recorded_answer_is_told_apart(call: Call) -> None:
    outcome = judge(call.words, call.exit, call.stdout, call.stderr)
    assert outcome.answer is expected(call)
    assert outcome.text.startswith(f"relayctl: {call.words}: ")
    assert "\n" not in outcome.text


@pytest.mark.parametrize(
    ("words", "code", "out", "err", "outcome"),
    [
        ("host disable 3", 1, "command failed\n", "",
         Outcome(Answer.REFUSED, "relayctl: host disable 3: command failed")),
        ("poll", 1, "", "relayctl: connect: /r.sock: Connection refused\n",
         Outcome(Answer.GONE, "relayctl: poll: connect: /r.sock: Connection refused")),
        ("host enable 3", 1, "", "doas: Operation not permitted\n",
         Outcome(Answer.DENIED, "relayctl: host enable 3: doas: Operation not permitted")),
        ("host enable 3", 1, "", "relayctl: pipe closed\n",
         Outcome(Answer.UNKNOWN, "relayctl: host enable 3: pipe closed, outcome unknown")),
        ("show summary", 1, HEADER, "relayctl: pipe closed\n",
         Outcome(Answer.GONE, "relayctl: show summary: pipe closed")),
        ("poll", 0, "", "",
         Outcome(Answer.NONSENSE, "relayctl: poll: unexpected answer, exit 0: ''")),
        ("poll", 1, "command succeeded\n", "",
         Outcome(Answer.NONSENSE,
                 "relayctl: poll: unexpected answer, exit 1: 'command succeeded'")),
        ("poll", 0, "command failed\n", "",
         Outcome(Answer.NONSENSE, "relayctl: poll: unexpected answer, exit 0: 'command failed'")),
        ("poll", -11, "", "\x1b[2J" + "x" * 999,
         Outcome(Answer.NONSENSE,
                 "relayctl: poll: unexpected answer, exit -11: '\\x1b[2J" + "x" * 196 + "'")),
    ],
)  # fmt: skip
def test_judge(words: str, code: int, out: str, err: str, outcome: Outcome) -> None:
    assert judge(words, code, out, err) == outcome


# How it is run


def run(scene: Coroutine[object, object, T]) -> T:
    """Run a scene, and see that it leaves no file descriptor and no child behind."""
    process = psutil.Process()
    before = process.num_fds(), process.children()
    value = asyncio.run(scene)
    assert (process.num_fds(), process.children()) == before
    return value


def fake(directory: Path, script: str, *, timeout: float = 5.0) -> Relayctl:
    """Make a relayctl of a few lines of sh."""
    path = directory / "relayctl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Relayctl(Local({"relayctl": [str(path)]}, timeout))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_words_socket_and_a_bare_environment_reach_relayctl(tmp_path: Path) -> None:
    path = tmp_path / "relayctl"
    path.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\nenv >{tmp_path}/env\nread x && exit 9\n'
                    "echo command succeeded\n")  # fmt: skip
    path.chmod(0o755)
    command = ["/bin/sh", str(path), "-s", "/run/r.sock"]
    relayctl = Relayctl(Local({"relayctl": command}, 5.0))
    outcome = run(relayctl.run("host", "disable", "3"))
    assert outcome == Outcome(Answer.DONE, "relayctl: host disable 3: command succeeded")
    assert (tmp_path / "words").read_text() == "-s /run/r.sock host disable 3\n"
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "OLDPWD", "SHLVL", "_"}


def test_show_reads_the_summary_with_the_time_it_was_asked(tmp_path: Path) -> None:
    dump = max(SUMMARIES, key=len)
    (tmp_path / "dump").write_text(dump)
    relayctl = fake(tmp_path, f'[ "$*" = "show summary" ] && cat {tmp_path}/dump')

    async def scene() -> tuple[float, Observation, float]:
        loop = asyncio.get_running_loop()
        return loop.time(), await relayctl.show(), loop.time()

    before, seen, after = run(scene())
    assert seen == parse(dump, seen.at)
    assert before <= seen.at < after


def test_show_hosts_reads_the_counts(tmp_path: Path) -> None:
    dump = next(call.stdout for call in DUMPS if call.words == "show hosts")
    (tmp_path / "dump").write_text(dump)
    relayctl = fake(tmp_path, f'[ "$*" = "show hosts" ] && cat {tmp_path}/dump')
    assert run(relayctl.show_hosts()) == parse_hosts(dump)


@pytest.mark.parametrize(
    ("script", "answer", "text"),
    [
        ("echo garbage", Answer.NONSENSE, "line 1: no header"),
        ("exit 0", Answer.NONSENSE, "line 1: no header"),
        ("exit 7", Answer.NONSENSE, "unexpected answer, exit 7: ''"),
        ("kill -KILL $$", Answer.NONSENSE, "unexpected answer, exit -9: ''"),
        ("printf '\\377\\376'", Answer.NONSENSE, "line 1: no header"),
        ("yes | head -c 17000000", Answer.NONSENSE, "more than 16 MiB of output"),
        ("yes", Answer.NONSENSE, "more than 16 MiB of output"),
        ("yes >&2", Answer.NONSENSE, "more than 16 MiB of output"),
        (
            "echo 'relayctl: connect: /var/run/relayd.sock: Permission denied' >&2; exit 1",
            Answer.DENIED,
            "connect: /var/run/relayd.sock: Permission denied",
        ),
    ],
)
def test_show_that_cannot_be_believed_is_an_error(
    tmp_path: Path, script: str, answer: Answer, text: str
) -> None:
    with pytest.raises(RelayctlError) as error:
        run(fake(tmp_path, script).show())
    assert error.value.outcome == Outcome(answer, f"relayctl: show summary: {text}")


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        "trap '' TERM; echo command succeeded; exec sleep 60",
        "sleep 20 & exec sleep 60",  # somebody else holds the pipes
    ],
)
def test_call_without_an_end_is_killed_and_its_outcome_unknown(tmp_path: Path, script: str) -> None:
    relayctl = fake(tmp_path, f"echo $$ >{tmp_path}/pid\n{script}", timeout=0.2)
    start = time.monotonic()
    outcome = run(relayctl.run("host", "disable", "3"))
    assert time.monotonic() - start < 10
    assert outcome == Outcome(
        Answer.UNKNOWN, "relayctl: host disable 3: no answer in 0.2s, outcome unknown"
    )
    assert not alive(int((tmp_path / "pid").read_text()))


def test_answer_of_a_call_that_does_not_end_is_not_taken(tmp_path: Path) -> None:
    """A child that has said all and shut its pipes may still be at work."""
    script = "echo command succeeded; exec >/dev/null 2>&1; exec sleep 60"
    outcome = run(fake(tmp_path, script, timeout=0.2).run("poll"))
    assert outcome.answer is Answer.UNKNOWN


def test_cancelled_call_leaves_no_child(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    relayctl = fake(tmp_path, f"echo $$ >{tmp_path}/started\nexec sleep 60")

    async def scene() -> int:
        call = asyncio.create_task(relayctl.run("poll"))
        pid = await asyncio.to_thread((tmp_path / "started").read_text)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return int(pid)

    assert not alive(run(scene()))


def test_relayctl_that_is_missing_or_no_program_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "relayctl"
    for reason in ("No such file or directory", "Permission denied"):
        runner = Local({"relayctl": [str(path)]}, 1.0)
        outcome = run(Relayctl(runner).run("poll"))
        assert outcome == Outcome(Answer.NOT_RUN, f"relayctl: poll: {path}: {reason}")
        path.touch()


def test_call_is_made_once(tmp_path: Path) -> None:
    script = f"echo call >>{tmp_path}/log; echo command failed; exit 1"
    assert run(fake(tmp_path, script).run("host", "enable", "9")).answer is Answer.REFUSED
    assert (tmp_path / "log").read_text() == "call\n"


def test_calls_side_by_side_do_not_mix(tmp_path: Path) -> None:
    relayctl = fake(tmp_path, '[ "$3" -lt 5 ] && { echo command succeeded; exit; }\n'
                              "echo command failed; exit 1")  # fmt: skip

    async def scene() -> list[Outcome]:
        return await asyncio.gather(*(relayctl.run("host", "disable", str(n)) for n in range(10)))

    answers = [outcome.answer for outcome in run(scene())]
    assert answers == [Answer.DONE] * 5 + [Answer.REFUSED] * 5


# What is believed


def logged(directory: Path, *dumps: str) -> Relayctl:
    """Make a relayctl that shows each dump in turn, the last one for ever, and logs its calls."""
    for number, dump in enumerate(dumps):
        (directory / f"dump.{number}").write_text(dump)
    last = len(dumps) - 1
    return fake(directory, f'echo "$*" >>{directory}/log\n'
                '[ "$1" = host ] && { echo command succeeded; exit; }\n'
                f'n=$(grep -c show {directory}/log); n=$((n - 1)); [ $n -gt {last} ] && n={last}\n'
                f"cat {directory}/dump.$n")  # fmt: skip


TWO = HEADER + REDIRECT + row(1, "table", "mx:25", "active (2 hosts)") + UP
BOTH = TWO + row(2, "host", "10.0.0.5", "up", 100.0)
OTHER_IDS = TWO + row(3, "host", "10.0.0.5", "up", 100.0)
ONE_OFF = HEADER + REDIRECT + MX + row(2, "host", "10.0.0.5", "disabled")


def test_news_of_ids_is_asked_for_twice_and_what_we_changed_is_no_news(tmp_path: Path) -> None:
    relayctl = logged(tmp_path, BOTH, BOTH, BOTH, ONE_OFF, BOTH)

    async def scene() -> list[int]:
        asked = []
        for step in range(4):
            if step == 2:
                await relayctl.run("host", "disable", "2")
            await relayctl.show()
            asked.append((tmp_path / "log").read_text().count("show"))
        return asked

    # twice at the start; once when nothing changed; once after our disable; twice after another's
    assert run(scene()) == [2, 3, 4, 6]


def test_answers_that_contradict_each_other_are_not_believed(tmp_path: Path) -> None:
    relayctl = logged(tmp_path, BOTH, OTHER_IDS, BOTH, OTHER_IDS, BOTH)

    async def scene() -> Observation:
        with pytest.raises(RelayctlError, match="contradict each other"):
            await relayctl.show()
        return await relayctl.show()

    assert run(scene()).services == parse(BOTH, 0.0).services
