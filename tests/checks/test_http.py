"""The http check against servers that answer by hand: right, wrong, slowly, and without an end."""

from __future__ import annotations

import asyncio
import ssl
import sys
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from contextlib import suppress

import pytest
from msgspec import structs

from checks import Target
from checks._tasks import look
from checks.http import Http, at
from hactl.core.model import Result, Verdict
from tests.checks.peers import LONG, SHORT, Handler, hang, reset, says, serving, summary
from tests.checks.pki import NAME, Pki

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def answers(*parts: bytes, then: Handler | None = None) -> Handler:
    """Read a request, answer with *parts*, and *then* close."""

    async def handler(reader: Reader, writer: Writer) -> None:
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        if then is not None:
            await then(reader, writer)

    return handler


def page(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> Handler:
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n" % (status, len(body), more)
    return answers(head + body)


def asked(
    check: Http, handler: Handler, limit: float = LONG, tls: ssl.SSLContext | None = None
) -> Result:
    async def main() -> Result:
        async with serving(handler, tls=tls) as port:
            target = Target(NAME, "127.0.0.1")
            return await look(structs.replace(check, port=port), target, limit)

    return asyncio.run(main())


def test_asks_for_a_page_as_a_client_of_that_name_would() -> None:
    seen: list[bytes] = []

    async def handler(reader: Reader, writer: Writer) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(HEAD + b"Content-Length: 4\r\n\r\npong")

    result = asked(Http(path="/ping?a=%20b", text="pong"), handler)
    assert summary(result) == (Verdict.OK, "body", "200 OK")
    assert [name for name, _ in result.steps] == ["connect", "answer", "body"]
    assert result.measures["body_bytes"] == 4
    request = seen[0].split(b"\r\n")
    assert request[0] == b"GET /ping?a=%20b HTTP/1.1"
    assert f"Host: {NAME}".encode() in request


@pytest.mark.parametrize(
    ("check", "handler", "verdict", "reason"),
    [
        (Http(), page(b"no", b"503 Gone\x1b[2J fishing"), "fail", r"status 503 Gone\x1b[2J fishing"),
        (Http(status=(200, 401)), page(b"who?", b"401 No"), "ok", "401 No"),
        (Http(text="Login"), page(b"<h1>Database error</h1>"), "fail",
         "200 OK, but its text is not there"),
        (Http(json={"db.0.up": "true"}), page(b'{"db": [{"up": true}]}'), "ok", "200 OK"),
        (Http(json={"db.0.up": "true"}), page(b'{"db": [{"up": "\\u001b"}]}'), "fail",
         r"db.0.up is \x1b, not true"),
        (Http(json={"db": "1"}), page(b"{}"), "fail", "db is not there, not 1"),
        (Http(json={"db": "1"}), page(b"<html>"), "fail", "200 OK, but not JSON: <html>"),
        (Http(json={"db": "1"}), page(b"[" * 100_000), "fail",
         f"200 OK, but not JSON: {'[' * 57}..."),
        (Http(), page(b"", b"302 Found", b"Location: /error\r\n"), "fail", "status 302 Found"),
        (Http(redirects=True), page(b"", b"302 Found", b"Location: /\r\n"), "fail",
         "more than 5 redirects"),
        (Http(redirects=True), page(b"", b"302 Found", b"Location: http://[::/\r\n"), "fail",
         "redirects to what is no address"),
    ],
)  # fmt: skip
def test_judges_an_answer(check: Http, handler: Handler, verdict: str, reason: str) -> None:
    result = asked(check, handler)
    assert (result.verdict, result.reason) == (Verdict(verdict), reason)


async def endless(_reader: Reader, writer: Writer) -> None:
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize(
    ("handler", "step", "reason"),
    [
        (answers(HEAD, then=hang), "answer", "answer: no answer in 400ms"),
        (answers(HEAD + b"Content-Length: 9\r\n\r\nx", then=hang), "body",
         "body: no answer in 400ms"),
    ],
)  # fmt: skip
def test_silence_is_named_with_its_step(handler: Handler, step: str, reason: str) -> None:
    assert summary(asked(Http(), handler, 4 * SHORT)) == (Verdict.FAIL, step, reason)


@pytest.mark.parametrize(
    ("handler", "step", "reason"),
    [
        (answers(), "answer", "answer: closed in mid-answer"),
        (answers(HEAD), "answer", "answer: closed in mid-answer"),
        (answers(HEAD + b"Content-Length: 9\r\n\r\nx"), "body", "body: closed in mid-answer"),
        (answers(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"), "answer",
         "not HTTP: Invalid character in chunk size: b'zz'"),
        (answers(HEAD + b"\r\n", then=endless), "body", "body longer than 1M"),
        (answers(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", then=endless), "body", "body longer than 1M"),
        (answers(b"220 mx0 ESMTP\r\n\r\n"), "answer",
         "not HTTP: Bad status line: Expected HTTP/, RTSP/ or ICE/: b'220 mx0 ESMTP'"),
        (answers(HEAD + b"X: " + b"y" * 100_000 + b"\r\n\r\n"), "answer", None),
        (reset, "answer", None),
    ],
)  # fmt: skip
def test_what_is_cut_endless_or_no_http_is_a_failure(
    handler: Handler, step: str, reason: str | None
) -> None:
    result = asked(Http(), handler)
    assert (result.verdict, result.step) == (Verdict.FAIL, step)
    assert reason is None or result.reason == reason
    assert result.reason.isprintable()
    assert result.reason.isascii()
    assert "\\r" not in result.reason
    assert len(result.reason) < 200


def test_a_closed_port_is_a_failure_to_connect(unused_port: int) -> None:
    check = Http(port=unused_port)
    result = asyncio.run(look(check, Target("mx0", "127.0.0.1"), LONG))
    assert summary(result) == (Verdict.FAIL, "connect", "connect: connection refused")


@pytest.fixture
def unused_port() -> int:
    async def main() -> int:
        async with serving(hang) as port:
            return port

    return asyncio.run(main())


def test_under_tls_the_certificate_must_be_right(pki: Pki) -> None:
    check = Http(tls="implicit", ca=pki.ca)
    result = asked(check, page(b"pong"), tls=pki.server())
    assert summary(result) == (Verdict.OK, "body", "200 OK")
    assert result.measures["left_days"] == pytest.approx(42.5, abs=0.1)


def test_a_bad_certificate_is_told_as_by_type_tls(pki: Pki) -> None:
    check = Http(tls="implicit", ca=pki.ca)
    result = asked(check, page(b"pong"), tls=pki.server(ends=-3.5))
    why = "tls: certificate expired 3 days ago, fine but for the date"
    assert summary(result) == (Verdict.FAIL, "connect", why)
    result = asked(check, page(b"pong"), tls=pki.server("mx1.example.org"))
    why = f"tls: certificate is for mx1.example.org, not {NAME}"
    assert summary(result) == (Verdict.FAIL, "connect", why)
    result = asked(structs.replace(check, verify=False), page(b"pong"), tls=pki.server(ends=-3.5))
    assert summary(result) == (Verdict.OK, "body", "200 OK")
    result = asked(check, says(b"220 mx0 ESMTP\r\n", then=hang))
    assert summary(result) == (Verdict.FAIL, "connect", "connect: not TLS")


def test_a_path_into_json_ends_in_a_text() -> None:
    value = {"a": [1, {"b": None}], "c": {"d": 1.5}}
    assert [at(value, path) for path in ("a.0", "a.1.b", "c", "c.d", "a.2", "a.x", "z")] == [
        "1",
        "null",
        '{"d":1.5}',
        "1.5",
        None,
        None,
        None,
    ]


def test_options_that_cannot_be_are_said_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(Http().problems()) == []
    wrong = Http(path="ping", status=(200, 9), name="a b")
    assert [field for field, _ in wrong.problems()] == ["path", "status", "name"]
    assert [field for field, _ in Http(path="/\r\nX: y", status=()).problems()] == [
        "path",
        "status",
    ]
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert list(Http().problems()) == [("type", "http needs aiohttp: pip install 'hactl[web]'")]
