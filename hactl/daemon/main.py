"""hactld: arguments, directories, log; then the daemon."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import sys
import syslog
from collections.abc import Callable
from pathlib import Path

from hactl import config as config_
from hactl.config import Config, ConfigError

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
    options = parser.parse_args()
    try:
        config = config_.load(options.f)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    if options.n:
        print("configuration OK", file=sys.stderr)
        return
    try:
        sys.exit(_run(options.f.absolute(), config, foreground=options.d, verbose=options.v))
    except (OSError, LookupError) as error:
        sys.exit(f"hactld: {error}")


def _run(path: Path, config: Config, *, foreground: bool, verbose: bool) -> int:
    """Prepare what the daemon needs, and run it.  Raise OSError or LookupError."""
    from hactl.daemon.daemon import Daemon

    config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    config.state_dir.mkdir(mode=0o750, parents=True, exist_ok=True)
    config.control.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = (config.state_dir / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"hactld: another hactld runs with {config.state_dir}", file=sys.stderr)
        return 1
    started = _daemonize() if not foreground else _nothing
    _log(foreground=foreground, verbose=verbose)

    async def serve() -> None:
        await Daemon(path, config).run(started)

    try:
        asyncio.run(serve())
    except (OSError, LookupError):
        raise
    except Exception:
        logging.getLogger("hactld").exception("a fault of hactld's own ends it")
        return 1
    return 0


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
    os.chdir("/")

    def started() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        os.write(told, b".")
        os.close(told)

    return started


class _Syslog(logging.Handler):
    """Send records to syslog, facility daemon, under hactld's name and pid."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("hactld", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        levels = {10: syslog.LOG_DEBUG, 20: syslog.LOG_INFO, 30: syslog.LOG_WARNING}
        syslog.syslog(levels.get(record.levelno, syslog.LOG_ERR), record.getMessage())


def _log(*, foreground: bool, verbose: bool) -> None:
    handler: logging.Handler = logging.StreamHandler() if foreground else _Syslog()
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk or a gone terminal stops nothing


if __name__ == "__main__":
    main()
