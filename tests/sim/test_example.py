"""`hactl verify` on the examples of etc/: as they are, and with weaknesses planted in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hactl.cli.main import main

ETC = Path(__file__).parents[2] / "etc"
YAML, CONF = ((ETC / name).read_text() for name in ("hactl.yaml", "relayd.conf"))
OBSERVED = {
    f"service {name}: mode observe: hactl moves nothing, it is tried as if it did"
    for name in ("mx0-smtp", "mx1-smtp", "mx-imap")
}


def verify(folder: Path, yaml: str, conf: str, budget: str, jobs: int = 1) -> dict[str, Any]:
    """Return what verify found out about two texts, and its exit code as `code`."""
    (folder / "hactl.yaml").write_text(yaml)
    (folder / "relayd.conf").write_text(conf)
    words = ["verify", "-f", str(folder / "hactl.yaml"), "--conf", str(folder / "relayd.conf")]
    result = CliRunner().invoke(main, [*words, "--budget", budget, "--jobs", str(jobs), "--json"])
    assert result.output.startswith("{"), result.output
    return {**json.loads(result.output), "code": result.exit_code}


def test_the_example_is_not_weak_but_for_its_mode(tmp_path: Path) -> None:
    found = verify(tmp_path, YAML, CONF, "0s")
    assert set(found["weaknesses"]) == OBSERVED
    assert found["code"] == 0


PLANTED = {  # old, new, what is said
    "no fallback": (
        "\tforward to <fallback-mx0> check tcp\n", "",
        "service mx0-smtp: no fallback: mx0 is all it has",
    ),
    "a backup on the same node": (
        "table <fallback-mx0> { 10.0.0.5 retry 2 }", "table <fallback-mx0> { 10.0.0.4 retry 2 }",
        "service mx0-smtp: no fallback: mx0 is all it has",
    ),
    "fall 1": (
        "check: {fall: 3, rise: 3}", "check: {fall: 1, rise: 3}",
        "check smtp: fall 1: one lost packet removes a member of mx0-smtp, mx1-smtp",
    ),
    "rise 1": (
        "check: {fall: 3, rise: 3}", "check: {fall: 3, rise: 1}",
        "check imap: rise 1: one good look brings a sick member back to mx-imap",
    ),
    "floor closed": (
        "    # floor: open ", "    floor: closed # ",
        "service mx1-smtp: floor closed: when all fail, nobody serves",
    ),
    "min_serving that keeps everybody": (
        "    require: [imap]\n", "    require: [imap]\n    min_serving: 2\n",
        "service mx-imap: min_serving needs every member: no failing one is ever removed",
    ),
    "no required check": (
        "    require: [smtp]\n", "",
        "service mx0-smtp: requires no check: hactl never removes anybody",
    ),
    "a rare look": (
        "  imap:\n", "  imap:\n    interval: 5m\n",
        "check imap: required by mx-imap, but looked at only every 5m",
    ),
    "one answer for all": (
        "  imap:\n", "  imap:\n    at: mx1\n",
        "check imap: looked at on mx1 alone: one answer for all members of mx-imap",
    ),
    "a script check": (
        "forward to <imap> check tcp", 'forward to <imap> check script "/usr/local/bin/look"',
        "service mx-imap: table imap has a script check: relayd's reload is slow and can kill it",
    ),
    "no retry": (
        "table <mx0> { 10.0.0.4 retry 2 }", "table <mx0> { 10.0.0.4 }",
        "service mx0-smtp: table mx0: retry 0: one lost SYN of relayd's own check takes a host out",
    ),
    "a host that is no node": (
        "table <mx0> { 10.0.0.4 retry 2 }", "table <mx0> { 10.0.0.6 retry 2 }",
        "service mx0-smtp: host 10.0.0.6 of table mx0 is no node",
    ),
    "a service that relayd lacks": (
        'redirect "mx-imap"', 'redirect "imap"',
        "service mx-imap: relayd.conf has no redirect or relay of that name",
    ),
    "a service that nobody steers": (
        'redirect "mx-imap"', 'redirect "imap"',
        "service imap: relayd has it, hactl.yaml does not: nobody steers it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_weakness_is_found(tmp_path: Path, name: str) -> None:
    old, new, said = PLANTED[name]
    assert old in YAML + CONF
    found = verify(tmp_path, YAML.replace(old, new), CONF.replace(old, new), "0s")
    assert said in found["weaknesses"]


@pytest.mark.service
def test_the_example_breaks_no_rule_and_the_budget_is_kept(tmp_path: Path) -> None:
    found = verify(tmp_path, YAML, CONF, "60s", jobs=2)
    assert (found["broken"], found["code"]) == ({}, 0)
    assert found["single"][0] == found["single"][1]
    assert found["pairs"][0] > 0
    assert found["seconds"] < 90
