"""What others get: sdist and wheel in an empty environment, `make install`, and the rc.d script."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hactl
from hactl.cli.ask import AskError, ask
from tests.services.servers import free_port, need

pytestmark = pytest.mark.service

ROOT = Path(__file__).parents[2]
PAGES = {f"share/man/man{page.suffix[1:]}/{page.name}" for page in (ROOT / "man").iterdir()}
CLEAN = {
    k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_REQUIRE", "VIRTUAL"))
}


@functools.cache
def everybodys() -> str | None:
    """Return a Python that other users can run too, None if there is none here."""
    able = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        parents = Path(python).resolve().parents
        open_ = Path(python).exists() and all(p.stat().st_mode & 0o001 for p in parents)
        if open_ and not subprocess.run([python, "-c", able], check=False).returncode:
            return python
    return None


def run(*command: str | Path, code: int = 0, limit: float = 300) -> str:
    """Run a command in an environment that knows nothing of ours; return what it prints."""
    ran = subprocess.run(
        command, cwd="/", env=CLEAN, capture_output=True, text=True, timeout=limit, check=False
    )
    assert ran.returncode == code, f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout + ran.stderr


# sdist and wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the sdist, and the wheel that was made from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "-q", "--outdir", directory, ROOT)
    return directory


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty environment into which the wheel was installed."""
    directory = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", directory)
    (wheel,) = built.glob("*.whl")
    run(directory / "bin" / "pip", "install", "-q", "--disable-pip-version-check", wheel)
    return directory


