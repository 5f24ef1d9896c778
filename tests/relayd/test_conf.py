"""relayd.conf is read as relayd reads it: the same services, tables, hosts and ids."""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.core.model import Kind, Observation
from hactl.relayd.conf import (
    LIMIT,
    Argument,
    ConfError,
    ConfHost,
    ConfService,
    ConfTable,
    Listen,
    RelaydConf,
    parse,
    read,
)
from hactl.relayd.relayctl import parse as parse_summary

DATA = Path(__file__).parent.parent / "data"
SEED = DATA / "relayd-conf" / "seed.conf"
WORDS = DATA / "relayd-conf" / "words.conf"
CALLS = msgspec.json.decode((DATA / "relayd-transcripts" / "calls.json").read_bytes())

MINIMAL = "redirect r {\n listen on 192.0.2.1 port 25\n forward to <t> check tcp\n}\n"


def one(text: str, **macros: str) -> ConfService:
    """Read a file with one service."""
    (service,) = parse(text, "relayd.conf", macros).services
    return service


def hosts(text: str, **macros: str) -> tuple[ConfHost, ...]:
    """Read the hosts of a table in braces that a minimal redirect uses."""
    return one(f"table <t> {{ {text} }}\n{MINIMAL}", **macros).tables[0].hosts


def table(options: str, before: str = "") -> ConfTable:
    """Read a table of one host as it is used with *options*."""
    use = MINIMAL.replace("check tcp", options)
    return one(f"{before}table <t> {{ 10.0.0.4 }}\n{use}").tables[0]


def outline(seen: Observation | RelaydConf) -> list[tuple[object, ...]]:
    """List what relayctl shows of a configuration, row by row."""
    rows: list[tuple[object, ...]] = []
    for service in seen.services:
        rows.append((service.kind, service.id, service.name))
        for table in service.tables:
            name = table.shown if isinstance(table, ConfTable) else table.name
            rows.append(("table", table.id, name))
            rows += [("host", host.id, host.name, host.parent) for host in table.hosts]
    return rows


def recorded(first: str) -> Observation:
    """Take the first recorded summary whose first service has this name."""
    for call in CALLS:
        if call["words"] == "show summary" and f"\t{first} " in call["stdout"]:
            return parse_summary(call["stdout"], 0.0, whole=True)
    raise LookupError(first)


# What relayd showed of its configuration


def test_seed_has_the_services_tables_hosts_and_ids_that_relayd_showed() -> None:
    assert outline(read(SEED)) == outline(recorded("mx0-smtp"))


def test_tables_of_the_same_name_are_numbered_by_use_as_relayd_showed() -> None:
    text = """
table <fb> { 127.0.0.6 }
table <mx> { 127.0.0.4, 127.0.0.5 }
redirect smtp {
	listen on 127.0.0.10 port 25
	forward to <mx> check tcp
	forward to <fb> check tcp
}
redirect subm {
	listen on 127.0.0.10 port 587
	forward to <mx> check tcp
	forward to <fb> check tcp
}
redirect smtps {
	listen on 127.0.0.10 port 465
	forward to <mx> port 25 check tcp
}
"""
    assert outline(parse(text, "relayd.conf")) == outline(recorded("smtp"))


def test_times_sticky_address_and_listener_of_the_seed() -> None:
    conf = read(SEED)
    mx = conf.services[0]
    assert (conf.interval, conf.timeout, conf.socket, conf.sources) == (2, 0.5, None, (str(SEED),))
    assert mx.sticky
    assert mx.listens == (Listen("127.0.0.10", 25, interface="lo"),)
    assert (mx.tables[0].check, mx.tables[0].timeout, mx.tables[0].interval) == ("tcp", 0.5, 2.0)
    assert conf.services[-1].tables[0].hosts[1].retry == 1


