"""Quantities: what is read, what is refused, and that writing and reading agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hactl.core.units import Duration, FileMode, Secret, Share, Size


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [
        ("0s", 0.0, "0s"),
        ("500ms", 0.5, "500ms"),
        ("1000ms", 1.0, "1s"),
        ("1.5s", 1.5, "1.5s"),
        ("90s", 90.0, "90s"),
        ("60s", 60.0, "1m"),
        ("36h", 129600.0, "36h"),
        ("14d", 1209600.0, "14d"),
        ("0.25ms", 0.00025, "0.25ms"),
    ],
)
def test_durations_are_read_and_written(text: str, seconds: float, written: str) -> None:
    duration = Duration.parse(text)
    assert (duration, str(duration)) == (seconds, written)


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "5 s", "-5s", "1e3s", ".5s", "5parsecs", "5S", "५s", "9999999999d", "5s\n"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='expected a duration like "5s"'):
        Duration.parse(text)


@given(st.integers(0, 10**15 - 1))
def test_a_written_duration_reads_as_the_same_to_the_microsecond(microseconds: int) -> None:
    duration = Duration.parse(str(Duration(microseconds / 1e6)))
    assert duration == Duration(microseconds / 1e6)


@pytest.mark.parametrize(
    ("text", "size", "written"),
    [("0", 0, "0"), ("512", 512, "512"), ("64K", 65536, "64K"), ("1.5KB", 1536, "1536")],
)
def test_sizes_are_read_and_written(text: str, size: int, written: str) -> None:
    assert (Size.parse(text), str(Size.parse(text))) == (size, written)


@given(st.integers(0, 10**15 - 1))
def test_a_written_size_reads_as_the_same(size: int) -> None:
    assert Size.parse(str(Size(size))) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "10 M", "1e9", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='expected a size like "10M"'):
        Size.parse(text)


@given(st.integers(0, 10_000))
def test_a_written_share_reads_as_the_same(hundredths: int) -> None:
    share = Share.parse(f"{hundredths / 100:g}%")
    assert Share.parse(str(share)) == share


@pytest.mark.parametrize("text", ["60", "101%", "-1%", "%", "0.123%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='expected a share like "60%"'):
        Share.parse(text)


def test_modes_are_octal() -> None:
    assert (FileMode.parse("0660"), str(FileMode(0o660))) == (0o660, "0660")
    with pytest.raises(ValueError, match='expected a mode like "0660"'):
        FileMode.parse("0680")


def test_a_secret_shows_its_file_and_equals_by_it() -> None:
    secret = Secret("/etc/hactl/login")
    assert (str(secret), repr(secret)) == ("/etc/hactl/login", "Secret('/etc/hactl/login')")
    assert {secret} == {Secret("/etc/hactl/login")}
