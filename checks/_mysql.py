"""MySQL and MariaDB: one login for each look, by pymysql, in a thread that cannot outlive the look.

pymysql's own timeouts are for one read each, so a server that drips would hold a thread for ever.
The socket is ours: it is connected in the loop, which also waits for the server's first word; only
then a thread begins, and when the look ends the socket is shut down under it.

A look makes a connection of its own, as clients do: a kept one would see neither too many
connections nor a changed password.  It is never given up before a login without need, as the server
counts such connections, and blocks the address they come from (error 1129): one that is not greeted,
for the server hangs, is what the next look waits for.
Source: MySQL's and MariaDB's error references.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import pymysql
from pymysql.connections import Connection

from checks import LOGIN, Probed, Step, Target, Timing, _login, _tls, named
from checks._tls import Policy
from checks._wire import endpoint, quote
from hactl.core.model import Result, fail, unknown
from hactl.core.units import Secret

THREADS = 64  # of all looks at databases together
LIMIT = 1 << 20  # bytes that a server may say in a look
STATEMENT = 10  # seconds after which the server gives up a statement, which outlives its look
DOOR = 2.0  # seconds for the other door, as what is wrong at the first is known by then
KEPT = 30.0  # seconds for which a connection that was not greeted is waited for

FULL, REFUSED, BLOCKED, NO_HOST = 1040, 1045, 1129, 1130

# What is ours to mend: grants, and the statement that hactl.yaml has.
_GRANTS = frozenset({1044, 1142, 1143, 1227, 1370, 1410})
_OURS = _GRANTS | {1064, 1193}
_WORDS = {
    FULL: "too many connections",
    BLOCKED: "our address is blocked: on the server FLUSH HOSTS, and max_connect_errors, help",
}
_UNDER_TLS = "login: the server wants the whole password, which wants TLS (tls: starttls)"
_NEEDED = re.compile(r"the (.+) privilege\(s\)")
_DENIED = re.compile(r"(.+) command denied to user .* for (?:table|column|routine) (.+)")

if TYPE_CHECKING:
    _Base = Connection[Any]
else:
    _Base = Connection

Row = dict[str, str | None]
_T = TypeVar("_T")


class Account(Probed, frozen=True, kw_only=True):
    """The options of a check that logs in to a database.

    *socket*: the path of a Unix socket on this machine, in place of address and port.  *extra_port*:
    where MariaDB lets somebody in when there are too many connections.  *login*: a file with user and
    password on two lines.  The rest is as in `checks._login`.
    """

    port: int = 3306
    extra_port: int | None = None
    socket: Path | None = None
    login: Secret
    tls: Literal["off", "starttls"] = "off"
    verify: bool = True
    name: str = ""
    ca: Path | None = None

    timing: ClassVar[Timing] = LOGIN

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(verify=self.verify, ca=self.ca)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is wrong with TLS, with the login, and with a socket or port."""
        if self.tls != "off":
            yield from _tls.problems(self.policy, self.name)
        yield from _login.problems(self.login)
        yield from named(self.socket)
        if self.extra_port is not None and not 1 <= self.extra_port <= 65535:
            yield "extra_port", f"expected a port, 1 to 65535 (got {self.extra_port})"

    def where(self, address: str, port: int | None) -> tuple[str, int]:
        """Return the Unix socket if there is one, unless a *port* is wanted."""
        if self.socket is not None and port is None:
            return str(self.socket), 0
        return address, port or self.port


class Refused(Exception):  # noqa: N818 - it carries a result
    """The end of a look; *number* is the server's error, 0 if it did not say one."""

    def __init__(self, result: Result, number: int = 0) -> None:
        super().__init__(result.reason)
        self.result = result
        self.number = number


