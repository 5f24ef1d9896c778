"""hactld: arguments, directories, log; then the daemon."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import socket
import sys
import syslog
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hactl import config as config_
from hactl.config import Config, ConfigError
from hactl.daemon import control, privilege
from hactl.daemon.helped import Fixed, Helped, Inherited
from hactl.daemon.helper import Duty, Helper, Kept
from hactl.daemon.privilege import Account
from hactl.relayd import hook

log = logging.getLogger("hactld")

DEFAULT = Path("/etc/hactl.yaml")


def main() -> None:
    """Run hactld as hactld(8) says."""
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
        _log(options)
    try:
        config = config_.load(options.f)
    except ConfigError as error:
        sys.exit(_last_words(str(error), options))
    if options.n:
        print("configuration OK", file=sys.stderr)
        return
    try:
        privilege.settle()
        if options.helped is not None:
            sys.exit(_work(config, options))
        account = privilege.account(config.user)
        sys.exit(_alone(config, options) if account is None else _split(config, options, account))
    except (OSError, LookupError) as error:
        sys.exit(_last_words(f"hactld: {error}", options))


def _last_words(text: str, options: argparse.Namespace) -> int:
    """Say why hactld does not run: to whoever started it, and where the helper did, to the log."""
    print(text, file=sys.stderr)
    if options.helped is not None and not options.d:
        for line in text.splitlines():
            log.error("%s", line)
    return 1


# Alone, or in two


def _alone(config: Config, options: argparse.Namespace) -> int:
    """Do everything in one process, as whoever we are."""
    with _claim(config, None), control.listen(*_place(config)) as listening:
        started = _daemonize() if not options.d else _nothing
        _log(options)
        if os.geteuid() == 0:
            log.warning("runs as root, without a helper, as hactl.yaml says (user: root)")
        try:
            return _serve(config, options, started, listening)
        finally:
            config.control.path.unlink(missing_ok=True)


def _split(config: Config, options: argparse.Namespace, account: Account) -> int:
    """Stay root as the helper, and have *account* do the work in another process."""
    where = config.relayd
    programs = {"relayctl": [os.fspath(where.relayctl)], "pfctl": [os.fspath(where.pfctl)]}
    if where.socket is not None:
        programs["relayctl"] += ["-s", os.fspath(where.socket)]
    flags = [flag for flag, given in (("-d", options.d), ("-v", options.v)) if given]
    command = [sys.executable, "-P", "-m", "hactl.daemon.main"]
    with _claim(config, account) as lock, control.listen(*_place(config, account)) as listening:
        started = _daemonize() if not options.d else _nothing
        _log(options)
        threading.excepthook = _broken
        privilege.pledge(privilege.HELPER_PROMISES)
        kept = Kept(
            [*command, "-f", os.fspath(options.f), *flags, "--kept", Fixed.of(config), "--helped"],
            listening.fileno(),
            lock.fileno(),
            account,
            partial(hook.withdraw, config.run_dir / "down", config.withdrawn()),
            on_dead=config.on_dead or (),
        )
        try:
            return Helper(Duty(programs, where.conf, where.timeout), kept).run(started)
        finally:
            config.control.path.unlink(missing_ok=True)


def _work(config: Config, options: argparse.Namespace) -> int:
    """Be what the helper keeps alive."""
    inherited = Inherited.parse(options.helped)
    privilege.dropped(inherited.helper)
    config = Fixed.parse(options.kept).keep(config)
    privilege.unveil([config.state_dir, config.run_dir])
    privilege.pledge(privilege.PROMISES)
    started = _nothing if options.d else _quiet
    return _serve(config, options, started, inherited.listening, inherited)


def _claim(config: Config, owner: Account | None) -> BinaryIO:
    """Make the directories and lock them.  Raise OSError."""
    privilege.directory(config.run_dir, 0o755, owner)
    privilege.directory(config.state_dir, 0o750, owner)
    config.control.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW  # a disk that cannot be written will do
    lock = os.fdopen(os.open(config.state_dir / "lock", flags, 0o640), "rb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BlockingIOError(f"another hactld runs with {config.state_dir}") from None
    if owner is not None and os.fstat(lock.fileno()).st_uid != owner.uid:
        os.fchown(lock.fileno(), owner.uid, owner.gid)
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
        asyncio.get_running_loop().set_exception_handler(_complain)
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
        log.exception("a fault of hactld's own ends it")
        return 1
    return 0


def _broken(fault: threading.ExceptHookArgs) -> None:
    """Say in a line that a lane of the helper's broke: hactld then ends, and is started again."""
    log.error("helper: %r", fault.exc_value)


def _complain(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say in a line what the event loop has to say."""
    log.error("%s: %r", context["message"], context.get("exception", ""))


def _nothing() -> None:
    """Have nobody to tell: whoever started us sees for himself."""


def _daemonize() -> Callable[[], None]:
    """Leave the terminal: fork, new session, fork again.

    The first process stays until the last one calls what is returned here, which also lets go of
    the terminal, or has ended: so whoever started hactld sees its last words and its exit code.
    """
    waiting, told = os.pipe()
    if os.fork():
        os.close(told)
        os._exit(0 if os.read(waiting, 1) else 1)
    os.close(waiting)
    os.setsid()
    if os.fork():
        os._exit(0)

    def started() -> None:
        _quiet()
        os.write(told, b".")
        os.close(told)

    return started


def _quiet() -> None:
    """Let go of the terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)


class _Syslog(logging.Handler):
    """Send records to syslog, facility daemon, under hactld's name and pid."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("hactld", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        levels = {10: syslog.LOG_DEBUG, 20: syslog.LOG_INFO, 30: syslog.LOG_WARNING}
        syslog.syslog(levels.get(record.levelno, syslog.LOG_ERR), record.getMessage())


def _log(options: argparse.Namespace) -> None:
    handler: logging.Handler = logging.StreamHandler() if options.d else _Syslog()
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if options.v else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk or a gone terminal stops nothing


if __name__ == "__main__":
    main()
