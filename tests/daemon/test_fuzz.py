"""A running hactld and whatever somebody who may open its socket sends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

YAML = """\
mode: observe
nodes: {{mx0: 127.0.17.4, mx1: 127.0.17.5}}
checks: {{smtp: {{type: smtp, port: 2, interval: 1s}}}}
services: {{mx-smtp: {{require: [smtp]}}}}
relayd: {{conf: {dir}/none.conf, relayctl: {dir}/none}}
run_dir: {dir}/run
state_dir: {dir}/state
user: root
"""


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    path: str
    log: Path


@pytest.fixture(scope="module")
def hactld(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("hactld")
    yaml, path = directory / "hactl.yaml", directory / "run" / "hactl.sock"
    yaml.write_text(YAML.format(dir=directory))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hactl.daemon.main", "-d", "-f", yaml], stdout=log, stderr=log
        )
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    yield Running(process, str(path), directory / "log")
    process.terminate()
    assert process.wait(10) == 0
    said = (directory / "log").read_text()
    assert "Traceback" not in said
    assert "fault" not in said


WORDS = st.sampled_from(
    [
        "mx0",
        "mx1",
        "mx-smtp",
        "mx-smtp/mx0",
        "mx-smtp/",
        "/mx0",
        "all",
        "smtp",
        "",
        "begin",
        "\x1b[0m",
    ]
) | st.text(max_size=20)
VERBS = st.sampled_from(
    ["status", "reload", "check", "drain", "maint", "pin", "freeze", "hands-off", "thaw", "resume"]
) | st.text(max_size=9)
KEYS = st.sampled_from(["for", "who", "reason", "yes", "foreign"]) | st.text(max_size=5)
VALUES = st.sampled_from(
    ["yes", "1h", "0s", "999999999d", "0.000000001ms", "-1s", "soon", "x" * 999, "a\nb", "\x00"]
) | st.text(max_size=20)
REQUESTS = st.fixed_dictionaries(
    {"verb": VERBS},
    optional={
        "words": st.lists(WORDS, max_size=4),
        "options": st.dictionaries(KEYS, VALUES, max_size=4),
        "protocol": st.integers(0, 2),
    },
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=REQUESTS)
def test_every_request_has_an_answer_and_none_ends_hactld(
    hactld: Running, request: dict[str, object]
) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        asking.connect(hactld.path)
        asking.sendall(json.dumps(request).encode() + b"\n")
        with asking.makefile("rb") as answers:
            answer = json.loads(answers.readline())
    assert answer["code"] in {0, 1, 2}
    assert isinstance(answer["text"], str)
    assert answer["text"] or answer["data"] is not None
    assert hactld.process.poll() is None
