"""`hactl simulate` and `hactl verify` as an operator types them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner, Result

from hactl.cli.main import main
from hactl.sim.rules import Violation, Watch
from hactl.sim.scenario import files as read
from hactl.sim.verify import Case, Seen, phases, singles, trial
from hactl.sim.world import Cluster, World

SCENARIO = """
about: A hangs
duration: 10m
tables: {mx: {main: [A, B]}}
events:
  - {at: 2m, do: hang, to: [A], for: 2m}
  - {at: 5m, do: reload}
expect: {empty: 5s}
"""
GOOD = """
mode: relayctl
nodes: {mx0: 10.0.0.4, mx1: 10.0.0.5}
checks: {smtp: {type: smtp}}
services: {mx: {require: [smtp]}}
"""
CONF = """
table <mx> { 10.0.0.4 retry 2, 10.0.0.5 retry 2 }
redirect mx { listen on 10.1.0.1 port 25
  forward to <mx> check tcp }
"""


def hactl(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def files(folder: Path, hactl_yaml: str = GOOD, conf: str = CONF) -> Path:
    """Write both files and return hactl.yaml's path."""
    (folder / "relayd.conf").write_text(conf)
    path = folder / "hactl.yaml"
    path.write_text(f"{hactl_yaml}relayd: {{conf: {folder}/relayd.conf}}\n")
    return path


def scenario(folder: Path, text: str = SCENARIO) -> Path:
    path = folder / "story.yaml"
    path.write_text(text)
    return path


def test_simulate_tells_the_story_beside_every_peer(tmp_path: Path) -> None:
    result = hactl("simulate", scenario(tmp_path))
    assert result.exit_code == 0, result.output
    assert "hang A" in result.output
    assert "host disable 1 mx/A" in result.output
    for peer in (
        "hactl",
        "relayd check tcp",
        "HAProxy",
        "HAProxy fastinter",
        "keepalived",
        "gdnsd",
    ):
        assert f"\n{peer}  " in result.output


def test_simulate_ends_with_1_when_an_expectation_does_not_hold(tmp_path: Path) -> None:
    text = SCENARIO.replace("empty: 5s", "failing: 1ms")
    result = hactl("simulate", scenario(tmp_path, text))
    assert result.exit_code == 1
    assert "mx: failing is" in result.output


def test_simulate_prints_json_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "out.svg"
    result = hactl("simulate", scenario(tmp_path), "--json", "--svg", picture)
    data = json.loads(result.output)
    assert data["figures"]["relayd check tcp"]["mx"]["failing"] == 60.0
    drawn = ET.parse(picture).getroot()
    assert drawn.tag.endswith("svg")
    kinds = {e.get("class") for e in drawn.iter() if e.tag.endswith("rect")}
    assert {"in", "bad", "hit", "empty"} <= kinds
    words = [e.text for e in drawn.iter() if e.tag.endswith("text")]
    assert {"1  hang A, at 2m for 2m", "2  reload, at 5m"} <= set(words)


