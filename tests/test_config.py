"""hactl.yaml: what it means, each error with its place, and that no file ever breaks the reader."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checks
from checks.smtp import Smtp
from checks.spamd import Spamd
from checks.tcp import Tcp
from hactl import config
from hactl.config import Check, Config, ConfigError, Control, Node, Service
from hactl.core.model import Limit
from hactl.core.units import Duration, FileMode, Pace, Secret, Share

EXAMPLE = Path(__file__).parent.parent / "etc" / "hactl.yaml"
MODE = "mode: observe\n"
DIALOGUE = (Duration(2), Duration(1), Duration(0.2), Duration(0.1))
SMTP = MODE + "checks: {smtp: {type: smtp}}\n"


def wrong(text: str) -> list[str]:
    """Return the errors of *text*, each as `line:column: ...`."""
    with pytest.raises(ConfigError) as error:
        config.parse(text, "f")
    assert str(error.value) == "\n".join(map(str, error.value.errors))
    return [str(problem).removeprefix("f:") for problem in error.value.errors]


# What a file means


def test_the_smallest_file_that_works() -> None:
    text = """
mode: relayctl
nodes: {mx0: 10.0.0.4, mx1: 10.0.0.5}
checks: {smtp: {type: smtp}}
services: {mx0-smtp: {require: [smtp]}}
"""
    assert config.parse(text, "f") == Config(
        mode="relayctl",
        nodes={"mx0": Node(("10.0.0.4",)), "mx1": Node(("10.0.0.5",))},
        checks={"smtp": Check(Smtp(), *DIALOGUE)},
        services={"mx0-smtp": Service(mode="relayctl", require=("smtp",))},
    )


def test_the_example_shows_every_check_type_and_loads() -> None:
    """Those that cannot be loaded without a file of one's own are in comments."""
    example = config.load(EXAMPLE)
    shown = {type(c.option).__module__ for c in example.checks.values()}
    commented = set(re.findall(r"^  #   type: (\w+)", EXAMPLE.read_text(), re.MULTILINE))
    assert commented == {"mysql", "replication"}
    others = {f"checks.{name}" for name in set(checks.names()) - commented}
    assert shown == {"hactl.config", *others}
    assert {"mx0-smtp", "mx1-smtp"} <= example.services.keys()


def test_every_key_and_its_default_stand_in_the_example() -> None:
    """A comment `# key: value` that shows a default says the truth."""
    text = EXAMPLE.read_text()
    keys = set(re.findall(r"(\w+):", text))
    properties = config.schema()["properties"]
    assert isinstance(properties, dict)
    assert properties.keys() <= keys
    for kind in (Node, Check, Service, config.Relayd, Control, config.Agent):
        assert config._specs(kind).keys() - {"option"} <= keys
    for name in checks.names():
        assert config._specs(checks.load(name)).keys() <= keys
    shown = [line for line in text.splitlines() if re.match(r" *# [a-z_]+: ", line)]
    uncommented = "\n".join(
        re.sub("# ", "", line, count=1) if line in shown else line
        for line in text.splitlines()
        if "min_serving" not in line
    )
    assert len(shown) > 20
    assert config.parse(uncommented, "f") == config.load(EXAMPLE)


def test_options_stand_beside_the_common_keys() -> None:
    text = (
        MODE
        + "nodes: {mx1: mx1.domain.tld}\nchecks: {imap: {type: tcp, port: 143, at: mx1, fall: 5}}"
    )
    assert config.parse(text, "f").checks["imap"] == Check(
        Tcp(port=143), *DIALOGUE, fall=5, at="mx1"
    )


def test_what_comes_from_an_agent_has_times_and_limits() -> None:
    text = MODE + (
        "nodes: {mx0: {address: 10.0.0.4, agent: true}, mx1: {address: '::1', agent: true},\n"
        "  mx2: {address: 10.0.0.6, agent: 'https://10.0.0.7:1'}, mx3: 10.0.0.8}\n"
        "checks: {nfs: {from: agent}, queue: {from: agent, type: queue, interval: 10s}}"
    )
    parsed = config.parse(text, "f")
    assert [node.url() for node in parsed.nodes.values()] == [
        "https://10.0.0.4:8325", "https://[::1]:8325", "https://10.0.0.7:1", None,
    ]  # fmt: skip
    times = (Duration(5), Duration(3), Duration(0), Duration(0))
    assert parsed.checks["nfs"] == Check(config.FromAgent(), *times)
    assert parsed.checks["queue"].option == config.FromAgent(kind="queue")
    assert config.parse(config.show(parsed), "f") == parsed


def test_the_file_of_an_agent_has_its_node_and_looks_with_everything() -> None:
    text = MODE + "node: mx0\nchecks: {smtp: {type: smtp}, web: {type: tcp, port: 80}}"
    parsed = config.parse(text, "f")
    assert parsed.nodes == {"mx0": Node(("127.0.0.1",))}
    assert parsed.watch == {"mx0": ("smtp", "web")}
    other = config.parse(text + "\nnodes: {mx0: 10.0.0.4}", "f")
    assert other.nodes == {"mx0": Node(("10.0.0.4",))}
    assert config.parse(config.show(parsed), "f") == parsed


