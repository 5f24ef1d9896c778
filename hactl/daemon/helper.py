"""helper: what stays root.  It runs relayctl and pfctl for hactld, and hactld itself.

It never reads from the network.  What it reads from hactld is not trusted: on each of two *lanes*
(so that a pfctl that hangs holds up no relayctl) comes a line of words, which is either a row of
ALLOWED, word for word, or the request for relayd.conf's text, or is refused and logged.  Paths,
deadline and user are those of the configuration that root loaded at the start, whatever hactld says
later.  One request at a time, blocking, in the order in which it is done.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import NamedTuple

from hactl.daemon import log as log_
from hactl.daemon import privilege
from hactl.daemon.privilege import Account
from hactl.relayd import conf as conf_

log = logging.getLogger("hactld")

TOLD = "HACTLD_HELPER"  # in the environment: what the helper is told, and that it is one
LINE = 256  # bytes of a request
LIMIT = 16 << 20  # bytes of output
REAP = 1.0  # seconds a killed program may take to go
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
PAUSE = 0.1  # seconds after a refusal, so that nobody can fill the log with them

BEAT = 1.0  # seconds between two signs of life

# What may be run


_ID = re.compile(r"[1-9][0-9]{0,9}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,30}")  # what pf takes for a table's name

Token = str | Callable[[str], bool]


def _id(text: str) -> bool:
    return _ID.fullmatch(text) is not None and int(text) < 1 << 32


def _name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _anchor(text: str) -> bool:
    return text.startswith("relayd/") and _name(text.removeprefix("relayd/"))


def _address(text: str) -> bool:
    """Tell whether this is one host's address, as it is always written."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return str(address) == text and "%" not in text and not address.is_unspecified


ALLOWED: Mapping[str, Sequence[tuple[Token, ...]]] = {
    "relayctl": (
        ("show", "summary"),
        ("show", "hosts"),
        ("show", "redirects"),
        ("show", "relays"),
        ("host", "disable", _id),
        ("host", "enable", _id),
        ("poll",),
    ),
    "pfctl": (
        ("-sr",),
        ("-sS",),
        ("-a", _anchor, "-sr"),
        ("-a", _anchor, "-t", _name, "-T", "show"),
        ("-K", "0.0.0.0/0", "-K", _address),
        ("-K", "::/0", "-K", _address),
        ("-k", "0.0.0.0/0", "-k", _address),
        ("-k", "::/0", "-k", _address),
    ),
}


def allowed(program: str, arguments: Sequence[str]) -> bool:
    """Tell whether hactld may have this run."""
    return any(
        len(row) == len(arguments) and all(map(_fits, row, arguments))
        for row in ALLOWED.get(program, ())
    )


def _fits(token: Token, word: str) -> bool:
    return word == token if isinstance(token, str) else token(word)


# How it is run


class End(StrEnum):
    """How a request ended.  For NOT_RUN and REFUSED the second text says why."""

    ENDED = "ended"
    LATE = "late"  # killed at its deadline
    FLOOD = "flood"  # killed for what it printed
    NOT_RUN = "not-run"
    REFUSED = "refused"


class Answer(NamedTuple):
    """To a request: how it ended, the program's exit code, what it printed to stdout and stderr."""

    end: End
    code: int = 0
    out: bytes = b""
    err: bytes = b""

    def encode(self) -> bytes:
        """Write it for the lane: a line with the lengths, then both texts."""
        head = f"{self.end} {self.code} {len(self.out)} {len(self.err)}\n"
        return b"".join((head.encode(), self.out, self.err))


def execute(argv: Sequence[str], timeout: float) -> Answer:
    """Run a program to its end, or kill it at its deadline."""
    try:
        # a process group of its own: what is typed at the terminal is not for it
        child = subprocess.Popen(
            argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, cwd="/", process_group=0
        )
    except OSError as error:
        return Answer(End.NOT_RUN, err=f"{argv[0]}: {error.strerror}".encode())
    assert child.stdout is not None
    assert child.stderr is not None
    heard = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    until = time.monotonic() + timeout
    with child.stdout, child.stderr:
        end = _listen(heard, until)
        if end is End.ENDED:
            try:
                code = child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                end = End.LATE
            else:
                return Answer(end, code, *map(bytes, heard.values()))
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.wait(REAP)
    return Answer(end)


def _listen(heard: Mapping[int, bytearray], until: float) -> End:
    """Read until both pipes are shut, which is what their writers do when they end."""
    with selectors.DefaultSelector() as pipes:
        for fd in heard:
            pipes.register(fd, selectors.EVENT_READ)
        while pipes.get_map():
            left = until - time.monotonic()
            if left <= 0:
                return End.LATE
            for key, _ in pipes.select(left):
                data = os.read(key.fd, 1 << 16)
                heard[key.fd] += data
                if not data:
                    pipes.unregister(key.fd)
            if sum(map(len, heard.values())) > LIMIT:
                return End.FLOOD
    return End.ENDED


