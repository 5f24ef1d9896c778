"""The root helper: what it does for hactld, what it refuses, and how it keeps hactld alive."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hactl import config
from hactl.daemon import helper
from hactl.daemon.helped import Fixed, Helped, Inherited
from hactl.daemon.helper import LINE, Answer, Duty, End, Helper, Kept, Patience, allowed, execute
from hactl.relayd import conf
from hactl.relayd.command import CommandError, Failure

ECHO = Duty({"relayctl": ["/bin/echo"], "pfctl": ["/bin/echo"]}, Path("/none"), 5.0)

# What may be asked for, once more and in another way.
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,30}"
RIGHT = re.compile(
    r"relayctl (show (summary|hosts|redirects|relays)|host (disable|enable) [1-9][0-9]{0,9}|poll)"
    rf"|pfctl (-s[rS]|-a relayd/{NAME} (-sr|-t {NAME} -T show)"
    r"|-(K|k) (0\.0\.0\.0/0|::/0) -(K|k) [0-9a-f.:]+)"
)


@pytest.mark.parametrize(
    "line",
    [
        "relayctl show summary",
        "relayctl show hosts",
        "relayctl host disable 3",
        "relayctl host enable 4294967295",
        "relayctl poll",
        "pfctl -sr",
        "pfctl -sS",
        "pfctl -a relayd/mx0-smtp -sr",
        "pfctl -a relayd/mx0-smtp -t mx0-smtp -T show",
        "pfctl -K 0.0.0.0/0 -K 10.0.0.4",
        "pfctl -k ::/0 -k 2001:db8::4",
    ],
)
def test_what_hactld_needs_is_done(line: str) -> None:
    program, *arguments = line.split(" ")
    assert allowed(program, arguments)
    said = " ".join(arguments)
    assert ECHO.answer(line.encode() + b"\n") == Answer(End.ENDED, 0, said.encode() + b"\n")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"relayctl\n",
        b"relayctl stop\n",
        b"relayctl reload\n",
        b"relayctl load /tmp/mine.conf\n",
        b"relayctl -s /tmp/sock poll\n",
        b"relayctl show sessions\n",
        b"relayctl show summary \n",
        b"relayctl  show summary\n",
        b"relayctl show\tsummary\n",
        b"relayctl show summary",
        b"relayctl show summary\r\n",
        b"relayctl host disable mx0\n",
        b"relayctl host disable 0\n",
        b"relayctl host disable -1\n",
        b"relayctl host disable 4294967296\n",
        b"relayctl host disable 1 2\n",
        b"relayctl host disable \xd9\xa3\n",
        b"relayctl table disable 1\n",
        b"relayctl redirect disable 1\n",
        b"pfctl -d\n",
        b"pfctl -F all\n",
        b"pfctl -a relayd/mx -F all\n",
        b"pfctl -f /tmp/pf.conf\n",
        b"pfctl -a relayd/* -sr\n",
        b"pfctl -a * -sr\n",
        b"pfctl -a relayd/../x -sr\n",
        b"pfctl -a relayd/-x -sr\n",
        b"pfctl -a relayd/" + b"x" * 32 + b" -sr\n",
        b"pfctl -a relayd/mx -t mx -T flush\n",
        b"pfctl -a relayd/mx -t mx -T add 10.0.0.1\n",
        b"pfctl -k 0.0.0.0/0\n",
        b"pfctl -k 0.0.0.0/0 -k 0.0.0.0/0\n",
        b"pfctl -k 0.0.0.0/0 -k 0.0.0.0\n",
        b"pfctl -k 0.0.0.0/0 -k 10.0.0.0/8\n",
        b"pfctl -k 0.0.0.0/0 -k 010.0.0.1\n",
        b"pfctl -k 0.0.0.0/0 -k mx0.example.org\n",
        b"pfctl -k ::/0 -k fe80::1%em0\n",
        b"pfctl -k ::/0 -k 2001:DB8::4\n",
        b"pfctl -k id -k 0123456789abcdef\n",
        b"conf /etc/master.passwd\n",
        b"read /etc/master.passwd\n",
        b"/bin/sh -c id\n",
        b"relayctl poll\nrelayctl stop\n",
        b"relayctl poll\0\n",
        b"x" * 10_000 + b"\n",
    ],
)
def test_everything_else_is_refused(line: bytes) -> None:
    assert ECHO.answer(line).end is End.REFUSED


WORDS = "relayctl pfctl show summary host disable poll conf -sr -a -t -T -k -K 1 3 relayd/ mx"
PIECES = [*WORDS.split(" "), "relayd/mx", "0.0.0.0/0", "10.0.0.4", "::1", "", "*", "..", "/bin/sh"]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=9), max_size=7).map(" ".join))
def test_whatever_is_asked_only_what_is_allowed_gets_through(text: str) -> None:
    """Programs that say what they were given, so nothing that got through stays unseen."""
    line = text.encode(errors="surrogatepass") + b"\n"
    answer = ECHO.answer(line)
    if answer.end is End.REFUSED:
        return
    assert text == "conf" or RIGHT.fullmatch(text)


class Lanes:
    """The two lanes with their threads; *ours* is what hactld would have."""

    def __init__(self, duty: Duty) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        self.ours = [ours for ours, _ in pairs]
        self._threads = [
            threading.Thread(target=duty.serve, args=(theirs, 0.0)) for _, theirs in pairs
        ]

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for ours in self.ours:
            ours.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def said(lane: socket.socket) -> list[tuple[str, int, bytes, bytes]]:
    """Return all answers up to the end of a lane, each of them whole."""
    heard = []
    with lane.makefile("rb") as answers:
        while head := answers.readline():
            end, code, out, err = head.decode().split()
            heard.append((end, int(code), answers.read(int(out)), answers.read(int(err))))
    return heard


def test_requests_are_answered_in_order_and_a_refusal_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Lanes(ECHO) as lanes:
        lanes.ours[0].sendall(b"relayctl poll\nrm -rf /\x1b[31m\nrelayctl host enable 7\n")
        lanes.ours[0].shutdown(socket.SHUT_WR)
        assert said(lanes.ours[0]) == [
            ("ended", 0, b"poll\n", b""),
            ("refused", 0, b"", b"not allowed"),
            ("ended", 0, b"host enable 7\n", b""),
        ]
    assert [record.getMessage() for record in caplog.records] == [
        r"helper: refused to do b'rm -rf /\x1b[31m\n'"
    ]


@settings(max_examples=40)
@given(st.binary(max_size=2 * LINE))
def test_whatever_bytes_come_each_line_has_one_answer(data: bytes) -> None:
    with Lanes(ECHO) as lanes:
        lanes.ours[1].sendall(data)
        lanes.ours[1].shutdown(socket.SHUT_WR)
        answers = said(lanes.ours[1])
    assert len(answers) <= data.count(b"\n") + 1
    assert {end for end, *_ in answers} <= {"ended", "refused"}


# Running


def script(directory: Path, text: str) -> list[str]:
    """Write a shell script; return its argv."""
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def test_a_program_is_run_alone_with_little_around_it(tmp_path: Path) -> None:
    argv = script(tmp_path, 'pwd; echo "$PATH" "$HOME"; cat; ls /proc/self/fd | wc -l; exit 3')
    answer = execute(argv, 5.0)
    assert (answer.end, answer.code, answer.err) == (End.ENDED, 3, b"")
    assert answer.out == b"/\n/usr/sbin:/usr/bin:/sbin:/bin \n4\n"


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    argv = script(tmp_path, f"sleep 60 & echo $! > {tmp_path}/pid; wait")
    began = time.monotonic()
    assert execute(argv, 0.3) == Answer(End.LATE)
    assert time.monotonic() - began < 5
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while time.monotonic() < end and alive(pid):
        time.sleep(0.01)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_program_that_shuts_its_output_and_stays_is_killed(tmp_path: Path) -> None:
    assert execute(script(tmp_path, "exec >&- 2>&-; exec sleep 60"), 0.2) == Answer(End.LATE)


def test_a_program_that_prints_without_end_is_killed(tmp_path: Path) -> None:
    assert execute(script(tmp_path, "exec cat /dev/zero"), 10.0) == Answer(End.FLOOD)


def test_a_missing_program_is_said() -> None:
    answer = execute(["/none/relayctl", "poll"], 1.0)
    assert answer == Answer(End.NOT_RUN, err=b"/none/relayctl: No such file or directory")


# Seen from hactld


def ask(duty: Duty, scene: Callable[[Helped], Awaitable[None]], limit: float = 5.0) -> bool:
    """Play *scene* with what hactld has of the helper; tell whether it was told to stop."""
    told: list[bool] = []

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, True)
        ours, theirs = socket.socketpair()
        inherited = Inherited(os.getpid(), ours, (lanes.ours[0], lanes.ours[1]), theirs, -1)
        helped = await Helped.join(inherited, limit)
        await scene(helped)
        helped.close()
        ours.close()
        theirs.close()

    with Lanes(duty) as lanes:
        asyncio.run(run())
    return bool(told)


def test_hactld_gets_what_the_program_said_and_calls_side_by_side_wait() -> None:
    async def scene(helped: Helped) -> None:
        calls = [helped.run("relayctl", ("host", "enable", str(n))) for n in range(1, 9)]
        ended = await asyncio.gather(*calls)
        assert [(code, out) for code, out, _ in ended] == [
            (0, f"host enable {n}\n") for n in range(1, 9)
        ]

    assert not ask(ECHO, scene)


@pytest.mark.parametrize(
    ("text", "failure", "says"),
    [
        ("exec sleep 60", Failure.NO_END, "no answer in 0.3s, outcome unknown"),
        ("exec cat /dev/zero", Failure.TOO_MUCH, "more output than is believable"),
    ],
)
def test_hactld_is_told_why_there_is_no_end(
    tmp_path: Path, text: str, failure: Failure, says: str
) -> None:
    limit = 0.3 if failure is Failure.NO_END else 10.0

    async def scene(helped: Helped) -> None:
        with pytest.raises(CommandError) as caught:
            await helped.run("relayctl", ("poll",))
        assert (caught.value.failure, str(caught.value)) == (failure, says)

    ask(Duty({"relayctl": script(tmp_path, text)}, tmp_path, limit), scene, limit)


def test_what_would_be_refused_was_not_run() -> None:
    async def scene(helped: Helped) -> None:
        for words in (("stop",), ("host", "enable", "1\nrelayctl stop"), ("x" * LINE,)):
            with pytest.raises(CommandError) as caught:
                await helped.run("relayctl", words)
            assert caught.value.failure is Failure.NOT_RUN
        assert (await helped.run("relayctl", ("poll",))).out == "poll\n"

    ask(ECHO, scene)


def test_a_pfctl_that_hangs_holds_up_no_relayctl(tmp_path: Path) -> None:
    duty = Duty(
        {"relayctl": ["/bin/echo"], "pfctl": script(tmp_path, "exec sleep 60")}, tmp_path, 0.3
    )

    async def scene(helped: Helped) -> None:
        hanging = asyncio.ensure_future(helped.run("pfctl", ("-sr",)))
        assert (await helped.run("relayctl", ("poll",))).out == "poll\n"
        assert not hanging.done()
        with pytest.raises(CommandError):
            await hanging

    ask(duty, scene, 0.3)


def test_when_the_helper_is_gone_hactld_is_told_to_stop() -> None:
    told: list[bool] = []

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, True)
        pairs = [socket.socketpair() for _ in range(4)]
        (beats, _), (one, asked), (other, _), (listening, _) = pairs
        helped = await Helped.join(Inherited(0, beats, (one, other), listening, -1), 5.0)
        hanging = asyncio.ensure_future(helped.run("relayctl", ("poll",)))
        assert await asyncio.to_thread(asked.recv, 99) == b"relayctl poll\n"
        for _, theirs in pairs:
            theirs.close()
        with pytest.raises(CommandError, match="the helper is gone, outcome unknown"):
            await hanging
        with pytest.raises(CommandError) as caught:
            await helped.run("relayctl", ("poll",))
        assert caught.value.failure is Failure.NOT_RUN
        helped.close()
        beats.close()
        listening.close()

    asyncio.run(run())
    assert told


def test_a_call_that_waited_in_vain_is_never_made() -> None:
    """A disable that was given up must not be carried out when the helper wakes up."""

    async def run() -> None:
        (beats, _), (one, asked), (other, _), (listening, _) = pairs
        helped = await Helped.join(Inherited(0, beats, (one, other), listening, -1), -1.8)
        stuck = asyncio.ensure_future(helped.run("relayctl", ("show", "summary")))
        await asyncio.sleep(0)
        with pytest.raises(CommandError, match="the helper is busy"):
            await helped.run("relayctl", ("host", "disable", "1"))
        with pytest.raises(CommandError, match="no answer of the helper, outcome unknown"):
            await stuck
        asked.sendall(b"ended 0 0 0\n")
        ended = asyncio.ensure_future(helped.run("relayctl", ("poll",)))
        await asyncio.sleep(0.05)
        asked.sendall(b"ended 0 2 0\nok")
        assert (await ended).out == "ok"
        assert asked.recv(999) == b"relayctl show summary\nrelayctl poll\n"
        helped.close()

    pairs = [socket.socketpair() for _ in range(4)]
    asyncio.run(run())
    for pair in pairs:
        for end in pair:
            end.close()


def test_programs_that_hactld_runs_inherit_nothing_of_the_helpers() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    for ours, _ in pairs:
        ours.set_inheritable(True)
    with (Path(os.devnull)).open() as lock:
        os.set_inheritable(lock.fileno(), True)
        fds = [*(ours.detach() for ours, _ in pairs), os.dup(lock.fileno())]
        found = Inherited.parse(",".join(map(str, (1, *fds))))
    assert [os.get_inheritable(fd) for fd in fds] == [False] * 5
    assert (found.helper, found.lock) == (1, fds[-1])
    os.close(found.lock)
    for sock in (found.beats, *found.lanes, found.listening, *(theirs for _, theirs in pairs)):
        sock.close()


def test_what_root_made_stays_what_it_was_whatever_the_file_says_later() -> None:
    first = config.parse("mode: observe\nrelayd: {socket: /tmp/s, timeout: 250ms}", "f")
    other = """mode: relayctl