def test_the_sdist_has_all_that_the_repository_has(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(listed) - names <= {".gitignore"}


def test_the_wheel_has_what_the_programs_need_and_what_they_are_described_by(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    assert {name.partition("/")[0].partition("-")[0] for name in infos} == {"hactl", "checks"}
    data = f"hactl-{hactl.__version__}.data/data/"
    examples = {f"share/examples/hactl/{name}" for name in ("hactl.yaml", "relayd.conf", "hactld")}
    assert {data + name for name in PAGES | examples} <= infos.keys()
    assert {"hactl/lab/client.c", "hactl/py.typed", "checks/py.typed"} <= infos.keys()
    assert infos["hactl/relayd/hactl-verdict"].external_attr >> 16 & 0o111 == 0o111


def test_the_wheel_works_in_an_empty_environment(environment: Path, tmp_path: Path) -> None:
    hactl_ = environment / "bin" / "hactl"
    assert run(hactl_, "--version") == f"hactl {hactl.__version__}\n"
    config = tmp_path / "hactl.yaml"
    config.write_text(
        "mode: hook\nchecks: {a: {type: tcp, port: 25}}\nservices: {mx: {require: [a]}}\n"
    )
    assert run(environment / "bin" / "hactld", "-n", "-f", config) == "configuration OK\n"
    links = tmp_path / "libexec"
    said = run(hactl_, "hook", "install", "mx", "-f", config, "--dir", links)
    assert f'check script "{links}/mx" timeout 1000' in said
    run(links / "mx", "10.0.0.4", code=1)
    assert all((environment / page).is_file() for page in PAGES)


def test_the_demo_plays_from_the_wheel(environment: Path) -> None:
    played = json.loads(run(environment / "bin" / "hactl", "demo", "--json"))
    assert [act["problems"] for act in played["acts"]] == [[]] * 6


# make install


@pytest.fixture(scope="module")
def installed(directory: Path) -> Path:
    """Return a prefix into which `make install` went, beside what was there before."""
    prefix = directory / "prefix"
    for mine in KEPT:
        (prefix / mine).parent.mkdir(parents=True, exist_ok=True)
        (prefix / mine).write_text("mine\n")
    before = os.umask(0o077)  # as careful administrators have it
    try:
        make(prefix, "install")
    finally:
        os.umask(before)
    return prefix


KEPT = ("bin/other", "lib/python/checks/__init__.py", "man/man8/other.8", "etc/hactl.yaml")


def make(prefix: Path, target: str, *more: str, code: int = 0) -> str:
    where = (
        f"PREFIX={prefix}",
        f"RCDIR={prefix}/etc/rc.d",
        f"PYTHON={everybodys() or sys.executable}",
        *more,
    )
    return run("make", "-C", ROOT, target, *where, code=code)


def files(directory: Path) -> set[str]:
    return {str(f.relative_to(directory)) for f in directory.rglob("*") if not f.is_dir()}


def test_the_installed_programs_run_and_everybody_may_read_them(installed: Path) -> None:
    assert run(installed / "bin" / "hactl", "--version") == f"hactl {hactl.__version__}\n"
    closed = [
        str(f) for f in installed.rglob("*") if not f.is_symlink() and f.stat().st_mode & 0o004 == 0
    ]
    assert closed == []
    example = installed / "share" / "examples" / "hactl" / "hactl.yaml"
    assert example.read_bytes() == (ROOT / "etc" / "hactl.yaml").read_bytes()


def test_make_uninstall_takes_what_install_made_and_nothing_else(
    installed: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "prefix"
    shutil.copytree(installed, prefix, symlinks=True)
    script = prefix / "libexec" / "hactl" / "hactl-verdict"
    (script.parent / "mx").symlink_to(script.name)
    said = make(prefix, "uninstall", code=2)
    assert f"make: relayd may use {script.parent}/mx" in said
    assert script.exists()
    (script.parent / "mx").unlink()
    make(prefix, "uninstall")
    assert files(prefix) == {*KEPT}
    make(prefix, "uninstall")  # again does no harm


def test_destdir_goes_before_everything_and_into_nothing(tmp_path: Path) -> None:
    """Into a package: files lie below DESTDIR and speak of PREFIX."""
    need("make")
    dest = tmp_path / "dest"
    lines = run(
        "make", "-n", "-C", ROOT, "install", f"DESTDIR={dest}", "PREFIX=/opt/x"
    ).splitlines()
    targets = [word.strip('"') for line in lines for word in line.split() if "/opt/x" in word]
    assert targets
    assert {word for word in targets if str(dest) not in word} <= {
        "/opt/x/lib/hactl/bin/python3",
        "s|/usr/local|/opt/x|'",
        "'s|/usr/local|/opt/x|'",
    }


# rc.d

SUBR = """\
# What rc.d scripts need of rc.subr(8), in the order in which it does it; su(1) is left out.
rc_exec() { sh -c "$1"; }
rc_check() { pgrep -xf "$pexp" >/dev/null; }
rc_start() { rc_exec "$daemon $daemon_flags"; }
rc_stop() { pkill -TERM -xf "$pexp"; }
rc_reload() { pkill -HUP -xf "$pexp"; }
_wait() { # _wait COMMAND: until it is so
	_n=0
	until "$@"; do
		_n=$((_n + 1))
		[ $_n -lt 100 ] || return 1
		sleep 0.1
	done
}
_gone() { ! rc_check; }
_test() { ! type rc_configtest >/dev/null 2>&1 || rc_configtest >/dev/null 2>&1; }
_ended() { # _ended CODE: say it as rcctl does
	[ "$1" = 0 ] && echo "$_name(ok)" || echo "$_name(failed)"
	exit "$1"
}
rc_cmd() {
	case $1 in
	check) rc_check; exit ;;
	configtest) _test; _ended $? ;;
	start)
		rc_check && exit 0
		_test && rc_start >/dev/null 2>&1 && _wait rc_check
		_ended $?
		;;
	reload) rc_check && _test && rc_reload; _ended $? ;;
	stop) rc_check || exit 0; rc_stop; _wait _gone; _ended $? ;;
	*) echo "usage: $0 {check|configtest|reload|start|stop}"; exit 1 ;;
	esac
}
_name=${0##*/}
daemon_flags=$hactld_flags
pexp="$daemon${daemon_flags:+ $daemon_flags}"
"""

CONFIG = """\
mode: observe
nodes: {{mx0: 127.0.15.4}}
checks: {{smtp: {{type: smtp, port: {port}}}}}
watch: {{mx0: [smtp]}}
relayd: {{conf: {dir}/relayd.conf, relayctl: {dir}/relayctl}}
run_dir: {dir}/run
state_dir: {dir}/state
user: {user}
"""


def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


class Service:
    """The installed rc.d script with a stand-in for rc.subr and a configuration of its own."""

    def __init__(self, prefix: Path, directory: Path, shell: list[str]) -> None:
        self.shell, self.directory = shell, directory
        self.config = directory / "hactl.yaml"
        self.script = directory / "hactld"
        (directory / "rc.subr").write_text(SUBR)
        text = (prefix / "etc" / "rc.d" / "hactld").read_text()
        assert "\n. /etc/rc.d/rc.subr\n" in text
        assert f'daemon="{prefix}/sbin/hactld"\n' in text
        self.script.write_text(text.replace("/etc/rc.d/rc.subr", f"{directory}/rc.subr"))
        self.configure("")

    def configure(self, more: str) -> None:
        user = "nobody" if everybodys() else "root"
        text = CONFIG.format(port=free_port(), dir=self.directory, user=user)
        self.config.write_text(text + more)

    def rc(self, word: str) -> tuple[int, str]:
        """Run the script; return its exit code and what it prints."""
        flags = {"hactld_flags": f"-f {self.config}"}
        ran = subprocess.run(
            [*self.shell, self.script, word],
            env=CLEAN | flags,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ran.returncode, ran.stdout

    def status(self) -> list[str]:
        """Return the checks that hactld runs."""
        data = ask(str(self.directory / "run" / "hactl.sock"), "status").data
        return [probe["check"] for probe in data["probes"]]

    def pids(self) -> list[int]:
        pattern = f"-f {self.config}$"
        found = subprocess.run(
            ["pgrep", "-f", "--", pattern], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture(params=[["mksh"], ["mksh", "-o", "posix"], ["bash", "--posix"]], ids=" ".join)
def service(request: pytest.FixtureRequest, installed: Path, directory: Path) -> Iterator[Service]:
    need("pgrep", request.param[0])
    home = Path(tempfile.mkdtemp(dir=directory))
    home.chmod(0o755)
    service = Service(installed, home, request.param)
    yield service
    for pid in service.pids():  # a test has failed
        os.kill(pid, signal.SIGKILL)


def test_rcctl_starts_asks_reloads_and_stops(service: Service) -> None:
    assert service.rc("check") == (1, "")
    assert service.rc("configtest") == (0, "hactld(ok)\n")
    assert service.rc("start") == (0, "hactld(ok)\n")
    assert service.rc("check") == (0, "")
    assert service.status() == ["smtp"]
    first = service.pids()
    assert service.rc("start") == (0, "")  # it runs

    service.configure("mood: gentle\n")
    assert service.rc("configtest") == (1, "hactld(failed)\n")
    assert service.rc("reload") == (1, "hactld(failed)\n")
    assert service.pids() == first

    service.configure("")
    text = service.config.read_text().replace("{smtp:", "{mail:").replace("[smtp]", "[mail]")
    service.config.write_text(text)
    assert service.rc("reload") == (0, "hactld(ok)\n")
    until(lambda: service.status() == ["mail"])
    assert service.pids() == first

    assert service.rc("stop") == (0, "hactld(ok)\n")
    assert service.pids() == []
    assert service.rc("check") == (1, "")
    assert service.rc("stop") == (0, "")
    with pytest.raises(AskError):
        service.status()


def test_rcctl_says_that_it_does_not_start(service: Service) -> None:
    service.configure("mood: gentle\n")
    assert service.rc("start") == (1, "hactld(failed)\n")
    service.configure("control: {group: nosuchgroup}\n")
    assert service.rc("start") == (1, "hactld(failed)\n")
    assert service.pids() == []
