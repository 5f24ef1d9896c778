"""A whole cluster loses a part: what bench/whole.py tells of each, in its short form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.servers import need

pytestmark = pytest.mark.service

WHOLE = Path(__file__).parents[2] / "bench" / "whole.py"
SECONDS = 120.0 if os.environ.get("CI") else 1.0  # a fault at least


def test_what_hangs_is_left_alone_and_leaves_nothing_behind() -> None:
    """A mount, a database and an agent at once; `check tcp` sees none of them."""
    need("smtpd", "mariadbd", "spamd", "clamd", "dovecot", "unshare", "nsenter", "mount")
    command = [sys.executable, str(WHOLE), "--soak", str(SECONDS), "--json"]
    command += ["--faults", "mount, MariaDB and agent hung"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    calm, *rows = json.loads(ended.stdout)["rows"]
    assert rows[0]["out"] == {"hactl": ["mx-smtp", "mx-imap"], "check tcp": []}
    assert all(row["out"]["check tcp"] == [] for row in rows)
    for who, before in calm["held"].items():
        after = rows[-1]["held"][who]
        for what, more in (("descriptors", 2), ("threads", 2), ("children", 0)):
            assert after[what] <= before[what] + more, (who, before, after)
        assert after["KiB"] <= before["KiB"] * 1.15, (who, before, after)  # caches fill
