"""Checks: one file a check type, found by module name.

A type is an `Option` subclass: its fields are the options of hactl.yaml, its class variable
`timing` the defaults.  It is `Spoken` if it is a conversation over one socket, which is cheap, else
`Probed`: a coroutine, which may use libraries and programs.  A check judges one look; it knows
nothing of thresholds over time, of tables or of relayd.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

from msgspec import Struct

if TYPE_CHECKING:
    from checks._wire import Dialogue
    from hactl.core.model import Result

Step = Callable[[str], None]  # says which step of a look begins; the one before has ended


class Timing(Struct, frozen=True):
    """Seconds a type is run at unless hactl.yaml says otherwise.

    *fast* 0 means the interval, *hedge* 0 none.
    """

    interval: float
    timeout: float
    fast: float
    hedge: float = 0.0


DIALOGUE = Timing(interval=2.0, timeout=1.0, fast=0.2, hedge=0.1)
LOGIN = Timing(interval=5.0, timeout=3.0, fast=1.0)
SCAN = Timing(interval=10.0, timeout=10.0, fast=1.0)
HANDSHAKE = Timing(interval=30.0, timeout=5.0, fast=1.0)


class Target(NamedTuple):
    """Who is looked at: a node's name, and the address that the look goes to.

    *at*: when the look begins, in seconds since the epoch.  *memory*: what earlier looks at this
    target by this check have noted, empty after each load of the configuration; None: nothing is
    remembered.
    """

    node: str = ""
    address: str = ""
    at: float = 0.0
    memory: dict[str, float] | None = None

    def note(self, **facts: float) -> None:
        """Leave *facts* to later looks."""
        if self.memory is not None:
            self.memory.update(facts)

    def noted(self, fact: str) -> float | None:
        """Return what an earlier look has left, None if none did."""
        return None if self.memory is None else self.memory.get(fact)

    def since(self, event: str) -> float:
        """Return the seconds since a time that was noted; infinity if it was not, or is to come."""
        then = self.noted(event)
        return float("inf") if then is None or then > self.at else self.at - then

    def due(self, event: str, every: float) -> bool:
        """Tell whether it is time again for *event*; never if *every* is 0 or nothing is remembered."""
        return self.memory is not None and every > 0 and self.since(event) >= every


NOBODY = Target()


class Option(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Options of a check type; the tag is the type's name."""

    timing: ClassVar[Timing]

    def times(self) -> Timing:
        """Return `timing`, or what suits these options better."""
        return self.timing

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield the options that cannot be, or not together: a field, and what is wrong with it.

        It is asked when the configuration is loaded, so what has to be made or read once is made
        and read here, and kept in what `keep` returned.
        """
        return ()


class Spoken(Option, frozen=True, kw_only=True):
    """A check that is a dialogue with a port."""

    port: int

    timing: ClassVar[Timing] = DIALOGUE

    def where(self, address: str) -> tuple[str, int]:
        """Return what to connect to at *address*: it and a port, or the path of a Unix socket."""
        return address, self.port

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Return a new conversation with *target* (see `checks._wire`)."""
        raise NotImplementedError


PATH_LIMIT = 100  # bytes of a Unix socket's name, on any system


def named(socket: Path | None) -> Iterable[tuple[str, str]]:
    """Yield that a path is too long for a socket, as `Option.problems` does."""
    if socket is not None and len(bytes(socket)) > PATH_LIMIT:
        yield "socket", f"expected a path of at most {PATH_LIMIT} bytes"


class Local(Spoken, frozen=True, kw_only=True):
    """A check that is a dialogue with a port, or with *socket*, a Unix socket on this machine."""

    socket: Path | None = None

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield a path that is too long for a socket."""
        return named(self.socket)

    def where(self, address: str) -> tuple[str, int]:
        """Return the Unix socket if there is one."""
        return (address, self.port) if self.socket is None else (str(self.socket), 0)


class Probed(Option, frozen=True, kw_only=True):
    """A check that is a coroutine: it needs a library or a program, or may block."""

    async def probe(self, target: Target, step: Step) -> Result:
        """Look once at *target*, and call *step* where a new step begins (see `checks._tasks`).

        Whatever it raises is judged there, and its time is limited there: it is cancelled at the
        deadline, and waited for by the next look if it does not end then.
        """
        raise NotImplementedError


_K = TypeVar("_K")
_V = TypeVar("_V")
_kept: list[dict[Any, Any]] = []


def keep(found: dict[_K, _V]) -> dict[_K, _V]:
    """Return *found*, which is for what is read from files when a configuration is loaded."""
    _kept.append(found)
    return found


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """Forget what was read from files within, if it ends with an exception."""
    before = [dict(found) for found in _kept]
    try:
        yield
    except BaseException:
        for found in _kept:  # those of modules that were loaded within have no place in *before*
            found.clear()
        for found, old in zip(_kept, before, strict=False):
            found.update(old)
        raise


def names() -> list[str]:
    """Return the names of the built-in check types, sorted."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> type[Option]:
    """Return the option class of check type *name*.  Raise KeyError if there is none."""
    if name not in names():
        raise KeyError(name)
    module = importlib.import_module(f"checks.{name}")
    return next(
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, (Spoken, Probed))
        and kind.__struct_config__.tag == name
    )
