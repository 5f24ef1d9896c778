"""All looks at their fastest, for a while: nothing grows.  HACTL_SOAK_SECONDS says for how long.

bench/README.md has what came of half an hour: `HACTL_SOAK_SECONDS=1800 pytest -s` with this file.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from msgspec import structs

from checks import Probed, Spoken, delivery
from checks.banner import Banner
from checks.clamd import Clamd
from checks.delivery import Delivery, Mailbox
from checks.exec import Exec
from checks.http import Http
from checks.queue import Queue
from checks.spamd import Spamd
from checks.tcp import Tcp
from checks.tls import Tls
from hactl.core.health import State
from hactl.core.units import Duration
from tests.services import relay as relay_
from tests.services.dnsmasq import Dnsmasq
from tests.services.dovecot import Dovecot
from tests.services.opensmtpd import NAME, Faulty
from tests.services.postfix import Postfix
from tests.services.relay import Relay
from tests.services.servers import HOST, Server, free_port
from tests.services.watching import Watch, timed

pytestmark = pytest.mark.service

SECONDS = float(os.environ.get("HACTL_SOAK_SECONDS", "120" if os.environ.get("CI") else "20"))
PARTS = 10  # in which the memory is told


@pytest.fixture(scope="module")
def relay(directory: Path, dovecot: Dovecot) -> Iterator[Relay]:
    (directory / "relay").mkdir()
    yield from relay_.run(directory / "relay", dovecot.checks["lmtp"].port)


@pytest.fixture(scope="module")
def http(directory: Path) -> Iterator[Http]:
    check = Http(port=free_port(), text="Directory listing")
    command = [sys.executable, "-m", "http.server", "--bind", HOST, str(check.port)]
    (directory / "http").mkdir()
    server = Server(command, directory / "http", Tcp(port=check.port))
    yield check
    server.stop()


@pytest.fixture
def conversations(
    faulty: Faulty, postfix: Postfix, dovecot: Dovecot, spamd: Server, clamd: Server
) -> dict[str, Spoken]:
    """Return what is cheap enough for ten a second."""
    plain, smtps = faulty.checks["smtp"], faulty.checks["smtps"]
    return {
        **faulty.checks, **dovecot.checks,
        "postfix": postfix.check,
        "postfix_tls": structs.replace(postfix.check, tls="starttls", name=NAME, ca=postfix.ca),
        "tcp": Tcp(port=plain.port),
        "banner": Banner(port=plain.port, expect="220 "),
        "tls": Tls(port=smtps.port, name=NAME, ca=smtps.ca),
        "ping": Spamd(port=spamd.check.port, scan=False),
        "spamd": Spamd(port=spamd.check.port, gtube=Duration(1)),
        "clamd": Clamd(port=clamd.check.port, sample=Duration(1)),
    }  # fmt: skip


@pytest.fixture
def coroutines(http: Http, dnsmasq: Dnsmasq) -> dict[str, Probed]:
    return {"http": http, "dns": dnsmasq.dns}


@pytest.fixture
def programs(relay: Relay, postfix: Postfix, dovecot: Dovecot) -> dict[str, Probed]:
    """Return what starts processes, here or at the server."""
    way = Delivery(port=relay.filtered, mail_to="probe@example.org", maildir=relay.maildir)
    mailbox = Mailbox(**structs.asdict(dovecot.checks["imap"]))
    return {
        "queue": relay.queue,
        "postqueue": Queue(server="postfix", command=(str(postfix.postqueue),)),
        "delivery": way,
        "imap_delivery": structs.replace(
            way, mail_to="probe@imap.test", maildir=None, imap=mailbox
        ),
        "exec": Exec(command=("/bin/sh", "-c", "echo 'fine | load=0.5;;;; wait=3ms'")),
    }


def test_nothing_grows_while_all_looks_go_at_their_fastest(
    conversations: dict[str, Spoken],
    coroutines: dict[str, Probed],
    programs: dict[str, Probed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "RATE", 0.5)
    quick = conversations | coroutines
    checks = {name: timed(option, interval=0.1, timeout=5.0) for name, option in quick.items()}
    checks |= {name: timed(option, interval=1.0, timeout=10.0) for name, option in programs.items()}
    ours = psutil.Process()

    def held() -> tuple[int, int, int]:
        return ours.num_fds(), threading.active_count(), len(ours.children())

    def memory() -> int:
        gc.collect()
        return int(ours.memory_info().rss) >> 10

    empty = held()
    with Watch(checks) as watch:
        watch.until(State.UP)
        time.sleep(SECONDS / 4)  # caches fill
        begun, most, kib, words = watch.count(), (0, 0, 0), [memory()], set[str]()
        start = time.monotonic()
        for part in range(1, PARTS + 1):
            while time.monotonic() < start + SECONDS * part / PARTS:
                time.sleep(0.2)
                most = tuple(map(max, most, held()))  # type: ignore[assignment]
                for child in ours.children():
                    with suppress(psutil.Error):
                        words.update(child.cmdline())
            kib.append(memory())
        looks = watch.count() - begun
        tally = watch.tally()
    print(f"{len(checks)} checks, {looks} looks in {SECONDS:g}s: {tally}")
    print(f"files, threads, children: {empty} before, at most {most}, {held()} after; KiB: {kib}")
    assert looks > SECONDS * len(quick)  # a tenth of what is wanted
    # A look has one socket, and is joined by two others where it is silent; the loop has a few.  One
    # that runs a program has two pipes, and a thread that waits for its end.
    assert most[0] <= empty[0] + 3 * len(quick) + 8 * len(programs) + 8
    assert most[1] <= empty[1] + 1 + len(programs)
    assert most[2] <= empty[2] + len(programs)
    # The tests before may have left something to the collector.
    assert all(now <= then for now, then in zip(held(), empty, strict=True))
    assert max(kib) <= kib[0] * 1.05
    assert words, "programs were run"
    assert not any("secret" in word for word in words)
