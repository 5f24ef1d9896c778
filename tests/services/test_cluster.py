"""End to end: a real client, real servers, the emulated relayd, and a hactld that steers it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.servers import need

pytestmark = pytest.mark.service

CLUSTER = Path(__file__).parents[2] / "bench" / "cluster.py"
BOUND = 2.0 + 1.0 + 2 * 0.1 + 0.1  # of type smtp for a silent server: hactl.yaml(5), How soon
MORE = 1.5  # for relayctl, pf, and a busy machine


def test_a_client_loses_mail_for_no_longer_than_it_takes_to_find_out() -> None:
    """The short form of what bench/README.md has for each fault."""
    need("smtpd", "smtpctl", "unshare", "nsenter", "mount")
    command = [sys.executable, str(CLUSTER), "--faults", "queue hung", "--seconds", "10"]
    ended = subprocess.run(
        [*command, "--steered", "--json"], capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = json.loads(ended.stdout)["rows"]
    assert row["sent"] > 60
    assert row["seconds"] <= BOUND + MORE, row
    assert set(row["reasons"]) <= {"mail: no answer in 5s"}, row
