"""privilege: what hactld may do, and how it gives up the rest.

Started by root, hactld splits in two: the helper stays root (helper.py), and hactld itself runs as
another user, whose rights are taken before its first instruction and looked at again by itself.

pledge(2) and unveil(2) are called through libc where it has them.  Neither has run on OpenBSD yet,
so both are generous: what they are for is that a hactld which was taken over writes nowhere but in
its own directories, loads no kernel state, and does nothing to the system's settings.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
import signal
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

DESCRIPTORS = 4096 + 256 * 4 + 64  # all that is of use: see the runner

# prot_exec: Python loads some of its C extensions late.  proc and exec: checks that are programs.
PROMISES = "stdio rpath wpath cpath fattr flock inet unix dns proc exec prot_exec ps vminfo"
HELPER_PROMISES = "stdio rpath wpath cpath fattr proc exec id prot_exec"

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


class Account(NamedTuple):
    """The user that hactld becomes, with all groups that it is a member of."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account(name: str) -> Account | None:
    """Return the user to become; None to stay who we are.

    Only root can become somebody.  Raise LookupError, which says what to do, if there is no such
    user.
    """
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise LookupError(
            f'there is no user "{name}" to run as; make it with\n  {_recipe(name)}\n'
            "or name another in hactl.yaml (user: root keeps all of root's rights)"
        ) from None
    if entry.pw_uid == 0:
        return None
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups))


def _recipe(name: str) -> str:
    if sys.platform.startswith("openbsd"):
        return f"useradd -g =uid -c hactl -d /var/empty -s /sbin/nologin {name}"
    return f"useradd --system --user-group --home-dir /nonexistent --shell /usr/sbin/nologin {name}"


def directory(path: Path, mode: int, owner: Account | None) -> None:
    """Make a directory for *owner* (None: for us) if it is missing.

    Raise OSError, also if it is somebody else's: giving away what others could have filled with
    links would give away more than a directory.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        path.mkdir(mode)
    except FileExistsError:
        found = path.stat()
        if owner is not None and found.st_uid != owner.uid:
            raise PermissionError(
                f"{path} belongs to {_user(found.st_uid)}, and hactld runs as {owner.name};"
                f' run "chown -R {owner.name}: {path}"'
            ) from None
        if not stat.S_ISDIR(found.st_mode):
            raise
    else:
        path.chmod(mode)  # whatever the umask is
        if owner is not None:
            os.chown(path, owner.uid, owner.gid, follow_symlinks=False)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def group(name: str) -> int:
    """Return a group's number.  Raise LookupError."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise LookupError(f'control: group: there is no group "{name}"') from None


def settle() -> None:
    """Let nothing of the caller's surroundings matter: directory, umask, core files."""
    os.chdir("/")
    os.umask(0o022)  # the hook's files are for everybody to see; what is not has a mode of its own
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def descriptors(wanted: int = DESCRIPTORS) -> int:
    """Raise the limit of open files to what is of use and allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return wanted if soft == resource.RLIM_INFINITY else soft


def dropped(parent: int) -> None:
    """See that root is really gone, for good, and that we go when our *parent* does.

    Raise PermissionError if any of it is not so.
    """
    if 0 in {os.getuid(), os.geteuid(), *_saved(), os.getgid(), os.getegid()}:
        raise PermissionError("root's rights were not given up")
    for regain in (os.setuid, os.setgid):
        try:
            regain(0)
        except PermissionError:
            continue
        raise PermissionError("root's rights could be taken back")
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise PermissionError("the helper went away")


def _saved() -> Iterable[int]:
    """Return the saved ids, where they can be asked for."""
    if sys.platform == "linux" or hasattr(os, "getresuid"):
        return os.getresuid()[2], os.getresgid()[2]
    return ()


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) == -1:
        raise _failure(f"prctl {option}")


def _failure(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


_LIBC = ctypes.CDLL(None, use_errno=True)


def pledge(promises: str, libc: object = _LIBC) -> bool:
    """Promise to do no more than this; tell whether there is a pledge(2) to do it with."""
    return _call(libc, "pledge", promises.encode(), None)


def unveil(writable: Iterable[Path], libc: object = _LIBC) -> bool:
    """See and run whatever we may, but write only below *writable*; tell whether that holds."""
    if not _call(libc, "unveil", b"/", b"rx"):
        return False
    for path in writable:
        _call(libc, "unveil", os.fsencode(path), b"rwc")
    _call(libc, "unveil", b"/dev/null", b"rw")
    return _call(libc, "unveil", None, None)


def _call(libc: object, name: str, first: bytes | None, second: bytes | None) -> bool:
    """Call a function of libc's that takes two strings; tell whether there is one."""
    function = getattr(libc, name, None)
    if function is None:
        return False
    if function(first, second) == -1:
        raise _failure(name)
    return True
