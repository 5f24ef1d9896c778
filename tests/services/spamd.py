"""SpamAssassin's spamd with the rules that its package brings, or others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from msgspec import structs

from checks import Spoken
from tests.services.servers import HOST, Server, free_port, need

CHILDREN = 2


def launch(
    directory: Path,
    ready: Spoken,
    host: str = HOST,
    within: Sequence[str] = (),
    rules: Path | None = None,
) -> Server:
    """Start spamd with local rules only on a free port and a Unix socket; it is ready when *ready* passes.

    *rules*: a directory of all that it knows, in place of what its package brings.  It logs as OpenSMTPD does.  Its port accepts seconds before the rules are compiled.
    """
    need("spamd")
    home = directory / "home"
    home.mkdir()
    shutil.chown(home, "nobody")
    check = structs.replace(ready, port=free_port())
    listen = ["-i", f"{host}:{check.port}", "-A", HOST]
    listen += [f"--socketpath={directory}/spamd.sock"]
    paths = [f"--configpath={rules}", f"--siteconfigpath={rules}"] if rules else []
    children = ["-m", str(CHILDREN), f"--min-children={CHILDREN}", "--min-spare=1", "--max-spare=2"]
    user = ["-u", "nobody", "-x", "-H", str(home)]
    log = ["--syslog=mail", "--syslog-socket=unix"] if within else ["--syslog=stderr"]
    command = [*within, "spamd", "--local", *log, *paths, *listen, *children, *user]
    return Server(command, directory, check, host=host)
