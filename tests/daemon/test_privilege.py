"""What hactld gives up, and how it sees that it has."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hactl import config as config_
from hactl.daemon import privilege, start
from hactl.daemon.privilege import Account

US = Account("us", os.geteuid(), os.getegid(), ())
SOMEBODY = Account("_somebody", 64_001, 64_001, ())

rooted = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


# Who


@rooted
def test_root_becomes_the_user_with_all_its_groups() -> None:
    found = privilege.account("nobody")
    assert found is not None
    assert (found.name, found.uid > 0, found.gid in found.groups) == ("nobody", True, True)


@rooted
def test_root_stays_root_if_it_is_told_to() -> None:
    assert privilege.account("root") is None


@rooted
def test_a_missing_user_is_said_with_what_to_do() -> None:
    with pytest.raises(LookupError) as caught:
        privilege.account("_no-such-user")
    first, recipe, last = str(caught.value).splitlines()
    assert first == 'there is no user "_no-such-user" to run as; make it with'
    assert re.fullmatch(r"  useradd .* _no-such-user", recipe)
    assert "user: root" in last


# Where


def test_directories_are_made_with_their_mode_whatever_the_umask_is(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        privilege.directory(tmp_path / "a" / "run", 0o755, US)
    finally:
        os.umask(mask)
    assert (tmp_path / "a" / "run").stat().st_mode & 0o7777 == 0o755
    privilege.directory(tmp_path / "a" / "run", 0o700, US)
    assert (tmp_path / "a" / "run").stat().st_mode & 0o7777 == 0o755, "as the administrator has it"


@rooted
def test_a_new_directory_is_the_users(tmp_path: Path) -> None:
    privilege.directory(tmp_path / "state", 0o750, SOMEBODY)
    found = (tmp_path / "state").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (64_001, 64_001, 0o750)


@rooted
def test_a_directory_of_somebody_elses_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(PermissionError) as caught:
        privilege.directory(tmp_path / "state", 0o750, SOMEBODY)
    assert str(caught.value) == (
        f"{tmp_path}/state belongs to root, and hactld runs as _somebody;"
        f' run "chown -R _somebody: {tmp_path}/state"'
    )


def test_a_file_in_a_directorys_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(FileExistsError):
        privilege.directory(tmp_path / "state", 0o750, US)


def test_a_missing_group_is_said() -> None:
    with pytest.raises(LookupError, match='control: group: there is no group "no-such-group"'):
        privilege.group("no-such-group")


# What is left.  In processes of their own, for there is no way back.

DROP = """\
import os, resource
from hactl.daemon import privilege
parent = os.getpid()
child = os.fork()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
privilege.settle()
{how}
try:
    privilege.dropped(parent)
    print("dropped", os.getcwd(), resource.getrlimit(resource.RLIMIT_CORE))
    print([line for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
except PermissionError as error:
    print(error)
os.sys.stdout.flush()
os._exit(0)
"""


def dropped(how: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", DROP.format(how=how)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stderr == ""
    return ran.stdout


@rooted
@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("os.setgroups([]); os.setgid(64001); os.setuid(64001)", "dropped / (0, 0)"),
        ("os.setgroups([]); os.setgid(64001)", "root's rights were not given up"),
        ("os.setuid(64001)", "root's rights were not given up"),
        (
            "os.setresgid(64001, 64001, 64001); os.setresuid(64001, 64001, 0)",
            "root's rights were not given up",
        ),
        ("os.setgid(64001); os.setuid(64001); parent = 1", "the helper went away"),
    ],
)
def test_it_is_seen_whether_root_is_gone_for_good(how: str, says: str) -> None:
    first, *more = dropped(how).splitlines()
    assert first == says
    assert [line for line in more if "linux" in sys.platform] == (
        [r"['NoNewPrivs:\t1\n']"] if first.startswith("dropped") else []
    )


def test_descriptors_are_raised_as_far_as_allowed_and_of_use() -> None:
    code = """\
import resource
from hactl.daemon import privilege
for soft, hard in ((128, 1024), (700, 1024), (128, 512)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(privilege.descriptors(600), resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "600 (600, 1024)",
        "700 (700, 1024)",
        "512 (512, 512)",
    ]


# pledge(2) and unveil(2), with what stands for OpenBSD's C library


class Libc:
    """Has both calls, and writes down what they were given; *fails* is the one that does."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, bytes | None, bytes | None]] = []
        self._fails = fails

    def _call(self, name: str, first: bytes | None, second: bytes | None) -> int:
        self.calls.append((name, first, second))
        ctypes.set_errno(errno.EPERM)
        return -1 if name == self._fails else 0

    def pledge(self, promises: bytes | None, exec_promises: bytes | None) -> int:
        return self._call("pledge", promises, exec_promises)

    def unveil(self, path: bytes | None, permissions: bytes | None) -> int:
        return self._call("unveil", path, permissions)


def test_hactld_promises_and_writes_nowhere_but_in_its_own_directories() -> None:
    libc = Libc()
    assert privilege.unveil([Path("/var/db/hactl"), Path("/var/run/hactl")], libc)
    assert privilege.pledge(privilege.PROMISES, libc)
    assert libc.calls == [
        ("unveil", b"/", b"rx"),
        ("unveil", b"/var/db/hactl", b"rwc"),
        ("unveil", b"/var/run/hactl", b"rwc"),
        ("unveil", b"/dev/null", b"rw"),
        ("unveil", None, None),
        ("pledge", privilege.PROMISES.encode(), None),
    ]


@pytest.mark.parametrize("call", ["pledge", "unveil"])
def test_a_promise_that_is_not_taken_is_an_error(call: str) -> None:
    with pytest.raises(PermissionError, match=f"{call}: Operation not permitted"):
        privilege.unveil([], Libc(call)) and privilege.pledge("stdio", Libc(call))


def test_without_either_nothing_is_promised() -> None:
    assert not privilege.unveil([Path("/tmp")], object())
    assert not privilege.pledge("stdio", object())


@rooted
def test_a_lock_that_its_owner_linked_there_is_not_given_away(tmp_path: Path) -> None:
    account = privilege.account("nobody")
    assert account is not None
    secret, state = tmp_path / "secret", tmp_path / "state"
    secret.touch(0o600)
    text = f"mode: observe\nstate_dir: {state}\nrun_dir: {tmp_path}/run\n"
    config = config_.parse(text, "hactl.yaml")
    with start._claim(config, account) as lock:
        assert os.fstat(lock.fileno()).st_uid == account.uid  # made just now
    (state / "lock").unlink()
    (state / "lock").hardlink_to(secret)
    with start._claim(config, account):
        assert secret.stat().st_uid == 0
