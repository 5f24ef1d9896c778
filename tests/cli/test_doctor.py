"""doctor: every planted mistake has its own row, and a good set-up has none."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from checks.tcp import Tcp
from hactl import config
from hactl.agent import PROTOCOL, Answer, Report
from hactl.agent.serve import Findings, Serving
from hactl.cli._judge import (
    Asked,
    Certified,
    Disk,
    Facts,
    File,
    Level,
    Other,
    Pinned,
    Printed,
    Resolved,
    Role,
    Script,
    Unread,
    exit_code,
    judge,
)
from hactl.cli.doctor import (
    _agents,
    _certificates,
    _disk,
    _elders,
    _files,
    _is_hactld,
    _option,
    _others,
    _owner,
    _pinned,
    _scripts,
    _steered,
    gather,
    page,
)
from hactl.cli.init import propose, text
from hactl.core.explain import MemberView, ProbeView, ServiceView, Snapshot
from hactl.core.health import Health, State
from hactl.core.model import Checked, Observation, Probe, Verdict, fail
from hactl.core.model import ok as well
from hactl.daemon.privilege import Account
from hactl.lab.model import Model
from hactl.lab.relayd import _pfctl
from hactl.relayd import conf as conf_
from hactl.relayd import relayctl
from hactl.relayd.conf import RelaydConf
from hactl.relayd.relayctl import parse
from tests.agent.test_fetch import free_port, paired
from tests.agent.test_keys import shut
from tests.checks.pki import DAY, NAME, Pki, certified
from tests.cli.test_init import CONFS

PAIR = CONFS[0].read_text()
CARP = """\
carp0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tlladdr 00:00:5e:00:01:01
\tindex 5 priority 15 llprio 3
\tcarp: MASTER carpdev em0 vhid 1 advbase 1 advskew 0
\tgroups: carp
\tstatus: master
\tinet 192.0.2.10 netmask 0xffffff00 broadcast 192.0.2.255
carp1: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tcarp: MASTER carpdev em1 vhid 2 advbase 1 advskew 0
"""
INFO = "Status: Enabled for 4 days 00:04:11              Debug: err\n\nState Table  Total  Rate\n"
NOW = 1_800_000_000.0
STEERS = ("/usr/sbin/relayctl", "")


def running(conf: RelaydConf, addresses: dict[str, str]) -> Model:
    """Let relayd run until it has settled, with every host well."""
    model = Model("later")
    model.load(conf, 0.0, addresses)
    for second in range(8):
        for check in model.advance(float(second)):
            model.check_done(check, True, second + 0.1)
    return model


def good(conf: RelaydConf) -> Facts:
    """Return the facts of a machine where all is well, with what init makes of *conf*."""
    made = config.parse(text(propose(conf), conf, Path("/etc/relayd.conf")), "hactl.yaml")
    hosts = [host.name for s in conf.services for each in s.tables for host in each.hosts]
    names = sorted({name for name in hosts if name[0].isalpha()})
    addresses = {name: f"10.1.1.{number}" for number, name in enumerate(names, 1)}
    model = running(conf, addresses)
    show = parse(model.command(["show", "summary"], 8.0).stdout, 8.0, whole=True)
    redirects = [service.name for service in show.services if service.kind == "redirect"]

    def pfctl(*words: str) -> Printed:
        reply = _pfctl(model.pf, list(words))
        return Printed(reply.stdout)

    return Facts(
        "OpenBSD",
        NOW,
        "/etc/hactl.yaml",
        made,
        conf=conf,
        tested=Printed("", 0, "configuration OK\n"),
        show=show,
        took=0.004,
        status=snapshot(made),
        version="0.1.0",
        pf_info=Printed(INFO),
        pf_rules=pfctl("-sr"),
        pf_list=Printed("".join(f"  relayd/{name}\n" for name in model.pf.rules)),
        pf_tables={n: pfctl("-a", f"relayd/{n}", "-t", n, "-T", "show") for n in redirects},
        pf_anchors={n: pfctl("-a", f"relayd/{n}", "-sr") for n in redirects},
        carp=Printed(CARP),
        carp_group=Printed("carp: carp demote count 0\n"),
        ntp=Printed("4/4 peers valid, constraint offset -1s, clock synced, stratum 3\n"),
        account="_hactl",
        files=(
            File("/etc/hactl.yaml", Role.OURS, 0o100640, "_hactl", NOW - 9),
            File("/etc/relayd.conf", Role.CONFIGURATION, 0o100600),
            File("/var/run/hactl/hactl.sock", Role.CONTROL, 0o140660, "_hactl"),
            File("/var/run/relayd.sock", Role.RELAYD, 0o140660),
            File("/var/db/hactl", Role.DIRECTORY, 0o040750, "_hactl", owner="_hactl"),
            File("/usr/sbin/relayctl", Role.PROGRAM, 0o100555, "bin"),
        ),
        disks=(Disk("/var/db/hactl", 4 << 30, 90_000), Disk("/var/run/hactl", 4 << 30, 90_000)),
        resolved={name: Resolved(0.01, (address,)) for name, address in addresses.items()},
        certified=(Certified("mx0", "smtps", Verdict.OK, "fine", 60.0),),
        descriptors=1984,
        others=(Other(4711, "/etc/hactl.yaml", STEERS), Other(4712, "/etc/agent.yaml", None)),
    )


def snapshot(made: config.Config, **changes: object) -> Snapshot:
    probes = tuple(
        ProbeView(node, next(iter(made.checks)), "10.0.0.4", "up", 9, 0, 3, "", 0.5, "ok", "greets")
        for node in made.nodes
    )
    services = tuple(
        ServiceView(name, s.mode, "active", 2, 1, ()) for name, s in made.services.items()
    )
    seen = Snapshot(1, "0.1.0", 86400.0, "", 0.4, services, probes, (), (), {"cap": 1984})
    return replace(seen, **changes)


def pair(*changes: tuple[str, str]) -> Facts:
    """Return the facts of the pair with its relayd.conf changed, loaded, and settled."""
    text = PAIR
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return good(conf_.parse(text, "/etc/relayd.conf"))


PAIRED = pair()


def bad(facts: Facts) -> list[tuple[str, str, str]]:
    return [(r.level.value, r.what, r.found) for r in judge(facts) if r.level is not Level.OK]


@pytest.mark.parametrize("path", CONFS, ids=lambda path: path.stem)
def test_a_good_set_up_has_no_fault(path: Path) -> None:
    facts = good(conf_.read(path))
    assert bad(facts) == []
    assert exit_code(judge(facts)) == 0
    assert all(row.found and not row.advice for row in judge(facts))


def relay(tables: str, *lines: str) -> Callable[[], Facts]:
    """Return the facts of a relay with options of its own."""
    options = "\n".join(f"\t{line}" for line in lines)
    conf = f"interval 2\n{tables}\nrelay web {{\n\tlisten on 192.0.2.1 port 80\n{options}\n}}\n"
    return lambda: good(conf_.parse(conf, "/etc/relayd.conf"))


WEB = "table <web> { 10.0.0.4 retry 2, 10.0.0.5 retry 2 }"


def changed(**changes: object) -> Callable[[], Facts]:
    return lambda: replace(pair(), **changes)


def told(**changes: object) -> Callable[[], Facts]:
    """Return the pair's facts with another snapshot of hactld."""

    def make() -> Facts:
        facts = pair()
        return replace(facts, status=snapshot(facts.config, **changes))

    return make


