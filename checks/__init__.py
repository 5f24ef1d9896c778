"""Checks: one file a check type, found by module name.

A type is an `Option` subclass: its fields are the options of hactl.yaml, its class variable
`timing` the defaults, its `talk` the conversation.  A check judges one look; it knows nothing of
thresholds over time, of tables or of relayd.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

if TYPE_CHECKING:
    from checks._wire import Dialogue


class Timing(Struct, frozen=True):
    """Seconds a type is run at unless hactl.yaml says otherwise; *fast* 0 means the interval."""

    interval: float
    timeout: float
    fast: float


DIALOGUE = Timing(interval=2.0, timeout=1.0, fast=0.2)
SCAN = Timing(interval=10.0, timeout=10.0, fast=1.0)


class Option(Struct, frozen=True, kw_only=True, tag_field="type"):
    """Options of a check type; the tag is the type's name."""

    port: int

    timing: ClassVar[Timing] = DIALOGUE

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield the options that cannot be, or not together: a field, and what is wrong with it."""
        return ()

    def talk(self) -> Dialogue:
        """Return a new conversation (see `checks._wire`)."""
        raise NotImplementedError


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
        and issubclass(kind, Option)
        and kind.__struct_config__.tag == name
    )
