"""The demo, played once as a newcomer would: every act must end as its story says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.service
def test_every_act_ends_as_it_should() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from hactl.cli.main import main; main()", "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.stderr == ""
    played = json.loads(ran.stdout)
    assert [act["problems"] for act in played["acts"]] == [[]] * 6
    assert ran.returncode == 0
    assert played["seconds"] < 75
