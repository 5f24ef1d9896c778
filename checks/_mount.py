"""What `checks.nfs` has done on a mount: run as a program, which may hang and be killed.

It says each step before it is taken, and then the figures, or the error: lines of words.
"""

import os
import socket
import sys
import time

SIZE = 4096  # bytes of a canary


def main(path: str, file: str, canary: str) -> None:
    """Look at the mount at *path*, at *file* in it, and at a file of our own in *canary*."""
    step("statvfs")
    space = os.statvfs(path)
    figures = [space.f_frsize * space.f_blocks, space.f_frsize * space.f_bavail]
    figures += [space.f_files, space.f_favail]
    say("figures", *figures)
    if file:
        step("stat")
        os.stat(file)  # noqa: PTH116 - pathlib costs more than all else here
    if canary:
        bird(canary)
    step("end")


def bird(directory: str) -> None:
    """Write a file, read it, and remove it; one that an earlier hactld left is used again."""
    name = os.path.join(directory, f".hactl-{socket.gethostname()}-{os.geteuid()}")  # noqa: PTH118
    song = os.urandom(SIZE)
    step("write")
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, song) != SIZE:
            raise OSError(28, "short write")
        os.fsync(fd)
    finally:
        os.close(fd)
    step("read")
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        same = os.read(fd, SIZE + 1) == song
    finally:
        os.close(fd)
    step("delete")
    os.unlink(name)  # noqa: PTH108
    if not same:
        say("differs")


def step(name: str) -> None:
    """Say what comes next, and the time."""
    say("step", name, time.monotonic())


def say(*words: object) -> None:
    """Say it at once: whoever listens kills us while we hang."""
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        say("error", error.errno or 0)
