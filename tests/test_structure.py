"""Imports point one way, and what decides has neither clock nor socket."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each may import what stands above it, and itself.  `hactl` itself is a version number.
ORDER = (
    ("hactl.core", "hactl.show"),
    ("checks",),
    ("hactl.config",),
    ("hactl.relayd", "hactl.agent", "hactl.observers"),
    ("hactl.daemon",),
    ("hactl.lab",),
    ("hactl.sim",),
    ("hactl.cli",),
)
LEVELS = {part: level for level, parts in enumerate(ORDER) for part in parts}
PURE = {"time", "socket", "os", "asyncio", "logging", "pathlib", "random"}

Place = tuple[str, int]  # a file and a line


def modules(
    *folders: str, having: tuple[str, ...] = ("",)
) -> Iterator[tuple[str, str, ast.Module]]:
    """Yield name, path and syntax tree of every module below *folders* with such a word in it."""
    for file in sorted(f for folder in folders for f in (ROOT / folder).rglob("*.py")):
        path = file.relative_to(ROOT)
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        text = file.read_text()
        if any(word in text for word in having):
            yield name, str(path), ast.parse(text)


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name imported, wherever it stands, as `package.module.name`, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def part(name: str) -> str | None:
    """Return the part of ours that *name* belongs to, None for the rest of the world."""
    words = name.split(".")
    if words[0] == "checks":
        return "checks"
    return ".".join(words[:2]) if words[0] == "hactl" and len(words) > 1 else None


def test_every_module_has_its_place_in_the_order() -> None:
    parts = {part(name) for name, _, _ in modules("hactl", "checks")} - {None}
    assert parts <= LEVELS.keys()


def test_imports_point_one_way() -> None:
    wrong = []
    for name, path, tree in modules("hactl", "checks"):
        own = part(name)
        for imported, line in imports(tree):
            other = part(imported)
            if own is None and other is not None:
                wrong.append((path, line, imported))  # hactl/__init__.py imports nothing of ours
            if own is None or other not in LEVELS or other == own:
                continue
            if LEVELS[other] >= LEVELS[own]:
                wrong.append((path, line, imported))
    assert wrong == []


def test_the_core_has_no_clock_no_socket_and_no_file() -> None:
    found = {(path, imported) for _, path, tree in modules("hactl/core")
             for imported, _ in imports(tree) if imported.split(".")[0] in PURE}  # fmt: skip
    assert found == set()
    calls = {(path, node.lineno) for _, path, tree in modules("hactl/core")
             for node in ast.walk(tree)
             if isinstance(node, ast.Call) and ast.unparse(node.func) in {"open", "print"}}  # fmt: skip
    assert calls == set()


def test_smtplib_is_not_used() -> None:
    trees = modules("hactl", "checks", "tests", "bench", having=("smtplib",))
    found = {path for _, path, tree in trees
             for imported, _ in imports(tree) if imported.split(".")[0] == "smtplib"}  # fmt: skip
    assert found == set()


SHELLS = ("shell", "os.system", "os.popen", "getoutput")  # whoever calls one says one of these


def shells(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that hand a text to a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            through = any(
                k.arg == "shell" and not (isinstance(k.value, ast.Constant) and not k.value.value)
                for k in node.keywords
            )
            function = ast.unparse(node.func).rpartition(".")[2]
            called = ast.unparse(node.func) in {"os.system", "os.popen", "subprocess.getoutput"}
            if through or called or function == "create_subprocess_shell":
                yield node.lineno


def test_nothing_is_handed_to_a_shell() -> None:
    found: list[Place] = [
        (path, line)
        for _, path, tree in modules("hactl", "checks", "tests", "bench", having=SHELLS)
        for line in shells(tree)
    ]
    assert found == []


def test_checks_is_an_ordinary_package() -> None:
    folders = {file.parent for top in ("checks", "hactl") for file in (ROOT / top).rglob("*.py")}
    assert ROOT / "checks" in folders
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
