"""The verdict files, the script that looks for them, and the links to it."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from hactl.cli.main import main
from hactl.core.model import Member
from hactl.relayd import conf, hook
from hactl.relayd.hook import PROGRAM, HookError, Verdicts, withdraw
from hactl.relayd.relayctl import Answer

A = Member("mx0-smtp", 0, "10.0.0.4")
DOWN, UP = 0, 1  # the script's exit codes, as relayd takes them


def ask(link: Path, word: str, run_dir: Path) -> int:
    """Run the script as relayd does."""
    ran = subprocess.run(
        [link, word],
        cwd="/",
        env={"HACTL_RUN_DIR": str(run_dir)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == (b"", b"")
    return ran.returncode


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_relayds_user_may_run_what_a_careful_root_installs(tmp_path: Path) -> None:
    directory = tmp_path / "usr" / "libexec"
    hook.install("mx0-smtp", directory)
    for path in (directory.parent, directory, directory / PROGRAM):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
    directory.chmod(0o700)
    with pytest.raises(HookError, match="relayd's user may not enter it"):
        hook.install("imap", directory)
    assert not (directory / "imap").is_symlink()


@pytest.fixture
def link(tmp_path: Path) -> Path:
    hook.install("mx0-smtp", tmp_path / "libexec")
    return tmp_path / "libexec" / "mx0-smtp"


# Verdicts


def test_what_is_put_the_script_says(tmp_path: Path, link: Path) -> None:
    verdicts = Verdicts(tmp_path / "down")
    assert ask(link, A.word, tmp_path) == UP
    assert verdicts.put(A, down=True).answer is Answer.DONE
    assert ask(link, A.word, tmp_path) == DOWN
    assert verdicts.read(["mx0-smtp", "imap"]) == {
        "mx0-smtp": frozenset({"10.0.0.4"}),
        "imap": frozenset(),
    }
    assert verdicts.put(A, down=False).answer is Answer.DONE
    assert ask(link, A.word, tmp_path) == UP
    assert verdicts.read(["mx0-smtp"])["mx0-smtp"] == frozenset()


def test_the_second_host_of_a_name_is_asked_for_by_the_same_word(tmp_path: Path) -> None:
    Verdicts(tmp_path / "down").put(A._replace(host="10.0.0.4#2"), down=True)
    assert [path.name for path in (tmp_path / "down" / "mx0-smtp").iterdir()] == ["10.0.0.4"]


@pytest.mark.usefixtures("umask")
def test_relayds_user_gets_in_whatever_the_umask_is(tmp_path: Path) -> None:
    Verdicts(tmp_path / "run" / "down").put(A, down=True)
    (tmp_path / "run" / "down").chmod(0o700)  # somebody's mistake
    Verdicts(tmp_path / "run" / "down").put(A, down=True)
    for directory in ("run", "run/down", "run/down/mx0-smtp"):
        assert stat.S_IMODE((tmp_path / directory).stat().st_mode) == 0o755


@pytest.mark.parametrize("word", ["..", ".", "a/b", "a b", "a\nb", "x" * 256, "", "-e/.."])
def test_a_word_that_is_no_host_makes_no_file(tmp_path: Path, word: str) -> None:
    outcome = Verdicts(tmp_path / "down").put(Member("mx", 0, word), down=True)
    assert outcome.answer is Answer.REFUSED
    assert list(tmp_path.iterdir()) == []


def test_whatever_lies_in_the_place_of_a_file_is_a_verdict_and_goes(tmp_path: Path) -> None:
    verdicts, directory = Verdicts(tmp_path / "down"), tmp_path / "down" / "mx0-smtp"
    directory.mkdir(parents=True)
    os.mkfifo(directory / "fifo")
    (directory / "directory").mkdir()
    (directory / "nowhere").symlink_to("/nonexistent")
    assert verdicts.read(["mx0-smtp"])["mx0-smtp"] == {"fifo", "directory"}
    for word in ("fifo", "directory", "nowhere"):
        member = Member("mx0-smtp", 0, word)
        assert verdicts.put(member, down=True).answer is Answer.DONE
        assert word in verdicts.read(["mx0-smtp"])["mx0-smtp"]
        assert verdicts.put(member, down=False).answer is Answer.DONE
    assert list(directory.iterdir()) == []


def test_a_file_that_cannot_be_made_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "down").write_text("")
    outcome = Verdicts(tmp_path / "down").put(A, down=True)
    assert (outcome.answer, outcome.text) == (
        Answer.REFUSED,
        f"hook: {tmp_path}/down: Not a directory; relayd is told up as before",
    )


def test_what_cannot_be_read_is_as_it_was_and_somebody_hears_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts, directory = Verdicts(tmp_path / "down"), tmp_path / "down" / "mx0-smtp"
    verdicts.put(A, down=True)
    verdicts.read(["mx0-smtp"])
    directory.rename(tmp_path / "down" / "away")
    directory.write_text("")
    for _ in range(3):
        assert verdicts.read(["mx0-smtp"])["mx0-smtp"] == {"10.0.0.4"}
    assert verdicts.problem == f"hook: {directory}: Not a directory"
    assert caplog.messages == [verdicts.problem]
    directory.unlink()
    assert verdicts.read(["mx0-smtp"])["mx0-smtp"] == frozenset()
    assert verdicts.problem == ""


def test_a_service_without_hook_keeps_no_verdicts(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "down")
    verdicts.put(A, down=True)
    verdicts.put(A._replace(service="imap"), down=True)
    (tmp_path / "down" / "stray").write_text("")
    assert verdicts.keep({"imap"}) == []
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["imap"]
    assert Verdicts(tmp_path / "nowhere").keep(set()) == []


def test_verdicts_that_nobody_changes_any_more_are_told_of(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "down")
    verdicts.put(A, down=True)
    assert verdicts.keep({"mx0-smtp", "imap"}) == []
    assert verdicts.held({"mx0-smtp", "imap"}) == [
        "service mx0-smtp: mode observe, but the hook calls 10.0.0.4 down"
    ]


def test_withdrawn_verdicts_are_gone_at_once_and_others_stay(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path / "down")
    for _ in range(3):  # hactld comes back without having been started anew
        verdicts.put(A, down=True)
        verdicts.put(A._replace(service="imap"), down=True)
        withdraw(tmp_path / "down", ["mx0-smtp", "pop3"])
        found = verdicts.read(["mx0-smtp", "imap"])
        assert found == {"mx0-smtp": frozenset(), "imap": {"10.0.0.4"}}
    assert verdicts.keep({"mx0-smtp", "imap"}) == []
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["imap"]
    withdraw(tmp_path / "nowhere", ["mx0-smtp"])


def test_withdrawing_follows_no_link(tmp_path: Path) -> None:
    """The directory belongs to _hactl, and root withdraws."""
    victim = tmp_path / "etc"
    (victim / "mx0-smtp").mkdir(parents=True)
    (tmp_path / "down").symlink_to(victim)
    with pytest.raises(OSError, match=r"down"):
        withdraw(tmp_path / "down", ["mx0-smtp"])
    assert [path.name for path in victim.iterdir()] == ["mx0-smtp"]


# Links


def test_installed_is_the_script_with_a_link_that_survives_a_move(link: Path) -> None:
    assert link.readlink() == Path(PROGRAM)
    script = link.with_name(PROGRAM)
    assert script.read_bytes() == hook.program().read_bytes()
    assert stat.S_IMODE(script.stat().st_mode) == 0o755
    script.write_text("#!/bin/sh\n")  # an older one
    hook.install("imap", link.parent)
    hook.install("mx0-smtp", link.parent)  # again does no harm
    assert script.read_bytes() == hook.program().read_bytes()
    assert sorted(path.name for path in link.parent.iterdir()) == [PROGRAM, "imap", "mx0-smtp"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o777])
def test_a_script_of_another_mode_is_replaced(link: Path, mode: int) -> None:
    script = link.with_name(PROGRAM)
    script.chmod(mode)
    hook.install("mx0-smtp", link.parent)
    assert stat.S_IMODE(script.stat().st_mode) == 0o755


RELAYD = """
interval 2
table <mx0> { 10.0.0.4 retry 1 }
table <backup> { 10.0.0.5 }
redirect mx0-smtp {
	listen on 192.0.2.25 port 25
	forward to <mx0> port 25 check CHECK mode least-states demote carp
	forward to <backup> port 25 check tcp mode least-states interval 4
}
"""
HACTL = """
mode: hook
nodes: {{mx0: 10.0.0.4, mx1: 10.0.0.5}}
checks: {{smtp: {{type: smtp}}}}
services: {{mx0-smtp: {{require: [smtp]}}}}
relayd: {{conf: {0}/relayd.conf}}
run_dir: {0}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "hactl.yaml").write_text(HACTL.format(tmp_path))
    asks(tmp_path, "tcp")
    return tmp_path


