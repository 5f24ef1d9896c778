"""Read logins from their files when the configuration is loaded; nobody else sees what they hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from hactl.core.units import Secret


class Login(NamedTuple):
    """User and password as the file has them; bytes, so that no codec's error can quote them."""

    user: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Login(...)"


_read: dict[Secret, Login] = {}


def load(secret: Secret) -> Login:
    """Read *secret* anew.  Raise OSError, or ValueError if it is not two lines."""
    lines = Path(secret.path).read_bytes().splitlines()
    if len(lines) != 2 or not all(lines) or any(b"\0" in line for line in lines):
        raise ValueError("expected two lines, a user and a password")
    login = _read[secret] = Login(*lines)
    return login


def get(secret: Secret) -> Login:
    """Return what was read at load."""
    return _read.get(secret) or load(secret)


def problems(secret: Secret) -> Iterable[tuple[str, str]]:
    """Load *secret*; yield what is wrong with it (see `checks.Option.problems`)."""
    try:
        load(secret)
    except OSError as error:
        yield "login", f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        yield "login", str(error)
