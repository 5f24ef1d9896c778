"""Whatever a file is that hactl is pointed at: it says what is wrong, and where, and never breaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from hactl.cli.main import main


def holding(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def closed(path: Path) -> None:
    path.write_text("mode: observe\n")
    path.chmod(0)


FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "closed": closed,
    "empty": holding(b""),
    "binary": holding(bytes(range(256)) * 9),
    "nul": holding(b"mode: \0\n"),
    "latin": holding(b"mode: \xff\xfe\n"),
    "utf16": holding("mode: observe\n".encode("utf-16")),
    "list": holding(b"- a\n- b\n"),
    "number": holding(b"42\n"),
    "tabs": holding(b"mode:\tobserve\n\tnodes: {}\n"),
    "two": holding(b"mode: observe\n---\nmode: hook\n"),
    "controls": holding(b"mode: \x1b[2Jx\n"),
}
COMMANDS = [
    "config show -f",
    "doctor -f",
    "verify -f",
    "relayd-reload -f",
    "hook install mx --dir {dir}/libexec -f",
    "hook remove mx --dir {dir}/libexec -f",
    "agent keygen --name mx0 -f",
    "agent trust --keys {dir}/keys",
    "init -o - --relayd-conf",
    "lab relayd --dir {dir}/lab -f",
    "status -s",
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda text: text.partition(" -")[0])
def test_a_wrong_file_is_named_and_no_command_breaks(command: str, tmp_path: Path) -> None:
    for name, make in FILES.items():
        if name == "closed" and os.geteuid() == 0:
            continue
        path = tmp_path / name
        make(path)
        words = [*command.format(dir=tmp_path).split(), str(path)]
        ran = CliRunner().invoke(main, words)
        assert isinstance(ran.exception, SystemExit), (name, ran.exception)
        assert ran.exit_code in (1, 2, 3), (name, ran.output)
        assert str(path) in ran.output, (name, ran.output)
        assert all(line.isprintable() for line in ran.output.splitlines()), name


def test_a_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    conf = tmp_path / "relayd.conf"
    conf.write_text("table <a> { 127.0.0.4 }\nredirect a {\n listen on 127.0.0.9 port 2525\n"
                    " forward to <a> check tcp\n}\n")  # fmt: skip
    file = tmp_path / "file"
    file.write_text("")
    ran = CliRunner().invoke(main, ["lab", "relayd", "-f", str(conf), "--dir", f"{file}/lab"])
    assert (ran.exit_code, ran.output) == (1, f"hactl: {file}/lab: Not a directory\n")