run_dir: /r
state_dir: /s
relayd: {conf: /c, relayctl: /ctl, pfctl: /pf, timeout: 1s, kill_states: true}
control: {mode: "0600"}
"""
    kept = Fixed.parse(Fixed.of(first)).keep(config.parse(other, "f"))
    assert (kept.run_dir, kept.state_dir) == (first.run_dir, first.state_dir)
    assert (kept.control.path, kept.control.mode) == (first.control.path, 0o600)
    assert kept.relayd == replace(first.relayd, kill_states=True)
    assert kept.mode == "relayctl"


def test_what_stays_root_loads_nothing_that_reads_yaml_or_the_network() -> None:
    code = "import sys, hactl.daemon.main; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert loaded & {"yaml", "asyncio", "ssl", "checks", "hactl.config", "sqlite3"} == set()
    assert "hactl.daemon.helper" in loaded


# relayd.conf


CONF = """\
table <mx> { include "hosts" }
include "%s/more.conf"
redirect mx-smtp {
	listen on 127.0.0.1 port 25
	forward to <mx> port 25 check tcp
}
# include "%s/secret"
"""


def test_relayd_conf_and_what_it_includes_reach_hactld_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("10.0.0.4 10.0.0.5\n")
    (tmp_path / "more.conf").write_bytes(b"interval 2 # \xff\n")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "relayd.conf").write_text(CONF % (tmp_path, tmp_path))
    duty = Duty({}, tmp_path / "relayd.conf", 5.0)
    assert helper.texts(duty.conf).keys() == {
        str(tmp_path / name) for name in ("relayd.conf", "hosts", "more.conf")
    }

    async def scene(helped: Helped) -> None:
        assert await helped.conf(duty.conf) == conf.read(duty.conf)

    ask(duty, scene)


@pytest.mark.parametrize("wrong", ["missing", "include", "directory", "syntax", "fifo"])
def test_a_relayd_conf_that_cannot_be_read_fails_as_if_read_here(
    tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "relayd.conf"
    match wrong:
        case "include":
            path.write_text('include "/none"\n')
        case "directory":
            path.mkdir()
        case "syntax":
            path.write_text("table <mx> {\n")
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(conf.ConfError) as here:
        conf.read(path)

    async def scene(helped: Helped) -> None:
        with pytest.raises(conf.ConfError) as there:
            await helped.conf(path)
        assert str(there.value) == str(here.value)

    ask(Duty({}, path, 5.0), scene)


# Keeping hactld alive

# What stands for hactld: it beats on the descriptor that it is told, then does as in *then*.
CHILD = """\
import os, signal, socket, sys, time
helper, beats = map(int, sys.argv[1].split(",")[:2])
with open("{log}", "a") as log: print("start", helper == os.getppid(), file=log)
beat = lambda: os.write(beats, b".")
{then}
"""

QUICK = Patience(0.02, 500, 500, (0.01, 0.02), 3, 600.0, 0.5, 5.0)


@pytest.fixture
def signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def keep(directory: Path, then: str, patience: Patience = QUICK) -> tuple[int, list[str]]:
    """Keep a child alive until it is given up or stopped; return the exit code and what happened."""
    log = directory / "happened"
    log.touch()

    def note(what: str) -> None:
        with log.open("a") as file:
            print(what, file=file)

    (directory / "on_dead").write_text(f"#!/bin/sh\necho dead $* >> {log}\n")
    (directory / "on_dead").chmod(0o755)
    with socket.socket() as listening, (directory / "lock").open("w") as lock:
        kept = Kept(
            [sys.executable, "-ISc", CHILD.format(log=log, then=then)],
            listening.fileno(),
            lock.fileno(),
            None,
            lambda: note("stale"),
            [str(directory / "on_dead"), "a b"],
            patience,
        )
        code = Helper(ECHO, kept).run(lambda: note("started"))
    return code, log.read_text().splitlines()


def test_hactld_that_dies_over_and_over_is_given_up_and_on_dead_runs_once(
    tmp_path: Path, signals: None, caplog: pytest.LogCaptureFixture
) -> None:
    code, happened = keep(tmp_path, "beat(); os.kill(os.getpid(), 9)")
    assert code == 1
    assert happened == ["start True", "started", "start True", "start True", "dead a b"]
    assert [record.getMessage() for record in caplog.records] == [
        "hactld was killed by SIGKILL; it is started again in 0.01s",
        "hactld was killed by SIGKILL; it is started again in 0.02s",
        "hactld was killed by SIGKILL; died 3 times in a row, given up: hosts stay as they are",
        f"on_dead: {tmp_path}/on_dead: 0",
    ]


def test_hactld_that_is_silent_is_killed_and_the_hook_is_told_once(
    tmp_path: Path, signals: None, caplog: pytest.LogCaptureFixture
) -> None:
    code, happened = keep(tmp_path, "beat(); time.sleep(60)", QUICK._replace(silence=5, deaths=1))
    assert code == 1
    assert happened[happened.index("started") :] == ["started", "stale", "dead a b"]
    assert caplog.records[0].getMessage() == "hactld is silent; it is killed"


def test_what_never_started_is_not_started_again(tmp_path: Path, signals: None) -> None:
    assert keep(tmp_path, "sys.exit(7)") == (1, ["start True"])


def test_term_stops_both_and_hup_goes_through(tmp_path: Path, signals: None) -> None:
    then = """
signal.signal(signal.SIGHUP, lambda *_: os.kill(helper, signal.SIGTERM))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    beat()
    time.sleep(0.02)
    os.kill(helper, signal.SIGHUP)
"""
    assert keep(tmp_path, then) == (0, ["start True", "started"])


def test_who_does_not_stop_is_killed(
    tmp_path: Path, signals: None, caplog: pytest.LogCaptureFixture
) -> None:
    then = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
beat()
time.sleep(0.1)
os.kill(helper, signal.SIGTERM)
time.sleep(60)
"""
    assert keep(tmp_path, then)[0] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "hactld does not stop; it is killed"
    ]


def test_a_hactld_that_ends_by_itself_ends_the_helper(tmp_path: Path, signals: None) -> None:
    assert keep(tmp_path, "beat()") == (0, ["start True", "started"])


def test_an_interpreter_that_cannot_be_run_is_said(tmp_path: Path, signals: None) -> None:
    kept = Kept(["/none/python", "-m", "x"], 0, 0, None, lambda: None)
    with pytest.raises(OSError, match="/none/python cannot be run: No such file or directory"):
        Helper(ECHO, kept).run(lambda: None)