AGENT = MODE + "nodes: {mx0: {address: 10.0.0.4, agent: true}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MODE + "checks: {a: {from: agent}}", "2:13: checks.a.from: no node has an agent"),
        (AGENT + "checks: {a: {from: here}}", "3:20: checks.a.from: expected agent"),
        (AGENT + "checks: {a: {from: agent, port: 1}}", "3:27: checks.a.port: unknown key"),
        (AGENT + "checks: {a: {from: agent, type: smpt}}", '"smpt"; did you mean "smtp"?'),
        (AGENT + "checks: {a: {from: agent, hedge: 1s}}", "what comes from an agent has none"),
        (AGENT + "node: mx0\nchecks: {a: {from: agent}}", "this is the agent of mx0 itself"),
        (MODE + "node: mx0", "2:7: node: an agent needs checks"),
        (MODE + "node: a b\nchecks: {a: {type: smtp}}", "2:7: node: expected a name of letters"),
        (
            AGENT + "node: mx0\nchecks: {a: {type: smtp}}\nservices: {s: {require: [a]}}",
            "3:7: node: an agent has no services",
        ),
        (MODE + "agent: {listen: ':1'}", "agent.listen: expected an address and a port"),
        (MODE + "agent: {listen: '::1:1'}", "agent.listen: expected an address and a port"),
        (MODE + "agent: {haproxy: 127.0.0.1:65536}", "expected a port from 1 to 65535"),
        (MODE + "nodes: {a: {address: 1.1.1.1, agent: 'http://1.1.1.1:1'}}", "nodes.a.agent: "),
    ],
)
def test_what_agents_cannot_be(text: str, message: str) -> None:
    assert any(message in line for line in wrong(text)), wrong(text)


def test_a_short_interval_shortens_the_defaults_that_would_not_fit() -> None:
    text = MODE + "checks: {a: {type: smtp, interval: 100ms}, b: {type: spamd, interval: 1m}}"
    parsed = config.parse(text, "f").checks
    tenth = Duration(0.1)
    assert parsed["a"] == Check(Smtp(), tenth, tenth, tenth, tenth)
    assert parsed["b"] == Check(Spamd(), Duration(60), Duration(10), Duration(1), Duration(0))


def test_own_keys_come_before_defaults_and_defaults_before_the_type() -> None:
    text = """
mode: observe
defaults: {check: {interval: 30s, fall: 2}, service: {on_exit: release, mode: relayctl}}
checks: {smtp: {type: smtp, fall: 4}}
services:
  a: {require: [smtp]}
  b: {watch: [smtp], on_exit: keep, mode: observe}
  c: {require: [smtp], mode: hook, stale: up}
"""
    parsed = config.parse(text, "f")
    assert parsed.checks["smtp"] == Check(Smtp(), Duration(30), *DIALOGUE[1:], fall=4)
    assert parsed.services == {
        "a": Service(mode="relayctl", require=("smtp",), on_exit="release"),
        "b": Service(mode="observe", watch=("smtp",)),
        "c": Service(mode="hook", require=("smtp",), on_exit="release", stale="up"),
    }


EVERY_RULE = """
mode: relayctl
defaults: {check: {hedge: 0s, wipe_count: 20}, service: {pace: 50% in 1h, prefer_serving: 40%}}
checks:
  smtp:
    type: smtp
    hedge: 300ms
    down_count: 5
    limits:
      greeting_seconds: {warn: 0.5, fail: 0.9, clear: 0.3}
      total_seconds: {fail: 1}
      tiny: {warn: 0.00001, clear: -0.00000001}
      huge: {warn: 100000000000000000, clear: null}
  queue: {type: tcp, port: 1, limits: {left_days: {warn: 14, fail: 1, clear: 20.5, low: true}}}
  nfs: {type: tcp, port: 2049}
services:
  a: {require: [smtp], prefer: [queue], floor: closed, min_serving: 2}
  b: {prefer: [queue, smtp], watch: [nfs], exclusive: true, failback: manual, pace: 12.5% in 1.5s}
shared_fate: {nfs: [smtp, queue]}
"""


def test_the_rules_of_health_and_policy_can_be_set() -> None:
    parsed = config.parse(EVERY_RULE, "f")
    smtp, queue = parsed.checks["smtp"], parsed.checks["queue"]
    assert (smtp.hedge, smtp.down_count, smtp.wipe_count) == (Duration(0.3), 5, 20)
    assert (queue.hedge, queue.down_count) == (Duration(0), 8)
    assert smtp.limits == {
        "greeting_seconds": Limit(0.5, 0.9, 0.3),
        "total_seconds": Limit(fail=1.0),
        "tiny": Limit(warn=1e-5, clear=-1e-8),
        "huge": Limit(warn=1e17),
    }
    assert queue.limits == {"left_days": Limit(14.0, 1.0, 20.5, low=True)}
    hour = Pace((Share(0.5), Duration(3600)))
    assert parsed.services == {
        "a": Service(
            "relayctl", ("smtp",), ("queue",), min_serving=2, floor="closed",
            prefer_serving=Share(0.4), pace=hour,
        ),
        "b": Service(
            "relayctl", (), ("queue", "smtp"), ("nfs",), prefer_serving=Share(0.4),
            pace=Pace((Share(0.125), Duration(1.5))), exclusive=True, failback="manual",
        ),
    }  # fmt: skip
    assert parsed.shared_fate == {"nfs": ("smtp", "queue")}