def test_every_word_of_relayd_is_read_or_passed_over() -> None:
    conf = read(WORDS)
    mx_in, last, imaps, imaps2, plain, natted = conf.services
    assert (conf.interval, conf.timeout) == (5.0, 1.5)
    assert conf.socket == "/var/run/relayd/relayd.sock"
    assert [(s.kind, s.id, s.name) for s in conf.services] == [
        (Kind.REDIRECT, 1, "mx in"),
        (Kind.REDIRECT, 2, "last"),
        (Kind.RELAY, 1, "imaps"),
        (Kind.RELAY, 2, "imaps2:993"),
        (Kind.RELAY, 3, "plain"),
        (Kind.RELAY, 4, "natted"),
    ]
    assert mx_in.listens == (
        Listen("192.0.2.1", 25, 26, interface="em0"),
        Listen("2001:db8::1", 25, proto="udp"),
    )
    banner = Argument(send="EHLO x\\r\\n", expect="220 *", tls=True)
    assert mx_in.tables == (
        ConfTable(1, "mx", "mx:25", 25, "send", banner, 0.4, 5.0, "source-hash", "key", "carp",
                  False, (ConfHost(1, "10.0.0.4", 2), ConfHost(2, "10.0.0.5")),
                  ('forward to <mx> port smtp mode source-hash "key"', "demote carp")),
        ConfTable(2, "spare", "spare:25", 25, "icmp", Argument(), 0.3, 10.0, "source-hash", None,
                  None, True, (ConfHost(3, "10.0.1.4"), ConfHost(4, "mail.example.org", parent=1),
                               ConfHost(5, "2001:db8::4", 1)),
                  ("route to <spare> port 25 interval 10 mode source-hash", "interface em0")),
    )  # fmt: skip
    script, web = imaps.tables
    assert script.hosts == (ConfHost(6, "host name"), ConfHost(7, "em1"))
    assert (script.check, script.argument.path) == ("script", "/usr/local/libexec/check imap")
    assert web.argument == Argument("/health", "mail.example.org", 200)
    assert imaps2.tables == imaps.tables
    assert (imaps.listens[0].tls, imaps2.listens[0].address) == (True, "192.0.2.2")
    assert last.disabled
    assert [t.hosts[0].id for t in last.tables] == [11, 13], "a host of the router comes before"
    assert last.tables[0].argument.digest == "0123456789abcdef0123456789abcdef"
    assert last.tables[1].argument == Argument(expect="3232")
    assert (plain.target, natted.target) == (("10.0.0.9", 80), None)


# The language


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("10.0.0.4 10.0.0.5", ["10.0.0.4", "10.0.0.5"]),
        ("10.0.0.4,10.0.0.5", ["10.0.0.4", "10.0.0.5"]),
        ("\n10.0.0.4\n\n,10.0.0.5\n", ["10.0.0.4", "10.0.0.5"]),
        ("::1 2001:db8::4 fe80::1%em0", ["::1", "2001:db8::4", "fe80::1%em0"]),
        ('\'a b\' "c\\"d" "e\\\nf"', ["a b", 'c"d', "ef"]),
        ('"a\\b" "c\\\\""', ["a\\b", 'c\\"']),
        ("mx\\\n0 mx1 # mx2", ["mx0", "mx1"]),
        ("# mx0 \\\n mx1\n mx2", ["mx2"]),
        ("$one:x ${two $pair", ["10.0.0.1:x", "mx0", "mx1", "mx2", "mx3"]),
        ("a$one", ["a$one"]),
    ],
)
def test_words_end_and_macros_expand_as_in_relayds_lexer(text: str, names: list[str]) -> None:
    text = text.replace("${two", "$two")
    read_hosts = hosts(text + "\n", one="10.0.0.1", two="mx0,mx1", pair="mx2 mx3")
    assert [host.name for host in read_hosts] == names


