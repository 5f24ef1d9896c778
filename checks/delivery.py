"""delivery: mail that goes in arrives, in time, and with what filters should have added.

A server may take mail and never deliver it: a hung scheduler or queue manager, a filter that was
left out.  So a small marked message goes in, is waited for in a Maildir or by IMAP, and is removed.
It is sent once a look, never again: while messages do not arrive none is added to the few that are
on their way already.
Source: RFC 5321 (4.4, Received), RFC 3834 (Auto-Submitted), the Sender Rewriting Scheme.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import ssl
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from email.parser import BytesHeaderParser
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from typing import ClassVar, Literal

import aiosmtplib
from msgspec import field, structs

from checks import Probed, Step, Target, Timing, _login, _maildir, _process, _tls
from checks._wire import Dialogue, converse, endpoint, quote
from checks.imap import Imap, ask, done, refused
from checks.smtp import Smtp
from hactl.core.model import Result, Verdict, fail, ok, unknown
from hactl.core.units import Secret, span

MOST = 5  # messages that may be on their way before no more are sent
AGAIN = 600.0  # seconds after which one more is sent all the same
RATE = 10.0  # seconds from one message to the next
KEPT = 20  # messages that are remembered until they arrive
PARTING = 1.0  # seconds that QUIT may take
VISIT = 10.0  # seconds that one visit of an IMAP mailbox may take
PAUSES = (0.2, 5.0)  # seconds between two of them, at first and at last
HOPS = 9  # whose times become measures

_FIELD = re.compile(r"[!-9;-~]+")  # the name of a header, RFC 5322
_SENT = "sent "  # what a remembered message's key begins with


class Mailbox(Imap, frozen=True, kw_only=True, tag="mailbox"):
    """Options.  *address*: where it is, if not at the node; all others as of type imap."""

    address: str = ""


class Delivery(Probed, frozen=True, kw_only=True, tag="delivery"):
    """Options.

    *mail_to*: a mailbox that is for this alone.  *maildir* or *imap*: where the message arrives.
    *headers*: those that it must have then.  All others as of type smtp.
    """

    port: int = 25
    helo: str = "hactl.invalid"
    mail_from: str = ""
    mail_to: str
    tls: Literal["off", "starttls", "implicit"] = "off"
    verify: bool = True
    name: str = ""
    ca: Path | None = None
    login: Secret | None = None
    headers: tuple[str, ...] = ()
    maildir: Path | None = None
    imap: Mailbox | None = None

    timing: ClassVar[Timing] = Timing(interval=60.0, timeout=60.0, fast=0.0)

    @property
    def smtp(self) -> Smtp:
        """Return the check that goes the first half of the way."""
        return Smtp(
            port=self.port, depth="rcpt", helo=self.helo, mail_from=self.mail_from,
            mail_to=self.mail_to, tls=self.tls, verify=self.verify, name=self.name, ca=self.ca,
            login=self.login,
        )  # fmt: skip

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield what is wrong with either half, and a mailbox that is none or two."""
        yield from self.smtp.problems()
        if (self.maildir is None) == (self.imap is None):
            yield "maildir", "expected where the message arrives: either maildir or imap"
        if self.imap is not None:
            yield from (("imap", f"{key}: {why}") for key, why in self.imap.problems())
            if self.imap.login is None:
                yield "imap", "a mailbox needs a login"
        for name in self.headers:
            if not _FIELD.fullmatch(name):
                yield "headers", f'"{name}" is no name of a header'

    async def probe(self, target: Target, step: Step) -> Result:
        """Send and find one message, if it is time for one."""
        memory = {} if target.memory is None else target.memory
        if "flying" in memory:
            return unknown("a message is on its way already")
        if target.since("newest") < RATE:
            return unknown(f"the last message was sent {span(target.since('newest'))} ago")
        resting = _login.rest(target)
        if resting is not None:
            return resting
        memory["flying"] = target.at
        try:
            return await self.travel(target, memory, step)
        finally:
            del memory["flying"]

    async def travel(self, target: Target, memory: dict[str, float], step: Step) -> Result:
        """Go all the way; what did not arrive is remembered, and looked for again."""
        late = {key: at for key, at in memory.items() if key.startswith(_SENT)}
        if len(late) >= MOST and target.since("newest") < AGAIN:
            step("late")
            found = await self.find(target, ["-", *_keys(late)])
            if isinstance(found, Result):
                return found
            if not found:
                oldest = span(target.at - min(late.values()))
                return fail(f"late: {len(late)} messages have not arrived in {oldest}")
            for key in late:
                del memory[key]
            late = {}
        key = f"{int(target.at)}.{secrets.token_hex(8)}"
        trouble = await self.send(target, step, key)
        if trouble is not None:
            memory.pop(_SENT + key, None)
            return trouble
        sent = time.time()
        for old in sorted(late, key=late.__getitem__)[: max(0, len(late) - KEPT)]:
            del memory[old]
        step("arrival")
        found = await self.find(target, [key, *_keys(late)])
        if isinstance(found, Result):
            return found
        for each in (_SENT + key, *late):
            memory.pop(each, None)
        if target.noted("refusals"):
            _login.accepted(target)
        return self.judge(found, sent)

    # In

    async def send(self, target: Target, step: Step, key: str) -> Result | None:
        """Hand the message over; return why that failed, None if it did not."""
        name = self.name or (target.node if self.verify else target.address)
        try:
            await self._send(target, name, step, key)
        except ssl.SSLCertVerificationError as error:
            return _distrusted(error, name)
        except _Refused as error:
            return error.result
        except aiosmtplib.SMTPResponseException as error:
            said = f"{error.code} {error.message}".partition("\n")[0]
            return fail(f"{_COMMANDS.get(type(error), 'refused')}: {quote(said.encode())}")
        except aiosmtplib.SMTPServerDisconnected:
            raise EOFError from None
        except aiosmtplib.SMTPConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                return _distrusted(error.__cause__, name)
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else EOFError) from None
        except aiosmtplib.SMTPException as error:
            return fail(quote(str(error).encode()))
        return None

    async def _send(self, target: Target, name: str, step: Step, key: str) -> None:
        step("connect")
        family, where = endpoint(target.address, self.port)
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client = aiosmtplib.SMTP(
            hostname=name,
            local_hostname=self.helo,
            use_tls=self.tls == "implicit",
            start_tls=False,
            tls_context=_tls.get(self.smtp.policy).strict if self.tls != "off" else None,
            timeout=None,
            sock=sock,
        )
        try:
            await asyncio.get_running_loop().sock_connect(sock, where)
        except BaseException:
            sock.close()
            raise
        try:
            step("greeting")
            await client.connect()
            step("ehlo")
            await client.ehlo()
            if self.tls == "starttls":
                step("tls")
                await client.starttls(server_hostname=name)
                await client.ehlo()
            if self.login is not None:
                step("auth")
                await self.log_in(client, target, self.login)
            step("mail")
            await client.mail(self.mail_from)
            step("rcpt")
            await client.rcpt(self.mail_to)
            step("data")
            target.note(
                **{_SENT + key: target.at, "newest": target.at}
            )  # it may go in from here on
            await client.data(self.message(key, target.at))
            with suppress(TimeoutError, aiosmtplib.SMTPException):
                await client.quit(timeout=PARTING)
        finally:
            client.close()

    async def log_in(self, client: aiosmtplib.SMTP, target: Target, secret: Secret) -> None:
        """Log in once, by one mechanism: each refusal slows down those who come after us."""
        login = _login.get(secret)
        known = {"plain": client.auth_plain, "login": client.auth_login}
        by = next((known[each] for each in known if each in client.server_auth_methods), None)
        if by is None:
            raise _Refused(fail("offers no AUTH PLAIN or LOGIN"))
        try:
            await by(*login)
        except aiosmtplib.SMTPAuthenticationError as error:
            short = str(error.code).encode()
            said = short + b" " + error.message.partition("\n")[0].encode()
            if error.code < 500:
                raise _Refused(_login.failed("AUTH", login, said, short)) from None
            raise _Refused(_login.refused(target, login, said, short)) from None

    def message(self, key: str, now: float) -> bytes:
        """Return the message; nobody is to answer it, and no filter to take it for spam."""
        lines = (
            f"Date: {formatdate(now)}",
            f"From: hactl <{self.mail_from or 'hactl@' + self.helo}>",
            f"To: <{self.mail_to}>",
            "Subject: hactl probe",
            f"Message-ID: <{key}@{self.helo}>",
            "Auto-Submitted: auto-generated",
            f"X-Hactl-Probe: {key}",
            "",
            "This message was sent to see whether mail is delivered. It is removed on arrival.",
            "",
        )
        return "\r\n".join(lines).encode()

    # Out

    async def find(self, target: Target, keys: Sequence[str]) -> bytes | Result:
        """Return the headers of the message with the first of *keys*, and remove all of them.

        With `-` as the first return at once which of the others were found.  A mailbox that cannot
        be looked into says nothing of the node.
        """
        if self.imap is None:
            words = (sys.executable, "-I", "-S", _maildir.__file__, str(self.maildir), *keys)
            ended = await _process.run(words)
            return ended.out if not ended.code else unknown(f"maildir: {quote(ended.err, 160)}")
        errand = Errand(tuple(keys))
        visitor = Visitor(**structs.asdict(self.imap), errand=errand)
        address = self.imap.address or target.address
        pause, longest = PAUSES
        while True:
            talk = visitor.talk(target._replace(address=address))
            result = await converse(*visitor.where(address), talk, VISIT)
            if result.verdict is not Verdict.OK:
                return unknown(f"mailbox: {result.reason}")
            if keys[0] == "-":
                return "\n".join(errand.found).encode()
            if keys[0] in errand.found:
                return errand.found[keys[0]]
            await asyncio.sleep(pause)
            pause = min(longest, pause * 2)

    def judge(self, head: bytes, sent: float) -> Result:
        """Judge the headers of a message on arrival."""
        found = BytesHeaderParser().parsebytes(head)
        missing = [name for name in self.headers if found.get(name) is None]
        if missing:
            return fail(f"arrived without {', '.join(missing)}")
        hops = list(waits(found.get_all("Received") or [], sent))
        measures = {f"hop{n}_seconds": seconds for n, seconds in enumerate(hops[:HOPS], 1)}
        text = f"arrived over {len(hops)} hop{'' if len(hops) == 1 else 's'}"
        verdict = Verdict.OK
        returns = found.get("Return-Path")
        if returns is not None:
            sender = str(returns).strip().removeprefix("<").removesuffix(">")
            kind = rewritten(sender, self.mail_from)
            shown = quote(sender.encode("utf-8", "replace"), 60)
            if kind == "SRS":
                text += f", sender rewritten by SRS to <{shown}>"
            elif kind == "other":
                verdict, text = Verdict.WARN, f"{text}, from <{shown}>"
        return Result(verdict, text, measures=measures)