def test_the_defaults_of_health_and_policy() -> None:
    parsed = config.parse(SMTP + "services: {a: {require: [smtp]}}", "f")
    check, service = parsed.checks["smtp"], parsed.services["a"]
    assert (check.down_count, check.wipe_count, check.limits) == (8, 12, {})
    assert (service.floor, service.exclusive, service.failback) == ("open", False, "auto")
    assert (str(service.prefer_serving), str(service.pace)) == ("50%", "25% in 1m")
    assert parsed.shared_fate == {}


def test_anchors_and_merges_are_welcome_and_own_keys_win() -> None:
    text = (
        SMTP
        + """
services:
  a: &a {require: [smtp], window: 5s, min_serving: 60%}
  b: *a
  c: {<<: [{window: 7s}, *a], grace: 1s, min_serving: 2}
"""
    )
    first = Service(require=("smtp",), window=Duration(5), min_serving=Share(0.6))
    assert config.parse(text, "f").services == {
        "a": first,
        "b": first,
        "c": Service(require=("smtp",), window=Duration(7), grace=Duration(1), min_serving=2),
    }


def test_what_hactld_becomes_and_what_is_run_when_it_is_dead() -> None:
    parsed = config.parse(MODE, "f")
    assert (parsed.user, parsed.on_dead) == ("_hactl", None)
    parsed = config.parse(MODE + "user: nobody\non_dead: /bin/page -n 'two words' 5551234", "f")
    assert parsed.user == "nobody"
    assert parsed.on_dead == ("/bin/page", "-n", "two words", "5551234")
    assert config.parse(config.show(parsed), "f") == parsed


def test_the_control_socket_lies_in_run_dir_unless_it_is_given() -> None:
    text = MODE + "run_dir: /tmp/x\ncontrol: {group: wheel, mode: '0600'}"
    control = config.parse(text, "f").control
    assert control == Control(Path("/tmp/x/hactl.sock"), "wheel", FileMode(0o600))
    text = MODE + "run_dir: /tmp/x\ncontrol: {path: /tmp/y}"
    assert config.parse(text, "f").control == Control(Path("/tmp/y"))


def test_yes_and_no_are_booleans_where_a_boolean_is_asked_for() -> None:
    text = MODE + "checks: {spamd: {type: spamd, scan: no}}"
    assert config.parse(text, "f").checks["spamd"].option == Spamd(scan=False)


def test_a_byte_order_mark_is_no_text() -> None:
    assert config.parse("\ufeff" + MODE, "f") == Config("observe")


# What is wrong with a file

