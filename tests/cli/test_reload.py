"""hactl relayd-reload against the emulator: what it shows, what it keeps, what it refuses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hactl import config as config_
from hactl.cli import reload
from hactl.cli.reload import Orders, Reload, ReloadError
from hactl.relayd import reload as reload_
from hactl.relayd.conf import parse
from tests.lab.test_relayd import PORT, VIP, A, B, Bench, C, lab

INTERVAL = 100  # of relayd, in tenths of a second here: nothing happens by itself
RELAYD = """#!/bin/sh
[ "$*" = "-n -f {conf}" ] || exit 9
grep -q broken {conf} || {{ echo 'configuration OK' >&2; exit 0; }}
echo '{conf}:1: syntax error' >&2
exit 1
"""


def redirect(name: str, table: str, port: int, more: str = "check tcp") -> str:
    return (
        f"redirect {name} {{\n\tlisten on {VIP} port {port}\n"
        f"\tforward to <{table}> port {PORT} {more}\n}}\n"
    )


HEAD = f"interval {INTERVAL}\ntimeout 500\n"
MX = f"table <mx> {{ {A} {B} }}\n"
SMTP, IMAP = redirect("smtp", "mx", PORT), redirect("imap", "im", PORT + 1)
BOTH = f"{HEAD}{MX}table <im> {{ {C} }}\n{SMTP}{IMAP}"


def reloading(bench: Bench, said: list[str], **orders: bool) -> Reload:
    relayd = bench.directory / "relayd"
    relayd.write_text(RELAYD.format(conf=bench.conf))
    relayd.chmod(0o755)
    config = config_.parse(
        f"mode: observe\nrelayd: {{conf: {bench.conf}, relayctl: {bench.directory}/relayctl,"
        f" pfctl: {bench.directory}/pfctl}}\n",
        "hactl.yaml",
    )
    nowhere = str(bench.directory / "no.sock")
    return Reload(config, Orders(relayd, nowhere, **orders), said.append)


async def started(bench: Bench, conf: str = BOTH) -> None:
    """Start relayd and fill pf."""
    bench.conf.write_text(conf)
    emulator = await bench.start(A, B, C)
    await emulator.until(lambda: emulator.command("show summary").stdout.count("up\n") == 3)
    emulator.command("poll")
    await emulator.until(lambda: all(emulator.pf.tables.values()))


@lab
async def test_disables_stay_tables_are_filled_and_it_says_for_how_long_they_were_not(
    bench: Bench,
) -> None:
    await started(bench)
    bench.emulator.command("host disable 1")
    said: list[str] = []
    assert await reloading(bench, said).run() == 0
    assert bench.emulator.pf.tables == {"smtp": (B,), "imap": (C,)}
    assert "disabled" in bench.emulator.command("show summary").stdout
    assert said[:2] == [
        "relayd.conf: the same services, tables and hosts as relayd has",
        "disabled, and again after the reload: 1",
    ]
    assert sum("was empty for" in line and line.endswith(" ms at most") for line in said) == 2
    assert said[-1] == "pf has what relayd shows"


def disabled(bench: Bench) -> list[str]:
    return [line.split()[2] for line in bench.emulator.command("show summary").stdout.splitlines()
            if line.split()[1] == "host" and line.endswith("disabled")]  # fmt: skip


@lab
async def test_nothing_gets_lost_though_nobody_listens_or_somebody_interrupts(bench: Bench) -> None:
    await started(bench)
    bench.emulator.command("host disable 1")
    deeds: list[Callable[[], object]] = [lambda: os.write(full, b"x"),
                                         lambda: os.kill(os.getpid(), signal.SIGINT)]  # fmt: skip
    full = os.open("/dev/full", os.O_WRONLY)
    for deed in deeds:

        def say(line: str, deed: Callable[[], object] = deed) -> None:
            if line.startswith("loaded after"):
                deed()

        each = reloading(bench, [])
        each._out = say
        assert await each.run() == 0
        assert disabled(bench) == [A]
    os.close(full)


@pytest.mark.long
@lab
async def test_a_disable_that_fails_holds_up_no_other_and_is_tried_again(bench: Bench) -> None:
    await started(bench, BOTH.replace(f"interval {INTERVAL}", "interval 2"))
    for id in (1, 2):
        bench.emulator.command(f"host disable {id}")
    relayctl, real = bench.directory / "relayctl", bench.directory / "relayctl.real"
    relayctl.rename(real)
    for times, code, again in ((1, 0, [A, B]), (9, 1, [B])):
        left = bench.directory / "left"
        left.write_text("x" * times)
        relayctl.write_text(f"""#!/bin/sh
[ "$*" = "host disable 1" ] && [ -s {left} ] && {{
    truncate -s -1 {left}; echo 'command failed'; exit 1; }}
