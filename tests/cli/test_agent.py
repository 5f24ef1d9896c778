"""hactl agent: keys for both sides."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from hactl.agent import keys
from hactl.cli.main import main
from tests.agent.test_keys import shut


def hactl(*words: object) -> Result:
    return CliRunner().invoke(main, ["agent", *map(str, words)], catch_exceptions=False)


def test_both_sides_make_keys_and_trust_each_other(tmp_path: Path) -> None:
    node, lb = tmp_path / "node", tmp_path / "lb"
    file = tmp_path / "hactl.yaml"
    file.write_text(
        f"mode: observe\nnode: mx0\nchecks: {{smtp: {{type: smtp}}}}\nagent: {{keys: {node}}}\n"
    )
    made = hactl("keygen", "-f", file)
    assert made.exit_code == 0
    first, advice = made.output.splitlines()
    assert first.startswith("mx0 SHA256:")
    assert f"Copy {node / 'cert.pem'} to the other side" in advice
    assert hactl("keygen", "--keys", lb, "--name", "lb0").exit_code == 0
    trusted = hactl("trust", node / "cert.pem", "--keys", lb)
    assert (trusted.exit_code, trusted.output.splitlines()[0]) == (0, first)
    assert hactl("trust", lb / "cert.pem", "-f", file).exit_code == 0
    assert (list(keys.trusted(lb)), list(keys.trusted(node))) == (["mx0"], ["lb0"])
    again = hactl("keygen", "-f", file)
    assert (again.exit_code, "is there already" in again.output) == (1, True)


def test_what_goes_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    broken = tmp_path / "hactl.yaml"
    broken.write_text("mode: obsrve\n")
    refused = hactl("keygen", "-f", broken)
    assert refused.exit_code == 1
    assert f"{broken}:1:7: mode: expected" in refused.output
    assert "say --keys to go without this file" in refused.output
    mistyped = hactl("keygen", "-f", tmp_path / "none.yaml")  # no key in the usual place then
    assert (mistyped.exit_code, "none.yaml: No such file" in mistyped.output) == (1, True)
    keys.keygen(tmp_path / "node", "mx0")
    private = hactl("trust", tmp_path / "node" / "key.pem", "--keys", tmp_path / "lb")
    assert (private.exit_code, "holds a private key" in private.output) == (1, True)
    missing = hactl("trust", tmp_path / "no.pem", "--keys", tmp_path / "lb")
    assert (missing.exit_code, "No such file or directory" in missing.output) == (1, True)


def test_a_file_that_we_may_not_look_at_is_said(tmp_path: Path) -> None:
    with shut(tmp_path):
        refused = hactl("keygen", "-f", tmp_path / "hactl.yaml")
    assert (refused.exit_code, "hactl.yaml: Permission denied" in refused.output) == (1, True)