SCALARS = [
    (
        "type: smtp, interval: 5 parsecs",
        '33: checks.x.interval: expected a duration like "5s" (got "5 parsecs")',
    ),
    ("type: smtp, interval: 5", '33: checks.x.interval: expected a duration like "5s" (got 5)'),
    (
        "type: smtp, interval: 0s",
        '33: checks.x.interval: expected a duration of at least 10ms (got "0s")',
    ),
    (
        "type: smtp, fast_interval: 1ms",
        '38: checks.x.fast_interval: expected a duration of at least 10ms, or 0s (got "1ms")',
    ),
    (
        "type: maillog, file: /var/log/maillog, interval: 10m",
        "60: checks.x.interval: 10m is longer than the window, 5m; some would go uncounted",
    ),
    ("type: smtp, timeout: 3s", "32: checks.x.timeout: 3s is longer than the interval, 2s"),
    (
        "type: smtp, fast_interval: 1m",
        "38: checks.x.fast_interval: 1m is longer than the interval, 2s",
    ),
    (
        "type: smtp, port: 70000",
        "29: checks.x.port: expected a whole number from 1 to 65535 (got 70000)",
    ),
    (
        "type: smtp, port: 010",
        "29: checks.x.port: expected a whole number from 1 to 65535 (got 010); write plain decimal"
        " digits, or quote it where text is meant",
    ),
    (
        "type: smtp, port: 12:30",
        "29: checks.x.port: expected a whole number from 1 to 65535 (got 12:30); write plain"
        " decimal digits, or quote it where text is meant",
    ),
    (
        "type: smtp, port: 1_000",
        "29: checks.x.port: expected a whole number from 1 to 65535 (got 1_000); write plain"
        " decimal digits, or quote it where text is meant",
    ),
    (
        'type: smtp, port: "25"',
        '29: checks.x.port: expected a whole number from 1 to 65535 (got "25"); write it without'
        " quotes",
    ),
    (
        "type: smtp, port: [25]",
        "29: checks.x.port: expected a whole number from 1 to 65535 (got a list)",
    ),
    ("type: smtp, rise: 0", "29: checks.x.rise: expected a whole number from 1 to 1000 (got 0)"),
    (
        "type: smtp, helo: no",
        '29: checks.x.helo: expected text (got no); YAML reads it as a boolean, quote it: "no"',
    ),
    (
        "type: smtp, helo: 2026-01-01",
        "29: checks.x.helo: expected text (got 2026-01-01); YAML reads it as a date, quote it:"
        ' "2026-01-01"',
    ),
    (
        r'type: smtp, helo: "a\r\nQUIT"',
        r"29: checks.x.helo: expected text without control characters" r' (got "a\r\nQUIT")',
    ),
    (
        "type: smtp, depth: deep",
        '30: checks.x.depth: expected greeting, ehlo, mail or rcpt (got "deep")',
    ),
    ("type: smtp, greeting: 220", "33: checks.x.greeting: expected a list (got 220)"),
    ("type: smtp, prot: 25", '23: checks.x.prot: unknown key; did you mean "port"?'),
    (
        "type: smtp, hedge: 1ms",
        '30: checks.x.hedge: expected a duration of at least 10ms, or 0s (got "1ms")',
    ),
    ("type: smtp, hedge: 3s", "30: checks.x.hedge: 3s is longer than the interval, 2s"),
    (
        "type: smtp, interval: 50ms, hedge: 60ms",
        "46: checks.x.hedge: 60ms is longer than the interval, 50ms",
    ),
    (
        "type: smtp, down_count: 0",
        "35: checks.x.down_count: expected a whole number from 1 to 1000 (got 0)",
    ),
    (
        "type: smtp, wipe_count: 1001",
        "35: checks.x.wipe_count: expected a whole number from 1 to 1000 (got 1001)",
    ),
    ("type: smtp, limits: 3", "31: checks.x.limits: expected a mapping (got 3)"),
    ("type: smtp, limits: {a: 3}", "35: checks.x.limits.a: expected a mapping (got 3)"),
    (
        "type: smtp, limits: {a: {}}",
        "35: checks.x.limits.a: has neither warn nor fail; name a threshold",
    ),
    (
        "type: smtp, limits: {a: {clear: 1, low: true}}",
        "35: checks.x.limits.a: has neither warn nor fail; name a threshold",
    ),
    (
        "type: smtp, limits: {a: {warn: 3, fial: 5}}",
        '45: checks.x.limits.a.fial: unknown key; did you mean "fail"?',
    ),
    (
        "type: smtp, limits: {a: {warn: 10s}}",
        '42: checks.x.limits.a.warn: expected a number (got "10s")',
    ),
    (
        "type: smtp, limits: {a: {warn: 1, low: 1}}",
        "50: checks.x.limits.a.low: expected true or false (got 1)",
    ),
    *(
        (f"type: smtp, limits: {{a: {{{limit}}}}}", f"35: checks.x.limits.a: {message}")
        for limits, message in (
            (
                ("warn: 5, fail: 3", "warn: 3, clear: 4", "fail: 3, clear: 4"),
                "expected clear <= warn <= fail; `low: true` turns it",
            ),
            (
                (
                    "warn: 3, fail: 5, low: true",
                    "warn: 3, clear: 2, low: true",
                    "fail: 3, clear: 2.9, low: true",
                ),
                "expected clear >= warn >= fail",
            ),
        )
        for limit in limits
    ),
    (
        "type: smtp, limits: {a/b: {warn: 1}}",
        '32: checks.x.limits: expected a name of letters, digits and "_.:@+-" (got "a/b")',
    ),
    ("type: smtp, at: mx0", '27: checks.x.at: no node "mx0"'),
    ("type: spamd, scan: 1", "30: checks.x.scan: expected true or false (got 1)"),
    (
        "type: spamd, scan: 'no'",
        '30: checks.x.scan: expected true or false (got "no"); write it without quotes',
    ),
    ("type: tcp", '10: checks.x: missing "port"'),
    ("port: 25", '10: checks.x: missing "type"; there are {types}'),
    ("type: smpt", '17: checks.x.type: no check type "smpt"; did you mean "smtp"?'),
    ("type: zzzzz", '17: checks.x.type: no check type "zzzzz"; there are {types}'),
    ("type: _wire", '17: checks.x.type: no check type "_wire"; there are {types}'),
    (
        "type: no",
        '17: checks.x.type: expected text (got no); YAML reads it as a boolean, quote it: "no"',
    ),
]


@pytest.mark.parametrize(("options", "message"), SCALARS)
def test_wrong_options_of_a_check(options: str, message: str) -> None:
    expected = message.replace("{types}", ", ".join(checks.names()))
    assert wrong(MODE + "checks:\n      x: {" + options + "}") == [f"3:{expected}"]


