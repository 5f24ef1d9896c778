"""The manuals name everything that there is: commands, options, keys, check types."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import checks
from hactl import config
from hactl.cli.main import main
from hactl.core.model import HostStatus
from hactl.relayd import conf
from hactl.sim.rules import RULES
from hactl.sim.scenario import Expect, Written
from hactl.sim.truth import DEEDS, FAULTS

ROOT = Path(__file__).parents[1]
HACTL, HACTLD, YAML = (ROOT / "man" / name for name in ("hactl.8", "hactld.8", "hactl.yaml.5"))
PAGES = sorted((ROOT / "man").iterdir())


def items(text: str, macro: str) -> dict[str, str]:
    """Return what stands under each `.It MACRO name`, with the rest of its line."""
    parts = re.split(r"^\.It (\w+) ", text, flags=re.MULTILINE)
    found = {}
    for kind, body in zip(parts[1::2], parts[2::2], strict=True):
        name = re.split(r" (?=[A-Z][a-z] |: )|\n", body, maxsplit=1)[0]
        if kind == macro:
            found[name] = body
    return found


def sections(page: Path) -> dict[str, str]:
    """Return the text of each section and subsection by its title."""
    parts = re.split(r"^\.S[hs] (.*)\n", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# hactl(8) and hactld(8)


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield " ".join((*above, name)), command


def options(command: click.Command) -> Iterator[list[str]]:
    """Yield the spellings of each option as mdoc has them: `-for` is --for."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield [text.removeprefix("-") for text in parameter.opts]


def names(option: str, text: str) -> bool:
    return re.search(rf"(Fl|[|,]) {re.escape(option)}\b", text) is not None


def test_hactl_is_documented_with_every_command_and_option() -> None:
    page = HACTL.read_text()
    documented = items(page, "Cm")
    assert documented.keys() == {name for name, _ in commands(main)}
    common = "".join(line for line in page.splitlines(True) if line.startswith(".It Fl "))
    for name, command in commands(main):
        usage = documented[name].splitlines()[0]
        for spellings in options(command):
            assert any(names(option, usage) for option in spellings), f"{name}: {spellings}"
            assert all(names(option, documented[name] + common) for option in spellings), name
    for spellings in options(main):
        assert all(names(option, sections(HACTL)["SYNOPSIS"]) for option in spellings)


def test_every_command_and_option_has_help() -> None:
    for name, command in commands(main):
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"


def test_the_scenario_of_the_manual_runs_as_it_says(tmp_path: Path) -> None:
    text = sections(HACTL)["SCENARIOS"].split(".Bd -literal -offset indent\n")[1]
    path = tmp_path / "story.yaml"
    path.write_text(text.split(".Ed\n")[0])
    result = CliRunner().invoke(main, ["simulate", str(path)])
    assert (result.exit_code, "as expected" in result.output) == (0, True), result.output


def test_all_that_a_scenario_can_do_is_explained() -> None:
    listed = items(sections(HACTL)["SCENARIOS"], "Li").keys()
    named = [name for names in listed for name in names.split(" , ")]
    assert sorted(named) == sorted([*FAULTS, *DEEDS])
    for key in (*Written.__struct_encode_fields__, *Expect.__struct_encode_fields__):
        assert re.search(rf"^\.Ic .*\b{key}\b", sections(HACTL)["SCENARIOS"], re.MULTILINE), key


def test_every_rule_is_explained() -> None:
    listed = items(sections(HACTL)["RULES"], "Li")
    assert {int(number): body.split("\n")[1] for number, body in listed.items()} == RULES


def test_every_state_of_a_host_is_explained() -> None:
    assert {*HostStatus} <= items(sections(HACTL)["STATUS"], "Li").keys()


def test_every_link_of_a_chain_is_explained() -> None:
    """The rules that speak: the first argument of each Note, and the causes of what is fixed."""
    source = "".join(file.read_text() for file in (ROOT / "hactl" / "core").glob("*.py"))
    rules = set(re.findall(r'Note\(\s*"([a-z ]+)"', source))
    rules |= set(re.findall(r'_fixed\(\s*member, Want\.\w+, "([a-z ]+)"', source))
    assert {"require", "floor", "foreign", "dwell", "hold", "load guard", "freeze"} <= rules
    rules |= {"drain", "pin", "mode"}  # these are not spelt out there
    assert rules <= items(sections(HACTL)["EXPLAIN"], "Li").keys()


def test_every_fact_that_doctor_looks_at_is_explained() -> None:
    source = (ROOT / "hactl" / "cli" / "_judge.py").read_text()
    facts = set(re.findall(r'\b(?:ok|warning|error|make|_unread)\(\s*"([^"]+)"', source))
    assert {"hactl.yaml", "pf tables", "agents", "carp"} <= facts
    listed = items(sections(HACTL)["DOCTOR"], "Li")
    assert facts == {name for names in listed for name in names.split(" , ")}


