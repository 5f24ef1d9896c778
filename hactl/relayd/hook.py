"""hook: what relayd's `check script` is told, and the links by which relayd finds the script.

While the file DOWN/SERVICE/WORD exists, hactl-verdict says that the host is down; whatever is
missing is up.  So the files are all there is to it: they are read again in each cycle, as relayd
is, and an empty run_dir after a reboot means what relayd's own forgetting does.

relayd runs the script as _relayd, one host after another, and takes a script that is missing or
was killed at its timeout for a host that is down (relayd's check_script.c).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

from hactl.core.model import Member
from hactl.relayd.conf import ConfService, RelaydConf
from hactl.relayd.relayctl import Answer, Outcome

log = logging.getLogger("hactld")

PROGRAM = "hactl-verdict"
WORD = re.compile(r"(?!\.\.?$)[A-Za-z0-9._:%-]{1,255}")  # what hactl-verdict answers for
HIDDEN = 100  # names for verdicts withdrawn since hactld last started
MOST = 10_000  # files read of one service; relayd has fewer hosts


class HookError(Exception):
    """A link cannot be made or must not go; the text says where, why, and what would be right."""


# Verdicts


class Verdicts:
    """The files of all services.  *problem* says what could not be read or cleared, until it can."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[str, frozenset[str]] = {}
        self.problem = ""

    def read(self, services: Collection[str]) -> Mapping[str, frozenset[str]]:
        """Return by service whom the hook calls down; what cannot be read is taken as it was."""
        problem = ""
        for service in services:
            try:
                self._known[service] = frozenset(_files(self._directory / service))
            except OSError as error:
                problem = _told(error, self._directory / service)
        self._tell(problem)
        return {name: self._known.get(name, frozenset()) for name in services}

    def put(self, member: Member, *, down: bool) -> Outcome:
        """Make the hook say that a host is down, or no longer; a failure changes nothing."""
        file = self._directory / member.service / member.word
        if not WORD.fullmatch(member.word):
            text = f"hook: {member.word!r} is no name that {PROGRAM} answers for; it stays up"
            return Outcome(Answer.REFUSED, text)
        try:
            if down:
                self._prepare(file.parent)
                _create(file)
            else:
                _remove(file)
        except OSError as error:
            said = "up" if down else "down"
            return Outcome(Answer.REFUSED, f"{_told(error, file)}; relayd is told {said} as before")
        return Outcome(Answer.DONE, f"hook: {file} {'made' if down else 'removed'}")

    def keep(self, services: Collection[str]) -> list[str]:
        """Clear the verdicts of all other services, which nobody decides any more.

        Return what could not be cleared.
        """
        self._known = {name: words for name, words in self._known.items() if name in services}
        notes = []
        try:
            for name in [name for name in _files(self._directory) if name not in services]:
                _clear(self._directory / name)
        except OSError as error:
            notes.append(f"{_told(error, self._directory)}; old verdicts of the hook remain")
        return notes

    def held(self, services: Collection[str]) -> list[str]:
        """Say which verdicts hold in services where nobody changes them."""
        notes = []
        for service, words in self.read(services).items():
            if words:
                names = ", ".join(sorted(words))
                notes.append(f"service {service}: mode observe, but the hook calls {names} down")
        return notes

    def _prepare(self, directory: Path) -> None:
        """Make the way to the files, open to relayd's user whatever our umask is."""
        for step in (self._directory.parent, self._directory, directory):
            try:
                step.mkdir(mode=0o755, exist_ok=True)
            except FileExistsError:
                code = errno.ENOTDIR
                raise NotADirectoryError(code, os.strerror(code), str(step)) from None
            mode = step.stat().st_mode
            if mode & 0o011 != 0o011:
                step.chmod(mode & 0o7777 | 0o755)

    def _tell(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("%s", problem)
        self.problem = problem


def withdraw(directory: Path, services: Iterable[str]) -> None:
    """Take the verdicts of *services* away, whose hosts relayd is then told to be up.

    *directory* is run_dir/down, whose owner need not be trusted: nothing is followed or deleted, a
    rename hides each service's files at once; `Verdicts.keep` clears them at hactld's next start.
    Raise the last OSError after all were tried.
    """
    failed: OSError | None = None
    try:
        down = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for service in services:
            try:
                _hide(service, down)
            except OSError as error:
                failed = error
    finally:
        os.close(down)
    if failed is not None:
        raise failed


def _hide(name: str, directory: int) -> None:
    """Give an entry of the open *directory* a name that the hook never asks for."""
    for number in range(HIDDEN):
        try:
            os.rename(name, f".{name}.{number}", src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as error:
            if (
                error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
                or number == HIDDEN - 1
            ):
                raise
        else:
            return


def _clear(directory: Path) -> None:
    """Remove a directory of verdicts."""
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink(missing_ok=True)
        return
    for name in list(_files(directory, existing=False)):
        _remove(directory / name)
    directory.rmdir()


def _files(directory: Path, *, existing: bool = True) -> Iterator[str]:
    """Yield the names in a directory, none if it is missing; a dangling link is no file to sh."""
    try:
        with os.scandir(directory) as entries:
            for entry in islice(entries, MOST):
                if not existing or not entry.is_symlink() or Path(entry.path).exists():
                    yield entry.name
    except FileNotFoundError:
        return


def _create(file: Path) -> None:
    """Make an empty file; whatever else exists there says the same to the hook."""
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        return
    if not file.exists():  # a link to nowhere
        file.unlink()
        _create(file)


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError:
        if not file.is_dir():
            raise
        file.rmdir()


def _told(error: OSError, path: Path) -> str:
    return f"hook: {error.filename or path}: {error.strerror or error}"


# Links


def program() -> Path:
    """Return the script as this package carries it."""
    return Path(__file__).with_name(PROGRAM)


def install(service: str, directory: Path) -> None:
    """Link *service* to the script in *directory*, which gets both.  Raise HookError or OSError."""
    for missing in [step for step in (directory, *directory.parents) if not step.exists()][::-1]:
        missing.mkdir()
        missing.chmod(0o755)  # whatever root's umask is
    mode = directory.stat().st_mode
    if mode & 0o022:
        raise HookError(f"{directory}: others may write there, and relayd runs what it finds")
    if mode & 0o001 == 0:
        raise HookError(f"{directory}: relayd's user may not enter it, and would find no script")
    script, ours = directory / PROGRAM, program().read_bytes()
    if (
        not script.exists()
        or stat.S_IMODE(script.stat().st_mode) != 0o755
        or script.read_bytes() != ours
    ):
        fresh = directory / f".{PROGRAM}.new"
        fresh.write_bytes(ours)
        fresh.chmod(0o755)
        fresh.rename(script)
    link = directory / service
    if not linked(link):
        with suppress(FileExistsError):
            link.symlink_to(PROGRAM)
            return
        raise HookError(f"{link}: exists and is no link to {PROGRAM}; move it away first")


def linked(link: Path) -> bool:
    """Tell whether *link* is one that `install` makes."""
    return link.is_symlink() and link.readlink() == Path(PROGRAM)


def users(conf: RelaydConf, link: Path) -> list[str]:
    """Name the redirects and relays whose hosts relayd checks with *link*."""
    return [
        service.name
        for service in conf.services
        if any(
            t.check == "script" and _place(Path(t.argument.path)) == _place(link)
            for t in service.tables
        )
    ]


def _place(link: Path) -> Path:
    """Return *link* in the directory that its way leads to."""
    return Path(os.path.realpath(link.parent), link.name)


def stanza(service: ConfService, link: Path, interval: float) -> list[str]:
    """Write the lines of relayd.conf by which *service* asks *link*; *interval* is relayd's.

    relayd kills a script at its timeout and takes the host for down, so the timeout only bounds
    what a machine out of breath may take; it must be shorter than the interval.
    """
    timeout = max(1, int(min(1000, interval * 500)))
    lines = []
    for table in service.tables:
        before, after = table.line
        check = f'check script "{link}" timeout {timeout}'
        lines.append(f"\t{before} {check} {after}".rstrip())
        if any(host.retry for host in table.hosts):
            lines.append(f"\t# <{table.name}> has hosts with retry: each delays the hook's word")
    return [f"{service.kind} {service.name} {{", "\t# all else as it is", *lines, "}"]