def test_contradicting_options_are_said_at_the_option() -> None:
    assert wrong(MODE + "checks: {smtp: {depth: rcpt, type: smtp, mail_to: ''}}") == [
        "2:51: checks.smtp.mail_to: depth rcpt needs a recipient, such as probe@example.org"
    ]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ['1:1: the file is empty; it needs at least "mode: observe"']),
        ("# nothing\n---\n", ['1:1: the file is empty; it needs at least "mode: observe"']),
        ("- a", ["1:1: expected a mapping (got a list)"]),
        ("mode", ['1:1: expected a mapping (got "mode")']),
        ("nodes: {}", ['1:1: missing "mode"']),
        ("mode: relay", ['1:7: mode: expected relayctl, hook or observe (got "relay")']),
        ("mode:", ["1:6: mode: expected relayctl, hook or observe (got nothing)"]),
        (MODE + "---\n" + MODE, ["2:1: a second document starts here; write one"]),
        (MODE + "nods: {}", ['2:1: nods: unknown key; did you mean "nodes"?']),
        (MODE + "web: {}", ["2:1: web: unknown key"]),
        (MODE + "mode: observe", ['2:1: "mode" is given twice (first on line 1)']),
        (MODE + "nodes:\n\tmx0: 1.1.1.1", ["3:1: a tab cannot indent; use spaces"]),
        (MODE + "nodes:\n  \tmx0: 1.1.1.1", ["3:3: a tab cannot indent; use spaces"]),
        (
            MODE + "nodes: {mx0: 1.1.1.1\n",
            [
                "3:1: not valid YAML: expected ',' or '}', but got '<stream end>' (while parsing a"
                " flow mapping, line 2)"
            ],
        ),
        ("mode: a: b", ["1:8: not valid YAML: mapping values are not allowed here"]),
        (MODE + "? [a]\n: b", ["2:3: expected a plain key (got a list)"]),
        (
            MODE + "nodes: !!map {}",
            ['2:8: tags have no meaning here (got "tag:yaml.org,2002:map")'],
        ),
        (MODE + "nodes: *x", ["2:8: *x has no &x before it"]),
        (MODE + "nodes: &x {a: *x}", ["2:15: *x stands within &x"]),
        (
            MODE + "nodes: {<<: 5}",
            ["2:13: expected a mapping, or a list of them, to merge (got 5)"],
        ),
        (MODE + "nodes: " + "[" * 40, ["2:40: nested more than 32 deep"]),
        ("mode: \0", ["1:7: a character that is not text (U+0000)"]),
        (MODE + "# \x1b[31m", ["2:3: a character that is not text (U+001B)"]),
        (MODE + "# \ud800", ["2:3: a character that is not text (U+D800)"]),
        (MODE + "run_dir: var/run", ['2:10: run_dir: expected an absolute path (got "var/run")']),
        (
            MODE + "on_dead: page me",
            ['2:10: on_dead: expected a command like "/bin/true -x" (got "page me")'],
        ),
        (
            MODE + "on_dead: /bin/page 'me",
            ['2:10: on_dead: expected a command like "/bin/true -x" (got "/bin/page \'me")'],
        ),
        (
            MODE + "control: {mode: 0660}",
            [
                '2:17: control.mode: expected a mode like "0660" (got 0660); YAML reads it as a'
                ' number, quote it: "0660"'
            ],
        ),
        (
            MODE + "relayd: {timeout: soon}",
            ['2:19: relayd.timeout: expected a duration like "5s" (got "soon")'],
        ),
        (MODE + "relayd: []", ["2:9: relayd: expected a mapping (got an empty list)"]),
        (
            MODE + "checks: {no: {type: smtp}}",
            [
                '2:10: checks.no: expected a name (got no); YAML reads it as a boolean, quote it: "no"'
            ],
        ),
        (
            MODE + "checks: {a/b: {type: smtp}}",
            ['2:10: checks: expected a name of letters, digits and "_.:@+-" (got "a/b")'],
        ),
        (
            MODE + "defaults: {check: {fal: 3}, service: 1, node: {}}",
            [
                '2:20: defaults.check.fal: unknown key; did you mean "fall"?',
                "2:38: defaults.service: expected a mapping (got 1)",
                "2:41: defaults.node: unknown key",
            ],
        ),
        (
            SMTP + "defaults: {check: {fall: 0}}",
            ["3:26: defaults.check.fall: expected a whole number from 1 to 1000 (got 0)"],
        ),
        (
            MODE + "watch: {mx: []}\nnodes: {mx0: 1.1.1.1}",
            ['2:9: watch: no node "mx"; did you mean "mx0"?'],
        ),
    ],
)
def test_wrong_files(text: str, messages: list[str]) -> None:
    assert wrong(text) == messages


@pytest.mark.parametrize(
    ("node", "messages"),
    [
        (
            "10.0.0.256",
            ['6: nodes.x.address: expected an IP address or a host name (got "10.0.0.256")'],
        ),
        ("'a b'", ['6: nodes.x.address: expected an IP address or a host name (got "a b")']),
        ("-mx", ['6: nodes.x.address: expected an IP address or a host name (got "-mx")']),
        ("", ["5: nodes.x.address: expected an IP address or a host name (got nothing)"]),
        ("[10.0.0.1]", ["6: nodes.x: expected a mapping (got a list)"]),
        ("{}", ['6: nodes.x: missing "address"']),
        (
            "{address: []}",
            ["16: nodes.x.address: expected at least one address (got an empty list)"],
        ),
        (
            "{address: a, weight: 0}",
            ["27: nodes.x.weight: expected a whole number from 1 to 1000 (got 0)"],
        ),
        ("{address: a, relayd: [b c]}", ['28: nodes.x.relayd: expected a word (got "b c")']),
        (
            r'{address: a, relayd: ["\x07"]}',
            [r'28: nodes.x.relayd: expected text without control characters (got "\x07")'],
        ),
        ("{address: [a, A]}", ["20: nodes.x.address: A is taken by nodes.x, line 3"]),
        ("{address: ['::1', '0::1']}", ["24: nodes.x.address: 0::1 is taken by nodes.x, line 3"]),
        ("a\n  y: a", ["4:6: nodes.y.address: a is taken by nodes.x, line 3"]),
    ],
)
def test_wrong_nodes(node: str, messages: list[str]) -> None:
    assert wrong(f"{MODE}nodes:\n  x: {node}") == [
        m if re.match(r"\d+:\d+:", m) else f"3:{m}" for m in messages
    ]