def test_simulate_runs_a_story_on_an_operators_own_files(tmp_path: Path) -> None:
    story = "duration: 5m\nevents: [{at: 1m, do: crash, to: [mx0]}]\n"
    assert hactl("simulate", scenario(tmp_path, story)).exit_code == 1
    result = hactl("simulate", scenario(tmp_path, story), "-f", files(tmp_path))
    assert result.exit_code == 0, result.output
    assert "host disable 1 mx/10.0.0.4" in result.output
    other = tmp_path / "other.conf"
    other.write_text(CONF.replace("10.0.0.4 retry 2, ", ""))
    result = hactl(
        "simulate", scenario(tmp_path, story), "-f", tmp_path / "hactl.yaml", "--conf", other
    )
    assert "host disable" not in result.output, "there is nobody but mx1"
    assert hactl("simulate", scenario(tmp_path), "--conf", other).exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("do: hang", "do: hnag", "story.yaml:6:18: events.do: expected crash"),
        ("to: [A]", "to: [X]", 'nothing is called "X"; there are A, B'),
        ("duration:", "duratoin:", 'duratoin: unknown key; did you mean "duration"?'),
        ("10m", "ten", 'duration: expected a duration like "5s" (got "ten")'),
        ("tables: {mx: {main: [A, B]}}", "tables: [mx", "not valid YAML"),
        ("empty: 5s", 'commands: ["go"]', 'expected "disable mx/A 5m..303s" (got "go")'),
        ("main: [A, B]", "main: [A, 'a b']", "expected"),
        ("do: hang", "do: loss", "story.yaml:6:5: events.share: loss needs it"),
        ("do: hang", "do: slow", "story.yaml:6:5: events.by: slow needs it"),
        ("do: hang, to: [A]", "do: drain", "events.to: drain needs it"),
        ("do: hang", "do: kill", "story.yaml:6:5: events.to: kill has no use for it"),
        ("do: reload", "do: reload, for: 5s", "events.for: reload has no use for it"),
        ("do: reload", "do: reload, check: [smtp]", "events.check: reload has no use for it"),
        ("for: 2m", "for: 2m, shift: 1", "events.shift: hang has no use for it"),
        ("for: 2m", "for: 0s", "events.for: expected a duration of at least 1ms"),
        ("for: 2m", "every: 5m", 'events.every: it needs "for"'),
        ("empty: 5s", 'serving: ["10s mx: A, A#2"]', "pf has addresses, none with a #"),
        ("for: 2m", "until: 5m", 'events.until: it goes with "every"'),
        ("for: 2m", "every: 1m, until: 1m", "events.until: before it begins, at 2m"),
        ("duration: 10m", "duration: 1m", "events.at: the story is over after 1m"),
        ("do: reload", "do: freeze, to: [A]", 'nothing is called "A"; there are all, mx'),
        ("empty: 5s", 'commands: ["disable mx/X 1s..2s"]', 'no host "X" in mx; there are A, B'),
        ("empty: 5s", 'commands: ["disable mx/A 9s..2s"]', "it ends before it begins"),
        ("empty: 5s", 'serving: ["10s my: A"]', 'expect.serving: no service "my"; there are mx'),
        ("empty: 5s", 'serving: ["10s mx: A,B"]', 'no host "A,B" in mx'),
        ("empty: 5s", 'serving: ["11m mx: A"]', "the story is over after 10m"),
        ("empty: 5s", "breaks: [7]", "no rule 7 is held here; there are 1, 2, 3, 4, 5, 6, 9, 10"),
        ("{main: [A, B]}", "{main: []}", "story.yaml:4:9: redirect mx forwards to nothing"),
        (
            "duration: 10m",
            "relayd: {interval: 1s, timeout: 20s}",
            "story.yaml:3:9: timeout must be shorter than the interval",
        ),
        (
            "duration: 10m",
            "services: {imap: {require: [smtp]}}",
            "services.imap: no such service in tables",
        ),
    ],
)
def test_a_wrong_scenario_is_told_with_its_place(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    result = hactl("simulate", scenario(tmp_path, SCENARIO.replace(old, new, 1)))
    assert (result.exit_code, said in result.output) == (1, True), result.output
    assert "Traceback" not in result.output


def test_a_scenario_in_which_too_much_happens_is_refused(tmp_path: Path) -> None:
    text = SCENARIO.replace("10m", "30d").replace("for: 2m", "for: 10ms, every: 100ms")
    result = hactl("simulate", scenario(tmp_path, text))
    assert "events: too much happens: at most 200000 times in all" in result.output


def test_what_a_scenario_has_of_a_cluster_is_not_ignored_beside_another(tmp_path: Path) -> None:
    result = hactl("simulate", scenario(tmp_path), "-f", files(tmp_path))
    assert result.exit_code == 1
    assert "story.yaml:4:1: tables: the cluster is that of hactl.yaml; leave" in result.output


def test_files_without_a_common_service_are_told(tmp_path: Path) -> None:
    path = files(tmp_path, conf=CONF.replace("redirect mx", "redirect my"))
    story = scenario(tmp_path, "duration: 1m\nevents: []\n")
    for words in (("simulate", story, "-f", path), ("verify", "-f", path, "--budget", "0s")):
        result = hactl(*words)
        assert result.exit_code == 1
        assert f"has no service of {tmp_path}/relayd.conf, where there are my" in result.output


def test_simulate_says_what_it_assumes_of_an_operators_own_files(tmp_path: Path) -> None:
    path = files(
        tmp_path, GOOD.replace("relayctl", "observe"), CONF.replace("10.0.0.5", "10.0.0.9")
    )
    story = scenario(tmp_path, "duration: 3m\nevents: [{at: 1m, do: hang, to: [mx0]}]\n")
    said = hactl("simulate", story, "-f", path).output
    assert "note: service mx: mode observe, simulated as if hactl acted in it" in said
    assert "note: service mx: host 10.0.0.9 of table mx is no node" in said
    assert "host disable 1 mx/10.0.0.4" in said


def test_a_picture_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    place = tmp_path / "no" / "out.svg"
    result = hactl("simulate", scenario(tmp_path), "--svg", place)
    assert (result.exit_code, result.output) == (1, f"hactl: {place}: No such file or directory\n")
    for name in ("", "-"):
        assert hactl("simulate", scenario(tmp_path), "--svg", name).exit_code == 2


@pytest.mark.parametrize("command", ["simulate", "verify"])
def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, command: str) -> None:
    words = {
        "simulate": ["simulate", scenario(tmp_path)],
        "verify": ["verify", "-f", files(tmp_path), "--budget", "0s", "--jobs", "1"],
    }[command]
    program = [sys.executable, "-c", "from hactl.cli.main import main; main()", *map(str, words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr == "hactl: standard output: No space left on device\n"
    assert done.returncode == 3
    closed = ["sh", "-c", '"$@" >&-', "sh", *program]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_text_that_the_output_cannot_encode_is_escaped(tmp_path: Path) -> None:
    story = scenario(tmp_path, SCENARIO.replace("about: A hangs", "about: größer 日本"))
    program = [sys.executable, "-c", "from hactl.cli.main import main; main()", "simulate"]
    done = subprocess.run(
        [*program, str(story)],
        env={"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=False,
    )
    assert done.stdout.decode("latin-1").startswith("größer \\u65e5\\u672c\n")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    for command in (("simulate", tmp_path / "no"), ("verify", "-f", tmp_path / "no")):
        result = hactl(*command)
        assert (result.exit_code, "No such file" in result.output) == (1, True)


def test_a_scenario_without_end_is_refused(tmp_path: Path) -> None:
    result = hactl("simulate", Path("/dev/zero"))
    assert result.exit_code == 1
    assert result.output == "/dev/zero: longer than 1M; this is no scenario\n"


@pytest.mark.service
def test_verify_tries_every_single_fault_of_a_good_configuration(tmp_path: Path) -> None:
    result = hactl("verify", "-f", files(tmp_path), "--budget", "4s", "--jobs", 1, "--json")
    found = json.loads(result.output)
    assert (result.exit_code, found["broken"], found["weaknesses"]) == (0, {}, [])
    assert found["single"][0] == found["single"][1] > 10
    (mx,) = found["services"]
    assert 1 < mx["detection"] < 5
    assert mx["emptied"].keys() >= {"crash everywhere"}
    assert not any("mx0" in name for name in mx["emptied"])


@pytest.mark.service
def test_verify_says_what_it_tried_and_what_holds(tmp_path: Path) -> None:
    result = hactl("verify", "-f", files(tmp_path), "--budget", "1s", "--jobs", 1)
    assert "rule  1 holds" in result.output
    assert "single faults" in result.output


def test_verify_claims_nothing_of_what_it_did_not_try(tmp_path: Path) -> None:
    result = hactl("verify", "-f", files(tmp_path), "--budget", "0s", "--jobs", 1)
    assert "rule  1 untried" in result.output
    assert "holds" not in result.output


class Broken(Watch):
    """Finds every story unsafe."""

    def ended(self, world: World) -> None:
        self.violations.append(Violation(6, 10.0, "as the test says"))


def test_verify_keeps_what_breaks_a_rule_as_a_scenario(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hactl.sim.verify.Watch", Broken)
    path, kept = files(tmp_path), tmp_path / "kept"
    words = ("verify", "-f", path, "--budget", "500ms", "--jobs", 1)
    result = hactl(*words)
    assert (result.exit_code, "run it with --keep DIR" in result.output) == (1, True)
    result = hactl(*words, "--keep", kept)
    assert "rule  6 BROKEN" in result.output
    assert f"kept in {kept}" in result.output
    story = kept / "broken-1.yaml"
    assert 'about: "crash mx0: rule 6' in story.read_text()
    assert hactl("simulate", story, "-f", path).exit_code == 0, "the real Watch finds nothing"
    result = hactl(*words, "--keep", kept)
    assert result.output == (
        f"{kept}: has schedules of an earlier run, broken-*.yaml; name another directory\n"
    )
    assert hactl(*words, "--keep", "").exit_code == 2
    result = hactl(*words, "--keep", tmp_path / "hactl.yaml")
    assert result.output == f"hactl: {tmp_path}/hactl.yaml: File exists\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyboardInterrupt, "interrupted"), (BrokenProcessPool, "a process of verify was killed")],
)
def test_verify_tells_what_it_tried_before_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], said: str
) -> None:
    def some(what: Cluster, case: Case) -> Seen:
        if case.name.startswith("hang"):
            raise error
        return trial(what, case)

    monkeypatch.setattr("hactl.sim.verify.trial", some)
    result = hactl("verify", "-f", files(tmp_path), "--budget", "1m", "--jobs", 1)
    assert result.exit_code == 130
    assert "2 of " in result.output
    assert f"{said}: this is what was tried until then" in result.output


def test_verify_says_when_its_budget_was_too_small(tmp_path: Path) -> None:
    result = hactl("verify", "-f", files(tmp_path), "--budget", "1ms", "--jobs", 1)
    assert re.search(r"^[01] of \d\d single faults, 0 of", result.output, re.MULTILINE)
    assert "not every single fault was tried: give it a larger --budget" in result.output


@pytest.mark.parametrize("name", ["refuse mx0 (smtp)", "crash mx0"])
def test_verify_tells_the_worst_of_five_phases(tmp_path: Path, name: str) -> None:
    checks = "{smtp: {type: smtp}, cert: {type: tls, port: 25, interval: 1h}}"
    text = GOOD.replace("{smtp: {type: smtp}}", checks)
    what = read(files(tmp_path, text.replace("[smtp]}", "[smtp], prefer: [cert]}")), None)[2]
    case = next(case for case in singles(what) if case.name == name)
    alone = [
        World(what, each.events, each.seconds, seed=1).run().figures["mx"].worst_detection or 0
        for each in phases(what, case)
    ]
    assert len({round(seconds, 1) for seconds in alone}) == 5
    found = trial(what, case)
    assert found.services["mx"][0] == max(alone)
    assert found.seconds == pytest.approx(5 * case.seconds + 4)


def test_verify_tries_the_faults_of_preferred_checks(tmp_path: Path) -> None:
    checks = "{smtp: {type: smtp}, queue: {type: queue}}"
    text = GOOD.replace("{smtp: {type: smtp}}", checks).replace(
        "[smtp]}", "[smtp], prefer: [queue]}"
    )
    tried = {str(case.events[0]) for case in singles(read(files(tmp_path, text), None)[2])}
    assert {"warn mx0 (queue)", "hang mx0 (queue)", "refuse mx0 (smtp)"} <= tried


OTHER = "redirect other { listen on 10.1.0.2 port 25\nforward to <mx> check tcp }\nredirect mx"
TABLE = "table <mx> { 10.0.0.4 retry 2, 10.0.0.5 retry 2 }"


BLOCKS = """
hactl: |
  mode: relayctl
  nodes: {mx0: 10.0.0.4}
  checks: {smtp: {type: smtp}}
  services: {mx: {require: [smtp]}}
conf: |
  table <mx> { 10.0.0.4 }

  redirect mx { listen on 10.1.0.1 port 25
    forward to <mx> check tcp }
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("smtp]", "smpt]", 'story.yaml:6:29: services.mx.require: no check "smpt"'),
        ("check tcp", "chek tcp", "story.yaml:11:"),
        ("to <mx>", "to <my>", "story.yaml:11:"),
    ],
)
def test_an_error_in_a_block_is_told_with_its_place_in_the_scenario(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert hactl("simulate", scenario(tmp_path, BLOCKS)).exit_code == 0
    result = hactl("simulate", scenario(tmp_path, BLOCKS.replace(old, new)))
    assert (result.exit_code, said in result.output) == (1, True), result.output


def test_verify_tells_where_relayd_conf_is_wrong(tmp_path: Path) -> None:
    path = files(tmp_path, conf=CONF.replace("check tcp", "chek tcp"))
    result = hactl("verify", "-f", path, "--budget", "0s")
    assert f"{tmp_path}/relayd.conf:4:" in result.output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (TABLE, "table <mx> { 10.0.0.4 retry 2 }", "no fallback: mx0 is all it has"),
        (TABLE, "table <mx> { 10.0.0.4 retry 2 }", "node mx1: in no table"),
        (TABLE, "table <mx> { 10.0.0.4 retry 2, 10.0.0.9 retry 2 }", "host 10.0.0.9 of table mx"),
        (TABLE, "table <mx> { 10.0.0.4, 10.0.0.5 retry 2 }", "retry 0: one lost SYN"),
        ("check tcp", "check script \"/x\"", "has a script check"),
        ("{mx: ", "{my: {require: [smtp]}, mx: ", "service my: relayd.conf has no redirect or relay"),
        ("redirect mx", OTHER, "service other: relayd has it, hactl.yaml does not"),
        ("{type: smtp}", "{type: smtp, fall: 1}", "fall 1: one lost packet"),
        ("{type: smtp}", "{type: smtp, rise: 1}", "rise 1: one good look"),
        ("{type: smtp}", "{type: smtp, interval: 1m}", "looked at only every 1m"),
        ("{type: smtp}", "{type: smtp, at: mx0}", "looked at on mx0 alone"),
        ("[smtp]}", "[smtp], min_serving: 3}", "min_serving 3 cannot be met by a weight of 2"),
        ("[smtp]}", "[smtp], min_serving: 2}", "no failing one is ever removed"),
        ("[smtp]}", "[smtp], floor: closed}", "floor closed: when all fail, nobody serves"),
        ("mode: relayctl", "mode: observe", "hactl moves nothing"),
        ("require: [smtp]", "watch: [smtp]", "requires no check"),
    ],
)  # fmt: skip
def test_verify_finds_a_planted_weakness(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD + CONF
    path = files(tmp_path, GOOD.replace(old, new), CONF.replace(old, new))
    result = hactl("verify", "-f", path, "--budget", "0s", "--jobs", 1)
    assert said in result.output


def test_whole_files_may_stand_in_a_scenario(tmp_path: Path) -> None:
    def lines(text: str) -> str:
        return "".join(f"  {line}\n" for line in text.strip().splitlines())

    story = "about: x\nduration: 1m\nevents: [{at: 10s, do: crash, to: [mx0]}]\n"
    text = f"{story}hactl: |\n{lines(GOOD)}conf: |\n{lines(CONF)}"
    result = hactl("simulate", scenario(tmp_path, text))
    assert result.exit_code == 0, result.output
    assert "host disable 1 mx/10.0.0.4" in result.output
