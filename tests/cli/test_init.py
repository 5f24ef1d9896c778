"""init: what relayd.conf says becomes a hactl.yaml that hactld takes, and nothing gets lost."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl import config
from hactl.cli.init import (
    GUESSES,
    Look,
    Proposal,
    guess,
    host_names,
    look,
    page,
    propose,
    settle,
    text,
)
from hactl.cli.main import main
from hactl.config import Config
from hactl.core.model import Kind, Verdict
from hactl.daemon.plan import mismatches
from hactl.lab.nodes import Node
from hactl.relayd import conf as conf_
from hactl.relayd.conf import (
    LIMIT,
    Argument,
    ConfHost,
    ConfService,
    ConfTable,
    Listen,
    RelaydConf,
)
from tests.cli.test_cli import HACTL, Ran, hactl, hactld

CONFS = sorted((Path(__file__).parent / "conf").glob("*.conf"))
PORTS = (24, 25, 465, 587, 143, 993, 110, 995, 4190, 80, 443, 783, 3310)


def written(proposal: Proposal, conf: RelaydConf) -> Config:
    return config.parse(text(proposal, conf, Path("/etc/relayd.conf")), "hactl.yaml")


def services(*pieces: str) -> RelaydConf:
    """Read a relayd.conf of services, each `KIND NAME PORT: HOSTS [/ HOSTS]`, a table for each."""
    lines = ["interval 2"]
    for number, piece in enumerate(pieces):
        head, _, tables = piece.partition(": ")
        kind, name, port = head.split()
        names = [f"t{number}{'ab'[n]}" for n, _ in enumerate(tables.split(" / "))]
        lines += [f"table <{t}> {{ {h} }}" for t, h in zip(names, tables.split(" / "), strict=True)]
        lines.append(f"{kind} {name} {{\n listen on 192.0.2.1 port {port}")
        lines += [f" forward to <{t}> port {port} check tcp" for t in names]
        lines.append("}")
    return conf_.parse("\n".join(lines) + "\n", "relayd.conf")


# Ten files


def test_there_are_ten() -> None:
    assert len(CONFS) == 10


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_what_is_written_is_right_and_fits_relayd_conf(path: Path) -> None:
    conf = conf_.read(path)
    proposal = propose(conf)
    found = written(proposal, conf)
    assert found.mode == "observe"
    assert {service.mode for service in found.services.values()} == {"observe"}
    assert list(mismatches(found, conf)) == []
    noted = " ".join(proposal.notes)
    lines = text(proposal, conf, path).splitlines()
    for service in conf.services:  # each is there, or it is said why not
        assert (
            service.name in found.services
            or f"{service.kind} {service.name}:" in noted
            or f"  # {service.name}: {{require: [mysql]}}" in lines
        )
    assert found.relayd.socket == (Path(conf.socket) if conf.socket else None)


def test_a_pair_is_written_as_one_would_by_hand() -> None:
    conf = conf_.read(CONFS[0])
    lines = text(propose(conf), conf, CONFS[0]).splitlines()
    assert [line for line in lines if line and not line.lstrip().startswith("#")] == [
        "mode: observe",
        "nodes:",
        "  mx0: 10.0.0.4",
        "  mx1: 10.0.0.5",
        "checks:",
        "  smtp: {type: smtp}",
        "services:",
        "  mx0-smtp: {require: [smtp]}",
        "  mx1-smtp: {require: [smtp]}",
        f"relayd: {{conf: {CONFS[0]}}}",
    ]
    assert "  # redirect on 192.0.2.10 port 25, to mx0:25, then fallback-mx0:25" in lines


def test_every_service_of_mail_gets_its_check() -> None:
    conf = conf_.read(next(path for path in CONFS if path.stem == "09-everything"))
    found = written(propose(conf), conf)
    assert {name: service.require for name, service in found.services.items()} == {
        name: (name,) for name in found.services if name != "odd"
    } | {"odd": ("tcp-17777",)}
    assert getattr(found.checks["imap"].option, "port", None) == 143


def test_what_cannot_be_steered_is_left_out_and_said() -> None:
    conf = conf_.read(next(path for path in CONFS if path.stem == "10-strange"))
    proposal = propose(conf)
    found = written(proposal, conf)
    assert list(found.services) == ["yes", "1e3", "mixed"]
    assert found.services["mixed"].watch == ("pop3", "pop3s")
    assert found.watch == {"10.0.10.9": ("smtp",)}
    assert proposal.notes == (
        "redirect a b: hactl.yaml cannot have this name; left out",
        "redirect all: hactl.yaml cannot have this name; left out",
        "redirect resting: relayd.conf disables it; left out",
        "redirect dns: no check is known for UDP; left out",
        "relay direct: forwards to no table; its host is watched",
        "relay natted: it forwards to no table; left out",
        "relay mixed: its tables have different ports; checks are watched",
    )
    lines = text(proposal, conf, Path("/etc/relayd.conf")).splitlines()
    assert all(f"# {note}" in lines for note in proposal.notes)
    assert all(f"! {note}" in list(page(proposal)) for note in proposal.notes)


# Guesses


@pytest.mark.parametrize("port", PORTS)
def test_every_port_of_mail_is_known(port: int) -> None:
    conf = services(f"redirect it {port}: 10.0.0.4 10.0.0.5")
    assert guess(port) is GUESSES[port]
    found = written(propose(conf), conf)
    assert found.services["it"].require == (guess(port).name,)
    assert getattr(found.checks[guess(port).name].option, "port", None) == port


def test_a_database_is_proposed_in_a_comment_until_there_is_a_login() -> None:
    """A bare connect, which is all that goes without, has the server block this address."""
    conf = services("redirect db 3306: 10.0.0.4 10.0.0.5")
    proposal = propose(conf)
    assert settle(proposal, []) == proposal
    lines = text(proposal, conf, Path("/etc/relayd.conf")).splitlines()
    assert "  # mysql: {type: mysql, login: /etc/hactl/mysql.login}" in lines
    assert "  # db: {require: [mysql]}" in lines
    assert any(
        line.startswith("! check mysql: wants a file with a login") for line in page(proposal)
    )
    found = written(proposal, conf)
    assert (found.checks, found.services) == ({}, {})


def test_every_way_of_every_guess_is_a_check() -> None:
    for port, known in GUESSES.items():
        for number in range(0 if known.wants else len(known.ways)):
            conf = services(f"redirect it {port}: 10.0.0.4")
            proposal = propose(conf)
            looks = [Look(known.name, number, "t0a", Verdict.OK, "")]
            assert known.name in written(settle(proposal, looks), conf).checks


@pytest.mark.parametrize(
    ("port", "listens", "name", "kind"),
    [
        (2525, [Listen("192.0.2.1", 25)], "smtp-2525", "smtp"),
        (1143, [Listen("192.0.2.1", 993, tls=True)], "imap-1143", "imap"),
        (8443, [Listen("192.0.2.1", 443)], "https-8443", "banner"),
        (2525, [Listen("192.0.2.1", 25), Listen("192.0.2.1", 143)], "tcp-2525", "tcp"),
        (7, [], "tcp-7", "tcp"),
    ],
)
def test_a_port_of_ones_own_is_guessed_by_the_listener(
    port: int, listens: Sequence[Listen], name: str, kind: str
) -> None:
    found = guess(port, listens)
    assert found.name == name
    assert found.ways[-1].options["port"] == port
    assert found.ways[-1].options["type"] == kind


# Names


def test_nodes_are_named_by_hosts_else_tables_else_addresses() -> None:
    conf = services(
        "redirect smtp 25: 10.0.0.4 10.0.0.5 / 10.0.0.6",
        "redirect imap 143: mail.example.org 2001:DB8:0::4",
    )
    names = host_names("10.0.0.4 MX0.example.org mx0 # first\n2001:db8::4 mx0.example.org\n\nbad\n")
    proposal = propose(conf, names)
    assert {name: (n.addresses, n.words) for name, n in proposal.nodes.items()} == {
        "mx0.example.org": (("10.0.0.4", "2001:DB8:0::4"), ()),
        "10.0.0.5": (("10.0.0.5",), ()),
        "mail.example.org": (("mail.example.org",), ()),
        "10.0.0.6": (("10.0.0.6",), ()),
    }
    assert list(mismatches(written(proposal, conf), conf)) == []


def test_two_spellings_of_an_address_are_one_node() -> None:
    conf = services("redirect smtp 25: 2001:db8::4 / 2001:DB8:0::4")
    proposal = propose(conf)
    assert proposal.nodes["t0a"].addresses == ("2001:db8::4",)
    assert proposal.nodes["t0a"].words == ("2001:DB8:0::4",)
    assert list(mismatches(written(proposal, conf), conf)) == []


def test_a_name_that_is_taken_or_means_another_host_is_not_given() -> None:
    conf = conf_.parse(
        "table <smtp> { 10.0.0.4 }\ntable <mx9> { 10.0.0.5 }\ntable <c> { mx9 ::1 }\n"
        + "".join(
            f"redirect {name} {{\n listen on 192.0.2.1 port 25\n forward to <{t}> check tcp\n}}\n"
            for name, t in (("smtp", "smtp"), ("b", "mx9"), ("c", "c"))
        ),
        "relayd.conf",
    )
    proposal = propose(conf)
    assert list(proposal.nodes) == ["10.0.0.4", "10.0.0.5", "mx9", "node1"]
    assert list(mismatches(written(proposal, conf), conf)) == []


words = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["no", "1e3", "0x10", "12:30", "~", "null", "2026-11-22", "all", "a b", "::1", "10.0.0.4", "=",
     "<<", "mx0", "MX0", "10.0.0.04", "fe80::1%em0", "\udcff", "a#b", "{", "-", "a: b"]
)  # fmt: skip


tables = st.lists(words, min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(words, tables), min_size=1, max_size=4, unique_by=lambda each: each[0]))
def test_no_name_in_relayd_conf_breaks_the_file(found: list[tuple[str, list[str]]]) -> None:
    conf = RelaydConf(
        2.0,
        0.2,
        tuple(
            ConfService(
                Kind.REDIRECT, n, name, (Listen(name, 25),),
                (ConfTable(n, name, f"{name}:25", 25, "tcp", Argument(), 0.2, 2.0, "roundrobin",
                           None, None, False, tuple(ConfHost(0, host) for host in hosts)),),
            )
            for n, (name, hosts) in enumerate(found)
        ),
        None,
        (),
    )  # fmt: skip
    proposal = propose(conf)
    parsed = written(proposal, conf)
    assert parsed.nodes.keys() == proposal.nodes.keys()
    assert all("is no node" in what for what in mismatches(parsed, conf))
    assert all(line.isprintable() for line in page(proposal))


# Looking


def test_a_probe_takes_the_deepest_way_that_works_on_the_most() -> None:
    conf = services("redirect s 587: 10.0.0.4 10.0.0.5")
    looks = [
        Look("submission", 0, "a", Verdict.FAIL, "certificate is for x, not a"),
        Look("submission", 0, "b", Verdict.FAIL, "certificate is for x, not b"),
        Look("submission", 1, "a", Verdict.OK, "fine"),
        Look("submission", 1, "b", Verdict.OK, "fine"),
        Look("submission", 2, "a", Verdict.OK, "fine"),
        Look("submission", 2, "b", Verdict.OK, "fine"),
    ]
    check = settle(propose(conf), looks).checks["submission"]
    assert (check.taken, check.said) == (1, "certificate is for x, not a")
    dead = [each._replace(verdict=Verdict.FAIL, reason="refused") for each in looks]
    check = settle(propose(conf), dead).checks["submission"]
    assert (check.taken, check.said) == (None, "not now on a, b: refused")


def test_a_probe_proposes_only_what_works_now(tmp_path: Path) -> None:
    conf = conf_.parse(
        "table <mx> { 127.0.12.4 127.0.12.5 }\n"
        "redirect smtp {\n listen on 127.0.12.1 port 25\n forward to <mx> port 12625 check tcp\n}\n"
        "redirect imap {\n listen on 127.0.12.1 port 143\n forward to <mx> port 12643 check tcp\n}\n",
        "relayd.conf",
    )

    async def scene() -> Proposal:
        node = Node("mx0", {"smtp": ("127.0.12.4", 12625)})
        await node.start()
        try:
            proposal = propose(conf)
            return settle(proposal, await look(proposal))
        finally:
            await node.stop()

    proposal = asyncio.run(scene())
    found = written(proposal, conf)
    assert {name: service.require for name, service in found.services.items()} == {
        "smtp": ("smtp-12625",)
    }
    said = "not now on 127.0.12.5: connect: connection refused"
    assert proposal.checks["smtp-12625"].said == said
    lines = text(proposal, conf, Path("/etc/relayd.conf")).splitlines()
    assert f"  # {said}; depth: rcpt, with mail_to:, sees more" in lines
    assert "  # imap: {require: [imap-12643]}" in lines
    assert any(line.startswith("! check imap-12643: not now on") for line in page(proposal))


# The command


def init(*words: str) -> Ran:
    """Run the command in this process."""
    result = CliRunner().invoke(main, ["init", *words], catch_exceptions=False)
    return Ran(result.exit_code, result.stdout, result.stderr)


def test_init_writes_once_and_hactld_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "hactl.yaml"
    ran = asyncio.run(hactl("init", "--relayd-conf", str(CONFS[0]), "-o", str(out)))
    assert (ran.code, ran.err) == (0, "")
    assert "mx0-smtp  fallback-mx0:25, backup  10.0.0.5  mx1   require smtp" in ran.out
    assert f"wrote {out} with mode observe" in ran.out
    assert stat.S_IMODE(out.stat().st_mode) == 0o640
    assert asyncio.run(hactld("-n", "-f", str(out))).err == "configuration OK\n"
    before = out.read_bytes()
    again = init("--relayd-conf", str(CONFS[1]), "-o", str(out))
    assert (again.code, again.out) == (1, "")
    assert again.err.startswith(f"hactl: {out} exists: it is never overwritten")
    assert out.read_bytes() == before


def test_init_prints_the_file_alone(tmp_path: Path) -> None:
    ran = init("--relayd-conf", str(CONFS[0]), "-o", "-")
    assert ran.code == 0
    assert config.parse(ran.out, "stdout").nodes.keys() == {"mx0", "mx1"}
    assert "SERVICE" in ran.err


def test_init_says_what_is_wrong_with_its_input(tmp_path: Path) -> None:
    broken = tmp_path / "broken.conf"
    broken.write_text("table <a> { }\nredirect x {\n listen on 1.2.3.4\n}\n")
    huge = tmp_path / "huge.conf"
    huge.write_bytes(b"#" * (LIMIT + 1))
    os.mkfifo(tmp_path / "fifo")
    good = str(CONFS[0])
    for words, what in [
        ([str(tmp_path / "none")], f"hactl: {tmp_path}/none: No such file or directory\n"),
        ([str(tmp_path)], f"hactl: {tmp_path}: not a file\n"),
        ([str(tmp_path / "fifo")], f"hactl: {tmp_path}/fifo: not a file\n"),
        ([str(huge)], f"hactl: {huge}: more than 1 MiB\n"),
        ([str(broken)], f"hactl: {broken}:1:7: table a has no hosts\n"),
        ([good, "-o", str(tmp_path / "no" / "x")], f"hactl: {tmp_path}/no/x: No such file or"),
        ([good, "-o", str(tmp_path)], f"hactl: {tmp_path} exists"),
    ]:
        ran = init("--relayd-conf", *words, *([] if "-o" in words else ["-o", f"{tmp_path}/y"]))
        assert (ran.code, ran.out) == (1, ""), words
        assert what in ran.err
    assert not (tmp_path / "y").exists()


def test_init_leaves_no_half_file_on_a_full_disk(tmp_path: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
    out = tmp_path / "hactl.yaml"
    words = ("init", "--relayd-conf", str(CONFS[0]), "-o", str(out))
    ran = asyncio.run(hactl(*words, program=full + HACTL))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"hactl: {out}: File too large\n"
    assert not out.exists()
