"""The nfs_rpc check against nfs-ganesha and rpcbind: hung, gone, and asked for what they do not have."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from checks.nfs_rpc import NfsRpc
from hactl.core.model import Verdict
from tests.services.ganesha import Ganesha, run
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service

CHECKS = {
    "v3": NfsRpc(),
    "v4": NfsRpc(version=4),
    "mountd": NfsRpc(program="mountd"),
    "portmapper": NfsRpc(program="portmapper"),
}


@pytest.fixture(scope="module")
def ganesha(directory: Path) -> Iterator[Ganesha]:
    (directory / "nfs").mkdir()
    yield from run(directory / "nfs")


@pytest.fixture(scope="module")
def watch(ganesha: Ganesha) -> Iterator[Watch]:
    with Watch({name: timed(check, 0.5, 0.5, 0.2) for name, check in CHECKS.items()}) as watch:
        yield watch


@pytest.mark.parametrize(
    ("check", "verdict", "reason", "step"),
    [
        (NfsRpc(), "ok", "nfs v3 answers on port 2049", "null"),
        (NfsRpc(version=4), "ok", "nfs v4 answers on port 2049", "null"),
        (NfsRpc(version=2), "fail", "version 2 is not spoken, but 3 to 4", "null"),
        (NfsRpc(version=5), "fail", "version 5 is not spoken, but 3 to 4", "null"),
        (NfsRpc(program="mountd"), "ok", "mountd v3 answers on port 20048", "null"),
        (NfsRpc(program="mountd", version=9), "fail", "version 9 is not spoken, but 1 to 3", "null"),
        (NfsRpc(program="mountd", port=2049), "fail", "program unavailable", "null"),
        (NfsRpc(port=111), "fail", "program unavailable", "null"),
        (NfsRpc(program="portmapper"), "ok", "portmapper v2 answers on port 111", "null"),
        (NfsRpc(port=1), "fail", "connect: connection refused", "connect"),
    ],
)  # fmt: skip
def test_a_program_is_called_by_its_version(
    ganesha: Ganesha, check: NfsRpc, verdict: str, reason: str, step: str
) -> None:
    result = ganesha.server.look(check)
    assert (result.verdict, result.reason, result.step) == (verdict, reason, step)


def test_a_hung_server_takes_connections_and_answers_nobody(ganesha: Ganesha, watch: Watch) -> None:
    hung = ganesha.server.frozen([ganesha.server.process])
    endure(watch, hung, dict.fromkeys(("v3", "v4", "mountd"), "null: no answer in 500ms"))


def test_a_hung_portmapper_hides_mountd_alone(ganesha: Ganesha, watch: Watch) -> None:
    hung = ganesha.portmapper.frozen([ganesha.portmapper.process])
    expected = {
        "portmapper": "null: no answer in 500ms",
        "mountd": "portmapper: no answer in 500ms",
    }
    endure(watch, hung, expected)


@pytest.mark.parametrize(
    ("how", "mountd"),
    [
        (signal.SIGTERM, "portmapper: not registered over TCP"),  # it says goodbye
        (signal.SIGKILL, "connect: connection refused"),
    ],
)
def test_a_server_that_is_gone_refuses(
    ganesha: Ganesha, watch: Watch, how: signal.Signals, mountd: str
) -> None:
    expected = dict.fromkeys(("v3", "v4"), "connect: connection refused") | {"mountd": mountd}
    endure(watch, ganesha.server.ended(how), expected, silent=False)


def test_a_server_without_its_export_answers_all_the_same(ganesha: Ganesha) -> None:
    """As the manual says: what is exported is for the type nfs to see."""
    away = ganesha.export.rename(ganesha.export.with_name("away"))
    for check in CHECKS.values():
        assert ganesha.server.look(check).verdict is Verdict.OK
    away.rename(ganesha.export)
