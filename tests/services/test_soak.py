"""All looks at their fastest, for a while: nothing grows.  HACTL_SOAK_SECONDS says for how long."""

from __future__ import annotations

import gc
import os
import threading
import time

import psutil
import pytest

from checks.clamd import Clamd
from checks.spamd import Spamd
from hactl.core.health import State
from hactl.core.units import Duration
from tests.services.dovecot import Dovecot
from tests.services.opensmtpd import Faulty
from tests.services.servers import Server
from tests.services.watching import Watch, timed

pytestmark = pytest.mark.service

SECONDS = float(os.environ.get("HACTL_SOAK_SECONDS", "120" if os.environ.get("CI") else "20"))


def test_nothing_grows_while_all_looks_go_at_their_fastest(
    faulty: Faulty, dovecot: Dovecot, spamd: Server, clamd: Server
) -> None:
    options = {
        **faulty.checks, **dovecot.checks,
        "ping": spamd.check, "spamd": Spamd(port=spamd.check.port, gtube=Duration(1)),
        "clamd": Clamd(port=clamd.check.port, sample=Duration(1)),
    }  # fmt: skip
    checks = {name: timed(option, interval=0.1, timeout=5.0) for name, option in options.items()}
    ours = psutil.Process()

    def held() -> tuple[int, int, int]:
        return ours.num_fds(), threading.active_count(), len(ours.children())

    def memory() -> int:
        gc.collect()
        rss: int = ours.memory_info().rss
        return rss

    empty = held()
    with Watch(checks) as watch:
        watch.until(State.UP)
        time.sleep(SECONDS / 4)  # caches fill
        begun, before, most = watch.count(), memory(), (0, 0, 0)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            most = tuple(map(max, most, held()))  # type: ignore[assignment]
        looks, after = watch.count() - begun, memory()
    print(f"{looks} looks; {before >> 10} KiB before, {after >> 10} KiB after; at most {most}")
    assert looks > SECONDS * len(checks)  # a tenth of what is wanted
    # A look has one socket, and is joined by two others where it is silent; the loop has a few.
    assert most[0] <= empty[0] + 3 * len(checks) + 8
    assert most[1:] == (empty[1] + 1, empty[2])
    # The tests before may have left something to the collector.
    assert all(now <= then for now, then in zip(held(), empty, strict=True))
    assert after <= before * 1.05
