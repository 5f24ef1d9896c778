"""hactl: what operators type.  Each command imports what it needs when it is run."""

from __future__ import annotations

import getpass
import json
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

import click

import hactl
from hactl.cli import ask as ask_
from hactl.show import safe

OK, NO, WRONG = 0, 1, 2
CONFIG = "/etc/hactl.yaml"

_socket = click.option("-s", "--socket", metavar="SOCKET", help="hactld's control socket.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the data as JSON.")
_file = click.option(
    "-f", "--file", default=CONFIG, metavar="FILE", show_default=True, help="The hactl.yaml."
)


class _Group(click.Group):
    """Says so where what it prints cannot be written; an answer that nobody got is none."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or its rest is tried again at the end
            with suppress(OSError):
                click.echo(f"hactl: {safe(_why(error, 'standard output'))}", err=True)
            sys.exit(ask_.UNASKABLE)


def _why(error: OSError, where: str = "") -> str:
    """Say what failed, and where: at *where* if it does not say."""
    where = str(error.filename or where)
    said = error.strerror or str(error)
    return f"{where}: {said}" if where else said


def _some_span(context: click.Context, option: click.Parameter, span: str | None) -> str:
    """Refuse an empty span, which an unset variable of a script becomes: it would have no end."""
    if span is not None and not span.strip():
        raise click.BadParameter("expected a span such as 30m, got nothing")
    return span or ""


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hactl.__version__, message="hactl %(version)s")
def main() -> None:
    """Ask and tell hactld, which steers relayd's tables.

    NAME is a NODE, a SERVICE or SERVICE/NODE everywhere.  Exit codes: 0 all is as wanted, or the
    thing is done; 1 the answer is no; 2 wrong usage; 3 hactld or relayd cannot be asked.
    """


def _ask(socket: str | None, verb: str, *words: str, **options: str) -> ask_.Reply:
    """Ask hactld; end with exit code 3, and why, if it cannot be asked."""
    try:
        return ask_.ask(ask_.path(socket), verb, *words, options=options)
    except ask_.AskError as error:
        click.echo(f"hactl: {safe(str(error))}", err=True)
        sys.exit(ask_.UNASKABLE)


def _done(reply: ask_.Reply) -> None:
    """Print what hactld says and end as it says."""
    if reply.text:
        for line in reply.text.splitlines():
            click.echo(safe(line), err=reply.code != OK)
    if reply.code != OK:
        sys.exit(reply.code)


@main.command()
@click.argument("name", required=False)
@_json
@_socket
def status(name: str | None, as_json: bool, socket: str | None) -> None:
    """Show each service's members: what relayd shows, what they should be, and why."""
    from hactl.cli.status import Status

    reply = _ask(socket, "status")
    if reply.code:
        _done(reply)
    view = Status(reply.data, name)
    if as_json:
        click.echo(json.dumps(view.data, ensure_ascii=True, indent=1))
    else:
        click.echo("\n".join(view.lines()))
    sys.exit(view.code)


@main.command()
@click.argument("name")
@_json
@_socket
def explain(name: str, as_json: bool, socket: str | None) -> None:
    """Tell why NAME is in or out: results, waits, overrides, and what would change it."""
    import msgspec

    from hactl.cli.status import Status
    from hactl.core.explain import Snapshot
    from hactl.core.explain import explain as told

    reply = _ask(socket, "status")
    if reply.code:
        _done(reply)
    view = Status(reply.data, name)
    lines = told(msgspec.convert(reply.data, Snapshot), name)
    if not lines:
        click.echo(f"hactl: {safe(view.stranger(name))}", err=True)
        sys.exit(NO)
    if as_json:
        click.echo(json.dumps(view.data, ensure_ascii=True, indent=1))
    else:
        click.echo("\n".join(safe(line) for line in lines))
    if view.blind:
        click.echo(f"hactl: {safe(view.blind)}", err=True)
        sys.exit(ask_.UNASKABLE)