def _distrusted(error: ssl.SSLCertVerificationError, name: str) -> Result:
    return fail(f"tls: {_tls.distrust(error, name)}")


class _Refused(Exception):  # noqa: N818 - it carries a result
    def __init__(self, result: Result) -> None:
        super().__init__(result.reason)
        self.result = result


_COMMANDS: dict[type[Exception], str] = {
    aiosmtplib.SMTPConnectResponseError: "greeting",
    aiosmtplib.SMTPHeloError: "EHLO",
    aiosmtplib.SMTPSenderRefused: "MAIL",
    aiosmtplib.SMTPRecipientRefused: "RCPT",
    aiosmtplib.SMTPDataError: "DATA",
}


def _keys(late: Iterable[str]) -> list[str]:
    return [key.removeprefix(_SENT) for key in late]


# Headers


def waits(received: Sequence[object], sent: float) -> Iterable[float]:
    """Yield the seconds from one hop to the next, in the order of travel.

    By the clocks of the hops, in whole seconds: a hop whose clock is slow comes out negative.
    """
    before = float(int(sent))
    for each in reversed(received):
        with suppress(ValueError, TypeError, IndexError, OverflowError):
            moment: datetime = parsedate_to_datetime(str(each).rpartition(";")[2].strip())
            now = moment.timestamp()
            yield now - before
            before = now


