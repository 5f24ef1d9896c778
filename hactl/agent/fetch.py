"""fetch: asks the agents of nodes, and makes results of what they say.

A node has one connection, which is kept, and one answer serves all checks that are looked at about
that time.  Whatever is wrong with an agent or its answer is unknown, never a fail: an agent that is
silent says nothing of the node's services.  People hear of it, nothing is moved.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import secrets
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

import hactl
from checks._wire import quote
from hactl.agent import NONCE, PATH, PROTOCOL, Answer, Report, keys
from hactl.config import Check, FromAgent, Node
from hactl.core.model import FIGURES, Checked, Probe, Result, unknown
from hactl.core.units import span

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("hactld")

LIMIT = 256 * 1024  # bytes of an answer
REASON = 400  # characters of a reason; banners may be long
NAMES = FIGURES + 64  # measures, or steps, of a result: a program's figures and what looks add
DAY = 86400.0
PAUSE = 5.0  # seconds, the longest between two tries to reach a silent agent
SILENT = 10.0  # seconds after which people hear of it
DEADLINE = 3.0  # seconds of one try, however long checks may take


class AgentError(Exception):
    """Says what is wrong with an answer."""


# What an answer is worth


class _Header(Struct, frozen=True):
    protocol: int = 0
    version: str = ""


_header = msgspec.json.Decoder(_Header).decode
_whole = msgspec.json.Decoder(Answer).decode


def read(body: bytes, node: str, nonce: str) -> Answer:
    """Read the answer of *node* to the question with *nonce*.  Raise AgentError."""
    try:
        header = _header(body)
        if header.protocol == PROTOCOL:
            answer = _whole(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise AgentError(f"not an answer: {quote(str(error).encode(), 120)}") from None
    if header.protocol != PROTOCOL:
        raise AgentError(
            f"speaks protocol {header.protocol} (hactl {quote(header.version.encode(), 20)}),"
            f" this hactld {PROTOCOL} (hactl {hactl.__version__})"
        )
    if answer.node != node:
        raise AgentError(f"says it is {quote(answer.node.encode(), 64)}, not {node}")
    if answer.nonce != nonce:
        raise AgentError("repeats an answer to another question")
    return answer


class Sample(NamedTuple):
    """A result of the agent's with the seconds since its look began, and what tells it apart."""

    result: Result
    age: float = 0.0
    stamp: float | None = None


def judge(answer: Answer, name: str, check: Check, waited: float) -> Sample:
    """Return what an answer, had *waited* seconds ago at most, is worth to check *name*."""
    report = answer.checks.get(name)
    assert isinstance(check.option, FromAgent)
    kind = check.option.kind
    if report is None:
        has = quote(", ".join(sorted(answer.checks)).encode(), 120)
        return Sample(unknown(f"the agent has no check {name}; it has {has or 'none'}"))
    if kind is not None and report.type != kind:
        theirs = quote(report.type.encode(), 64)
        return Sample(unknown(f"the agent's check {name} is of type {theirs}, not {kind}"))
    if report.result is None:
        return Sample(unknown("the agent has not looked yet"))
    if not _sane(report):
        return Sample(unknown("the agent's figures cannot be"))
    age, bound = report.age + waited, 2 * max(check.interval, report.interval)
    if age > bound:
        return Sample(unknown(f"the agent's newest look ended {span(age)} ago"))
    found = report.result
    result = replace(found, reason=found.reason[:REASON], step=found.step[:64])
    return Sample(result, age + report.took, report.stamp)


def _sane(report: Report) -> bool:
    """Tell whether a report's figures can be meant."""
    result = report.result
    assert result is not None
    figures = [report.stamp, *result.measures.values(), *(took for _, took in result.steps)]
    return (
        0 < report.interval <= DAY
        and 0 <= report.age < math.inf
        and 0 <= report.took <= DAY
        and len(result.measures) <= NAMES
        and len(result.steps) <= NAMES
        and all(map(math.isfinite, figures))
    )


# The links

Told = Callable[["Heard | str"], None]


class Heard(NamedTuple):
    """An answer, and when its question was asked."""

    asked: float
    answer: Answer