@main.command()
@click.argument("node")
@click.argument("check", required=False)
@click.option("--nagios", is_flag=True, help="One line and exit codes as monitoring plugins have.")
@_json
@_socket
def check(node: str, check: str | None, nagios: bool, as_json: bool, socket: str | None) -> None:
    """Look at NODE now, with CHECK or all it has; the looks do not count in its health."""
    from hactl.cli.status import looks, nagios_line

    words = [node] if check is None else [node, check]
    if nagios:
        try:
            line, code = nagios_line(ask_.ask(ask_.path(socket), "check", *words))
        except ask_.AskError as error:
            line, code = f"UNKNOWN: {error}", 3
        click.echo(safe(line))
        sys.exit(code)
    reply = _ask(socket, "check", *words)
    if reply.code:
        _done(reply)
    if as_json:
        click.echo(json.dumps(reply.data, ensure_ascii=True, indent=1))
    else:
        click.echo("\n".join(looks(reply.data)))
    verdicts = {found["result"]["verdict"] for found in reply.data}
    sys.exit(OK if verdicts <= {"ok", "warn"} else NO)


def _overrider(kind: str, about: str) -> None:
    """Make the command that sets an override of *kind*."""

    @main.command(kind, help=about)
    @click.argument("name")
    @click.option(
        "--for", "span", metavar="SPAN", callback=_some_span, help="End by itself, as 30m or 2h."
    )
    @click.option("--reason", default="", help="Why; shown in status.")
    @click.option("--yes", is_flag=True, help="Do it even if that leaves a service empty.")
    @_socket
    def command(name: str, span: str, reason: str, yes: bool, socket: str | None) -> None:
        options = {"for": span, "reason": reason, "who": _who(), "yes": "yes" if yes else ""}
        reply = _ask(socket, kind, name, **options)
        if reply.code == NO and "--yes" in reply.text and sys.stdin.isatty():
            click.echo(safe(reply.text), err=True)
            if not click.confirm("Do it all the same?"):
                sys.exit(NO)
            reply = _ask(socket, kind, name, **(options | {"yes": "yes"}))
        _done(reply)


_overrider("drain", "Take NAME out of service gently: it still serves when nobody else can.")
_overrider("maint", "Take NAME out of service whatever happens.")
_overrider("pin", "Keep NAME in whatever checks say; in an exclusive service: be the one.")


@main.command()
@click.argument("service", default="all")
@click.option(
    "--for",
    "span",
    metavar="SPAN",
    default="1h",
    show_default=True,
    callback=_some_span,
    help="Thaw then.",
)
@click.option("--reason", default="", help="Why; shown in status.")
@click.option("--hands-off", is_flag=True, help="Send relayd nothing at all; no rule holds then.")
@_socket
def freeze(service: str, span: str, reason: str, hands_off: bool, socket: str | None) -> None:
    """Leave who is in SERVICE in and the others out; decisions go on and are shown."""
    options = {"for": span, "reason": reason, "who": _who()}
    _done(_ask(socket, "hands-off" if hands_off else "freeze", service, **options))


@main.command()
@click.argument("service", default="all")
@_socket
def thaw(service: str, socket: str | None) -> None:
    """End the freeze of SERVICE; what has changed meanwhile happens at its pace."""
    _done(_ask(socket, "thaw", service))


def _who() -> str:
    """Return the person behind the command, not the account that doas or sudo gave them."""
    for name in ("DOAS_USER", "SUDO_USER"):
        if os.environ.get(name):
            return os.environ[name]
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@main.command()
@click.argument("name")
@click.option("--foreign", is_flag=True, help="Take over what somebody else disabled there.")
@_socket
def resume(name: str, foreign: bool, socket: str | None) -> None:
    """End the drain, maint or pin of NAME."""
    _done(_ask(socket, "resume", name, foreign="yes" if foreign else ""))


@main.command()
@_socket
def reload(socket: str | None) -> None:
    """Make hactld load hactl.yaml and relayd.conf again; a bad file changes nothing."""
    _done(_ask(socket, "reload"))


@main.command()
@click.option(
    "--relayd-conf", default="/etc/relayd.conf", metavar="FILE", show_default=True,
    help="The relayd.conf to read.",
)  # fmt: skip
@click.option(
    "-o", "--output", default=CONFIG, metavar="FILE", show_default=True,
    help="The hactl.yaml to make; - prints it.",
)  # fmt: skip
@click.option("--probe", is_flag=True, help="Look at the nodes; propose what works now.")
def init(relayd_conf: str, output: str, probe: bool) -> None:
    """Make a hactl.yaml from relayd.conf, in mode observe; a file that is there stays as it is."""
    from hactl.cli.init import run

    sys.exit(run(Path(relayd_conf), output, probe=probe, say=click.echo))


