"""ask: one question to hactld over its control socket, answered or explained."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from hactl import PROTOCOL

DEFAULT = "/var/run/hactl/hactl.sock"
LIMIT = 64 << 20  # bytes of an answer
UNASKABLE = 3  # exit code: hactld or relayd cannot be asked


class AskError(Exception):
    """hactld cannot be asked; the text says why, and what would help."""


class AbsentError(AskError):
    """hactld does not run, or elsewhere."""


class Reply(NamedTuple):
    """hactld's answer: hactl's exit code, a text for people, the verb's own data."""

    code: int
    text: str
    data: Any


def path(given: str | None, configured: str = DEFAULT) -> str:
    """Return the control socket: as given, from the environment, or as configured."""
    return given or os.environ.get("HACTL_SOCKET") or configured


def ask(
    where: str,
    verb: str,
    *words: str,
    options: Mapping[str, str] | None = None,
    timeout: float = 90,
) -> Reply:
    """Ask hactld.  Raise AskError."""
    request = {"protocol": PROTOCOL, "verb": verb, "words": words, "options": options or {}}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(where)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _line(connection)
    except OSError as error:
        absent = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
        raise (AbsentError if absent else AskError)(_why(error, where, timeout)) from error
    try:
        found = json.loads(answer)
        protocol, reply = found["protocol"], Reply(found["code"], found["text"], found["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise AskError(f"{where}: what answered is not hactld") from error
    if protocol != PROTOCOL:
        raise AskError(f"hactld speaks protocol {protocol}, this hactl {PROTOCOL}")
    return reply


def _line(connection: socket.socket) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while not chunks or not chunks[-1].endswith(b"\n"):
        chunk = connection.recv(1 << 16)
        size += len(chunk)
        if not chunk or size > LIMIT:
            break
        chunks.append(chunk)
    return b"".join(chunks)


def _why(error: OSError, where: str, timeout: float) -> str:
    """Say why there was no answer, and what would help."""
    match error:
        case TimeoutError():
            return f"hactld does not answer on {where} in {timeout:g}s"
        case PermissionError():
            return f"{where}: permission denied; members of its group may ask (control: group)"
        case FileNotFoundError() | ConnectionRefusedError():
            return f"hactld does not run, or not with {where} (-s SOCKET names another)"
        case _:
            return f"{where}: {error.strerror or error}"