def test_macro_holds_tokens_and_the_command_line_wins() -> None:
    text = f'a="10.0.0.4 retry 2"\na="10.0.0.5"\ntable <t> {{ $a }}\n{MINIMAL}'
    assert one(text).tables[0].hosts == (ConfHost(1, "10.0.0.5"),)
    assert one(text, a="mx retry 3").tables[0].hosts == (ConfHost(1, "mx", 3),)


def test_macro_is_not_expanded_inside_another_one() -> None:
    with pytest.raises(ConfError, match=r'^relayd.conf:3:13: expected a host \(got "\$"\)$'):
        parse(f'a="x"\nb="$a"\ntable <t> {{ $b }}\n{MINIMAL}', "relayd.conf")


def test_port_is_the_tables_own_or_that_of_the_first_listener() -> None:
    assert table("check tcp").shown == "t:25"
    assert table("port 2525 check tcp").shown == "t:2525"
    assert table("check tcp port submission").shown == "t:587"


def test_timeout_is_the_tables_own_or_that_in_force_where_it_was_defined() -> None:
    assert table("check tcp").timeout == 0.2
    assert table("check tcp", "timeout 300\n").timeout == 0.3
    assert table("check tcp timeout 400", "timeout 300\n").timeout == 0.4
    assert table("check tcp timeout 0", "timeout 300\n").timeout == 0.3


def test_interval_is_the_tables_own_or_the_global_one_even_if_it_comes_last() -> None:
    assert table("check tcp interval 20").interval == 20
    text = f"table <t> {{ mx0 }}\n{MINIMAL}interval 30\n"
    assert one(text).tables[0].interval == 30


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("check tcp", "check tcp", False),
        ("check tcp timeout 300", "check tcp timeout 300", True),
        ("check tcp timeout 300", "check tcp timeout 400", False),
        ("check tcp timeout 300", "check icmp timeout 300", False),
        ("check tcp", "check tcp timeout 200", True),
    ],
)
def test_two_uses_share_a_table_if_they_spell_out_the_same(
    first: str, second: str, shared: bool
) -> None:
    uses = MINIMAL.replace("check tcp", first)
    uses += MINIMAL.replace("check tcp", second).replace(" r ", " s ").replace("192.0.2.1", "::1")
    one, two = parse(f"table <t> {{ mx0 }}\n{uses}", "relayd.conf").services
    assert (one.tables == two.tables) is shared
    assert two.tables[0].id == (1 if shared else 2)


# Includes


def test_includes_at_the_top_in_a_redirect_and_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "hosts").write_text("10.0.0.4 retry 1\n10.0.0.5")
    (tmp_path / "sub" / "forward").write_text("forward to <t> check tcp")
    (tmp_path / "tables").write_text(
        'listen="192.0.2.1"\ntable <t> { 10.0.0.3, include "hosts"\n10.0.0.6 }\n'
    )
    conf = tmp_path / "relayd.conf"
    conf.write_text(
        f'include "tables"\nredirect r {{\nlisten on $listen port 25\n'
        f'include "{tmp_path}/sub/forward"\ndisable\n}}\n'
    )
    read_conf = read(conf)
    (service,) = read_conf.services
    assert [host.name for host in service.tables[0].hosts] == [
        "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6",
    ]  # fmt: skip
    assert service.disabled
    names = ("relayd.conf", "tables", "hosts", "sub/forward")
    assert read_conf.sources == tuple(str(tmp_path / name) for name in names)