@main.command("relayd-reload")
@click.option("--dry-run", is_flag=True, help="Show what would change, and do nothing.")
@click.option("--force", is_flag=True, help="Reload though something speaks against it.")
@click.option(
    "--relayd",
    "program",
    metavar="PATH",
    help="The relayd that checks relayd.conf, in place of the one beside relayctl.",
)
@_file
@_socket
def relayd_reload(
    dry_run: bool, force: bool, program: str | None, file: str, socket: str | None
) -> None:
    """Reload relayd safely: what is disabled stays so, and pf is filled at once."""
    from hactl import config as config_
    from hactl.cli import reload as reload_

    try:
        orders = reload_.Orders(Path(program) if program else None, socket, dry_run, force)
        code = reload_.run(
            config_.load(Path(file)), orders, lambda line: click.echo(safe_lines(line))
        )
    except config_.ConfigError as error:
        click.echo(safe_lines(str(error)), err=True)
        sys.exit(NO)
    except reload_.ReloadError as error:
        click.echo(f"hactl: {safe_lines(str(error))}", err=True)
        sys.exit(error.code)
    sys.exit(code)


@main.command()
@_file
@_json
@_socket
def doctor(file: str, as_json: bool, socket: str | None) -> None:
    """Check the whole set-up: files, relayd, pf, hactld, machine; say what to do.

    Exit codes: 0 all is ok, 1 warnings, 2 errors or wrong usage, 3 relayd or hactld cannot be asked.
    """
    from hactl.cli.doctor import run

    socket = socket or os.environ.get("HACTL_SOCKET")
    sys.exit(run(Path(file), socket, as_json=as_json, say=click.echo))


@main.group()
def config() -> None:
    """Show the configuration, or what it may be."""


@config.command("show")
@_file
def config_show(file: str) -> None:
    """Print hactl.yaml with every default filled in."""
    from hactl import config as config_

    try:
        click.echo(config_.show(config_.load(Path(file))), nl=False)
    except config_.ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(NO)


@config.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of hactl.yaml, for editors."""
    from hactl import config as config_

    click.echo(json.dumps(config_.schema(), indent=1))


_libexec = click.option(
    "--dir",
    "directory",
    default="/usr/local/libexec/hactl",
    metavar="DIR",
    show_default=True,
    help="Where the links are.",
)


@main.group()
def agent() -> None:
    """Make keys, and trust those of others, so that balancers can ask nodes' hactlds."""


_keys = click.option("--keys", metavar="DIR", help="Where keys are, in place of hactl.yaml's word.")


@agent.command("keygen")
@click.option("--name", help="Whose key it is: the node, or this machine's name.")
@_keys
@_file
def agent_keygen(name: str | None, keys: str | None, file: str) -> None:
    """Make this machine's key, and the certificate that the other side is to trust."""
    from hactl.cli import agent as agent_

    _done(agent_.keygen(name, keys, file))


@agent.command("trust")
@click.argument("certificate", metavar="FILE")
@click.option("--name", help="Whose it is, if it names another.")
@_keys
@_file
def agent_trust(certificate: str, name: str | None, keys: str | None, file: str) -> None:
    """Trust the certificate in FILE: on a balancer a node's, on a node a balancer's."""
    from hactl.cli import agent as agent_

    _done(agent_.trust(certificate, name, keys, file))


@main.group()
def hook() -> None:
    """Manage the links by which relayd's check script asks hactl."""


@hook.command("install")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE ...")
@_libexec
@_file
def hook_install(services: tuple[str, ...], directory: str, file: str) -> None:
    """Link each SERVICE to hactl-verdict, and print what relayd.conf should say."""
    from hactl.cli.hook import install
    from hactl.config import ConfigError, load
    from hactl.relayd.hook import HookError

    try:
        for line in install(load(Path(file)), Path(file), services, Path(directory).absolute()):
            click.echo(line)
    except (ConfigError, HookError, OSError) as error:
        _failed(error)


@hook.command("remove")
@click.argument("services", nargs=-1, required=True, metavar="SERVICE ...")
@click.option("--yes", is_flag=True, help="Do it even if relayd.conf may still name the link.")
@_libexec
@_file
def hook_remove(services: tuple[str, ...], yes: bool, directory: str, file: str) -> None:
    """Remove the link of each SERVICE, unless relayd.conf still names it."""
    from hactl.cli.hook import remove
    from hactl.config import ConfigError, load
    from hactl.relayd.hook import HookError

    try:
        remove(load(Path(file)), services, Path(directory).absolute(), forced=yes)
    except (ConfigError, HookError, OSError) as error:
        _failed(error)