@pytest.mark.parametrize(
    ("service", "messages"),
    [
        ("{}", ["6: services.x: requires, prefers and watches nothing; name a check"]),
        ("{require: [smpt]}", ['17: services.x.require: no check "smpt"; did you mean "smtp"?']),
        ("{require: smtp}", ['16: services.x.require: expected a list (got "smtp")']),
        ("{require: [smtp, smtp]}", ['23: services.x.require: "smtp" is given twice']),
        (
            "{require: [smtp], watch: [smtp]}",
            ['32: services.x.watch: "smtp" is required already'],
        ),
        (
            "{require: [smtp], prefer: [smtp], watch: [smtp]}",
            [
                '33: services.x.prefer: "smtp" is required already',
                '48: services.x.watch: "smtp" is required already',
            ],
        ),
        (
            "{prefer: [smtp], watch: [smtp]}",
            ['31: services.x.watch: "smtp" is preferred already'],
        ),
        (
            "{prefer: [smtp], floor: shut, exclusive: 1, failback: never, prefer_serving: 0.5}",
            [
                '30: services.x.floor: expected open or closed (got "shut")',
                "47: services.x.exclusive: expected true or false (got 1)",
                '60: services.x.failback: expected auto or manual (got "never")',
                '83: services.x.prefer_serving: expected a share like "60%" (got 0.5)',
            ],
        ),
        (
            "{require: [smtp], min_serving: 0, on_exit: kepe, mode: off, perfer: []}",
            [
                '37: services.x.min_serving: expected a whole number from 1 to 1000 or a share like "60%" (got 0)',
                '49: services.x.on_exit: expected keep or release (got "kepe")',
                "61: services.x.mode: expected relayctl, hook or observe (got off)",
                '66: services.x.perfer: unknown key; did you mean "prefer"?',
            ],
        ),
        (
            "&a {require: [smpt]}\n  y: *a",
            ['20: services.x.require: no check "smpt"; did you mean "smtp"?'],
        ),
    ],
)
def test_wrong_services(service: str, messages: list[str]) -> None:
    assert wrong(f"{SMTP}services:\n  x: {service}") == [f"4:{m}" for m in messages]


@pytest.mark.parametrize(
    "pace",
    [
        "25%",
        "60s",
        "25% per 60s",
        "25% in 60",
        "25 in 60s",
        "25%  in 60s",
        "101% in 60s",
        "in",
        "''",
    ],
)
def test_a_pace_is_a_share_in_a_span(pace: str) -> None:
    (message,) = wrong(f"{SMTP}services: {{x: {{require: [smtp], pace: {pace}}}}}")
    assert message.startswith('3:39: services.x.pace: expected a pace like "25% in 60s" (got ')


@pytest.mark.parametrize("pace", ["25% in 0s", "25% in 500ms", "25% in 61m"])
def test_a_pace_is_remembered_for_an_hour(pace: str) -> None:
    assert wrong(f"{SMTP}services: {{x: {{require: [smtp], pace: {pace}}}}}") == [
        f'3:39: services.x.pace: expected a pace over 1s to 1h (got "{pace}")'
    ]


@pytest.mark.parametrize(
    ("fates", "message"),
    [
        ("[smtp]", "14: shared_fate: expected a mapping (got a list)"),
        ("{nfs: smtp}", '20: shared_fate.nfs: expected a list (got "smtp")'),
        ("{nfs: [smpt]}", '21: shared_fate.nfs: no check "smpt"; did you mean "smtp"?'),
        ("{nsf: [smtp]}", '15: shared_fate: no check "nsf"; did you mean "nfs"?'),
        ("{nfs: [smtp, smtp]}", '27: shared_fate.nfs: "smtp" is given twice'),
        ("{nfs: [smtp, nfs]}", "27: shared_fate.nfs: it cannot be its own cause"),
    ],
)
def test_wrong_shared_fates(fates: str, message: str) -> None:
    text = MODE + "checks: {smtp: {type: smtp}, nfs: {type: tcp, port: 2049}}\nshared_fate: "
    assert wrong(text + fates) == [f"3:{message}"]


def test_no_service_is_called_all() -> None:
    assert wrong(SMTP + "services: {all: {require: [smtp]}}") == [
        "3:12: services.all: a freeze of all means every service; take another name"
    ]


def test_nodes_and_services_share_one_space_of_names() -> None:
    nodes, services = "nodes: {mx: 10.0.0.1}\n", "services: {mx: {require: [smtp]}}\n"
    assert wrong(SMTP + nodes + services) == [
        '4:12: services.mx: the name of a node too, line 3; "mx" can mean one of them only'
    ]
    assert wrong(SMTP + services + nodes) == [
        '4:9: nodes.mx: the name of a service too, line 3; "mx" can mean one of them only'
    ]


def test_both_parsers_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        *(MODE + "checks: {x: {" + options + "}}" for options, _ in SCALARS),
        *("a: [1, 2\nb: 3", "a: {b: c", "a: b: c", "a: 'x", "a:\n\tb: 1", "a: b\n\tc: d", "a: @x"),
        *("- a\nb: c", "%YAML 2.0\n---\na", "a: |\n x\n\ty", "&a", "*a", "? *a\n: b", "a: *"),
    ]
    messages = [wrong(text) for text in texts]
    monkeypatch.setattr(config, "_Loader", yaml.SafeLoader)
    assert [wrong(text) for text in texts] == messages


def test_an_escape_that_breaks_the_parser_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_Loader", yaml.SafeLoader)
    assert wrong('mode: "\\U00110000"') == ["1:1: not valid YAML: chr() arg not in range(0x110000)"]


def test_an_alias_bomb_is_defused_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    start = time.thread_time()
    assert wrong("\n".join(lines)) == ["5:10: aliases add more than 10000 values"]
    assert time.thread_time() - start < 0.5  # of this thread's own: it is the order that counts


def test_a_thousand_errors_are_all_said_and_soon() -> None:
    start = time.thread_time()
    messages = wrong(MODE + "".join(f"modes{n}: x\n" for n in range(10_000)))
    assert (len(messages), messages[0]) == (
        10_000,
        '2:1: modes0: unknown key; did you mean "mode"?',
    )
    assert time.thread_time() - start < 2