def rewritten(sender: str, ours: str) -> Literal["ours", "SRS", "other"]:
    """Tell whether *sender* is *ours*, or what SRS makes of it on the way through a forwarder.

    `SRS0=HASH=TIME=DOMAIN=LOCAL@FORWARDER`; a second forwarder makes
    `SRS1=HASH=FORWARDER==HASH=TIME=DOMAIN=LOCAL@...` of that.
    """
    if sender.lower() == ours.lower():
        return "ours"
    local, _, domain = ours.rpartition("@")
    left = sender.rpartition("@")[0].lower()
    if local and re.match("srs[01][=+-]", left) and left.endswith(f"={domain}={local}".lower()):
        return "SRS"
    return "other"


# A mailbox by IMAP


class Errand:
    """What is looked for in a mailbox, and what was found: headers by their keys."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.found: dict[str, bytes] = {}


class Visitor(Mailbox, frozen=True, kw_only=True, tag="visitor"):
    """Opens the mailbox as type imap does, and goes on to find and remove what is ours."""

    errand: Errand = field(default_factory=lambda: Errand(()))

    def open(self) -> Dialogue:
        """Search, fetch, and remove; the mailbox is ours alone, so all that is deleted may go."""
        result = yield from super().open()
        if result.verdict is not Verdict.OK:
            return result
        remove = []
        for key in self.errand.keys:
            if key == "-":
                continue
            answer = yield ask("search", b'UID SEARCH HEADER X-Hactl-Probe "%s"' % key.encode())
            if not done(answer):
                return refused("SEARCH", answer)
            for uid in _uids(answer)[:1]:
                answer = yield ask("fetch", b"UID FETCH %s (BODY.PEEK[HEADER]<0.32768>)" % uid)
                if not done(answer):
                    return refused("FETCH", answer)
                self.errand.found[key] = _literal(answer)
                remove.append(uid)
        day = time.strftime("%d-%b-%Y", time.gmtime(time.time() - _maildir.OLD))
        answer = yield ask(
            "search_old", b'UID SEARCH BEFORE %s HEADER X-Hactl-Probe ""' % day.encode()
        )
        remove += _uids(answer) if done(answer) else []
        if remove:
            answer = yield ask(
                "store", b"UID STORE %s +FLAGS.SILENT (\\Deleted)" % b",".join(remove[:1000])
            )
            if not done(answer):
                return refused("STORE", answer)
            answer = yield ask("expunge", b"EXPUNGE")
            if not done(answer):
                return refused("EXPUNGE", answer)
        return ok("visited")


_SEARCH = re.compile(rb"^\* SEARCH((?: [0-9]+)*) ?\r?$", re.MULTILINE | re.IGNORECASE)
_SIZE = re.compile(rb"\{([0-9]{1,9})\}\r?\n")


def _uids(answer: bytes) -> list[bytes]:
    found = _SEARCH.search(answer)
    return found[1].split() if found is not None else []


def _literal(answer: bytes) -> bytes:
    """Return the first literal of *answer*."""
    size = _SIZE.search(answer)
    return answer[size.end() : size.end() + int(size[1])] if size is not None else b""
