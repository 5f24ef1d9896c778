"""ask: one question to hactld over its control socket, answered or explained."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from hactl import PROTOCOL

DEFAULT = "/var/run/hactl/hactl.sock"
LIMIT = 64 << 20  # bytes of an answer
UNASKABLE = 3  # exit code: hactld or relayd cannot be asked


class Reply(NamedTuple):
    """hactld's answer: hactl's exit code, a text for people, the verb's own data."""

    code: int
    text: str
    data: Any


def path(given: str | None) -> str:
    """Return the control socket: as given, from the environment, or the default."""
    return given or os.environ.get("HACTL_SOCKET") or DEFAULT


def ask(
    where: str,
    verb: str,
    *words: str,
    options: Mapping[str, str] | None = None,
    timeout: float = 30,
) -> Reply:
    """Ask hactld.  End the program with exit code 3, and why, if it cannot be asked."""
    request = {"protocol": PROTOCOL, "verb": verb, "words": words, "options": options or {}}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(where)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = _line(connection)
    except TimeoutError:
        unaskable(f"hactld does not answer on {where} in {timeout:g}s")
    except PermissionError:
        unaskable(f"{where}: permission denied; members of its group may ask (see control: group)")
    except (FileNotFoundError, ConnectionRefusedError):
        unaskable(f"hactld does not run, or not with {where} (-s SOCKET names another)")
    except OSError as error:
        unaskable(f"{where}: {error.strerror or error}")
    try:
        found = json.loads(answer)
        protocol, reply = found["protocol"], Reply(found["code"], found["text"], found["data"])
    except (ValueError, KeyError, TypeError):
        unaskable(f"{where}: what answered is not hactld")
    if protocol != PROTOCOL:
        unaskable(f"hactld speaks protocol {protocol}, this hactl {PROTOCOL}")
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


def unaskable(why: str) -> NoReturn:
    """End with exit code 3 and say why."""
    print(f"hactl: {why}", file=sys.stderr)
    sys.exit(UNASKABLE)