# Files


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"mode: \xff", ":1:7: not UTF-8 (byte 0xff)"),
        (b"# \xc3\xa4\n# \xc3\xa4 \xc3", ":2:5: not UTF-8 (byte 0xc3)"),
        (b"#" * (1 << 20) + b"\n", ": longer than 1M; this is no configuration"),
        (b"mode: relay", ':1:7: mode: expected relayctl, hook or observe (got "relay")'),
    ],
)
def test_wrong_bytes(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hactl.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert str(error.value) == f"{path}{message}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file or directory$"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r": Is a directory$"):
        config.load(tmp_path)


# Secrets


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Add a check type that needs a secret, and return the secret's file."""
    types = tmp_path / "checks"
    types.mkdir()
    (types / "vault.py").write_text(
        "from checks import Spoken\n"
        "from hactl.core.units import Secret\n"
        "class Vault(Spoken, frozen=True, kw_only=True, tag='vault'):\n"
        "    port: int = 1\n"
        "    login: Secret\n"
    )
    (types / "chore.py").write_text(
        "from checks import Probed, SCAN\n"
        "class Chore(Probed, frozen=True, kw_only=True, tag='chore'):\n"
        "    timing = SCAN\n"
    )
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(types)])
    path = tmp_path / "login"
    path.write_text("user\npassword\n")
    path.chmod(0o640)
    yield path
    for name in ("vault", "chore"):
        sys.modules.pop(f"checks.{name}", None)


@pytest.mark.usefixtures("login")
def test_what_is_no_conversation_has_neither_hedge_nor_tripwire() -> None:
    chore = MODE + "checks: {x: {type: chore, hedge: 0s, tripwire: false}}"
    assert config.parse(chore, "f").checks["x"].interval == Duration(10)
    everybody = MODE + "defaults: {check: {hedge: 1s, tripwire: true}}\n"
    both = config.parse(everybody + "checks: {x: {type: chore}, y: {type: smtp}}", "f").checks
    assert [(check.hedge, check.tripwire) for check in both.values()] == [
        (Duration(0), False),
        (Duration(1), True),
    ]
    why = "type chore has none; it is no conversation over TCP"
    assert wrong(MODE + "checks: {x: {type: chore, hedge: 1s, tripwire: true}}") == [
        f"2:34: checks.x.hedge: {why}",
        f"2:48: checks.x.tripwire: {why}",
    ]


def test_a_secret_is_its_file_and_shown_as_such(login: Path) -> None:
    text = MODE + f"checks: {{x: {{type: vault, login: {login}}}}}"
    parsed = config.parse(text, "f")
    assert parsed.checks["x"].option.login == Secret(str(login))  # type: ignore[attr-defined]
    assert f"login: {login}\n" in config.show(parsed)
    assert "password" not in config.show(parsed)
    assert config.parse(config.show(parsed), "f") == parsed


def test_a_secret_that_others_may_read_or_that_is_missing_is_an_error(login: Path) -> None:
    text = MODE + f"checks: {{x: {{type: vault, login: {login}}}}}"
    login.chmod(0o644)
    place = "2:34: checks.x.login: expected a secret's file"
    assert wrong(text) == [f'{place} that others cannot open, not mode 0644 (got "{shown(login)}")']
    login.unlink()
    assert wrong(text) == [f'{place} (No such file or directory) (got "{shown(login)}")']
    login.mkdir()
    assert wrong(text) == [f'{place}, not a directory or device (got "{shown(login)}")']


def shown(path: Path) -> str:
    return config._shown(str(path))


# show and schema


def test_what_is_shown_reads_as_the_same() -> None:
    example = config.load(EXAMPLE)
    assert config.parse(config.show(example), "f") == example
    odd = config.parse(
        "mode: relayctl\n"
        "nodes: {'no': {address: ['::1', a.b], relayd: ['010', '12:30', ü], weight: 7}}\n"
        "checks: {'1e3': {type: smtp, helo: 'yes', mail_from: p@x, interval: 1.5s, fast_interval: 0s,"
        " at: 'no'}}\n"
        "services: {s: {watch: ['1e3'], min_serving: 33.3%, window: 0s}}\n"
        "watch: {'no': ['1e3']}\n"
        "relayd: {socket: /tmp/s}\nrun_dir: /tmp/r\n",
        "f",
    )
    assert config.parse(config.show(odd), "f") == odd
    rules = config.parse(EVERY_RULE, "f")
    assert config.parse(config.show(rules), "f") == rules


def test_no_option_has_the_name_of_a_common_key() -> None:
    for name in checks.names():
        assert not config._specs(checks.load(name)).keys() & ({"type"} | config._common().keys())