def asks(directory: Path, check: str) -> None:
    (directory / "relayd.conf").write_text(RELAYD.replace("CHECK", check))


def hactl(directory: Path, *words: str) -> tuple[int, str, str]:
    options = ("--dir", str(directory / "libexec"), "-f", str(directory / "hactl.yaml"))
    ran = CliRunner().invoke(main, ["hook", words[0], *options, *words[1:]])
    return ran.exit_code, ran.stdout, ran.stderr


def test_what_install_prints_relayd_takes(files: Path) -> None:
    code, out, err = hactl(files, "install", "mx0-smtp")
    link = files / "libexec" / "mx0-smtp"
    script = f'check script "{link}" timeout 1000'
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"# The link mx0-smtp is in {link.parent}. In {files}/relayd.conf:",
        "",
        "redirect mx0-smtp {",
        "\t# all else as it is",
        f"\tforward to <mx0> port 25 {script} mode least-states demote carp",
        "\t# <mx0> has hosts with retry: each delays the hook's word",
        f"\tforward to <backup> port 25 {script} mode least-states interval 4",
        "}",
        "",
        "# Then relayd -n; have relayd load it by hactl relayd-reload --force or, if it runs scripts",
        "# already, restart it; and last: mode: hook for the service, hactl reload.",
        f"# relayd must be started with HACTL_RUN_DIR={files} in its environment.",
    ]
    assert hook.linked(link)
    head, _, rest = RELAYD.partition("redirect")
    text = head + "\n".join(out.splitlines()[2:8]).replace(
        "\t# all", "\tlisten on 192.0.2.25 port 25\n\t# all"
    )
    assert rest
    old = conf.parse(RELAYD.replace("CHECK", "tcp"), "relayd.conf")
    new = conf.parse(text, "relayd.conf")
    assert hook.users(new, link) == ["mx0-smtp"]
    for before, after in zip(old.services[0].tables, new.services[0].tables, strict=True):
        kept = ("name", "port", "interval", "mode", "demote", "hosts")
        assert [getattr(before, k) for k in kept] == [getattr(after, k) for k in kept]
        assert after.timeout == 1.0


