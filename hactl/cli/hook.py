"""hook: `hactl hook install` and `remove`, with relayd.conf read so that neither does harm."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

from hactl.config import Config
from hactl.relayd import conf as conf_
from hactl.relayd import hook
from hactl.relayd.conf import ConfError, RelaydConf
from hactl.relayd.hook import HookError

HOUSE = Path("/var/run/hactl")  # where hactl-verdict looks unless HACTL_RUN_DIR says otherwise


def install(config: Config, file: Path, services: Iterable[str], directory: Path) -> Iterator[str]:
    """Link each service and yield what relayd.conf should say; *file* is where *config* is from.

    Raise HookError or OSError; nothing is linked if a name is wrong.
    """
    services = list(dict.fromkeys(services))
    _known(config, file, services)
    conf = _conf(config)
    for service in services:
        hook.install(service, directory)
    yield f"# The {_links(services)} in {directory}. In {config.relayd.conf}:"
    known = {service.name: service for service in conf.services} if conf else {}
    for service in services:
        yield ""
        if conf is None or service not in known:
            why = "cannot be read" if conf is None else f"has no {service}"
            yield f"# {config.relayd.conf} {why}; each forward of {service} needs:"
            yield f'#\tcheck script "{directory / service}" timeout 1000'
        else:
            yield from hook.stanza(known[service], directory / service, conf.interval)
    yield ""
    yield "# Then relayd -n; have relayd load it by hactl relayd-reload --force or, if it runs scripts"
    yield "# already, restart it; and last: mode: hook for the service, hactl reload."
    if config.run_dir != HOUSE:
        yield f"# relayd must be started with HACTL_RUN_DIR={config.run_dir} in its environment."


def remove(config: Config, services: Iterable[str], directory: Path, *, forced: bool) -> None:
    """Remove the links of services.  Raise HookError or OSError; no link goes if one must stay."""
    links = [directory / service for service in dict.fromkeys(services)]
    conf = _conf(config)
    for link in links:
        if not hook.linked(link):
            there = link.exists() or link.is_symlink()
            why = f"is no link to {hook.PROGRAM}" if there else "there is no such link"
            raise HookError(f"{link}: {why}; nothing was removed")
        if conf is None and not forced:
            raise HookError(
                f"{link}: {config.relayd.conf} cannot be read, and may name it; "
                "relayd takes all hosts of a script that is missing for down; --yes removes it"
            )
        users = hook.users(conf, link) if conf is not None else []
        if users and not forced:
            raise HookError(
                f"{link}: {config.relayd.conf} still names it, for {', '.join(users)}; without it "
                "relayd takes all hosts there for down; change the check and reload relayd first"
            )
    for link in links:
        link.unlink()


def _known(config: Config, file: Path, services: Iterable[str]) -> None:
    for service in services:
        if service not in config.services:
            close = difflib.get_close_matches(service, config.services, 1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            names = ", ".join(config.services) or "none"
            raise HookError(f'{file}: no service "{service}"{hint or f"; there are {names}"}')


def _conf(config: Config) -> RelaydConf | None:
    try:
        return conf_.read(config.relayd.conf)
    except (ConfError, OSError):
        return None


def _links(services: list[str]) -> str:
    names = ", ".join(services)
    return f"link {names} is" if len(services) == 1 else f"links {names} are"