def texts(path: Path) -> dict[str, tuple[str, str]]:
    """Return the text of relayd.conf and of all it includes by path, or "" and why there is none."""
    found: dict[str, tuple[str, str]] = {}

    def load(path: Path) -> str:
        try:
            text = conf_.load(path)
        except (OSError, ValueError) as error:
            found[str(path)] = "", getattr(error, "strerror", None) or str(error)
            raise
        found[str(path)] = text, ""
        return text

    with suppress(conf_.ConfError):
        conf_.read(path, load=load)
    return found


class Duty(NamedTuple):
    """What the helper does for hactld: the programs by their words, where relayd.conf is."""

    programs: Mapping[str, Sequence[str]]
    conf: Path
    timeout: float  # seconds a program may take

    def answer(self, line: bytes) -> Answer:
        """Do what one line asks for, or refuse it."""
        if line == b"conf\n":
            return Answer(End.ENDED, out=json.dumps(texts(self.conf)).encode())
        if len(line) > LINE or not line.endswith(b"\n") or not line.isascii():
            return Answer(End.REFUSED, err=b"no request")
        program, *arguments = line[:-1].decode().split(" ")
        if program not in self.programs or not allowed(program, arguments):
            return Answer(End.REFUSED, err=b"not allowed")
        return execute([*self.programs[program], *arguments], self.timeout)

    def serve(self, lane: socket.socket, pause: float = PAUSE) -> None:
        """Answer what comes on a lane until its other end is shut."""
        with suppress(OSError), lane, lane.makefile("rb") as requests:
            while line := requests.readline(LINE + 1):
                answer = self.answer(line)
                if answer.end is End.REFUSED:
                    log.warning("helper: refused to do %s", ascii(line[:LINE]))
                    time.sleep(pause)
                lane.sendall(answer.encode())
                if not line.endswith(b"\n"):
                    return  # nobody knows where the next request begins


# Keeping hactld alive


class Patience(NamedTuple):
    """How long the helper waits, in seconds or in beats; *deaths* is how often it starts hactld."""

    beat: float = BEAT
    silence: int = 10  # beats that may be missing
    start: int = 60  # the same before the first one
    pauses: tuple[float, float] = (0.5, 60.0)  # before the next start: at first, doubling, at last
    deaths: int = 10  # in a row, and it is given up
    stable: float = 600.0  # of life, after which deaths are counted anew
    end: float = 30.0  # that hactld may take to stop
    on_dead: float = 60.0


class Kept(NamedTuple):
    """The hactld that is kept alive: *command* is started with our pid and its sockets added.

    It gets the descriptors of the control socket, *listening*, and of the *lock*, which is held for
    as long as one of us lives.  *stale* is called when there was no sign of life for too long, and
    *on_dead* is run when hactld is given up.
    """

    command: Sequence[str]
    listening: int
    lock: int
    account: Account | None
    stale: Callable[[], None]
    on_dead: Sequence[str] = ()
    patience: Patience = Patience()


