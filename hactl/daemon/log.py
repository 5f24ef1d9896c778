"""log: where both processes of hactld write, and how they let go of the terminal."""

from __future__ import annotations

import logging
import os
import syslog


def quiet() -> None:
    """Let go of the terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)


def leave(told: int | None) -> None:
    """Let go of the terminal, if that was to be, and tell who waits at it that hactld runs."""
    if told is not None:
        quiet()
        os.write(told, b".")
        os.close(told)


class _Syslog(logging.Handler):
    """Send records to syslog, facility daemon, under hactld's name and pid."""

    def __init__(self) -> None:
        super().__init__()
        syslog.openlog("hactld", syslog.LOG_PID, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        levels = {10: syslog.LOG_DEBUG, 20: syslog.LOG_INFO, 30: syslog.LOG_WARNING}
        syslog.syslog(levels.get(record.levelno, syslog.LOG_ERR), record.getMessage())


def begin(*, foreground: bool, verbose: bool) -> None:
    """Log to stderr in the foreground, else to syslog."""
    handler: logging.Handler = logging.StreamHandler() if foreground else _Syslog()
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(message)s"
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # a full disk or a gone terminal stops nothing