@pytest.mark.parametrize(
    ("line", "want"),
    [
        ("route to <c> port 25 check tcp interface em1", "route to <c> port 25 ASK interface em1"),
        (
            "transparent forward with tls to <c> timeout 300 port smtp check ssl mode hash inet6 ::1",
            "transparent forward with tls to <c> port smtp ASK mode hash inet6 ::1",
        ),
        ('forward to <c> check send "a" expect "b" tls port $port', "forward to <c> port 25 ASK"),
        ("forward to <c> check icmp demote 'a \"b\"'", 'forward to <c> ASK demote "a \\"b\\""'),
        ('forward to <"c d"> port 25', 'forward to <"c d"> port 25 ASK'),
        ("forward to <c> inet6 ::1", "forward to <c> ASK inet6 ::1"),
    ],
)
def test_all_but_check_and_timeout_of_a_line_is_as_it_was(line: str, want: str) -> None:
    head = (
        'interval 2\nport="25"\ntable <c> { 10.0.0.4 }\ntable <"c d"> { 10.0.0.5 }\n'
        "relay mx {\n\tlisten on 192.0.2.25 port 25\n\t"
    )
    want = want.replace("ASK", 'check script "/libexec/mx" timeout 1000')
    for text in (line, want):
        mx = conf.parse(f"{head}{text}\n}}\n", "relayd.conf").services[0]
        written = hook.stanza(mx, Path("/libexec/mx"), 2.0)
        assert written == ["relay mx {", "\t# all else as it is", f"\t{want}", "}"]


