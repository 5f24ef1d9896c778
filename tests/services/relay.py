"""OpenSMTPD that delivers into a Maildir and by LMTP, filters, and has mail that it never gets rid of."""

from __future__ import annotations

import grp
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from checks.queue import Queue
from checks.smtp import Smtp
from tests.services import opensmtpd
from tests.services.servers import HOST, PATH, PATIENCE, Server, free_port, need

# Mail for dead.test stays in the queue; that for away@example.org is sent on to srs.test, which is here
# again; the filter marks what it has seen, unless there is a file.
CONF = """\
filter "marks" proc-exec "/usr/bin/python3 -I -S {directory}/filter.py {directory}/forget"
srs key "hactl"
table users {{ "@example.org" = "nobody", "away@example.org" = "probe@srs.test" }}
table others {{ "@srs.test" = "nobody" }}
table readers {{ "probe@imap.test" = "probe" }}
table base {{ "probe" = "65534:65534:/nonexistent" }}
listen on {host} port {filtered} filter "marks" hostname mx0.example.org
listen on {host} port {plain} hostname mx0.example.org
listen on {host} port {again} tag again hostname mx1.example.org
action "store" maildir "{maildir}" virtual <users>
action "read" lmtp "{host}:{lmtp}" virtual <readers> userbase <base>
action "dead" relay host smtp://127.0.0.99:2599
action "away" relay host smtp://{host}:{again} srs
action "there" maildir "{maildir}" virtual <others>
match tag again from any for domain "srs.test" action "there"
match from any for domain "example.org" action "store"
match from any for domain "imap.test" action "read"
match from any for domain "dead.test" action "dead"
match from any for domain "srs.test" action "away"
"""

FILTER = """\
import os, sys
said = set()
for line in sys.stdin:
    words = line.rstrip("\\n").split("|", 7)
    if words[:2] == ["config", "ready"]:
        print("register|filter|smtp-in|data-line\\nregister|ready", flush=True)
    elif words[0] == "filter":
        session, token, text = words[5:]
        if token not in said and not os.path.exists(sys.argv[1]):
            print(f"filter-dataline|{session}|{token}|X-Spam-Status: No, score=0.1")
        said.add(token)
        print(f"filter-dataline|{session}|{token}|{text}", flush=True)
        if text == ".":
            said.discard(token)
"""


class Relay(NamedTuple):
    """The server: its ports, its Maildir, the check of its queue, and what has its filter forget."""

    server: Server
    filtered: int
    plain: int
    maildir: Path
    queue: Queue
    forget: Path

    def smtpctl(self, *words: str) -> None:
        command = [*self.queue.command, *words]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)

    def fill(self, count: int) -> None:
        """Put messages into the queue that stay there."""
        fill(self.plain, count)


def smtpctl(server: Server) -> tuple[str, ...]:
    """Return the command that asks *server* about its queue."""
    # the unpacked smtpctl is not setgid, as it would be if it were installed
    gid = str(grp.getgrnam("opensmtpq").gr_gid)
    nsenter = shutil.which("nsenter", path=PATH) or ""
    within = (nsenter, "--target", str(server.process.pid), "--mount", "--setgid", gid)
    return (*within, "/usr/sbin/smtpctl")


def fill(port: int, count: int) -> None:
    """Send messages that nobody will ever take."""
    with socket.create_connection((HOST, port)) as sock, sock.makefile("rwb") as file:
        file.readline()
        commands = [b"HELO x"]
        for _ in range(count):
            commands += [
                b"MAIL FROM:<>",
                b"RCPT TO:<probe@dead.test>",
                b"DATA",
                b"Subject: x\r\n\r\n.",
            ]
        for command in [*commands, b"QUIT"]:
            file.write(command + b"\r\n")
            file.flush()
            answer = file.readline()
            assert answer[:1] in (b"2", b"3"), answer


def run(directory: Path, lmtp: int = 1) -> Iterator[Relay]:
    """Run it; *lmtp* is the port that mail for probe@imap.test goes to."""
    programs = opensmtpd.newer()
    filtered, plain, again = free_port(), free_port(), free_port()
    maildir = directory / "maildir"
    maildir.mkdir()
    shutil.chown(maildir, "nobody", "nogroup")
    (directory / "filter.py").write_text(FILTER)
    need("/usr/bin/python3")  # not ours: smtpd runs it as a user who may not come here
    conf = CONF.format(
        host=HOST, directory=directory, maildir=maildir, filtered=filtered,
        plain=plain, again=again, lmtp=lmtp,
    )  # fmt: skip
    check = Smtp(port=plain, depth="rcpt", mail_to="probe@example.org")
    server = opensmtpd.start(directory, conf, check, programs)
    queue = Queue(command=smtpctl(server))
    yield Relay(server, filtered, plain, maildir, queue, directory / "forget")
    server.stop()
