"""relayctl, pfctl and relayd -n for the lab: made in a directory, beside the emulator's sockets.

In C, because what a relayctl costs is part of what hactl is measured by; in Python where there is
no compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("relayctl", "pfctl", "relayd")
HERE = Path(__file__).parent


def build_tools(directory: Path, compiler: str = "cc") -> None:
    """Make the programs in *directory*, unless they are there and newer than their source."""
    source = HERE / "client.c"
    first, *others = (directory / name for name in NAMES)
    made = all(tool.exists() for tool in (first, *others))
    if made and first.stat().st_mtime >= source.stat().st_mtime:
        return
    found = shutil.which(compiler)
    if found:
        subprocess.run([found, "-O2", "-o", first, source], check=True)
    else:
        text = (HERE / "client.py").read_text()
        first.write_text(f"#!{sys.executable} -IS\n{text}")
        first.chmod(0o755)
    for other in others:
        shutil.copy(first, other)
