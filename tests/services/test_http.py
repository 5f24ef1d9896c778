"""The http check against a real server, aiohttp's: slow and endless pages, and bad certificates."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from msgspec import structs

from checks import Target
from checks._tasks import look
from checks.http import Http
from hactl.core.model import Result, Verdict
from tests.services.opensmtpd import DAY, NAME
from tests.services.servers import HOST, PATIENCE
from tests.services.watching import Watch, endure, timed

pytestmark = pytest.mark.service


class Site:
    """A page by HTTP and HTTPS, in a thread of its own; *mood* says how it is."""

    def __init__(self) -> None:
        self.mood = "well"
        self.ports: tuple[int, int] = (0, 0)
        self.authority = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.certify(NAME, 42.5)
        self._ready, self._ending = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def certify(self, name: str, left_days: float) -> None:
        """Show such a certificate from now on."""
        now = datetime.now(UTC)
        leaf = self.authority.issue_cert(
            name, not_before=now - 90 * DAY, not_after=now + left_days * DAY
        )
        leaf.configure_cert(self.tls)

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/state", self._page)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        for tls in (None, self.tls):
            await web.TCPSite(runner, HOST, 0, ssl_context=tls).start()
        plain, secure = (address[1] for address in runner.addresses)
        self.ports = plain, secure
        self._ready.set()
        while not self._ending.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.05)
        await runner.cleanup()

    async def _page(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        await answer.write(b'{"db": {"state": ')
        while self.mood == "slow" and not self._ending.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with suppress(ConnectionError):  # the client has had enough
            while self.mood == "endless":
                await answer.write(b"x" * 65536)
                await asyncio.sleep(0)  # others, too, are served
            await answer.write(b'"down"}}' if self.mood == "ill" else b'"up"}}')
        return answer

    def stop(self) -> None:
        """End it."""
        self._ending.set()
        self._thread.join()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.stop()


@pytest.fixture(scope="module")
def checks(site: Site, directory: Path) -> dict[str, Http]:
    site.authority.cert_pem.write_to_path(str(directory / "site.pem"))
    plain = Http(port=site.ports[0], path="/state", json={"db.state": "up"})
    tls = structs.replace(
        plain, port=site.ports[1], tls="implicit", name=NAME, ca=directory / "site.pem"
    )
    return {"http": plain, "https": tls}


@pytest.fixture(scope="module")
def watch(checks: dict[str, Http]) -> Iterator[Watch]:
    with Watch({name: timed(check, 0.5, 0.4) for name, check in checks.items()}) as watch:
        yield watch


def test_a_page_and_a_certificate_that_are_well(checks: dict[str, Http]) -> None:
    def once(check: Http) -> Result:
        return asyncio.run(look(check, Target(NAME, HOST), PATIENCE))

    assert once(checks["http"]).verdict is Verdict.OK
    result = once(checks["https"])
    assert result.verdict is Verdict.OK
    assert result.measures["left_days"] == pytest.approx(42.5, abs=0.1)
    result = once(structs.replace(checks["http"], path="/no"))
    assert (result.verdict, result.reason) == (Verdict.FAIL, "status 404 Not Found")


def being(mood: str) -> Callable[[Site], AbstractContextManager[None]]:
    @contextmanager
    def broken(site: Site) -> Iterator[None]:
        site.mood = mood
        try:
            yield
        finally:
            site.mood = "well"

    return broken


def showing(name: str, left_days: float) -> Callable[[Site], AbstractContextManager[None]]:
    @contextmanager
    def broken(site: Site) -> Iterator[None]:
        site.certify(name, left_days)
        try:
            yield
        finally:
            site.certify(NAME, 42.5)

    return broken


@pytest.mark.parametrize(
    ("fault", "names", "reason", "silent"),
    [
        (being("slow"), ("http", "https"), r"body: no answer in 400ms", True),
        (being("endless"), ("http", "https"), r"body longer than 1M", False),
        (being("ill"), ("http", "https"), r"db\.state is down, not up", False),
        (
            showing("mx1.example.org", 42.5), ("https",),
            rf"tls: certificate is for mx1\.example\.org, not {NAME}", False,
        ),
        (
            showing(NAME, -3.5), ("https",),
            r"tls: certificate expired 3 days ago, fine but for the date", False,
        ),
    ],
    ids=["slow", "endless", "ill", "wrong-name", "expired"],
)  # fmt: skip
def test_a_fault_is_found_out_in_time(
    site: Site,
    watch: Watch,
    fault: Callable[[Site], AbstractContextManager[None]],
    names: tuple[str, ...],
    reason: str,
    silent: bool,
) -> None:
    endure(watch, fault(site), dict.fromkeys(names, reason), silent=silent)
