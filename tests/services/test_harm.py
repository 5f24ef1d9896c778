"""Looks do no harm: one session each, nothing left behind, no password in a log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.servers import need

pytestmark = pytest.mark.service

HARM = Path(__file__).parents[2] / "bench" / "harm.py"


@pytest.mark.parametrize(
    "server",
    [
        "OpenSMTPD",
        "OpenSMTPD, its queue",
        "Postfix",
        "Dovecot",
        "spamd",
        "clamd",
        "dnsmasq",
        "HAProxy",
    ],
)
def test_a_look_is_one_session_and_leaves_nothing(server: str) -> None:
    need("smtpd", "setsid", "dovecot", "spamd", "clamd", "dnsmasq", "haproxy")
    command = [sys.executable, str(HARM), "--looks", "3", "--json", "--servers", server]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)["rows"]
    assert rows, ended.stderr
    for row in rows:
        sessions = 0 if row["probe"].startswith("queue") else 1
        assert (row["sessions"], row["files_left"]) == (sessions, 0), row
        assert not row["password_logged"], row
        assert row["log_lines"] <= (30 if row["probe"] == "delivery" else 10), row