class Helper:
    """Starts hactld, serves its lanes, and starts it again when it dies or is silent."""

    def __init__(self, duty: Duty, kept: Kept) -> None:
        self._duty = duty
        self._kept = kept
        self._child: subprocess.Popen[bytes] | None = None
        self._silence = 0  # beats missed in a row, whichever hactld missed them
        self._beaten = False  # any hactld ever
        self._alive = False  # this one
        self._stop_by: float | None = None  # set once we were told to stop

    def run(self, started: Callable[[], None]) -> int:
        """Keep hactld alive until told to stop; return the exit code.

        *started* is called at its first sign of life.  Raise OSError if it cannot be started at all.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, self._signalled)
        patience, deaths = self._kept.patience, 0
        while self._stop_by is None:
            began = time.monotonic()
            self._alive = False
            try:
                self._child, beats = self._start()
            except OSError as error:
                if not self._beaten:
                    raise
                how = str(error)
            else:
                with beats:
                    self._watch(self._child, beats, started)
                code = self._child.wait()
                if self._stop_by is not None or code == 0:
                    return 0 if code in (0, -signal.SIGTERM) else 1
                if not self._beaten:  # it has said itself why it cannot start
                    return 1
                how = f"hactld {_how(code)}"
            deaths = 1 if time.monotonic() - began > patience.stable else deaths + 1
            if deaths == patience.deaths:
                return self._give_up(how, deaths)
            first, last = patience.pauses
            pause = min(first * 2 ** (deaths - 1), last)
            log.error("%s; it is started again in %gs", how, pause)
            self._pause(pause)
        return 0

    def _signalled(self, number: int, _frame: object) -> None:
        """Pass a signal on."""
        if number in (signal.SIGTERM, signal.SIGINT):
            number = signal.SIGTERM
            self._stop_by = self._stop_by or time.monotonic() + self._kept.patience.end
        elif not self._alive:
            return  # it has no use for it yet
        if self._child is not None:
            self._child.send_signal(number)

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """Start hactld, with a thread for each of its lanes; return what it beats on, too."""
        pairs = [socket.socketpair() for _ in range(3)]
        (beats, _), *lanes = pairs
        fds = [theirs.fileno() for _, theirs in pairs] + [self._kept.listening, self._kept.lock]
        command = [*self._kept.command, ",".join(map(str, (os.getpid(), *fds)))]
        who = self._kept.account
        try:
            if who is None:
                child = subprocess.Popen(command, pass_fds=fds)
            else:
                names = {"HOME": "/", "USER": who.name, "LOGNAME": who.name}
                child = subprocess.Popen(
                    command,
                    pass_fds=fds,
                    env=os.environ | names,
                    user=who.uid,
                    group=who.gid,
                    extra_groups=who.groups,
                )
        except OSError as error:
            for ours, _ in pairs:
                ours.close()
            whom = f" as {who.name}" if who is not None else ""
            raise OSError(f"{command[0]} cannot be run{whom}: {error.strerror}") from error
        finally:
            for _, theirs in pairs:
                theirs.close()
        for ours, _ in lanes:
            threading.Thread(target=self._duty.serve, args=(ours,), daemon=True).start()
        return child, beats

    def _watch(
        self, child: subprocess.Popen[bytes], beats: socket.socket, started: Callable[[], None]
    ) -> None:
        """Return when hactld has ended, by itself or killed for its silence.

        Silence is counted in seconds that we were awake for, not by the clock: a machine that was
        suspended is no dead hactld.
        """
        patience = self._kept.patience
        missed, most = 0, patience.start
        if self._stop_by is not None:  # told so while it was being started
            child.terminate()
        while missed < most or self._stop_by is not None:
            if not select.select([beats], [], [], patience.beat)[0]:
                missed += 1
                self._missed()
            elif not beats.recv(1 << 12):
                with suppress(subprocess.TimeoutExpired):
                    child.wait(patience.end)
                break
            else:
                missed, most, self._silence, self._alive = 0, patience.silence, 0, True
                if not self._beaten:
                    self._beaten = True
                    started()
            if self._stop_by is not None and time.monotonic() > self._stop_by:
                break
        if child.poll() is None:
            stopping = self._stop_by is not None
            log.error("hactld %s; it is killed", "does not stop" if stopping else "is silent")
            child.kill()

    def _missed(self) -> None:
        """Count a missed sign of life; once they are too many the hook is told."""
        self._silence += 1
        if self._silence == self._kept.patience.silence:
            try:
                self._kept.stale()
            except OSError as error:
                log.error("the hook's files could not be made stale: %s", error)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop_by is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, self._kept.patience.beat))
            self._missed()

    def _give_up(self, how: str, deaths: int) -> int:
        """Say that nobody looks after relayd any more, and run on_dead."""
        log.error("%s; died %d times in a row, given up: hosts stay as they are", how, deaths)
        if self._kept.on_dead:
            answer = execute(self._kept.on_dead, self._kept.patience.on_dead)
            said = answer.code if answer.end is End.ENDED else answer.end
            log.error("on_dead: %s: %s", self._kept.on_dead[0], said)
        return 1


def main(told: str) -> int:
    """Be the helper, as the configuration says that root loaded; return the exit code."""
    settings = json.loads(told)
    log_.begin(foreground=settings["foreground"], verbose=settings["verbose"])
    for name in ("listening", "lock", "told"):
        if settings[name] is not None:
            os.set_inheritable(settings[name], False)
    programs, conf, timeout = settings["duty"]
    down, services = Path(settings["down"]), settings["withdrawn"]

    def stale() -> None:
        if services:
            from hactl.relayd import hook  # much to load for what is hardly ever needed

            hook.withdraw(down, services)

    threading.excepthook = _broken
    privilege.settle()
    privilege.pledge(privilege.HELPER_PROMISES)
    kept = Kept(
        settings["command"],
        settings["listening"],
        settings["lock"],
        Account(*settings["account"]),
        stale,
        settings["on_dead"],
    )
    try:
        helper = Helper(Duty(programs, Path(conf), timeout), kept)
        return helper.run(lambda: log_.leave(settings["told"]))
    except OSError as error:
        print(f"hactld: {error}", file=sys.stderr)
        return 1
    finally:
        Path(settings["control"]).unlink(missing_ok=True)


def _broken(fault: threading.ExceptHookArgs) -> None:
    """Say in a line that a lane broke: hactld then ends, and is started again."""
    log.error("helper: %r", fault.exc_value)


def _how(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