def by_hand() -> Facts:
    """Return the pair's facts while a host is disabled by nobody that hactld knows."""
    facts = pair()
    member = MemberView(
        "mx0-smtp", "redirect", "mx0:25", "main", "10.0.0.4", "mx0", 1, "disabled", "out",
        "foreign", 60.0, 1, 1, "", "", (), "", True, (),
    )  # fmt: skip
    assert isinstance(facts.status, Snapshot)
    first, *others = facts.status.services
    services = (replace(first, members=(member,)), *others)
    return replace(facts, status=replace(facts.status, services=services))


def configured(*changes: tuple[str, str]) -> Callable[[], Facts]:
    """Return the pair's facts with hactl.yaml changed, and loaded."""

    def make() -> Facts:
        facts = pair()
        assert isinstance(facts.conf, RelaydConf)
        text_ = text(propose(facts.conf), facts.conf, Path("/etc/relayd.conf"))
        for old, new in changes:
            assert old in text_
            text_ = text_.replace(old, new)
        made = config.parse(text_, "hactl.yaml")
        return replace(facts, config=made, status=snapshot(made))

    return make


def runs(*changes: tuple[str, str]) -> Callable[[], Facts]:
    """Return the pair's facts while relayd and pf run by another relayd.conf."""

    def make() -> Facts:
        other = pair(*changes)
        return replace(
            pair(), show=other.show, pf_list=other.pf_list, pf_tables=other.pf_tables,
            pf_anchors=other.pf_anchors,
        )  # fmt: skip

    return make


def with_file(
    path: str, role: Role, mode: int, group: str = "wheel", **more: Any
) -> Callable[[], Facts]:
    def make() -> Facts:
        facts = pair()
        others = tuple(file for file in facts.files if file.path != path)
        return replace(facts, files=(*others, File(path, role, mode, group, **more)))

    return make


def scripted(script: Script) -> Facts:
    """Return the pair's facts with a script that relayd asks."""
    return replace(
        pair(("<mx0> check tcp", f'<mx0> check script "{script.path}"')), scripts=(script,)
    )


def hidden_verdicts() -> Facts:
    """Return the facts of a service in mode hook whose verdicts are closed to relayd's user."""
    ask = 'check script "/usr/local/libexec/hactl/mx0-smtp"'
    facts = pair(("<mx0> check tcp\n\tforward to <fallback-mx0> check tcp",
                  f"<mx0> {ask}\n\tforward to <fallback-mx0> {ask}"))  # fmt: skip
    made = configured(("mx0-smtp: {", "mx0-smtp: {mode: hook, "))().config
    down = File("/var/run/hactl/down", Role.DIRECTORY, 0o040700, "_hactl", owner="_hactl")
    script = Script("/usr/local/libexec/hactl/mx0-smtp", ours=True)
    return replace(
        facts, config=made, status=snapshot(made), files=(*facts.files, down), scripts=(script,)
    )


def unasked(answer: relayctl.Answer, why: str) -> Callable[[], Facts]:
    return changed(show=Unread(why, answer=answer), pf_tables={}, pf_anchors={})


REPORT = Report("queue", 5.0, 7.0, 2.0, 0.1, well("12 messages"))
ANSWER = Answer(PROTOCOL, "0.1.0", "mx0", "start", "word", {"queue": REPORT})


def asked(why: str = "", **changes: object) -> Callable[[], Facts]:
    """Return the pair's facts with an agent that was asked for its queue."""

    def make() -> Facts:
        answer = None if why else replace(ANSWER, **changes)
        facts = configured(
            ("  mx0: 10.0.0.4", "  mx0: {address: 10.0.0.4, agent: true}"),
            ("checks:", "checks:\n  queue: {from: agent, type: queue}"),
        )()
        each = Asked("mx0", "https://10.0.0.4:8325", ("queue",), answer, why)
        return replace(facts, agents=(each,))

    return make


def reported(**changes: object) -> Callable[[], Facts]:
    return asked(checks={"queue": replace(REPORT, **changes)})


