"""Keys: who is trusted, and for whom."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hactl.agent import keys
from hactl.agent.keys import KeysError


@contextmanager
def shut(directory: Path) -> Iterator[None]:
    """Keep us out of a directory: as somebody else, if we are root."""
    root = os.geteuid() == 0
    directory.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)


def test_a_key_is_private_and_never_replaced(tmp_path: Path) -> None:
    digest = keys.keygen(tmp_path / "keys", "mx0")
    cert, key = keys.own(tmp_path / "keys")
    assert keys.fingerprint(cert) == digest
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    with pytest.raises(KeysError, match="is there already"):
        keys.keygen(tmp_path / "keys", "mx0")
    assert key.read_bytes() == before
    assert not list((tmp_path / "keys").glob(".new*"))


def test_hactld_may_enter_what_is_made_whatever_the_umask_is(tmp_path: Path) -> None:
    node, lb = tmp_path / "node" / "agent", tmp_path / "lb" / "agent"
    before = os.umask(0o077)
    try:
        keys.keygen(node, "mx0")
        keys.trust(lb, keys.own(node)[0])
    finally:
        os.umask(before)
    made = [step for place in (node, lb) for step in (place.parent, place, place / "trusted")]
    assert {stat.S_IMODE(step.stat().st_mode) for step in made} == {0o755}
    cert, key = keys.own(node)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(cert.stat().st_mode) == 0o644


def test_where_we_may_not_look_is_said(tmp_path: Path) -> None:
    lb = tmp_path / "lb"
    keys.keygen(lb, "lb0")
    with shut(lb):
        with pytest.raises(KeysError, match=r"lb/key\.pem: Permission denied"):
            keys.keygen(lb, "lb0")
        with pytest.raises(KeysError, match="lb/trusted: Permission denied"):
            keys.trusted(lb)
        assert keys.has_own(lb)  # so that nothing is served instead, without TLS
        with pytest.raises(KeysError, match="lb/trusted: Permission denied"):
            keys.answering(lb)


def test_a_key_that_everybody_may_read_is_not_used(tmp_path: Path) -> None:
    keys.keygen(tmp_path, "mx0")
    _, key = keys.own(tmp_path)
    key.chmod(0o644)
    with pytest.raises(KeysError, match=r"others can read or change it \(mode 0644\); chmod o= "):
        keys.answering(tmp_path)


def test_one_certificate_that_is_none_locks_nobody_else_out(tmp_path: Path) -> None:
    node, lb = tmp_path / "node", tmp_path / "lb"
    keys.keygen(node, "mx0")
    digest = keys.keygen(lb, "lb0")
    keys.trust(node, keys.own(lb)[0])
    (node / "trusted" / "stray.pem").touch()
    _, may, unusable = keys.answering(node)
    assert may == {digest}
    assert unusable == [f"{node}/trusted/stray.pem: expected one certificate in PEM (got none)"]


def test_a_name_that_openssl_quotes_is_read_back(tmp_path: Path) -> None:
    keys.keygen(tmp_path / "node", "a+b")
    assert keys.trust(tmp_path / "lb", keys.own(tmp_path / "node")[0])[0] == "a+b"


def test_a_certificate_is_trusted_as_whom_it_names(tmp_path: Path) -> None:
    node, lb = tmp_path / "node", tmp_path / "lb"
    digest = keys.keygen(node, "mx0")
    assert keys.trust(lb, keys.own(node)[0]) == ("mx0", digest)
    assert keys.trust(lb, keys.own(node)[0]) == ("mx0", digest)
    assert list(keys.trusted(lb)) == ["mx0"]


def test_another_key_of_a_known_name_and_another_name_of_a_known_key_are_refused(
    tmp_path: Path,
) -> None:
    lb = tmp_path / "lb"
    for place, name in (("a", "mx0"), ("b", "mx0"), ("c", "mx1")):
        keys.keygen(tmp_path / place, name)
    keys.trust(lb, keys.own(tmp_path / "a")[0])
    with pytest.raises(KeysError, match="mx0 has another certificate"):
        keys.trust(lb, keys.own(tmp_path / "b")[0])
    with pytest.raises(KeysError, match="certificate of mx0 already"):
        keys.trust(lb, keys.own(tmp_path / "a")[0], "mx1")
    assert list(keys.trusted(lb)) == ["mx0"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one certificate in PEM .got none."),
        ("-----BEGIN EC PRIVATE KEY-----\nx\n", "holds a private key"),
        ("-----BEGIN CERTIFICATE-----\nÄ!\n-----END CERTIFICATE-----\n", "not a cert|names nobody|x509"),
    ],
)  # fmt: skip
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(KeysError, match=says):
        keys.trust(tmp_path / "lb", file)


@pytest.mark.parametrize("name", ["../mx0", "", "a b", "-x", "x" * 70])
def test_a_name_that_no_node_could_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="no name"):
        keys.keygen(tmp_path, name)