def test_every_event_in_the_log_is_explained() -> None:
    source = "".join(file.read_text() for file in (ROOT / "hactl").rglob("*.py"))
    names = set(re.findall(r'\bEvent\(\s*"(\w+)"', source))
    assert {"state", "decision"} <= names
    assert names <= items(sections(HACTLD)["LOG"], "Li").keys()


def test_hactld_is_documented_with_every_option() -> None:
    program = [sys.executable, "-c", "from hactl.daemon.main import main; main()", "-h"]
    text = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    known = {option.removeprefix("-") for option in re.findall(r"^  (-\w)\b", text, re.MULTILINE)}
    assert {"d", "n", "f", "v"} <= known
    assert items(HACTLD.read_text(), "Fl").keys() == known


def test_hactld_is_documented_with_every_signal() -> None:
    source = (ROOT / "hactl" / "daemon" / "daemon.py").read_text()
    signals = set(re.findall(r"signal\.(SIG\w+)", source))
    assert signals
    for name in signals:
        assert name in HACTLD.read_text()


# hactl.yaml(5)


def objects(schema: object, title: str = "KEYS") -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each mapping with fixed keys as the section that it is in and its keys.

    A check type is a section of its own; keys that all checks share are in `checks`.
    """
    assert isinstance(schema, dict)
    for form in ("anyOf", "oneOf"):
        for each in schema.get(form, ()):
            yield from objects(each, title)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from objects(schema["additionalProperties"], title)
    properties = schema.get("properties")
    if properties is None:
        return
    if title == "checks" and "from" in properties:
        yield title, {"from": {}}
        return
    if title == "checks":
        name = properties["type"]["const"]
        common = config._common().keys()
        yield title, {key: {} for key in ("type", *common)}
        yield name, {k: v for k, v in properties.items() if k not in {"type", *common}}
        yield from objects(properties["limits"], "limits")
        return
    yield title, properties
    for key, value in properties.items():
        if title == "KEYS":
            yield from objects(value, key)


def test_every_key_of_the_configuration_is_documented_with_its_default() -> None:
    manual = sections(YAML)
    found = list(objects(config.schema()))
    titles = {"KEYS", "nodes", "checks", "limits", "smtp", "services", "control"}
    assert titles <= {title for title, _ in found}
    for title, properties in found:
        documented = items(manual[title], "Ic")
        assert properties.keys() <= documented.keys(), title
        for key, schema in properties.items():
            assert isinstance(schema, dict)
            default = schema.get("default")
            if default not in (None, "", [], {}) and not isinstance(default, dict):
                word = str(default).lower() if isinstance(default, bool) else str(default)
                assert word in documented[key], f"{title}.{key}: {word}"


def test_no_key_is_documented_that_there_is_not() -> None:
    known: dict[str, set[str]] = {}
    for title, properties in objects(config.schema()):
        known.setdefault(title, set()).update(properties)
    for title, text in sections(YAML).items():
        if title in known:
            assert items(text, "Ic").keys() <= known[title], title


def test_every_check_type_is_documented_with_its_times() -> None:
    manual = sections(YAML)
    for name in checks.names():
        assert re.search(rf"^\.Ic {name}\b", items(manual["checks"], "Ic")["type"], re.MULTILINE)
        common = config._common(checks.load(name))
        for key in ("interval", "timeout", "fast_interval"):
            assert re.search(rf"\.Ic {key}\n{common[key].default}\b", manual[name]), (name, key)
        hedge = common["hedge"].default  # where there is none nothing is said
        assert (f".Ic hedge\n{hedge}" in manual[name]) is bool(hedge), name


def test_every_check_type_is_tested() -> None:
    tests = "".join(file.read_text() for file in (ROOT / "tests" / "checks").glob("test_*.py"))
    for name in checks.names():
        assert f"from checks.{name} import" in tests


def literals(page: Path) -> list[str]:
    """Return the literal blocks of the page's examples, as they are read."""
    blocks = re.findall(
        r"^\.Bd.*?\n(.*?)^\.Ed", sections(page)["EXAMPLES"], re.MULTILINE | re.DOTALL
    )
    return [block.replace("\\e", "\\") for block in blocks]


def test_the_examples_in_the_manual_are_right() -> None:
    examples = literals(YAML)
    files = [config.parse(text, "hactl.yaml") for text in examples if text.startswith("mode:")]
    others = [conf.parse(text, "relayd.conf") for text in examples if text.startswith("table ")]
    assert (len(files), len(others), len(examples)) == (2, 1, 3)
    assert others[0].services[0].name in files[0].services


@pytest.mark.service
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_nothing_wrong(page: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("no mandoc here: install the package mandoc")
    lint = ["mandoc", "-Tlint", "-Wwarning", str(page)]
    assert subprocess.run(lint, capture_output=True, text=True, check=False).stdout == ""