E, W = "error", "warning"
Mistake = tuple[Callable[[], Facts], list[tuple[str, str, str]]]
MISTAKES: dict[str, Mistake] = {
    "no hactl.yaml": (
        changed(config_problems=("/etc/hactl.yaml: No such file or directory",)),
        [(E, "hactl.yaml", "/etc/hactl.yaml: No such file or directory")],
    ),
    "a secret for others": (
        changed(config_problems=("hactl.yaml:7:30: checks.x.login: expected a secret's file",)),
        [(E, "hactl.yaml", "hactl.yaml:7:30: checks.x.login: expected a secret's file")],
    ),
    "no relayd.conf": (
        changed(conf=Unread("/etc/relayd.conf: No such file or directory")),
        [(E, "relayd.conf", "/etc/relayd.conf: No such file or directory")],
    ),
    "relayd.conf is for root alone": (
        changed(conf=Unread("/etc/relayd.conf: Permission denied")),
        [(W, "relayd.conf", "could not be read: /etc/relayd.conf: Permission denied")],
    ),
    "hactl.yaml is for root alone": (
        changed(config_problems=("/etc/hactl.yaml: Permission denied",)),
        [(W, "hactl.yaml", "could not be read: /etc/hactl.yaml: Permission denied")],
    ),
    "a script is for root alone": (
        lambda: scripted(Script("/usr/local/bin/check", "Permission denied")),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn"),
         (W, "hook", "/usr/local/bin/check could not be read: Permission denied")],
    ),
    "relayd -n refuses": (
        changed(tested=Printed("", 1, "/etc/relayd.conf:9: syntax error\n")),
        [(E, "relayd.conf", "relayd -n refuses it: /etc/relayd.conf:9: syntax error")],
    ),
    "a name too long for pf": (
        lambda: pair(("mx0-smtp", "mx0-smtp-of-the-example-organisation")),
        [(E, "relayd.conf",
          "redirect mx0-smtp-of-the-example-organisation: longer than 31 characters")],
    ),
    "no relayctl": (
        unasked(relayctl.Answer.NOT_RUN, "relayctl: show summary: /usr/sbin/relayctl: No such file"),
        [(E, "relayctl", "relayctl: show summary: /usr/sbin/relayctl: No such file")],
    ),
    "no relayd": (
        unasked(relayctl.Answer.GONE, "relayctl: show summary: connect: /var/run/relayd.sock: Connection refused"),
        [(E, "relayctl", "relayctl: show summary: connect: /var/run/relayd.sock: Connection refused")],
    ),
    "relayctl of a strange release": (
        unasked(relayctl.Answer.NONSENSE, "relayctl: show summary: line 1: no header"),
        [(E, "relayctl", "relayctl: show summary: line 1: no header")],
    ),
    "a redirect is disabled": (
        runs(("redirect mx1-smtp {", "redirect mx1-smtp {\n\tdisable")),
        [(W, "relayd", "redirect mx1-smtp is disabled in relayd")],
    ),
    "a table is disabled": (
        runs(("table <mx1>", "table <mx1> disable")),
        [(W, "relayd", "redirect mx1-smtp: table mx1:25 is disabled in relayd")],
    ),
    "relayd was not reloaded: hosts": (
        runs(("10.0.0.5 retry 2", "10.0.0.9 retry 2")),
        [(E, "relayd", "redirect mx0-smtp has mx0:25 (1=10.0.0.4), fallback-mx0:25 (2=10.0.0.9);"
          " relayd.conf says mx0:25 (1=10.0.0.4), fallback-mx0:25 (2=10.0.0.5)"),
         (E, "relayd", "redirect mx1-smtp has mx1:25 (3=10.0.0.9), fallback-mx1:25 (4=10.0.0.4);"
          " relayd.conf says mx1:25 (3=10.0.0.5), fallback-mx1:25 (4=10.0.0.4)")],
    ),
    "relayd was not reloaded: services": (
        runs(("redirect mx1-smtp", "redirect imap")),
        [(E, "relayd", "does not run redirect mx1-smtp of relayd.conf"),
         (E, "relayd", "runs redirect imap, which is not in relayd.conf")],
    ),
    "relayd has nothing": (
        changed(show=Observation(1.0, ()), pf_tables={}, pf_anchors={}),
        [(E, "relayd", "shows nothing: it was started a moment ago, or by a file that it could not"
          " read")],
    ),
    "a service that relayd does not have": (
        configured(("mx1-smtp: {", "mx1-smpt: {")),
        [(E, "services", "no redirect or relay mx1-smpt in relayd.conf; nothing is steered by it")],
    ),
    "a host that is no node": (
        configured(("mx1: 10.0.0.5", "mx1: 10.0.0.6")),
        [(W, "nodes", "service mx0-smtp: host 10.0.0.5 of table fallback-mx0 is no node"),
         (W, "nodes", "service mx1-smtp: host 10.0.0.5 of table mx1 is no node"),
         (W, "nodes", "node mx1: in no table of relayd.conf, and not watched")],
    ),
    "a long interval": (
        lambda: pair(("interval 2", "interval 10")),
        [(W, "interval",
          "10s: a host that comes back gets traffic 10s to 20s later, as that takes two")],
    ),
    "an interval of a table's own": (
        lambda: pair(("<mx0> check tcp", "<mx0> check tcp interval 4")),
        [(W, "interval", "table mx0:25 is looked at every 6s, not 4s")],
    ),
    "no retry": (
        lambda: pair(("10.0.0.5 retry 2", "10.0.0.5")),
        [(W, "retry", "0 in fallback-mx0:25, mx1:25: a loss of 5 % of relayd's own checks rewrites"
          " pf 35 times an hour, with retry 2 0.3 times")],
    ),
    "the poll trap": (
        lambda: pair(("timeout 500", "timeout 1500")),
        [(W, "timeout", "1.5s in mx0:25, fallback-mx0:25, mx1:25, fallback-mx1:25: a relayctl poll"
          " within it, with retry, puts a dead host in service")],
    ),
    "a script": (
        lambda: pair(("<mx0> check tcp", '<mx0> check script "/usr/local/bin/check"')),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn")],
    ),
    "a script that is missing": (
        lambda: scripted(Script("/usr/local/bin/check", "No such file or directory")),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn"),
         (E, "hook", "/usr/local/bin/check: No such file or directory: relayd takes all of its"
          " hosts for down")],
    ),
    "a script that others may change": (
        lambda: scripted(Script("/usr/local/bin/check", open="/usr/local/bin has mode 0775")),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn"),
         (E, "hook", "/usr/local/bin/check can be changed by others, and relayd runs it:"
          " /usr/local/bin has mode 0775")],
    ),
    "a script that relayd's user may not run": (
        lambda: scripted(Script("/root/bin/check", closed="/root")),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn"),
         (E, "hook", "/root/bin/check: /root is closed to relayd's user: relayd takes all of its"
          " hosts for down")],
    ),
    "a hook that nobody speaks through": (
        lambda: scripted(Script("/usr/local/bin/check", ours=True)),
        [(W, "script checks",
          "mx0:25: a reload while scripts run kills relayd, and each runs in turn"),
         (W, "hook", "/usr/local/bin/check says up always: no service with it has mode hook")],
    ),
    "mode hook and no script": (
        configured(("mx1-smtp: {", "mx1-smtp: {mode: hook, ")),
        [(E, "hook", "service mx1-smtp: mode hook, but relayd.conf has no check script"
          ' ".../mx1-smtp" for table mx1: the verdicts reach nobody'),
         (E, "hook", "service mx1-smtp: mode hook, but relayd.conf has no check script"
          ' ".../mx1-smtp" for table fallback-mx1: the verdicts reach nobody')],
    ),
    "verdicts that relayd cannot see": (
        hidden_verdicts,
        [(W, "script checks", "mx0:25, fallback-mx0:25: a reload while scripts run kills relayd,"
          " and each runs in turn"),
         (E, "hook", "/var/run/hactl/down has mode 0700: relayd's user cannot enter it, and the"
          " hook says up always")],
    ),
    "a table without a check": (
        relay(WEB, "forward to <web> port 80"),
        [(W, "checks", "web:80: no check in relayd, so hactl leaves it alone: to disable a host"
          " there kills relayd")],
    ),
    "send and expect": (
        lambda: pair(("<mx0> check tcp", '<mx0> check send nothing expect "220 *"')),
        [(W, "checks", "mx0:25: on a wrong answer send/expect makes a host unknown, not down, and"
          " ignores retry")],
    ),
    "demote": (
        lambda: pair(("<mx0> check tcp", "<mx0> check tcp demote carp")),
        [(W, "demote", "mx0:25: a drain, a reload or a start of relayd can move carp's role")],
    ),
    "nobody to fall back to": (
        lambda: pair(("\tforward to <fallback-mx0> check tcp\n", "")),
        [(W, "fallback", "redirect mx0-smtp: one host and no other; without it clients meet the"
          " balancer itself")],
    ),
    "pf is off": (
        changed(pf_info=Printed("Status: Disabled for 0 days 00:00:02\n")),
        [(E, "pf", "is disabled: no redirect works")],
    ),
    "pf cannot be read": (
        changed(pf_info=Unread("pfctl: /dev/pf: Permission denied")),
        [(W, "pf", "could not be read: pfctl: /dev/pf: Permission denied")],
    ),
    "no anchor": (
        changed(pf_rules=Printed("block return all\npass out all flags S/SA\n")),
        [(E, "anchor", "relayd/* is not in the main rule set: tables may be right and no traffic"
          " moves")],
    ),
    "a redirect left in pf": (
        lambda: replace(
            pair(), pf_list=Printed("  relayd/imap\n  relayd/mx0-smtp\n  relayd/old\n"),
            pf_anchors={"imap": Printed("pass in quick rdr-to <imap>\n"), "old": Printed("")},
        ),
        [(E, "left in pf", "redirect imap is left in pf: its hosts get traffic and nobody checks"
          " them")],
    ),
    "pf's table is another": (
        lambda: replace(pair(), pf_tables={"mx0-smtp": Printed("   10.0.0.5\n"),
                                           "mx1-smtp": Printed("   10.0.0.5\n")}),
        [(E, "pf tables", "mx0-smtp has 10.0.0.5 in pf; relayd shows 10.0.0.4")],
    ),
    "pf's table is empty": (
        lambda: replace(pair(), pf_tables={"mx0-smtp": Printed("")}),
        [(E, "pf tables", "mx0-smtp has nobody in pf; relayd shows 10.0.0.4")],
    ),
    "pf's rule is gone": (
        lambda: replace(pair(), pf_anchors={"mx0-smtp": Printed("")}),
        [(E, "pf rules", "redirect mx0-smtp has no rule in pf, though relayd shows it active")],
    ),
    "no hactld": (
        changed(status=Unread("hactld does not run, or not with /s (-s SOCKET names another)")),
        [(E, "hactld", "hactld does not run, or not with /s (-s SOCKET names another)")],
    ),
    "hactld of yesterday": (
        told(version="0.0.9"),
        [(W, "version", "hactld is 0.0.9, this hactl 0.1.0")],
    ),
    "hactl.yaml was not loaded": (
        told(services=()),
        [(W, "loaded", "hactld runs by another configuration than /etc/hactl.yaml has now")],
    ),
    "a new check was not loaded": (
        told(probes=(ProbeView("mx0", "imap", "10.0.0.4", "up", 9, 0, 3, "", 0.5, "ok", "x"),)),
        [(W, "loaded", "hactld runs by another configuration than /etc/hactl.yaml has now")],
    ),
    "hactld has alerts": (
        told(alerts=("the store cannot be written: disk full",)),
        [(W, "alerts", "the store cannot be written: disk full")],
    ),
    "a host that somebody else disabled": (
        by_hand,
        [(W, "foreign", "disabled by somebody else: mx0-smtp/mx0")],
    ),
    "hactld is late": (
        told(counts={"cap": 1984, "own_lag": 9000}),
        [(W, "lag", "hactld was late in 9000 of 864000 slots; it then discards what it saw")],
    ),
    "two hactlds": (
        changed(others=(Other(1, "/etc/hactl.yaml", STEERS), Other(2, "/root/x.yaml", STEERS))),
        [(E, "processes", "2 hactlds steer this relayd: pid 1 with /etc/hactl.yaml, pid 2 with"
          " /root/x.yaml")],
    ),
    "a socket for everybody": (
        with_file("/var/run/hactl/hactl.sock", Role.CONTROL, 0o140666),
        [(E, "sockets", "hactld's socket /var/run/hactl/hactl.sock has mode 0666: everybody on this"
          " machine may steer the cluster")],
    ),
    "relayd's socket for everybody": (
        with_file("/var/run/relayd.sock", Role.RELAYD, 0o140666),
        [(E, "sockets", "relayd's socket /var/run/relayd.sock has mode 0666: everybody on this"
          " machine may steer the cluster")],
    ),
    "relayd.conf for everybody": (
        with_file("/etc/relayd.conf", Role.CONFIGURATION, 0o100646),
        [(E, "files", "configuration of relayd /etc/relayd.conf has mode 0646: everybody may change it")],
    ),
    "a directory for everybody": (
        with_file("/var/db/hactl", Role.DIRECTORY, 0o040777, owner="_hactl"),
        [(E, "files", "directory /var/db/hactl has mode 0777: everybody may change it")],
    ),
    "a password for a group": (
        with_file("/etc/hactl/login", Role.LOGIN, 0o100640, "users"),
        [(E, "secrets", "login /etc/hactl/login has mode 0640: everybody in group users may read"
          " the password")],
    ),
    "a password for everybody": (
        with_file("/etc/hactl/login", Role.LOGIN, 0o100644),
        [(E, "secrets", "login /etc/hactl/login has mode 0644: everybody on this machine may read"
          " the password")],
    ),
    "a look at the balancer for one at its nodes": (
        configured(("checks:\n", "checks:\n  load: {type: host}\n"), ("require: [", "require: [load, ")),
        [(W, "checks", f"load of mx{n}-smtp looks at this machine, and so says the same of each node")
         for n in (0, 1)],
    ),
    "nobody to become": (
        changed(account=Unread("useradd -g =uid _hactl")),
        [(E, "user", "there is no _hactl for hactld to become")],
    ),
    "a password that hactld cannot read": (
        with_file("/etc/hactl/login", Role.LOGIN, 0o100600, readable=False),
        [(E, "files", "login /etc/hactl/login cannot be read by _hactl, which hactld becomes")],
    ),
    "a directory of somebody else": (
        with_file("/var/db/hactl", Role.DIRECTORY, 0o040750),
        [(E, "files", "/var/db/hactl belongs to root, and hactld becomes _hactl")],
    ),
    "a full disk": (
        changed(disks=(Disk("/var/db/hactl", 4096, 0),)),
        [(E, "disk", "/var/db/hactl has 4K left, 0 inodes")],
    ),
    "a disk that is nearly full": (
        changed(disks=(Disk("/var/db/hactl", 9 << 20, 5000),)),
        [(W, "disk", "/var/db/hactl has 9M left, 5000 inodes")],
    ),
    "a read-only disk": (
        changed(disks=(Disk("/var/db/hactl", 4 << 30, read_only=True),)),
        [(E, "disk", "/var/db/hactl is read-only")],
    ),
    "no run_dir": (
        changed(disks=(Disk("/var/run/hactl", why="No such file or directory"),)),
        [(E, "disk", "/var/run/hactl: No such file or directory")],
    ),
    "a clock on its own": (
        changed(ntp=Printed("0/4 peers valid, clock unsynced\n")),
        [(W, "clock", "not synchronised: 0/4 peers valid, clock unsynced")],
    ),
    "a clock set back": (
        changed(files=(File("/etc/hactl.yaml", Role.OURS, 0o100640, written=NOW + 3600),)),
        [(W, "clock", "/etc/hactl.yaml was written in the future: the clock was set")],
    ),
    "a name that is not found": (
        changed(resolved={"mx9": Resolved(0.1, why="Name or service not known")}),
        [(E, "resolver", "mx9: Name or service not known; its checks are unknown")],
    ),
    "a host that relayd does not find": (
        lambda: replace(
            good(conf_.read(CONFS[7])),
            resolved={"imap0.example.org": Resolved(0.1, why="not known")}, pf_tables={},
        ),
        [(E, "resolver", "imap0.example.org: not known; relayd cannot be loaded")],
    ),
    "a slow resolver": (
        changed(resolved={"mx0": Resolved(2.5, ("10.0.0.4",))}),
        [(W, "resolver", "mx0 takes 2.5s; a start of hactld or relayd waits for it")],
    ),
    "too few descriptors": (
        changed(descriptors=3),
        [(W, "descriptors",
          "hactld may hold 3 conversations, 2 probes may need 4 at a time")],
    ),
    "a certificate that ends": (
        changed(certified=(Certified("mx0", "smtps", Verdict.OK, "", 9.4),)),
        [(W, "certificates", "smtps on mx0: ends in 9 days")],
    ),
    "a certificate that has ended": (
        changed(certified=(Certified("mx0", "smtps", Verdict.FAIL, "tls: it has expired", -1.0),)),
        [(E, "certificates", "smtps on mx0: has expired")],
    ),
    "a certificate for another": (
        changed(certified=(
            Certified("mx0", "smtps", Verdict.FAIL, "tls: certificate is for x, not mx0"),
        )),
        [(E, "certificates", "smtps on mx0: certificate is for x, not mx0")],
    ),
    "an agent that does not run": (
        asked("connection refused"),
        [(E, "agents", "of mx0: connection refused")],
    ),
    "an agent that is not trusted": (
        asked("no certificate of mx0 in /etc/hactl/agent/trusted"),
        [(E, "agents", "of mx0: no certificate of mx0 in /etc/hactl/agent/trusted")],
    ),
    "an agent with a new key": (
        asked("shows another certificate than the one that is trusted"),
        [(E, "agents", "of mx0: shows another certificate than the one that is trusted")],
    ),
    "an agent that does not trust us": (
        asked("hung up; if it does not trust us yet, use hactl agent trust there"),
        [(E, "agents", "of mx0: hung up; if it does not trust us yet, use hactl agent trust there")],
    ),
    "an agent of yesterday": (
        asked(version="0.0.9"),
        [(W, "agents", "of mx0: hactl 0.0.9, here it is 0.1.0")],
    ),
    "a check that the agent does not have": (
        asked(checks={"nfs": REPORT}),
        [(E, "agents", "of mx0: queue: has no check queue; it has nfs")],
    ),
    "a check of another type": (
        reported(type="tcp"),
        [(E, "agents", "of mx0: queue: the agent's check queue is of type tcp, not queue")],
    ),
    "an agent that hangs": (
        reported(age=600.0),
        [(W, "agents", "of mx0: queue: the agent's newest look ended 10m00s ago")],
    ),
    "a certificate that an agent sees end": (
        reported(result=well("fine", left_days=3.0)),
        [(W, "certificates", "queue on mx0: ends in 3 days")],
    ),
    "an agent's own certificate that ends": (
        changed(pinned=(Pinned("/etc/hactl/agent/trusted/mx0.pem", 5.0),)),
        [(W, "certificates", "/etc/hactl/agent/trusted/mx0.pem: ends in 5 days")],
    ),
    "an agent's certificate that is none": (
        changed(pinned=(Pinned("/t/mx0.pem", why="/t/mx0.pem: not a certificate in PEM"),)),
        [(E, "certificates", "/t/mx0.pem: not a certificate in PEM")],
    ),
    "an agent's key for a group": (
        with_file("/etc/hactl/agent/key.pem", Role.KEY, 0o100640, "users"),
        [(E, "secrets", "key /etc/hactl/agent/key.pem has mode 0640: everybody in group users may"
          " read it")],
    ),
    "a carp interface in INIT": (
        changed(carp=Printed(CARP.replace("MASTER", "INIT"))),
        [(E, "carp", "carp0 INIT, carp1 INIT: INIT takes no part")],
    ),
    "carp roles that are split": (
        changed(carp=Printed(CARP.replace("MASTER", "BACKUP", 1))),
        [(W, "carp", "carp0 BACKUP, carp1 MASTER: the roles are split between the balancers")],
    ),
    "a demoted balancer": (
        changed(carp_group=Printed("carp: carp demote count 33\n")),
        [(W, "carp", "demoted by 33")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_has_its_own_row(name: str) -> None:
    make, expected = MISTAKES[name]
    facts = make()
    assert bad(facts) == expected
    assert all(row.advice for row in judge(facts) if row.level is not Level.OK)


def test_thirty_mistakes_and_more_are_told_apart() -> None:
    said = {tuple(expected) for _, expected in MISTAKES.values()}
    assert len(said) >= len(MISTAKES) - 1 >= 70


@pytest.mark.parametrize(
    ("name", "code"),
    [("no relayd", 3), ("no hactld", 3), ("no anchor", 2), ("no retry", 1), ("no relayctl", 3)],
)
def test_exit_codes(name: str, code: int) -> None:
    assert exit_code(judge(MISTAKES[name][0]())) == code


@pytest.mark.parametrize(
    ("what", "why", "advice"),
    [
        ("config_problems", "hactl.yaml: No such file or directory", "hactl init"),
        ("config_problems", "hactl.yaml: Permission denied", "run doctor as root"),
        ("conf", "relayd.conf:3:1: cannot include line : Permission denied", "run doctor as root"),
        ("config_problems", "hactl.yaml:1:7: mode: expected", "hactld -n"),
        ("status", "/s: permission denied; members of its group may ask", "run doctor as root"),
        ("status", "hactld does not answer on /s in 5s", "rcctl restart hactld, if it hangs"),
        ("status", "hactld speaks protocol 2, this hactl 1", "rcctl restart hactld"),
        ("status", "hactld does not run, or not with /s", "rcctl start hactld"),
    ],
)
def test_advice_is_for_what_is_wrong(what: str, why: str, advice: str) -> None:
    facts = changed(**{what: (why,) if what == "config_problems" else Unread(why)})()
    (row,) = [row for row in judge(facts) if row.found.removeprefix("could not be read: ") == why]
    assert row.advice.startswith(advice)


# Facts as they are read


def test_certificates_are_looked_at_where_hactl_checks_them(tmp_path: Path) -> None:
    pki = Pki(tmp_path)

    async def scene() -> tuple[Certified, ...]:
        async def closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(closed, "127.0.12.6", 0, ssl=pki.server(ends=5.5))
        port = server.sockets[0].getsockname()[1]
        made = config.parse(
            f"mode: observe\nnodes: {{mx0: 127.0.12.6, mx1: 127.0.12.7}}\nchecks:\n"
            f"  cert: {{type: tls, port: {port}, name: {NAME}, ca: {pki.ca}}}\n"
            f"  other: {{type: tls, port: {port}, name: x.example.org, ca: {pki.ca}}}\n"
            f"  plain: {{type: tcp, port: {port}}}\n"
            f"watch: {{mx0: [cert, other, plain], mx1: [cert]}}\n",
            "hactl.yaml",
        )
        async with server:
            return await _certificates(made, Unread("no relayd.conf"))

    facts = replace(pair(), certified=asyncio.run(scene()))
    assert [(each.node, each.check) for each in facts.certified] == [
        ("mx0", "cert"), ("mx0", "other"), ("mx1", "cert"),
    ]  # fmt: skip
    rows = [row for row in judge(facts) if row.what == "certificates"]
    assert [(row.level, row.found) for row in rows][:2] == [
        (Level.WARNING, "cert on mx0: ends in 5 days"),
        (Level.ERROR, f"other on mx0: certificate is for {NAME}, not x.example.org"),
    ]


def test_files_are_looked_at_as_they_are(tmp_path: Path) -> None:
    login = tmp_path / "login"
    login.write_text("probe\nsecret\n")
    login.chmod(0o640)
    path = tmp_path / "hactl.yaml"
    path.write_text(
        f"mode: observe\nrun_dir: {tmp_path}/run\nstate_dir: {tmp_path}\nchecks:\n"
        f"  s: {{type: smtp, tls: starttls, verify: false, login: {login}}}\n"
    )
    made = config.load(path)
    us = Account("us", os.getuid(), os.getgid(), (os.getgid(),))
    found = {Path(file.path).name: file for file in _files(path, made, Unread("none"), us)}
    assert {name: file.role for name, file in found.items() if name != "relayctl"} == {
        "hactl.yaml": Role.OURS, "login": Role.LOGIN, tmp_path.name: Role.DIRECTORY,
    }  # fmt: skip
    assert (found["login"].mode, found["login"].readable) == (0o640, True)
    stranger = us._replace(uid=12345, gid=12345, groups=(12345,))
    files = _files(path, made, Unread("none"), stranger)
    assert not any(file.readable for file in files if file.role is Role.LOGIN)
    assert _disk(tmp_path).free > 0
    assert _disk(tmp_path / "none").why == "No such file or directory"


@pytest.mark.parametrize(
    ("script", "directory", "open_", "closed"),
    [
        (0o755, 0o755, "", ""),
        (0o700, 0o755, "", "{d}/bin/check"),
        (0o755, 0o750, "", "{d}/bin"),
        (0o775, 0o755, "{d}/bin/check has mode 0775", ""),
        (0o757, 0o755, "{d}/bin/check has mode 0757", ""),
        (0o755, 0o2775, "{d}/bin has mode 2775", ""),
    ],
)
def test_relayd_can_run_a_script_and_nobody_else_can_change_it(
    script: int, directory: int, open_: str, closed: str
) -> None:
    with tempfile.TemporaryDirectory() as place:  # below directories that everybody may enter
        Path(place).chmod(0o755)
        path = Path(place) / "bin" / "check"
        path.parent.mkdir()
        path.write_text("#!/bin/sh\n")
        path.chmod(script)
        path.parent.chmod(directory)
        text = PAIR.replace("<mx0> check tcp", f'<mx0> check script "{path}"')
        (found,) = _scripts(conf_.parse(text, "relayd.conf"))
        assert found == Script(str(path), open=open_.format(d=place), closed=closed.format(d=place))


def test_a_script_belongs_to_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "check"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    uid = os.getuid() or 65534
    if os.getuid() == 0:
        os.chown(path, uid, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    text = PAIR.replace("<mx0> check tcp", f'<mx0> check script "{path}"')
    (found,) = _scripts(conf_.parse(text, "relayd.conf"))
    assert found.open == f"{path} belongs to {_owner(uid)}"


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["hactld"], "/etc/hactl.yaml"),
        (["hactld", "-f", "/a"], "/a"),
        (["python3", "/usr/local/bin/hactld", "-df/a"], "/etc/hactl.yaml"),
        (["hactld", "-d", "-f/a", "-v"], "/a"),
        (["hactld", "-f"], "/etc/hactl.yaml"),
    ],
)
def test_the_file_of_another_hactld(words: list[str], file: str) -> None:
    assert _option(words, "-f", "/etc/hactl.yaml") == file


