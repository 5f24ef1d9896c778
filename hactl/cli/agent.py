"""hactl agent: keys of agents and of those who ask them."""

from __future__ import annotations

import grp
import os
import pwd
import socket
from contextlib import suppress
from pathlib import Path

from hactl import config as config_
from hactl.agent import keys as keys_
from hactl.cli.ask import Reply
from hactl.cli.init import DEFAULT
from hactl.config import Agent, Config, ConfigError

NO = 1


def keygen(name: str | None, keys: str | None, file: str) -> Reply:
    """Make a key, readable by the user that hactld becomes."""
    try:
        config = _config(Path(file), needed=keys is None)
    except ConfigError as error:
        return Reply(NO, f"{error}\nsay --keys to go without this file", None)
    name = name or config.node or socket.gethostname().partition(".")[0]
    directory = config.agent.keys if keys is None else Path(keys)
    try:
        digest = keys_.keygen(directory, name, _group(config.user))
    except keys_.KeysError as error:
        return Reply(NO, f"hactl: {error}", None)
    cert, _ = keys_.own(directory)
    return Reply(
        0,
        f"{name} {keys_.shown(digest)}\n"
        f"Copy {cert} to the other side, and there: hactl agent trust FILE",
        None,
    )


def trust(certificate: str, name: str | None, keys: str | None, file: str) -> Reply:
    """Trust a certificate."""
    try:
        config = _config(Path(file), needed=keys is None)
    except ConfigError as error:
        return Reply(NO, f"{error}\nsay --keys to go without this file", None)
    directory = config.agent.keys if keys is None else Path(keys)
    try:
        whose, digest = keys_.trust(directory, Path(certificate), name)
    except keys_.KeysError as error:
        return Reply(NO, f"hactl: {error}", None)
    return Reply(0, f"{whose} {keys_.shown(digest)}\nhactl reload makes hactld know it.", None)


def _config(path: Path, *, needed: bool) -> Config:
    """Return the configuration, or the defaults where there is none yet in the usual place."""
    if needed and (path != Path(DEFAULT) or path.exists()):
        return config_.load(path)
    with suppress(ConfigError):
        return config_.load(path)
    return Config("observe", agent=Agent())


def _group(user: str) -> int | None:
    """Return the group of the user that root's hactld becomes; None: nobody else."""
    if os.geteuid() != 0:
        return None
    with suppress(KeyError):
        return pwd.getpwnam(user).pw_gid or None
    with suppress(KeyError):
        return grp.getgrnam(user).gr_gid
    return None