def fits(value: object, schema: object) -> bool:
    """Judge *value* by the few words of JSON Schema that ours uses."""
    assert isinstance(schema, dict)
    for word, rule in schema.items():
        match word:
            case "type":
                names = {
                    dict: "object",
                    list: "array",
                    str: "string",
                    bool: "boolean",
                    int: "integer",
                    float: "number",
                    type(None): "null",
                }
                allowed = [rule] if isinstance(rule, str) else rule
                good = names[type(value)] in allowed or (type(value) is int and "number" in allowed)
            case "const":
                good = value == rule
            case "enum":
                good = value in rule
            case "pattern":
                good = not isinstance(value, str) or re.search(rule, value) is not None
            case "minimum":
                good = not isinstance(value, int) or value >= rule
            case "maximum":
                good = not isinstance(value, int) or value <= rule
            case "minItems":
                good = not isinstance(value, list) or len(value) >= rule
            case "items":
                good = not isinstance(value, list) or all(fits(v, rule) for v in value)
            case "anyOf":
                good = any(fits(value, one) for one in rule)
            case "oneOf":
                good = sum(fits(value, one) for one in rule) == 1
            case "required":
                good = isinstance(value, dict) and set(rule) <= value.keys()
            case "properties":
                good = isinstance(value, dict) and all(
                    fits(value[k], rule[k]) for k in rule.keys() & value.keys()
                )
            case "additionalProperties":
                assert isinstance(value, dict)
                rest = [value[k] for k in value.keys() - schema.get("properties", {}).keys()]
                good = not rest if rule is False else all(fits(v, rule) for v in rest)
            case "propertyNames":
                good = isinstance(value, dict) and all(fits(k, rule) for k in value)
            case "$schema" | "title" | "default":
                good = True
            case _:
                raise AssertionError(word)
        if not good:
            return False
    return True


def test_the_schema_accepts_what_is_accepted_and_refuses_what_is_not() -> None:
    schema = config.schema()
    assert fits(yaml.safe_load(EXAMPLE.read_text()), schema)
    assert fits(yaml.safe_load(config.show(config.load(EXAMPLE))), schema)
    assert fits(yaml.safe_load(EVERY_RULE), schema)
    assert fits(yaml.safe_load(config.show(config.parse(EVERY_RULE, "f"))), schema)
    for text in (
        "nodes: {}",
        "mode: off",
        MODE + "nodez: {}",
        MODE + "checks: {x: {type: smpt}}",
        MODE + "checks: {x: {type: tcp}}",
        MODE + "checks: {x: {type: smtp, interval: 5 parsecs}}",
        MODE + "checks: {x: {type: smtp, port: 70000}}",
        MODE + "nodes: {x: {address: []}}",
        MODE + "services: {x: {require: smtp}}",
        MODE + "services: {x: {min_serving: 101%}}",
        MODE + "control: {mode: 0660}",
        MODE + "checks: {x: {type: smtp, hedge: 5}}",
        MODE + "checks: {x: {type: smtp, down_count: 0}}",
        MODE + "checks: {x: {type: smtp, limits: {a: 5}}}",
        MODE + "checks: {x: {type: smtp, limits: {a: {warn: high}}}}",
        MODE + "checks: {x: {type: smtp, limits: {a: {wran: 5}}}}",
        MODE + "services: {x: {prefer: smtp}}",
        MODE + "services: {x: {floor: shut}}",
        MODE + "services: {x: {prefer_serving: 5}}",
        MODE + "services: {x: {pace: 25%}}",
        MODE + "services: {x: {exclusive: 1}}",
        MODE + "services: {x: {failback: never}}",
        MODE + "shared_fate: {nfs: smtp}",
    ):
        assert not fits(yaml.safe_load(text), schema), text


# Any file


TOKENS = ["{", "}", "[", "]", ":", ",", "-", "&mx", "*mx", "<<", "|", ">", "!", "%", "#", "'", '"']
WORDS = [
    *TOKENS,
    "no",
    "010",
    "12:30",
    "~",
    "",
    "null",
    "-1",
    "1e9",
    "9" * 99,
    "ü",
    "\t",
    "\0",
    "5s",
    "!!str",
]
SOURCE = EXAMPLE.read_bytes()


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """Return the example after a few accidents."""
    data = bytearray(SOURCE)
    for _ in range(draw(st.integers(1, 4))):
        lines = bytes(data).splitlines(keepends=True)
        at = draw(st.integers(0, max(0, len(lines) - 1)))
        words = list(re.finditer(rb"[^\s,{}\[\]:]+|[,{}\[\]:]|^", data))
        word, other = (draw(st.sampled_from(words)) for _ in range(2))
        match draw(st.sampled_from(["flip", "cut", "repeat", "swap", "indent", "word", "end"])):
            case "flip" if data:
                data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                data = bytearray().join(lines[:at] + lines[at + 1 :])
            case "repeat":
                data = bytearray().join(lines[:at] + lines[at : at + 1] * 2 + lines[at + 1 :])
            case "swap":
                data[slice(*word.span())] = other[0]
            case "indent":
                space = draw(st.sampled_from([b" ", b"    ", b"\t", b"- "]))
                data = bytearray().join([*lines[:at], space, *lines[at:]])
            case "word":
                text = draw(st.sampled_from(WORDS) | st.text(max_size=8))
                data[slice(*word.span())] = text.encode(errors="replace")
            case "end":
                del data[word.start() :]
    return bytes(data)


@pytest.mark.long
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=mutations())
def test_any_accident_ends_in_a_configuration_or_in_errors_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "hactl.yaml"
    path.write_bytes(data)
    began = time.process_time()  # our own, as others may have the cores
    try:
        parsed = config.load(path)
    except ConfigError as error:
        problems = error.errors
        assert time.process_time() < began + 1
    else:
        assert time.process_time() < began + 1
        assert config.parse(config.show(parsed), "f") == parsed
        return
    assert problems
    assert all(p.line >= 1 and p.column >= 1 and p.text for p in problems)
    assert all(str(p).isprintable() for p in problems)