def test_error_in_an_included_file_has_its_place_there(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("10.0.0.4\n  10.0.0.5 retry often\n")
    text = f'table <t> {{ include "hosts"\n }}\n{MINIMAL}table <u> {{ }}\n'
    with pytest.raises(ConfError) as error:
        parse(text, str(tmp_path / "relayd.conf"))
    assert error.value.problems == (
        f'{tmp_path}/hosts:2:18: expected a number (got "often")',
        f"{tmp_path}/relayd.conf:7:7: table u has no hosts",
    )


def test_file_that_includes_itself_is_stopped(tmp_path: Path) -> None:
    conf = tmp_path / "relayd.conf"
    conf.write_text('include "relayd.conf"\n' * 2)
    with pytest.raises(ConfError) as error:
        read(conf)
    assert error.value.problems == (f"{conf}:1:9: more than 16 files include each other",)


def test_macros_and_files_are_bounded_together() -> None:
    with pytest.raises(ConfError, match=r"^relayd\.conf: more than 1 MiB$"):
        parse("table <t> { $a }", "relayd.conf", {"a": "x" * LIMIT})
    with pytest.raises(ConfError, match=r"^relayd\.conf: more than 1 MiB$"):
        parse("#" * (LIMIT + 1), "relayd.conf")


@pytest.mark.parametrize(
    ("name", "what"), [("none", "No such file or directory"), ("", "not a file")]
)
def test_file_that_cannot_be_read(tmp_path: Path, name: str, what: str) -> None:
    with pytest.raises(ConfError, match=f"^{tmp_path / name}: {what}$"):
        read(tmp_path / name)
    with pytest.raises(ConfError) as error:
        parse(f'\n include "{name}"\ntable <t> {{ x }}\n{MINIMAL}', str(tmp_path / "r.conf"))
    assert error.value.problems == (
        f'{tmp_path}/r.conf:2:10: cannot include "{tmp_path / name}": {what}',
    )


# Errors


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: no redirect and no relay: nothing to do"),
        ("interval ten\n", '1:10: expected seconds (got "ten")'),
        ("interval 0\n", "1:10: interval must be 1 or more"),
        ("interval 99999999999\n", '1:10: expected seconds (got "99999999999")'),
        ("interval\ntimeout 100\n", "1:9: expected seconds (got the end of the line)"),
        ("timeout 10000\n", "1:9: timeout must be shorter than the interval"),
        ("a=25\n", '1:3: expected a value in quotes (got "25")'),
        ('a="x\n', "1:3: a quoted string has no end"),
        ("table mx { x }\n", '1:7: expected a table in <> (got "mx")'),
        ("table <mx { x }\n", '1:11: expected ">" (got "{")'),
        ("table <mx> x\n", '1:12: expected "{" (got "x")'),
        ("table <mx> {\nx\n", "1:12: table mx has no closing brace"),
        ("table <mx> { }\n", "1:7: table mx has no hosts"),
        ("table <mx> { x ip 3 }\n", '1:19: expected "ttl" (got "3")'),
        ("table <t> { x }\n", "6:7: table t is defined twice"),
        ("table <mx> { $nobody }\n", '1:14: macro "nobody" is not defined'),
        ("}\n", '1:1: expected a statement (got "}")'),
        ("\x1b[2J\n", '1:1: expected a statement (got "\\x1b")'),
        ("redirect r {\n", "1:12: redirect r has no closing brace"),
        ("redirect r {\n 25\n}\n", '2:2: expected an option (got "25")'),
        ("redirect r {\nlisten on x port 25\n}\n", "1:10: redirect r forwards to nothing"),
        ("redirect r {\nlisten at x\n}\n", '2:8: expected "on" (got "at")'),
        ("redirect r {\nlisten on x\n}\n", '2:12: expected "port" (got the end of the line)'),
        ("redirect r {\nlisten on x port wsmtp\n}\n", '2:18: unknown port "wsmtp"'),
        ("redirect r {\nlisten on x port 0\n}\n", '2:18: unknown port "0"'),
        ("redirect r {\nforward to <x> check tcp\n}\n", '2:12: table "x" is not defined'),
        ("relay r {\nlisten on x port 25\n}\n", "1:7: relay r forwards to nothing"),
        ("relay r {\nforward to x port 25\n}\n", "1:7: relay r listens nowhere"),
        ("relay r {\nforward to x port 1:2\n}\n", "2:19: expected one port (got a range)"),
        ("relay r {\nforward with x\n}\n", '2:14: expected "tls" (got "x")'),
        ("relay r {\ntransparent x\n}\n", '2:13: expected "forward" (got "x")'),
    ],
)
def test_error_has_its_place(text: str, problem: str) -> None:
    good = "" if text == "" or "{\n" in text else f"table <t> {{ x }}\n{MINIMAL}"
    text = f"{good}{text}" if "6:" in problem else f"{text}{good}"
    with pytest.raises(ConfError) as error:
        parse(text, "relayd.conf")
    assert error.value.problems == (f"relayd.conf:{problem}",)


