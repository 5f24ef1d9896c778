"""The control socket: bounded clients, bounded lines, slow readers dropped."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hactl.daemon import control
from hactl.daemon.control import Answer, Control, Request

BIG = "x" * 300_000


async def answer(request: Request) -> Answer:
    return Answer(0, BIG if request.verb == "big" else request.verb)


def serve(path: Path, scene: Callable[[], Awaitable[None]], patience: float = 5.0) -> None:
    async def run() -> None:
        server = Control(control.listen(path, 0o600), answer, patience=patience)
        await server.start()
        try:
            await scene()
        finally:
            await server.stop()

    asyncio.run(run())


def test_many_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    async def scene() -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(b"".join(b'{"verb": "v%d"}\n' % n for n in range(50)))
        texts = [json.loads(await reader.readline())["text"] for _ in range(50)]
        assert texts == [f"v{n}" for n in range(50)]
        writer.close()

    serve(tmp_path / "s", scene)


def test_a_reader_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    async def scene() -> None:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s", limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b'{"verb": "big"}\n' * 20)
        other, another = await asyncio.open_unix_connection(tmp_path / "s")
        another.write(b'{"verb": "status"}\n')
        assert json.loads(await other.readline())["text"] == "status"
        await asyncio.wait_for(dropped(writer), 5)
        another.close()
        reader.feed_eof()

    async def dropped(writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            writer.write(b'{"verb": "big"}\n')
            await asyncio.sleep(0.01)

    serve(tmp_path / "s", scene, patience=0.1)


def test_clients_beyond_the_limit_are_sent_away(tmp_path: Path) -> None:
    async def scene() -> None:
        clients = []
        for _ in range(control.CLIENTS):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(b'{"verb": "status"}\n')
            await reader.readline()
            clients.append(writer)
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        assert await reader.read() == b""
        for client in (*clients, writer):
            client.close()

    serve(tmp_path / "s", scene)


PIECES = st.sampled_from(
    [
        b"\n",
        b'{"verb": "v"}\n',
        b'{"verb": 7}\n',
        b'{"protocol": 9, "verb": "v"}\n',
        b"[" * 999,
        b"\xff",
    ]
) | st.binary(max_size=50)


@settings(max_examples=60)
@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_whatever_bytes_come_each_line_has_one_answer(sent: bytes) -> None:
    async def scene() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(sent)
        writer.write_eof()
        answers = (await asyncio.wait_for(reader.read(), 5)).splitlines()
        writer.close()
        assert len(answers) == sent.count(b"\n")
        assert {json.loads(answer)["code"] for answer in answers} <= {0, 2}

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        serve(path, scene)


@pytest.mark.parametrize("stale", ["socket", "file"])
def test_what_an_earlier_hactld_left_is_replaced(tmp_path: Path, stale: str) -> None:
    (tmp_path / "s").write_text(stale)

    async def scene() -> None:
        assert (tmp_path / "s").stat().st_mode & 0o7777 == 0o600

    serve(tmp_path / "s", scene)
