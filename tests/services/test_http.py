"""The http check against a real server: aiohttp's, with slow and endless pages and bad certificates."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from msgspec import structs

from checks import Target
from checks._tasks import Tasks
from checks.http import Http
from hactl.core.model import Result, Verdict
from tests.checks.pki import NAME, Pki
from tests.services.servers import HOST

pytestmark = pytest.mark.service

LIMIT = 1.0
GRACE = 0.5


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class Site:
    """Pages that can be made to hang in the middle."""

    def __init__(self) -> None:
        self.well = asyncio.Event()
        self.well.set()

    async def page(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{"db": {"state": ')
        await self.well.wait()
        await answer.write(b'"up"}}')
        return answer

    async def endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[Site, int]]:
    site, app = Site(), web.Application()
    app.router.add_get("/state", site.page)
    app.router.add_get("/endless", site.endless)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    listener = web.TCPSite(runner, HOST, 0, ssl_context=tls)
    await listener.start()
    try:
        yield site, runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def look(check: Http) -> Result:
    """Look as the runner does; what it says must come by the deadline."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()
    tasks = Tasks(loop, cap=1, excuse=lambda _started: None)
    began = loop.time()
    target = Target(NAME, HOST)
    tasks.start(
        None,
        lambda step: check.probe(target, step),
        LIMIT,
        lambda result, *_times: answer.set_result(result),
    )
    result = await answer
    assert loop.time() - began < LIMIT + GRACE
    while tasks.live:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return result


def play(scene: Callable[[Site, int], Awaitable[None]], tls: ssl.SSLContext | None = None) -> None:
    async def main() -> None:
        async with serving(tls) as (site, port):
            await scene(site, port)

    asyncio.run(main())


def test_a_body_that_hangs_is_seen_and_so_is_its_return() -> None:
    async def scene(site: Site, port: int) -> None:
        check = Http(port=port, path="/state", json={"db.state": "up"})
        assert (await look(check)).verdict is Verdict.OK
        site.well.clear()
        result = await look(check)
        assert (result.verdict, result.reason) == (Verdict.FAIL, "body: no answer in 1s")
        site.well.set()
        assert (await look(check)).verdict is Verdict.OK
        result = await look(structs.replace(check, path="/no"))
        assert (result.verdict, result.reason) == (Verdict.FAIL, "status 404 Not Found")

    play(scene)


def test_an_endless_body_ends_the_look() -> None:
    async def scene(_site: Site, port: int) -> None:
        result = await look(Http(port=port, path="/endless"))
        assert (result.verdict, result.reason) == (Verdict.FAIL, "body longer than 1M")

    play(scene)


def test_certificates_are_judged(pki: Pki) -> None:
    async def good(_site: Site, port: int) -> None:
        result = await look(Http(port=port, path="/state", tls="implicit", ca=pki.ca))
        assert result.verdict is Verdict.OK
        assert result.measures["left_days"] == pytest.approx(42.5, abs=0.1)

    async def bad(_site: Site, port: int) -> None:
        result = await look(Http(port=port, path="/state", tls="implicit", ca=pki.ca))
        why = f"tls: certificate is for mx1.example.org, not {NAME}"
        assert (result.verdict, result.reason) == (Verdict.FAIL, why)

    play(good, pki.server())
    play(bad, pki.server("mx1.example.org"))