class Link:
    """The connection to a node's agent, made when it is first needed.

    *problem*: why it cannot be asked at all.
    """

    def __init__(
        self,
        node: str,
        url: str,
        tls: tuple[ssl.SSLContext, bytes] | None,
        problem: str = "",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._node, self._url, self._tls = node, url + PATH, tls
        self._session: aiohttp.ClientSession | None = None
        self._asking: asyncio.Task[None] | None = None
        self._waiting: list[Told] = []
        self._silent_since: float | None = None
        self._told = False
        self.trouble = problem
        self.problem = problem
        self.heard: Heard | None = None
        self.stamps: dict[str, tuple[str, float]] = {}  # the newest sample of each check

    def ask(self, young: float, told: Told) -> Callable[[], None]:
        """Have *told* called, once and later, with an answer no older than *young* seconds.

        Or with what was wrong with a try to have one.  Return what makes it not be called.
        """
        now = self._loop.time()
        if self.problem:
            return self._loop.call_soon(told, self.problem).cancel
        if self.heard is not None and now - self.heard.asked <= young:
            return self._loop.call_soon(told, self.heard).cancel
        self._waiting.append(told)
        if self._asking is None or self._asking.done():
            self._asking = self._loop.create_task(self._until_answered())
        return lambda: self._waiting.remove(told) if told in self._waiting else None

    def alert(self) -> str | None:
        """Say that the agent is silent, if it is for a while."""
        if self._silent_since is None or not self._told:
            return None
        silent = span(self._loop.time() - self._silent_since)
        return f"the agent of {self._node} is silent for {silent}: {self.trouble}"

    async def close(self) -> None:
        """Hang up."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        if self._session is not None:
            await self._session.close()

    async def _until_answered(self) -> None:
        """Ask until there is an answer, more and more seldom."""
        from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

        retrying = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.5, max=PAUSE),
            retry=retry_if_exception_type(AgentError),
        )
        async for attempt in retrying:
            with attempt:
                asked = self._loop.time()
                try:
                    heard = await self._ask()
                except AgentError as error:
                    self._failed(asked, str(error))
                    raise
                self._answered(heard)

    def _tell(self, what: Heard | str) -> None:
        waiting, self._waiting = self._waiting, []
        for told in waiting:
            told(what)

    def _failed(self, asked: float, why: str) -> None:
        now = self._loop.time()
        self.trouble = why
        if self._silent_since is None:
            self._silent_since = asked
        if not self._told and now - self._silent_since >= SILENT:
            self._told = True
            log.error("agent silent node=%s reason=%s", self._node, json.dumps(why))
        self._tell(why)

    def _answered(self, heard: Heard) -> None:
        if self._told and self._silent_since is not None:
            silent = self._loop.time() - self._silent_since
            log.info("agent answers node=%s silent=%.0f", self._node, silent)
        self._silent_since, self._told, self.trouble = None, False, ""
        self.heard = heard
        self._tell(heard)

    async def _ask(self) -> Heard:
        """Ask once.  Raise AgentError."""
        import aiohttp

        if self._session is None:
            self._session = self._connector(aiohttp)
        nonce, asked = secrets.token_hex(8), self._loop.time()
        try:
            async with (
                asyncio.timeout(DEADLINE),
                self._session.get(
                    self._url,
                    headers={NONCE: nonce},
                    allow_redirects=False,
                    ssl=True if self._tls is None else self._tls[0],
                ) as response,
            ):
                body = bytearray()
                while data := await response.content.readany():
                    body += data
                    if len(body) > LIMIT:
                        response.close()
                        raise AgentError(f"answers with more than {LIMIT >> 10} KiB")
        except TimeoutError:
            raise AgentError(f"no answer in {span(DEADLINE)}") from None
        except aiohttp.ServerFingerprintMismatch:
            raise AgentError("shows another certificate than the one that is trusted") from None
        except aiohttp.ServerDisconnectedError:  # as TLS 1.3 does to whom it does not know
            hint = "; if it does not trust us yet, use hactl agent trust there, on our cert.pem"
            raise AgentError(f"hung up{hint if self._tls else ''}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AgentError(_words(error)) from None
        if response.status == 403:
            raise AgentError("does not trust us: use hactl agent trust there, on our cert.pem")
        if response.status != 200:
            raise AgentError(f"answers with HTTP status {response.status}")
        return Heard(asked, read(bytes(body), self._node, nonce))

    def _connector(self, aiohttp_: object) -> aiohttp.ClientSession:
        import aiohttp

        pin = aiohttp.Fingerprint(self._tls[1]) if self._tls is not None else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, keepalive_timeout=DAY, ssl=pin),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": f"hactl/{hactl.__version__}", "Accept-Encoding": "identity"},
        )


def _words(error: Exception) -> str:
    """Say in a few words why an agent cannot be asked."""
    inner = getattr(error, "os_error", error)  # aiohttp wraps what the system says
    while inner.__cause__ is not None and not isinstance(inner, ssl.SSLError):
        inner = inner.__cause__
    if isinstance(inner, ssl.SSLCertVerificationError):
        return "shows another certificate than the one that is trusted"
    if isinstance(inner, ssl.SSLError):
        why = (inner.reason or str(inner)).lower().replace("_", " ")
        if "alert" in why:
            return f"does not trust us ({why}): use hactl agent trust there, on our cert.pem"
        return f"TLS: {why}"
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno).lower()  # asyncio has words of its own
    return quote(str(inner).encode(), 120) or type(inner).__name__


class Agents:
    """The agents of all nodes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._links: dict[str, Link] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def configure(
        self, nodes: Mapping[str, Node], checks: Mapping[str, Check], directory: Path
    ) -> list[str]:
        """Ask these from now on; return whom we cannot ask, and why."""
        wanted = any(isinstance(check.option, FromAgent) for check in checks.values())
        urls = {name: url for name, node in nodes.items() if (url := node.url()) and wanted}
        secure = [name for name, url in urls.items() if url.startswith("https:")]
        found = await asyncio.to_thread(_keyed, directory, secure)
        self._hang_up()
        for name, url in urls.items():
            tls = found.get(name)
            problem = tls if isinstance(tls, str) else ""
            context = None if isinstance(tls, str) else tls
            self._links[name] = Link(name, url, context, problem)
        return [f"agent of {name}: {why}" for name, why in found.items() if isinstance(why, str)]

    def look(self, probe: Probe, check: Check, done: Callable[[Checked], None]) -> None:
        """Have *done* called, later, with the agent's newest result."""
        began = self._loop.time()
        link = self._links.get(probe.node)

        def ended(what: Heard | str) -> None:
            timer.cancel()
            now = self._loop.time()
            if isinstance(what, str):
                done(Checked(probe, began, now, unknown(f"agent: {what}")))
                return
            assert link is not None
            sample = _newest(link, what, probe.check, check, now)
            done(Checked(probe, now - sample.age, now, sample.result, sample.stamp))

        def late() -> None:
            forget()
            ended((link.trouble if link is not None else "") or f"no answer in {check.timeout}")

        timer = self._loop.call_later(check.timeout, late)
        if link is None:
            self._loop.call_soon(ended, _none(probe.node))
        else:
            forget = link.ask(check.interval / 2, ended)

    async def ask(self, node: str) -> Heard | str:
        """Ask the agent of *node* now; return its answer, or what is wrong with it."""
        link = self._links.get(node)
        if link is None:
            return _none(node)
        heard: asyncio.Future[Heard | str] = self._loop.create_future()
        link.ask(0.0, heard.set_result)
        return await heard

    def alerts(self) -> list[str]:
        """Say which agents are silent."""
        return [text for link in self._links.values() if (text := link.alert()) is not None]

    async def close(self) -> None:
        """Hang up on all of them."""
        self._hang_up()
        if self._closing:
            await asyncio.wait(self._closing)

    def _hang_up(self) -> None:
        for link in self._links.values():
            task = self._loop.create_task(link.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._links = {}


def _none(node: str) -> str:
    return f"node {node} has none in hactl.yaml"


def _keyed(directory: Path, names: Iterable[str]) -> dict[str, tuple[ssl.SSLContext, bytes] | str]:
    """Return how each node's agent is asked over TLS, or why it cannot be."""
    found: dict[str, tuple[ssl.SSLContext, bytes] | str] = {}
    for name in names:
        try:
            found[name] = keys.asking(directory, name)
        except keys.KeysError as error:
            found[name] = str(error)
    return found


def _newest(link: Link, heard: Heard, name: str, check: Check, now: float) -> Sample:
    """Judge an answer; within a run of the agent no sample is older than the one before."""
    sample = judge(heard.answer, name, check, now - heard.asked)
    if sample.stamp is None:
        return sample
    start, stamp = link.stamps.get(name, ("", 0.0))
    if start == heard.answer.start and sample.stamp < stamp:
        return Sample(unknown("agent: an older result than the one before"))
    link.stamps[name] = heard.answer.start, sample.stamp
    return sample