def _failed(error: Exception) -> NoReturn:
    """Say what failed, and end with exit code 1."""
    text = _why(error) if isinstance(error, OSError) else str(error)
    for line in text.splitlines():
        click.echo(f"hactl: {safe(line)}", err=True)
    sys.exit(NO)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--keep", metavar="DIR", help="Keep configuration and logs in DIR.")
def demo(as_json: bool, keep: str | None) -> None:
    """Watch hactl steer an emulated relayd, beside a twin that has only check tcp."""
    from hactl.lab.demo import run

    sys.exit(run(as_json=as_json, keep=Path(keep) if keep else None))


@main.group()
def lab() -> None:
    """Run the parts of a mail cluster that tests and demo are made of."""


@lab.command("relayd")
@click.option("-f", "--file", required=True, metavar="FILE", help="The relayd.conf.")
@click.option("--dir", "directory", required=True, metavar="DIR", help="For socket and programs.")
@click.option("-D", "macros", multiple=True, metavar="NAME=VALUE", help="Define a macro.")
def lab_relayd(file: str, directory: str, macros: tuple[str, ...]) -> None:
    """Emulate relayd in the foreground: check hosts, forward TCP, answer relayctl in DIR."""
    import asyncio

    from hactl.lab.relayd import serve
    from hactl.relayd.conf import ConfError

    pairs = [macro.partition("=") for macro in macros]
    if bad := [macro for macro, pair in zip(macros, pairs, strict=True) if not pair[1]]:
        raise click.BadParameter(f"expected NAME=VALUE (got {bad[0]!r})")
    try:
        asyncio.run(serve(Path(file), Path(directory), {name: value for name, _, value in pairs}))
    except (ConfError, OSError) as error:
        _failed(error)


@main.command()
@click.argument("scenario")
@click.option("-f", "--file", metavar="FILE", help="Run it on this hactl.yaml and its relayd.conf.")
@click.option("--conf", metavar="FILE", help="With -f: this relayd.conf instead.")
@click.option("--svg", metavar="FILE", help="Draw the run, and the peers', into FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print figures and timeline as JSON.")
def simulate(
    scenario: str, file: str | None, conf: str | None, svg: str | None, as_json: bool
) -> None:
    """Play SCENARIO in simulated time, and the same under the rules of others."""
    from hactl.config import ConfigError
    from hactl.sim.report import run

    if conf and not file:
        raise click.BadParameter("goes with a hactl.yaml: -f FILE", param_hint="--conf")
    if svg in ("", "-"):
        raise click.BadParameter(f"expected the name of a file (got {svg!r})", param_hint="--svg")
    try:
        code = run(
            Path(scenario),
            Path(file) if file else None,
            Path(svg) if svg else None,
            conf=Path(conf) if conf else None,
            as_json=as_json,
            say=click.echo,
        )
    except (ConfigError, OSError) as error:
        _refused(error)
    sys.exit(code)


@main.command()
@_file
@click.option("--budget", metavar="SPAN", default="2m", show_default=True, help="Stop after this.")
@click.option("--conf", metavar="FILE", help="The relayd.conf, in place of the one it names.")
@click.option("--keep", metavar="DIR", help="Write schedules that break a rule into DIR.")
@click.option("--jobs", metavar="N", type=click.IntRange(1, 64), help="Processes [all processors].")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(
    file: str, budget: str, conf: str | None, keep: str | None, jobs: int | None, as_json: bool
) -> None:
    """Try what faults would do to a hactl.yaml and its relayd.conf, in simulated time."""
    from hactl.config import ConfigError
    from hactl.core.units import Duration
    from hactl.sim.verify import run

    if keep == "":
        raise click.BadParameter("expected the name of a directory", param_hint="--keep")
    try:
        seconds = Duration.parse(budget)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--budget") from error
    try:
        code = run(
            Path(file),
            Path(conf) if conf else None,
            seconds,
            keep=Path(keep) if keep else None,
            as_json=as_json,
            jobs=jobs or os.cpu_count() or 1,
            say=click.echo,
        )
    except (ConfigError, OSError) as error:
        _refused(error)
    sys.exit(code)


def _refused(error: Exception) -> NoReturn:
    """Say each error of a file, and end with exit code 1; one without a file is the output's."""
    if isinstance(error, OSError):
        if error.filename is None:
            raise error
        _failed(error)
    click.echo(safe_lines(str(error)), err=True)
    sys.exit(NO)


def safe_lines(text: str) -> str:
    """Escape each line of a text."""
    return "\n".join(map(safe, text.splitlines()))
