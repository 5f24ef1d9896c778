"""The store: what survives a restart, and that a bad file stops nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from hactl.core.model import Member, Override, Owned
from hactl.daemon.store import BLOCK, HoldRow, Lasting, Store, Stored, StoreError

MEMBER = Member("mx0-smtp", 0, "10.0.0.4")
DRAIN = Override("mx0", "drain", "root", "upgrade", 1000.0, 2000.0)


def written(path: Path, *writes: Callable[[Store], asyncio.Future[bool]]) -> Stored:
    """Open a store, write, wait until it is on disk, close; return what the next one reads."""

    async def scene() -> None:
        store = Store(path)
        store.open()
        for write in writes:
            assert await asyncio.wait_for(write(store), 5)
        store.close()

    asyncio.run(scene())
    again = Store(path)
    try:
        return again.open()
    finally:
        again.close()


def test_overrides_and_ownership_survive(tmp_path: Path) -> None:
    stored = written(
        tmp_path / "db",
        lambda store: store.own(MEMBER, Owned(7, "check")),
        lambda store: store.override("mx0", DRAIN),
    )
    assert stored.overrides == (DRAIN,)
    assert stored.owned == {MEMBER: Owned(7, "check")}


def test_a_freeze_stands_beside_a_drain_of_the_same_target(tmp_path: Path) -> None:
    freeze = Override("mx0", "freeze", "root", "", 1000.0, 2000.0)
    stored = written(
        tmp_path / "db",
        lambda store: store.override(DRAIN.key, DRAIN),
        lambda store: store.override(freeze.key, freeze),
    )
    assert set(stored.overrides) == {DRAIN, freeze}


def test_holds_and_owners_survive(tmp_path: Path) -> None:
    lasting = Lasting((HoldRow(0, "10.0.0.4", 2, (1.0, 2.5), 99.0, None),), (1, "10.0.0.5"))
    stored = written(tmp_path / "db", lambda store: store.remember("mx", lasting))
    assert stored.memories == {"mx": lasting}


def test_what_has_ended_is_gone(tmp_path: Path) -> None:
    stored = written(
        tmp_path / "db",
        lambda store: store.own(MEMBER, Owned(7, "check")),
        lambda store: store.override("mx0", DRAIN),
        lambda store: store.own(MEMBER, None),
        lambda store: store.override("mx0", None),
    )
    assert (stored.overrides, stored.owned) == ((), {})


def test_no_decision_id_is_given_twice_whenever_hactld_dies(tmp_path: Path) -> None:
    assert written(tmp_path / "db").counter == BLOCK
    assert written(tmp_path / "db").counter == 3 * BLOCK


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"not a database, but long enough to be one" * 99),
        lambda path: path.mkdir(),
        lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
        lambda path: sqlite3.connect(path).execute("create table owned (x)").connection.close(),
    ],
)
def test_a_store_that_cannot_be_used_says_where_and_drops_what_it_is_given(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = tmp_path / "state" / "db"
    path.parent.mkdir()
    spoil(path)

    async def scene() -> None:
        store = Store(path)
        with pytest.raises(StoreError, match=str(path)):
            store.open()
        assert str(path) in store.problem
        for _ in range(3):
            assert await asyncio.wait_for(store.override("mx0", DRAIN), 5) is False
        store.close()

    asyncio.run(scene())


def test_a_store_of_another_version_is_named_with_both(tmp_path: Path) -> None:
    written(tmp_path / "db")
    db = sqlite3.connect(tmp_path / "db")
    db.execute("update meta set value = 9 where name = 'version'")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="version 9, and this hactld writes version 1"):
        Store(tmp_path / "db").open()


def test_a_write_that_fails_is_shown_and_the_next_one_may_succeed(tmp_path: Path) -> None:
    async def scene() -> None:
        store = Store(tmp_path / "db")
        store.open()
        wrong = Owned("seven", "check")  # type: ignore[arg-type]
        assert await asyncio.wait_for(store.own(MEMBER, wrong), 5) is False
        assert str(tmp_path) in store.problem
        assert await asyncio.wait_for(store.override("mx0", DRAIN), 5)
        assert store.problem == ""
        store.close()

    asyncio.run(scene())