exec {real} "$@"
""")
        relayctl.chmod(0o755)
        said: list[str] = []
        assert await reloading(bench, said).run() == code, said
        assert disabled(bench) == again
        assert bench.emulator.pf.tables["imap"] == (C,)
        if code:
            assert f"wrong: host {A} of smtp was disabled, and is not" in said


@lab
async def test_a_hactld_that_cannot_be_told_is_named(bench: Bench) -> None:
    await started(bench)
    said: list[str] = []
    each = reloading(bench, said)
    each._socket = "x" * 200  # longer than a socket's name can be
    assert await each.run() == 0
    assert any(line.startswith("hactld was not told, and may switch hosts") for line in said)


def test_the_socket_is_the_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HACTL_SOCKET", raising=False)
    config = config_.parse("mode: observe\ncontrol: {path: /run/there.sock}\n", "hactl.yaml")
    assert Reload(config, Orders(), print)._socket == "/run/there.sock"
    assert Reload(config, Orders(socket="/here"), print)._socket == "/here"


@lab
async def test_who_is_not_root_is_told_that_and_not_that_the_file_is_wrong(bench: Bench) -> None:
    await started(bench)
    each = reloading(bench, [])
    (bench.directory / "relayd").write_text(
        "#!/bin/sh\necho 'relayd: need root privileges' >&2; exit 1\n"
    )
    with pytest.raises(ReloadError, match="needs root") as error:
        await each.run()
    assert error.value.code == 3


@lab
async def test_what_changes_is_shown_and_what_vanishes_leaves_pf(bench: Bench) -> None:
    await started(bench)
    bench.emulator.command("host disable 2")
    bench.conf.write_text(f"{HEAD}table <mx> {{ {C} {A} {B} }}\n{SMTP}")
    said: list[str] = []
    assert await reloading(bench, said, dry_run=True).run() == 0
    announced = said[:-1]
    assert announced == [
        "redirect imap: gone",
        f"host {A} of smtp, table mx:{PORT}: id 1 becomes 2",
        f"host {B} of smtp, table mx:{PORT}: id 2 becomes 3",
        f"host {C} of smtp, table mx:{PORT}: new (id 1)",
        "redirect imap: disabled first, or pf would keep it",
        "disabled, and again after the reload: 1",
    ]
    assert bench.emulator.model is not None
    assert bench.emulator.model.loads == 1
    said.clear()
    assert await reloading(bench, said).run() == 0
    assert said[: len(announced)] == announced
    assert (bench.emulator.pf.tables, list(bench.emulator.pf.rules)) == (
        {"smtp": (C, A), "imap": ()},
        ["smtp"],
    )


@lab
async def test_a_rule_that_relayd_forgot_goes_with_its_redirect(bench: Bench) -> None:
    """From a load until a host is up relayd takes away no rule, whatever it is told."""
    await started(bench)
    emulator = bench.emulator
    await emulator.reload()
    assert "imap" in emulator.pf.rules
    bench.conf.write_text(f"{HEAD}{MX}{SMTP}")
    said: list[str] = []
    assert await reloading(bench, said).run() == 0
    assert "redirect imap: pf had it still, and was told to forget it" in said
    assert (emulator.pf.tables, list(emulator.pf.rules)) == ({"smtp": (A, B)}, ["smtp"])


@lab
async def test_relays_are_named_whose_sessions_a_reload_ends(bench: Bench) -> None:
    relay = f"relay web {{\n\tlisten on {VIP} port {PORT + 2}\n\tforward to <mx> port {PORT} check tcp\n}}\n"
    bench.conf.write_text(f"{HEAD}{MX}{SMTP}{relay}")
    emulator = await bench.start(A, B, C)
    await emulator.until(lambda: emulator.command("show summary").stdout.count("up\n") == 4)
    said: list[str] = []
    assert await reloading(bench, said, dry_run=True).run() == 0
    assert "relay web: a reload ends its open sessions" in said


@lab
async def test_a_broken_file_is_never_loaded(bench: Bench) -> None:
    await started(bench)
    bench.conf.write_text("broken")
    with pytest.raises(ReloadError, match="syntax error") as error:
        await reloading(bench, []).run()
    assert error.value.code == 1
    assert bench.emulator.pf.tables == {"smtp": (A, B), "imap": (C,)}


@lab
async def test_scripts_are_a_reason_to_refuse_unless_somebody_insists(bench: Bench) -> None:
    await started(bench)
    demoting = SMTP.replace("check tcp", "check tcp demote carp")
    bench.conf.write_text(f"{HEAD}{MX}table <im> {{ {C} }}\n{demoting}{IMAP}")
    said: list[str] = []
    assert await reloading(bench, said).run() == 1
    assert "--force reloads all the same" in said
    assert bench.emulator.model is not None
    assert bench.emulator.model.loads == 1
    assert await reloading(bench, said, force=True).run() == 0
    assert bench.emulator.model.loads == 2


@lab
async def test_a_relayd_that_does_not_answer_or_never_loads(bench: Bench) -> None:
    await started(bench)
    bench.emulator.kill()
    with pytest.raises(ReloadError, match="Connection refused") as error:
        await reloading(bench, []).run()
    assert error.value.code == 3


def conf(text: str) -> list[str]:
    return [refusal.text for refusal in reload_.refusals(parse(text, "relayd.conf"))]


def test_what_a_reload_is_refused_for() -> None:
    assert conf(BOTH) == []
    scripted = SMTP.replace("check tcp", 'check script "/hook"')
    assert "smtp: a reload while check scripts run ends relayd" in conf(f"{HEAD}{MX}{scripted}")[0]
    demoting = SMTP.replace("check tcp", "check tcp demote carp")
    assert conf(f"{HEAD}{MX}{demoting}")[0].startswith("demote carp: ")
    long = redirect("x" * 32, "mx", PORT)
    assert next(reload_.refusals(parse(f"{HEAD}{MX}{long}", "relayd.conf"))).final


def test_the_program_says_what_is_missing(tmp_path: Path) -> None:
    text = f"mode: observe\nrelayd: {{relayctl: {tmp_path}/relayctl}}\n"
    orders = Orders(socket=str(tmp_path / "no.sock"))
    with pytest.raises(ReloadError, match=r"relayd -n: .*/relayd: No such file") as error:
        reload.run(config_.parse(text, "hactl.yaml"), orders, print)
    assert error.value.code == 3
