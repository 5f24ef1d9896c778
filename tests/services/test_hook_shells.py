"""hactl-verdict under every shell that is some system's /bin/sh, with whatever can go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from hactl.core.model import Member
from hactl.relayd import hook
from hactl.relayd.hook import Verdicts
from tests.services.servers import need

pytestmark = pytest.mark.service

SHELLS = {
    "dash": ["dash"],
    "busybox": ["busybox", "sh"],
    "mksh": ["mksh"],
    "mksh as sh": ["mksh", "-o", "posix", "-o", "sh"],
    "bash": ["bash"],
    "bash as sh": ["bash", "--posix"],
}
DOWN, UP = 0, 1  # as relayd takes exit codes
SERVICE, HOST = "mx0-smtp", "10.0.0.4"


class Place(NamedTuple):
    """Where the hook is and where it looks, in a directory that other users can enter."""

    program: list[str]
    link: Path
    run_dir: Path

    @property
    def down(self) -> Path:
        return self.run_dir / "down" / SERVICE

    def ask(self, *words: str, user: int | None = None, **environment: str) -> int:
        """Run the hook as relayd does, but under our shell; it must say nothing."""
        home = {"HACTL_RUN_DIR": str(self.run_dir), "PATH": "/nonexistent"}
        found = shutil.which(self.program[0])
        assert found is not None
        ran = subprocess.run(
            [found, *self.program[1:], str(self.link), *words],
            cwd="/",
            env=home | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            user=user,
            group=user,
            extra_groups=[] if user else None,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == (b"", b"")
        return ran.returncode

    def put(self, word: str) -> None:
        Verdicts(self.run_dir / "down").put(Member(SERVICE, 0, word), down=True)


@pytest.fixture(params=[*SHELLS.values()], ids=[*SHELLS])
def place(request: pytest.FixtureRequest, directory: Path) -> Place:
    shell: list[str] = request.param
    need(shell[0])
    home = directory / request.node.name.translate(str.maketrans("[] /", "----"))[:60]
    shutil.rmtree(home, ignore_errors=True)
    hook.install(SERVICE, home / "libexec")
    return Place(shell, home / "libexec" / SERVICE, home / "run")


def test_a_file_is_down_and_none_is_up(place: Place) -> None:
    place.put(HOST)
    assert place.ask(HOST) == DOWN
    assert place.ask("10.0.0.5") == UP
    assert place.ask(HOST, user=65534) == DOWN  # relayd runs it as _relayd


def nothing(place: Place) -> None:
    """Leave everything missing."""


def only_run_dir(place: Place) -> None:
    place.run_dir.mkdir()


def no_file(place: Place) -> None:
    place.put("10.0.0.5")


def a_file_for_the_directory(place: Place) -> None:
    place.down.parent.mkdir(parents=True)
    place.down.write_text("")


def a_link_to_nowhere(place: Place) -> None:
    place.down.mkdir(parents=True)
    (place.down / HOST).symlink_to("/nonexistent")


def a_link_to_itself(place: Place) -> None:
    place.down.mkdir(parents=True)
    (place.down / HOST).symlink_to(HOST)


def another_service(place: Place) -> None:
    place.put(HOST)
    place.down.rename(place.down.with_name("imap"))


def withdrawn(place: Place) -> None:
    place.put(HOST)
    hook.withdraw(place.run_dir / "down", [SERVICE])


@pytest.mark.parametrize(
    "fault",
    [
        nothing,
        only_run_dir,
        no_file,
        a_file_for_the_directory,
        a_link_to_nowhere,
        a_link_to_itself,
        another_service,
        withdrawn,
    ],
)
def test_what_is_missing_is_up(place: Place, fault: Callable[[Place], None]) -> None:
    fault(place)
    assert place.ask(HOST) == UP


def test_a_directory_that_relayds_user_may_not_enter_is_up(place: Place) -> None:
    place.put(HOST)
    place.down.parent.chmod(0o700)
    assert place.ask(HOST, user=65534) == UP
    assert place.ask(HOST) == DOWN  # root may


def test_whatever_exists_is_down_and_nothing_is_opened(place: Place) -> None:
    place.down.mkdir(parents=True)
    os.mkfifo(place.down / "fifo")  # opening it would hang
    (place.down / "directory").mkdir()
    (place.down / "unreadable").write_text("")
    (place.down / "unreadable").chmod(0)
    (place.down / "device").symlink_to("/dev/null")
    for word in ("fifo", "directory", "unreadable", "device"):
        assert place.ask(word, user=65534) == DOWN, word


@pytest.mark.parametrize(
    "word",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "x" * 300,
        "x" * 5000,
        "10.0.0.4 ",
        "a b",
        "10.0.0.4\n",
        "\n",
        "*",
        "?",
        "[a-z]",
        "10.0.0.*",
        "$(reboot)",
        "`reboot`",
        "${HOME}",
        "a;b",
        "a|b",
        "'",
        '"',
        "\\",
        "m\u00fcx",
        "\udcff",
    ],
)
def test_what_is_no_host_is_up_even_if_there_is_something(place: Place, word: str) -> None:
    place.put(HOST)
    for name in ("a b", "*", "[a-z]", "m\u00fcx", "10.0.0.4\n", "10.0.0.4 "):
        (place.down / name).write_text("")
    assert place.ask(word) == UP


@pytest.mark.parametrize(
    "word", ["fe80::1%em0", "2001:db8::4", "mx0.example.org", "mx_0", "-e", "-n", "!", "=", "..a"]
)
def test_a_host_by_any_name_is_found(place: Place, word: str) -> None:
    allowed = hook.WORD.fullmatch(word) is not None
    assert place.ask(word) == UP
    place.down.mkdir(parents=True, exist_ok=True)
    (place.down / word).write_text("")
    assert place.ask(word) == (DOWN if allowed else UP)
    assert place.ask(word, "superfluous") == (DOWN if allowed else UP)


@pytest.mark.parametrize("written", [1.0, 4e9], ids=["1970", "2096"])
def test_no_clock_and_no_hactld_is_asked(place: Place, written: float) -> None:
    """hactld was killed, or the clock was set back or forth: what it said last stands."""
    place.put(HOST)
    for path in (place.down / HOST, place.down, place.down.parent):
        os.utime(path, (written, written))
    assert (place.ask(HOST), place.ask("10.0.0.5")) == (DOWN, UP)


def test_no_argument_is_up(place: Place) -> None:
    place.put(HOST)
    assert place.ask() == UP


@pytest.mark.parametrize(
    "environment",
    [
        {"HACTL_RUN_DIR": ""},
        {"HACTL_RUN_DIR": "/nonexistent"},
        {"HACTL_RUN_DIR": "-e /"},
        {"HACTL_RUN_DIR": "x" * 5000},
        {"HACTL_RUN_DIR": "(", "IFS": "/"},
    ],
    ids=["empty", "missing", "odd", "long", "bracket"],
)
def test_a_strange_run_dir_is_up(place: Place, environment: dict[str, str]) -> None:
    place.put(HOST)
    assert place.ask(HOST, user=None, **environment) == UP


@pytest.mark.parametrize(
    "environment",
    [{"IFS": "./0"}, {"CDPATH": "/"}, {"ENV": "/nonexistent"}, {"LC_ALL": "C.UTF-8"}, {"PWD": ""}],
    ids=lambda each: next(iter(each)),
)
def test_the_environment_changes_nothing(place: Place, environment: dict[str, str]) -> None:
    place.put(HOST)
    assert place.ask(HOST, user=None, **environment) == DOWN
    assert place.ask("10.0.0.5", user=None, **environment) == UP


def test_no_file_descriptors_and_no_room_for_files_do_not_matter(place: Place) -> None:
    """A full disk keeps hactld from writing, not the hook from looking."""
    place.put(HOST)
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *place.program]
    full = place._replace(program=limited)
    assert (full.ask(HOST, PATH=os.environ["PATH"]), full.ask("x", PATH=os.environ["PATH"])) == (
        DOWN,
        UP,
    )


def test_no_child_is_started(place: Place) -> None:
    """Without processes to spare the answer is the same: one test, built into the shell."""
    place.put(HOST)
    limited = [
        "sh",
        "-c",
        'ulimit -u 0 2>/dev/null || ulimit -p 0; exec "$@"',
        "sh",
        *place.program,
    ]
    starved = place._replace(program=limited)
    for word, expected in ((HOST, DOWN), ("x", UP), ("../x", UP)):
        assert starved.ask(word, PATH=os.environ["PATH"], user=65534) == expected


FULL = """
import os, sys
from pathlib import Path
from hactl.core.model import Member
from hactl.relayd.hook import Verdicts

verdicts = Verdicts(Path(sys.argv[1]) / "down")
words = [f"10.0.0.{n}" for n in range(1, 9)]
said = [verdicts.put(Member("mx", 0, word), down=True) for word in words]
made = [word for word, outcome in zip(words, said) if outcome.answer == "done"]
assert verdicts.read(["mx"])["mx"] == set(made), said
assert 0 < len(made) < 8, said
assert verdicts.put(Member("mx", 0, made[0]), down=False).answer == "done"
assert verdicts.put(Member("mx", 0, words[-1]), down=True).answer == "done"
print(said[-1].text)
"""


def test_on_a_full_disk_what_is_there_stays_and_room_is_used_at_once(directory: Path) -> None:
    need("unshare", "mount")
    disk = directory / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o nr_inodes=6,mode=755 hactl "$1" && exec "$2" -c "$3" "$1"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", disk, sys.executable, FULL],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout == (
        f"hook: {disk}/down/mx/10.0.0.8: No space left on device; relayd is told up as before\n"
    )
