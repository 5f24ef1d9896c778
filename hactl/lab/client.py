"""relayctl, pfctl and relayd -n of the lab where there is no C compiler: see client.c.

A copy of this file is the program, so it imports nothing of hactl.
"""

from __future__ import annotations

import getopt
import os
import socket
import struct
import sys
from pathlib import Path


def main(program: str, words: list[str]) -> int:
    """Carry the words to the emulator, print what it answers, return the exit code."""
    here, name = Path(program).absolute().parent, Path(program).name
    if name in ("pfctl", "relayd"):
        path = os.environ.get("HACTL_LAB_PF") or str(here / "pf.sock")
    else:
        path = os.environ.get("HACTL_LAB_SOCKET") or str(here / "relayd.sock")
        try:
            options, words = getopt.gnu_getopt(words, "s:")
        except getopt.GetoptError as error:
            print(f"relayctl: invalid option -- '{error.opt}'", file=sys.stderr)
            print("usage: relayctl [-s socket] command [argument ...]", file=sys.stderr)
            return 1
        path = dict(options).get("-s", path)
    with socket.socket(socket.AF_UNIX) as wire:
        try:
            wire.connect(path)
        except OSError as error:
            what = f"connect: {path}" if name == "relayctl" else path
            print(f"{name}: {what}: {os.strerror(error.errno or 0)}", file=sys.stderr)
            return 1
        wire.sendall("\0".join([name, *words]).encode())
        wire.shutdown(socket.SHUT_WR)
        with wire.makefile("rb") as answer:
            while head := answer.read(5):
                kind, length = struct.unpack(">cI", head)
                data = answer.read(length)
                if kind == b"x":
                    return data[0]
                out = sys.stdout if kind == b"o" else sys.stderr
                out.buffer.write(data)
                out.flush()
    print(f"{name}: pipe closed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