def test_what_a_program_says_cannot_command_the_terminal() -> None:
    facts = replace(pair(), status=Unread("\x1b[2J\nboo"))
    assert all(line.isprintable() for line in page(judge(facts)) if line)


printed = st.text(max_size=80).map(Printed) | st.sampled_from(
    [Printed(CARP), Printed(INFO), Unread("no"), Unread("not OpenBSD", absent=True)]
)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(
    ("tested", "pf_info", "pf_rules", "pf_list", "carp", "carp_group", "ntp"), printed
)), printed)  # fmt: skip
def test_whatever_programs_print_is_judged(
    texts: dict[str, Printed | Unread], table: Printed | Unread
) -> None:
    facts = replace(PAIRED, pf_tables={"mx0-smtp": table}, pf_anchors={}, **texts)
    rows = judge(facts)
    assert exit_code(rows) in (0, 1, 2)
    assert all(line.isprintable() for line in page(rows))


def test_a_hactld_and_its_helper_are_one() -> None:
    child = ["python3", "-P", "-m", "hactl.daemon.main", "-f", "/a", "--helped", "3"]
    assert _is_hactld(child)
    found = {10: (1, "t/a"), 11: (10, "/root/t/a"), 20: (1, "/etc/hactl.yaml")}
    assert list(_elders(found)) == [(10, "/root/t/a"), (20, "/etc/hactl.yaml")]