def test_uses_that_share_a_table_keep_their_own_lines() -> None:
    mx = conf.parse(
        "table <c> { 10.0.0.4 }\n"
        "relay mx {\n\tlisten on 192.0.2.25 port 25\n"
        "\tforward to <c> check tcp timeout 300\n"
        "\tforward with tls to <c> check tcp timeout 300\n}\n",
        "relayd.conf",
    ).services[0]
    assert [table.id for table in mx.tables] == [1, 1]
    assert [table.line[0] for table in mx.tables] == ["forward to <c>", "forward with tls to <c>"]


def test_install_says_what_the_service_needs_where_relayd_conf_cannot_tell(files: Path) -> None:
    (files / "relayd.conf").unlink()
    code, out, _ = hactl(files, "install", "mx0-smtp")
    assert code == 0
    assert f'check script "{files}/libexec/mx0-smtp" timeout 1000' in out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mx0-smpt", 'no service "mx0-smpt"; did you mean "mx0-smtp"?'),
        ("zzz", 'no service "zzz"; there are mx0-smtp'),
        ("../x", 'no service "../x"'),
    ],
)
def test_a_service_that_there_is_not_is_not_linked(files: Path, name: str, says: str) -> None:
    code, out, err = hactl(files, "install", "mx0-smtp", name)
    assert (code, out) == (1, "")
    assert err.startswith(f"hactl: {files}/hactl.yaml: {says}")
    assert not (files / "libexec").exists()


def test_what_is_not_ours_is_neither_replaced_nor_removed(files: Path) -> None:
    link = files / "libexec" / "mx0-smtp"
    link.parent.mkdir()
    link.write_text("#!/bin/sh\n")
    assert hactl(files, "install", "mx0-smtp")[2] == (
        f"hactl: {link}: exists and is no link to hactl-verdict; move it away first\n"
    )
    assert hactl(files, "remove", "mx0-smtp")[2] == (
        f"hactl: {link}: is no link to hactl-verdict; nothing was removed\n"
    )
    assert link.read_text() == "#!/bin/sh\n"


def test_where_others_may_write_nothing_is_installed(files: Path) -> None:
    (files / "libexec").mkdir()
    (files / "libexec").chmod(0o777)
    code, _, err = hactl(files, "install", "mx0-smtp")
    assert (code, err) == (
        1,
        f"hactl: {files}/libexec: others may write there, and relayd runs what it finds\n",
    )
    assert list((files / "libexec").iterdir()) == []


def test_a_link_that_relayd_conf_names_is_not_removed(files: Path) -> None:
    link = files / "libexec" / "mx0-smtp"
    hactl(files, "install", "mx0-smtp")
    asks(files, f'script "{link}"')
    code, _, err = hactl(files, "remove", "mx0-smtp")
    assert code == 1
    assert err.startswith(f"hactl: {link}: {files}/relayd.conf still names it, for mx0-smtp;")
    (files / "relayd.conf").unlink()
    assert "cannot be read, and may name it" in hactl(files, "remove", "mx0-smtp")[2]
    assert hook.linked(link)
    asks(files, "tcp")
    assert hactl(files, "remove", "mx0-smtp") == (0, "", "")
    assert not link.is_symlink()
    assert hactl(files, "remove", "mx0-smtp")[2] == (
        f"hactl: {link}: there is no such link; nothing was removed\n"
    )


@pytest.mark.parametrize("there", ["other", "libexec/../libexec"])
def test_a_link_that_relayd_conf_names_by_another_way_is_not_removed(
    files: Path, there: str
) -> None:
    hactl(files, "install", "mx0-smtp")
    (files / "other").symlink_to("libexec")
    asks(files, f'script "{files}/{there}/mx0-smtp"')
    assert "still names it, for mx0-smtp;" in hactl(files, "remove", "mx0-smtp")[2]
    asks(files, f'script "{files}/libexec/mx0-smtp"')
    assert "still names it" in hactl(files, "remove", "--dir", f"{files}/{there}", "mx0-smtp")[2]
    assert hook.linked(files / "libexec" / "mx0-smtp")


def test_a_link_is_removed_all_the_same_if_so_said(files: Path) -> None:
    link = files / "libexec" / "mx0-smtp"
    hactl(files, "install", "mx0-smtp")
    asks(files, f'script "{link}"')
    assert hactl(files, "remove", "--yes", "mx0-smtp") == (0, "", "")
    assert not link.is_symlink()