class Session:
    """A login that works, in its thread.

    *step* is called there: it sets a name and a time, which the loop only reads.
    """

    def __init__(self, connection: _Base, step: Step) -> None:
        self._connection = connection
        self.step = step

    @property
    def mariadb(self) -> bool:
        """Tell MariaDB from MySQL."""
        return "MariaDB" in str(self._connection.server_version)  # type: ignore[attr-defined]

    def rows(self, statement: str) -> list[Row]:
        """Return what *statement* finds, each value as the server writes it."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            names = [column[0] for column in cursor.description or ()]
            found = cursor.fetchall()
        return [dict(zip(names, map(_text, row), strict=False)) for row in found]


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


async def ask(
    account: Account,
    target: Target,
    step: Step,
    work: Callable[[Session], _T],
    *,
    port: int | None = None,
) -> _T:
    """Log in to *target*, and return what *work* does there in a thread of its own.

    Raise Refused with a result, or what `checks._tasks` knows to judge.
    """
    resting = _login.rest(target)
    if resting is not None:
        raise Refused(resting)
    place = account.where(target.address, port)
    sock = await _reached((account, target.node), place, step)
    try:
        sock.setblocking(True)
        done = await _threaded(sock, lambda: _log_in(account, target, sock, step, work))
    except pymysql.MySQLError as error:
        raise _judged(error, target, account) from None
    except _BROKEN as error:
        if "cryptography" in str(error):  # pymysql misses it, to hide a password without TLS
            raise Refused(unknown(_UNDER_TLS)) from None
        raise Refused(fail(f"not an answer of MySQL ({quote(str(error).encode(), 60)})")) from None
    finally:
        sock.close()
    if target.noted("refusals"):
        _login.accepted(target)
    return done


# What pymysql raises over what is no MySQL, its own complaints apart.
_BROKEN = (
    struct.error, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError,
)  # fmt: skip


# In the loop

_ungreeted: dict[object, tuple[socket.socket, float]] = {}


async def _reached(who: object, place: tuple[str, int], step: Step) -> socket.socket:
    """Return a connection to *place* on which the server has begun to speak; *who* looks."""
    loop = asyncio.get_running_loop()
    for each, (_, since) in tuple(_ungreeted.items()):
        if loop.time() - since > KEPT:
            _ungreeted.pop(each)[0].close()
    key = who, place
    sock, since = _ungreeted.pop(key, (None, loop.time()))
    if sock is not None:
        step("greeting")
        with suppress(OSError, Refused):  # a server that was started again knows nothing of it
            return await _greeted(key, sock, since)
    step("connect")
    family, where = endpoint(*place)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await loop.sock_connect(sock, where)
    except BaseException as error:
        sock.close()
        if isinstance(error, FileNotFoundError):  # a Unix socket's
            raise ConnectionRefusedError(111, "connection refused") from None
        raise
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    step("greeting")
    return await _greeted(key, sock, loop.time())


async def _greeted(key: object, sock: socket.socket, since: float) -> socket.socket:
    """Return *sock* when there is something to read; keep it for the next look if this one ends."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def heard() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock, heard)
    try:
        await readable
        _heard(sock)
    except asyncio.CancelledError:
        loop.remove_reader(sock)
        if key not in _ungreeted:
            _ungreeted[key] = sock, since
        else:
            sock.close()
        raise
    except BaseException:
        loop.remove_reader(sock)
        sock.close()
        raise
    loop.remove_reader(sock)
    return sock


def _heard(sock: socket.socket) -> None:
    if not sock.recv(1, socket.MSG_PEEK):
        raise Refused(fail("greeting: closed without a word"))


_threads = ThreadPoolExecutor(THREADS, "database")
_working = threading.BoundedSemaphore(THREADS)


def _ended(work: asyncio.Future[Any]) -> None:
    _working.release()
    work.exception()  # nobody else asks for it when the look is over


async def _threaded(sock: socket.socket, work: Callable[[], _T]) -> _T:
    """Do *work* in a thread; shut *sock* down if the look ends before it, which ends it too."""
    if not _working.acquire(blocking=False):
        raise Refused(unknown(f"too many databases at a time ({THREADS} are being asked)"))
    line = sock.dup()  # TLS takes the socket itself away
    try:
        begun = asyncio.get_running_loop().run_in_executor(_threads, work)
    except BaseException:
        _working.release()
        line.close()
        raise
    begun.add_done_callback(_ended)
    try:
        await asyncio.wait([begun])
    finally:
        if not begun.done():
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        while not begun.done():  # at once now, and the loop must not end before it
            with suppress(asyncio.CancelledError):
                await asyncio.wait([begun])
        line.close()
    return begun.result()


# In the thread


class _Connection(_Base):
    """pymysql's, with a bound on what the server says."""

    left = LIMIT
    _secure = False

    def _read_bytes(self, num_bytes: int) -> bytes:
        self.left -= num_bytes
        if self.left < 0:
            self._force_close()  # type: ignore[attr-defined]
            raise Refused(fail(f"more than {LIMIT >> 20} MiB of answers"))
        return super()._read_bytes(num_bytes)  # type: ignore[misc,no-any-return]

    def set_character_set(self, charset: str, collation: str | None = None) -> None:
        """Leave it at what the handshake said: one statement less, and what we read is ASCII."""


