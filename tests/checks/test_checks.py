from __future__ import annotations

import pytest

from checks import load, names
from checks.tcp import Tcp


def test_every_check_is_found_by_its_name() -> None:
    assert {"smtp", "spamd", "tcp"} <= set(names())
    assert [load(name).__struct_config__.tag for name in names()] == names()
    assert load("tcp") is Tcp


def test_an_unknown_check_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        load("_wire")