@pytest.mark.parametrize(
    ("line", "is_one"),
    [
        ("hactld -d", True),
        ("/usr/local/sbin/hactld", True),
        ("/usr/local/lib/hactl/bin/python3 -I /usr/local/sbin/hactld -f /a", True),
        ("python3.11 -I -S -X dev -m hactl.daemon.main -d", True),
        ("python3 -m pytest hactld", False),
        ("python3 -c pass hactld", False),
        ("python3", False),
        ("man hactld -f /a", False),
        ("vi /etc/rc.d/hactld", False),
        ("/bin/ksh /etc/rc.d/hactld start", False),
        ("", False),
    ],
)
def test_a_process_that_only_speaks_of_hactld_is_none(line: str, is_one: bool) -> None:
    assert _is_hactld(line.split()) == is_one


@contextmanager
def called_hactld(file: str, cwd: Path, user: int | None = None) -> Iterator[int]:
    """Run a program with hactld's name and yield its pid."""
    words = ["hactld", "-c", "echo; read word", "-f", file]
    with subprocess.Popen(
        words, executable="/bin/sh", cwd=cwd, user=user, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def seen(user: str) -> dict[int, Other]:
    others = _others(user)
    assert not isinstance(others, Unread)
    return {other.pid: other for other in others}


def test_the_file_of_a_hactld_is_where_that_runs(tmp_path: Path) -> None:
    (tmp_path / "hactl.yaml").write_text("mode: observe\n")
    with called_hactld("hactl.yaml", tmp_path) as pid:
        assert seen("root")[pid] == Other(pid, str(tmp_path / "hactl.yaml"), STEERS)


def test_a_hactld_of_a_stranger_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = os.getuid() or 65534
    with called_hactld("/none", tmp_path, uid if os.getuid() == 0 else None) as pid:
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
        assert pid not in seen("root")
        assert pid in seen(pwd.getpwuid(uid).pw_name)


def test_what_is_no_file_is_not_opened_for_another_hactld(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert _steered(str(pipe)) is None
    assert _steered(str(tmp_path)) is None
    assert _steered("hactl.yaml") is None
    (tmp_path / "hactl.yaml").write_bytes(b"mode: observe # \xff\n")
    assert _steered(str(tmp_path / "hactl.yaml")) is None


# Agents


def test_an_agent_that_answers_is_ok() -> None:
    facts = asked()()
    assert bad(facts) == []
    assert [row.found for row in judge(facts) if row.what == "agents"] == [
        "1 agent asked, the oldest look ended 2.0s ago"
    ]


def test_what_only_root_may_read_is_no_fault_of_the_agent() -> None:
    facts = asked("/etc/hactl/agent/key.pem: Permission denied")()
    facts = replace(facts, agents=(replace(facts.agents[0], may=False),))
    ((level, what, found),) = bad(facts)
    assert (level, what) == (W, "agents")
    assert found == "of mx0: could not be read: /etc/hactl/agent/key.pem: Permission denied"


BALANCER = """\
mode: observe
agent: {{keys: {directory}/lb}}
nodes:
  mx0: {{address: 127.0.0.1, agent: "https://127.0.0.1:{port}"}}
  mx1: {{address: 127.0.0.2, agent: "https://127.0.0.1:{port}"}}
checks: {{smtp: {{from: agent, type: tcp}}, imap: {{from: agent}}}}
watch: {{mx0: [smtp, imap], mx1: [smtp]}}
"""


def test_agents_are_asked_as_hactld_does(tmp_path: Path) -> None:
    paired(tmp_path, "mx0")
    port = free_port()
    made = config.parse(BALANCER.format(directory=tmp_path, port=port), "hactl.yaml")
    check = config.parse("mode: observe\nchecks: {c: {type: tcp, port: 25}}", "x").checks["c"]
    assert isinstance(check.option, Tcp)

    async def scene() -> tuple[Asked, ...]:
        now = asyncio.get_running_loop().time
        found = Findings("mx0", now, {"smtp": check})
        result = fail("refused")
        found.feed(
            Checked(Probe("mx0", "smtp", "127.0.0.1"), now(), now(), result),
            Health(State.DOWN, now(), last=result),
        )
        serving = Serving(found)
        await serving.start(config.Agent(f"127.0.0.1:{port}", tmp_path / "node"))
        try:
            return await _agents(made, Unread("no relayd.conf"))
        finally:
            await serving.stop()

    first, second = asyncio.run(scene())
    assert (first.node, first.checks, first.why) == ("mx0", ("imap", "smtp"), "")
    assert first.answer is not None
    assert first.answer.checks["smtp"].result == fail("refused")
    assert second.node == "mx1"
    assert second.why.startswith(f"no certificate of mx1 in {tmp_path}/lb/trusted")
    facts = replace(pair(), config=made, status=snapshot(made), agents=(first, second))
    assert [row.found for row in judge(facts) if row.what == "agents"] == [
        "of mx0: imap: has no check imap; it has smtp",
        f"of mx1: {second.why}",
    ]


def test_certificates_of_agents_are_looked_at_wherever_they_are_trusted(tmp_path: Path) -> None:
    paired(tmp_path, "mx0")
    now = time.time()
    other = tmp_path / "lb" / "trusted" / "mx1.pem"
    ended = certified(now - 9 * DAY.total_seconds(), now - DAY.total_seconds())
    other.write_text(ssl.DER_cert_to_PEM_cert(ended))
    (tmp_path / "lb" / "trusted" / "mx2.pem").write_text("no certificate\n")
    made = config.parse(BALANCER.format(directory=tmp_path, port=1), "hactl.yaml")
    found = {Path(pin.path).name: pin for pin in _pinned(made)}
    assert {name: pin.left_days and round(pin.left_days) for name, pin in found.items()} == {
        "cert.pem": 36500, "mx0.pem": 36500, "mx1.pem": -1, "mx2.pem": None,
    }  # fmt: skip
    files = _files(tmp_path / "hactl.yaml", made, Unread("none"), None)
    assert Role.KEY in {file.role for file in files}
    assert list(_pinned(PAIRED.config)) == []


def test_keys_that_only_root_may_look_at_are_unread(tmp_path: Path) -> None:
    paired(tmp_path, "mx0")
    made = config.parse(BALANCER.format(directory=tmp_path, port=1), "hactl.yaml")
    with shut(tmp_path / "lb"):
        pinned = tuple(_pinned(made))
        files = list(_files(tmp_path / "hactl.yaml", made, Unread("none"), None))
    assert not {Role.KEY, Role.CERTIFICATE} & {file.role for file in files}
    why = f"{tmp_path}/lb/trusted: Permission denied"
    assert pinned == (Pinned(f"{tmp_path}/lb", why=why),)
    assert bad(changed(pinned=pinned)()) == [(W, "certificates", f"could not be read: {why}")]


def test_on_a_mail_server_relayd_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(
        f"mode: observe\nnode: mx0\nuser: root\nrun_dir: {tmp_path}\nstate_dir: {tmp_path}\n"
        f"agent: {{keys: {tmp_path}}}\nchecks: {{a: {{type: tcp, port: 25}}}}\n"
    )
    rows = judge(asyncio.run(gather(path, None)))
    assert {row.what for row in rows if row.level is Level.ERROR} == {"hactld"}
    assert exit_code(rows) == 3
    assert "agent" in {row.what for row in rows}
    assert _steered(str(path)) is None


def test_names_that_hang_hold_up_neither_others_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, real = threading.Event(), socket.getaddrinfo

    def getaddrinfo(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("hangs"):
            released.wait(20)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("hactl.cli.doctor.PATIENCE", 0.3)
    monkeypatch.setattr("hactl.cli.doctor.LOOKUPS", 40)
    path = tmp_path / "node.yaml"
    nodes = "".join(f"  a{n}: hangs{n}.example.org\n" for n in range(40))
    path.write_text(
        f"mode: observe\nrun_dir: {tmp_path}\nrelayd: {{conf: {tmp_path}/none}}\n"
        f"nodes:\n{nodes}  mx0: localhost\nchecks: {{cert: {{type: tls, port: 1}}}}\n"
        f"watch: {{mx0: [cert]}}\n"
    )
    began = time.monotonic()
    try:
        facts = asyncio.run(gather(path, None))
        assert facts.config_problems == ()
        found = dict(facts.resolved)
        assert time.monotonic() - began < 10
    finally:
        released.set()
    assert found.pop("localhost").addresses == ("127.0.0.1",)
    assert set(found.values()) == {Resolved(0.3, why="no answer in 0.3s")}
    assert len(found) == 40


def test_a_pfctl_that_hangs_is_not_asked_for_every_redirect(tmp_path: Path) -> None:
    said = "".join(f"{n}   \tredirect\tr{n}\t       \tactive\n" for n in range(1, 9))
    (tmp_path / "said").write_text(f"Id  \tType    \tName\tAvlblty\tStatus\n{said}")
    for name, line in {
        "relayctl": f"exec cat {tmp_path}/said",
        "pfctl": f'echo "$*" >> {tmp_path}/asked; exec sleep 60',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    path = tmp_path / "hactl.yaml"
    path.write_text(
        f"mode: observe\nuser: root\nrelayd: {{conf: {tmp_path}/none, timeout: 300ms,"
        f" relayctl: {tmp_path}/relayctl, pfctl: {tmp_path}/pfctl}}\n"
    )
    rows = judge(asyncio.run(gather(path, str(tmp_path / "none"))))
    (row,) = [row for row in rows if row.what == "pf"]
    assert row.found == "could not be read: pfctl -s info: no answer in 0.3s, outcome unknown"
    assert row.advice.startswith("it hangs: run it by hand")
    assert len((tmp_path / "asked").read_text().splitlines()) == 3