@pytest.mark.parametrize(
    ("use", "problem"),
    [
        ("forward to <t>", "4:12: table t needs a check"),
        ("forward to <t> check smtp", '4:22: expected a kind of check (got "smtp")'),
        ("forward to <t> check script", "4:28: expected a path (got the end of the line)"),
        ("forward to <t> check http '/'", '4:30: expected "code" or "digest" (got the end of the line)'),
        ("forward to <t> check binary x", '4:29: expected "send" (got "x")'),
        ("forward to <t> check send x", '4:28: expected "expect" (got the end of the line)'),
        ("forward to <t> check tcp interval 15", "4:26: interval must be a multiple of 10"),
        ("forward to <t> check tcp timeout 10000", "4:26: timeout must be shorter than the interval"),
        ("forward to <t> check tcp port $nobody", '4:31: macro "nobody" is not defined'),
        ("forward to 10.0.0.4 port 25", '4:12: expected a table in <> (got "10.0.0.4")'),
        ("forward <t>", '4:9: expected "to" (got "<")'),
        ("forward to <t> check tcp\nforward to <t> port 26 check tcp", "5:12: table t needs the port and mode of t"),
        ("forward to <t> check tcp\n" * 3, "6:12: a redirect has two tables at most, main and backup"),
    ],
)  # fmt: skip
def test_error_in_the_use_of_a_table_has_its_place(use: str, problem: str) -> None:
    text = f"table <t> {{ x }}\nredirect r {{\nlisten on x port 25\n{use}\n}}\n"
    with pytest.raises(ConfError) as error:
        parse(text, "relayd.conf")
    assert error.value.problems == (f"relayd.conf:{problem}",)


def test_errors_are_told_all_at_once() -> None:
    text = (
        "interval x\ntable <t> { 5 }\nredirect r {\nlisten on\nforward to <u>\n}\n$y\nrelay {\n}\n"
    )
    with pytest.raises(ConfError) as error:
        parse(text, "relayd.conf")
    assert str(error.value).splitlines() == [
        'relayd.conf:1:10: expected seconds (got "x")',
        'relayd.conf:2:13: expected a host (got "5")',
        "relayd.conf:4:10: expected an address (got the end of the line)",
        'relayd.conf:5:12: table "u" is not defined',
        'relayd.conf:7:1: macro "y" is not defined',
        'relayd.conf:8:7: expected a name (got "{")',
    ]


def test_service_defined_twice_is_an_error_for_its_kind_alone() -> None:
    relay = MINIMAL.replace("redirect", "relay")
    assert len(parse(f"table <t> {{ x }}\n{MINIMAL}{relay}", "relayd.conf").services) == 2
    with pytest.raises(ConfError, match=r"^relayd\.conf:6:10: redirect r is defined twice$"):
        parse(f"table <t> {{ x }}\n{MINIMAL}{MINIMAL}", "relayd.conf")


@settings(deadline=None)
@given(st.data())
def test_mutated_file_is_read_or_refused(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([SEED, WORDS])).read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        piece = st.text(max_size=5) | st.sampled_from(
            [*"{}<>$\"'\\#=,\n", text[start // 2 : start]]
        )
        text = text[:start] + data.draw(piece) + text[end:]
    with contextlib.suppress(ConfError):
        parse(text, "/nonexistent/relayd.conf")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfError):
        parse(text, "/nonexistent/relayd.conf")
