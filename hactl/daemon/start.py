"""start: arguments, directories, log; then the daemon, or the helper and the daemon."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hactl import config as config_
from hactl.config import Config, ConfigError
from hactl.daemon import control, log, privilege
from hactl.daemon.helped import Fixed, Helped, Inherited
from hactl.daemon.helper import TOLD
from hactl.daemon.privilege import Account

logger = logging.getLogger("hactld")

DEFAULT = Path("/etc/hactl.yaml")
SAME = 60.0  # seconds until the event loop may say the same again


def main() -> int:
    """Run hactld as hactld(8) says; return its exit code."""
    parser = argparse.ArgumentParser("hactld", description="steer relayd's tables by rich checks")
    parser.add_argument("-d", action="store_true", help="stay in the foreground, log to stderr")
    parser.add_argument("-n", action="store_true", help="check the configuration only")
    parser.add_argument(
        "-f", metavar="FILE", type=Path, default=DEFAULT, help="use this hactl.yaml"
    )
    parser.add_argument("-v", action="store_true", help="log every result")
    for helpers in ("--kept", "--helped"):  # what the helper starts it with
        parser.add_argument(helpers, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.f = options.f.absolute()
    if options.helped is not None:
        log.begin(foreground=options.d, verbose=options.v)
    try:
        config = config_.load(options.f)
    except ConfigError as error:
        return _last_words(str(error), options)
    if options.n:
        print("configuration OK", file=sys.stderr)
        return 0
    try:
        if options.helped is not None:
            return _work(config, options)
        account = privilege.account(config.user)
        return _alone(config, options) if account is None else _split(config, options, account)
    except (OSError, LookupError) as error:
        return _last_words(f"hactld: {error}", options)


def _last_words(text: str, options: argparse.Namespace) -> int:
    """Say why hactld does not run: to whoever started it, and where the helper did, to the log."""
    print(text, file=sys.stderr)
    if options.helped is not None and not options.d:
        for line in text.splitlines():
            logger.error("%s", line)
    return 1


# Alone, or in two


def _alone(config: Config, options: argparse.Namespace) -> int:
    """Do everything in one process, as whoever we are."""
    privilege.settle()
    with _claim(config, None), control.listen(*_place(config)) as listening:
        told = None if options.d else _daemonize()
        log.begin(foreground=options.d, verbose=options.v)
        if os.geteuid() == 0:
            logger.warning("runs as root, without a helper, as hactl.yaml says (user: root)")
        try:
            return _serve(config, options, partial(log.leave, told), listening)
        finally:
            config.control.path.unlink(missing_ok=True)


def _split(config: Config, options: argparse.Namespace, account: Account) -> int:
    """Become the helper, which has *account* do the work in another process.

    The helper is this program started anew, with the same arguments: what was loaded to read the
    configuration is of no use to it.  Raise OSError.
    """
    os.umask(0o022)
    where = config.relayd
    programs = {"relayctl": [os.fspath(where.relayctl)], "pfctl": [os.fspath(where.pfctl)]}
    if where.socket is not None:
        programs["relayctl"] += ["-s", os.fspath(where.socket)]
    flags = [flag for flag, given in (("-d", options.d), ("-v", options.v)) if given]
    command = [sys.executable, "-P", "-m", "hactl.daemon.main", "-f", os.fspath(options.f), *flags]
    with _claim(config, account) as lock, control.listen(*_place(config, account)) as listening:
        told = None if options.d else _daemonize()
        fds = [fd for fd in (lock.fileno(), listening.fileno(), told) if fd is not None]
        for fd in fds:
            os.set_inheritable(fd, True)
        os.environ[TOLD] = json.dumps(
            {
                "duty": (programs, os.fspath(where.conf), where.timeout),
                "command": [*command, "--kept", Fixed.of(config), "--helped"],
                "listening": listening.fileno(),
                "lock": lock.fileno(),
                "account": account,
                "on_dead": config.on_dead or (),
                "control": os.fspath(config.control.path),
                "down": os.fspath(config.run_dir / "down"),
                "withdrawn": sorted(config.withdrawn()),
                "told": told,
                "foreground": options.d,
                "verbose": options.v,
            }
        )
        os.execv(sys.executable, sys.orig_argv)


def _work(config: Config, options: argparse.Namespace) -> int:
    """Be what the helper keeps alive."""
    privilege.settle()
    inherited = Inherited.parse(options.helped)
    privilege.dropped(inherited.helper)
    config = Fixed.parse(options.kept).keep(config)
    privilege.unveil([config.state_dir, config.run_dir])
    privilege.pledge(privilege.PROMISES)
    started = _nothing if options.d else log.quiet
    return _serve(config, options, started, inherited.listening, inherited)


def _claim(config: Config, owner: Account | None) -> BinaryIO:
    """Make the directories and lock them.  Raise OSError."""
    privilege.directory(config.run_dir, 0o755, owner)
    privilege.directory(config.state_dir, 0o750, owner)
    config.control.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = config.state_dir / "lock"
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a disk that cannot be written will do
    try:
        lock = os.fdopen(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640), "rb")
    except FileExistsError:  # not given away: *owner*, whose directory it is, may have linked it
        lock = os.fdopen(os.open(path, flags), "rb")
    else:
        if owner is not None:
            os.fchown(lock.fileno(), owner.uid, owner.gid)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BlockingIOError(f"another hactld runs with {config.state_dir}") from None
    return lock


def _place(config: Config, owner: Account | None = None) -> tuple[Path, int, int, int]:
    """Return path, mode, user and group of the control socket.  Raise LookupError."""
    user, group = (-1, -1) if owner is None else (owner.uid, owner.gid)
    if config.control.group is not None:
        group = privilege.group(config.control.group)
    return config.control.path, config.control.mode, user, group


def _serve(
    config: Config,
    options: argparse.Namespace,
    started: Callable[[], None],
    listening: socket.socket,
    inherited: Inherited | None = None,
) -> int:
    """Run the daemon to its end; return the exit code.  Raise OSError."""
    from hactl.daemon.daemon import Daemon

    privilege.descriptors()

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(_complainer())
        if inherited is None:
            await Daemon(options.f, config, listening).run(started)
            return
        helped = await Helped.join(inherited, config.relayd.timeout)

        def begun() -> None:
            started()
            helped.started()

        await Daemon(options.f, config, listening, helped).run(begun)

    try:
        asyncio.run(serve())
    except (OSError, LookupError):
        raise
    except Exception:
        logger.exception("a fault of hactld's own ends it")
        return 1
    return 0


def _complainer() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return what says in a line what the event loop has to say.

    The same once a minute: asyncio may say hundreds of times a second that it cannot accept.
    """
    said: dict[str, float] = {}

    def complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        line = f"{context['message']}: {context.get('exception', '')!r}"
        now = loop.time()
        for old in [each for each, at in said.items() if now - at >= SAME]:
            del said[old]
        if line not in said:
            said[line] = now
            logger.error("%s", line)

    return complain


def _nothing() -> None:
    """Have nobody to tell: whoever started us sees for himself."""


def _daemonize() -> int:
    """Leave the terminal: fork, new session, fork again; return a descriptor for `log.leave`.

    The first process stays until the last one is heard there, or has ended: so whoever started
    hactld sees its last words and its exit code.
    """
    waiting, told = os.pipe()
    if os.fork():
        os.close(told)
        os._exit(0 if os.read(waiting, 1) else 1)
    os.close(waiting)
    os.setsid()
    if os.fork():
        os._exit(0)
    return told
