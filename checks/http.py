"""http: a page or an API answers, with the status, text and JSON that it should have.

For what stands beside a mail server: webmail, a control panel, rspamd's `/ping`.  Redirects are not
followed unless told so: one that leads to an error page, or off the node, is not the node's answer.
A certificate that is refused is looked at again as type tls would, to say what is wrong with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal

import msgspec
from msgspec import structs

from checks import Probed, Step, Target, Timing, _tls
from checks._tls import Policy
from checks._wire import converse, quote
from checks.tls import Tls
from hactl.core.model import Result, fail, ok
from hactl.core.units import Size

REDIRECTS = 5  # that are followed
AGAIN = 5.0  # seconds that the second look at a certificate may take

_HEADERS = {"User-Agent": "hactl", "Accept": "*/*", "Accept-Encoding": "identity"}
_PATH = re.compile(r"/[!-~]*")


class Http(Probed, frozen=True, kw_only=True, tag="http"):
    """Options.

    *path*: what is asked for.  *status*: the codes that will do.  *text*: found in the body.
    *json*: values by their paths, names and numbers with dots between them.  *redirects*: follow
    them.  *most*: bytes of a body.  *name*: the host that is asked for, and whom the certificate is
    for.  *tls*, *verify*, *ca*: as in smtp.
    """

    port: int = 80
    path: str = "/"
    status: tuple[int, ...] = (200,)
    text: str = ""
    json: dict[str, str] = msgspec.field(default_factory=dict)
    redirects: bool = False
    most: Size = Size(1 << 20)
    tls: Literal["off", "implicit"] = "off"
    verify: bool = True
    name: str = ""
    ca: Path | None = None

    timing: ClassVar[Timing] = Timing(interval=30.0, timeout=5.0, fast=0.0)

    @property
    def policy(self) -> Policy:
        """Return whom we believe."""
        return Policy(verify=self.verify, ca=self.ca)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield a missing library, and what is no path, code or name."""
        try:
            import aiohttp  # noqa: F401 - here, as it takes a while
        except ImportError:
            yield "type", "http needs aiohttp: pip install 'hactl[web]'"
        if not _PATH.fullmatch(self.path):
            yield "path", "expected a path that begins with / and is ASCII without blanks"
        for code in self.status:
            if not 100 <= code <= 599:
                yield "status", f"expected status codes from 100 to 599 (got {code})"
        if not self.status:
            yield "status", "expected at least one status code, such as 200"
        if self.tls != "off" or self.name:
            yield from _tls.problems(self.policy, self.name)

    async def probe(self, target: Target, step: Step) -> Result:
        """Ask, and say what aiohttp's errors mean."""
        import aiohttp

        try:
            return await self.ask(target, step)
        except aiohttp.ClientConnectorCertificateError:
            return await self.distrust(target)
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from None
        except aiohttp.TooManyRedirects:
            return fail(f"more than {REDIRECTS} redirects")
        except aiohttp.ClientResponseError as error:
            why = " ".join(error.message.replace("^", " ").split())  # it points below a line
            return fail(f"not HTTP: {quote(why.encode())}")
        except aiohttp.InvalidURL:
            return fail("redirects to what is no address")
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError):
            raise EOFError from None

    async def ask(self, target: Target, step: Step) -> Result:
        """Go from the connection to the end of the body."""
        import aiohttp
        from yarl import URL

        expiry: list[float] = []  # days, of each connection

        class Request(aiohttp.ClientRequest):
            """Sees the connection, which a short answer gives back before anybody else could."""

            async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
                tls = conn.transport.get_extra_info("ssl_object") if conn.transport else None
                found = _tls.certificate(tls) if tls is not None else None
                if found is not None:
                    expiry.append(found.left_days(time.time()))
                return await super().send(conn)

        async def connected(*_: object) -> None:
            step("answer")

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(connected)
        name = self.name or (target.node if self.verify else "")
        host = f"[{target.address}]" if ":" in target.address else target.address
        scheme = "http" if self.tls == "off" else "https"
        body = bytearray()
        size = 0
        step("connect")
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                auto_decompress=False,
                trace_configs=[trace],
                request_class=Request,
            ) as session,
            session.get(
                URL(f"{scheme}://{host}:{self.port}{self.path}", encoded=True),
                headers=_HEADERS | ({"Host": name} if name else {}),
                ssl=_tls.get(self.policy).strict if self.tls != "off" else True,
                server_hostname=name or None,
                allow_redirects=self.redirects,
                max_redirects=REDIRECTS,
            ) as answer,
        ):
            step("body")
            async for chunk in answer.content.iter_any():
                size += len(chunk)
                if size > self.most:
                    return fail(f"body longer than {self.most}")
                if self.text or self.json:
                    body += chunk
            result = self.judge(answer.status, answer.reason or "", bytes(body))
        figures = {"body_bytes": float(size)} | ({"left_days": expiry[0]} if expiry else {})
        return Result(result.verdict, result.reason, measures=figures)

    def judge(self, status: int, phrase: str, body: bytes) -> Result:
        """Judge an answer that came whole."""
        shown = quote(f"{status} {phrase}".strip().encode(), 60)
        if status not in self.status:
            return fail(f"status {shown}")
        if self.text.encode() not in body:
            return fail(f"{shown}, but its text is not there")
        if self.json:
            try:
                value = msgspec.json.decode(body)
            except (ValueError, RecursionError):
                return fail(f"{shown}, but not JSON: {quote(body[:200], 60)}")
            for path, wanted in self.json.items():
                found = at(value, path)
                if found != wanted:
                    told = "not there" if found is None else quote(found.encode(), 60)
                    return fail(f"{path} is {told}, not {wanted}")
        return ok(shown)

    async def distrust(self, target: Target) -> Result:
        """Say what is wrong with a certificate."""
        look = Tls(port=self.port, name=self.name, ca=self.ca)
        result = await converse(target.address, self.port, look.talk(target), AGAIN)
        return structs.replace(result, step="connect", steps=())


def at(value: object, path: str) -> str | None:
    """Return what a JSON value has at *path*, as JSON would write it but text as it is."""
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif (
            isinstance(value, list) and re.fullmatch("[0-9]{1,9}", part) and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