class _Clear:
    """A plugin that would send the password as it is; anybody could ask for it."""

    def __init__(self, _connection: object) -> None: ...

    def authenticate(self, _packet: object) -> None:
        """Do not."""
        raise Refused(unknown("login: the server wants the password in clear, which is not sent"))


_CLEAR: dict[str, Callable[[_Base], Any]] = dict.fromkeys(
    ("mysql_clear_password", "dialog", "mysql_old_password"), _Clear
)
_BOUNDED = (
    f"SET SESSION lock_wait_timeout={STATEMENT} /*M!100101 , max_statement_time={STATEMENT} */"
    f" /*!50708 , max_execution_time={STATEMENT * 1000} */"
)


def _log_in(
    account: Account,
    target: Target,
    sock: socket.socket,
    step: Step,
    work: Callable[[Session], _T],
) -> _T:
    login = _login.get(account.login)
    secure = account.tls != "off"
    connection = _Connection(
        host=account.name or target.node,
        user=login.user,
        password=login.password,
        charset="utf8mb4",
        use_unicode=False,
        autocommit=None,
        init_command=_BOUNDED,
        conv={},
        ssl=_tls.get(account.policy).strict if secure else None,
        ssl_disabled=not secure,
        auth_plugin_map=_CLEAR,
        defer_connect=True,
    )
    if account.socket is not None:
        connection._secure = True  # as the server has it; pymysql sees a socket of ours
    try:
        step("login")
        connection.connect(sock)
        if secure and not isinstance(connection._sock, ssl.SSLSocket):  # type: ignore[attr-defined]
            raise Refused(fail("login: the server offers no TLS"))
        return work(Session(connection, step))
    finally:
        with suppress(Exception):
            connection.close()  # with a parting word, or the server's log has an aborted connection


# What the server says


def _judged(error: pymysql.MySQLError, target: Target, account: Account) -> Exception:
    """Return what to raise for an error of pymysql's."""
    cause = getattr(error, "original_exception", None)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Refused(fail(f"tls: {_tls.distrust(cause, account.name or target.node)}"))
    if isinstance(cause, OSError):
        return cause
    number, message = (*error.args, "", "")[:2] if error.args else (0, "")
    if not isinstance(number, int) or number <= 0:
        told = number if isinstance(number, str) else message
        return Refused(fail(f"not an answer of MySQL ({quote(str(told).encode(), 60)})"))
    if 2000 <= number < 3000:  # the client's own
        return _lost(number, str(message))
    if number in (REFUSED, NO_HOST):
        login = _login.get(account.login)
        return Refused(
            _login.refused(target, login, f"{number} {message}".encode(), str(number).encode()),
            number,
        )
    return Refused(said(number, str(message)), number)


def _lost(number: int, message: str) -> Exception:
    if number in (2006, 2013, 2055):
        return EOFError()
    if number == 2026:
        return Refused(fail("login: the server offers no TLS"))
    return Refused(fail(quote(f"{number} {message}".encode(), 160)))


def trouble(error: Refused | OSError | EOFError) -> str:
    """Say in a few words why nothing came of a look."""
    if isinstance(error, Refused):
        return error.result.reason
    if isinstance(error, EOFError):
        return "closed in mid-answer"
    if isinstance(error, ssl.SSLError):
        return _tls.trouble(error)[1]
    number = error.errno or 0
    return (os.strerror(number) if number > 0 else error.strerror or "no answer").lower()


def said(number: int, message: str) -> Result:
    """Judge an error of the server's."""
    told = quote(f"{number} {_WORDS.get(number, message)}".encode(), 160)
    if number in _GRANTS:
        return unknown(quote(f"missing grant: {grant(message)}".encode(), 160))
    return unknown(told) if number in _OURS else fail(told)


def grant(message: str) -> str:
    """Return which grant a message misses, the whole of it if it does not say."""
    needed = _NEEDED.search(message)
    if needed is not None:
        return needed[1].replace(", ", " or ")
    denied = _DENIED.search(message)
    return message if denied is None else f"{denied[1]} on {denied[2]}"
