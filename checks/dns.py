"""dns: a name server answers, and answers right.

The node's own server, or a resolver that mail servers cannot live without: with a silent one
OpenSMTPD greets nobody.
Source: RFC 1035; dnspython speaks the protocol.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from checks import Probed, Step, Target, Timing
from checks._wire import quote
from hactl.core.model import Result, Verdict, fail

if TYPE_CHECKING:
    from dns.message import Message

SHOWN = 3  # answers that are told


class Dns(Probed, frozen=True, kw_only=True, tag="dns"):
    """Options.

    *ask*: the name.  *record*: the type that is asked for.  *rcode*: the answer's code.  *expect*:
    records that must be among the answers, as a zone file has them.
    """

    port: int = 53
    ask: str
    record: str = "A"
    rcode: str = "NOERROR"
    expect: tuple[str, ...] = ()

    timing: ClassVar[Timing] = Timing(interval=5.0, timeout=2.0, fast=1.0)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Yield a missing library, and what DNS has no name for."""
        try:
            import dns.asyncquery
            import dns.exception
            import dns.name
            import dns.rcode
            import dns.rdatatype
        except ImportError:
            yield "type", "dns needs dnspython: pip install 'hactl[dns]'"
            return

        for field, read, what in (
            ("ask", dns.name.from_text, "a domain name"),
            ("record", dns.rdatatype.from_text, "a type of records, such as A or MX"),
            ("rcode", dns.rcode.from_text, "a code, such as NOERROR or NXDOMAIN"),
        ):
            try:
                read(getattr(self, field))
            except (dns.exception.DNSException, ValueError, UnicodeError):
                yield field, f"expected {what}"

    async def probe(self, target: Target, step: Step) -> Result:
        """Ask once, over UDP, and again over TCP if the answer was cut."""
        import dns.asyncbackend
        import dns.asyncquery
        import dns.exception
        import dns.inet
        import dns.message

        query = dns.message.make_query(self.ask, self.record)
        family = dns.inet.af_for_address(target.address)
        where = target.address, self.port
        backend: Any = dns.asyncbackend.get_default_backend()
        step("query")
        try:
            # connected, so that a closed port is heard of
            async with await backend.make_socket(
                family, socket.SOCK_DGRAM, destination=where
            ) as sock:
                answer, _ = await dns.asyncquery.udp_with_fallback(
                    query, target.address, port=self.port, udp_sock=sock, ignore_unexpected=True
                )
        except dns.exception.DNSException as error:
            return fail(f"query: not an answer of DNS ({quote(str(error).encode(), 60)})")
        return self.judge(answer)

    def judge(self, answer: Message) -> Result:
        """Judge the code, and the records that were asked for."""
        import dns.rcode
        import dns.rdatatype

        wanted = dns.rdatatype.from_text(self.record)
        code = dns.rcode.to_text(answer.rcode())
        records = sorted(
            record.to_text()
            for rrset in answer.answer
            if rrset.rdtype == wanted
            for record in rrset
        )
        shown = ", ".join(records[:SHOWN]) + (" ..." if len(records) > SHOWN else "")
        told = quote(f"{code} {shown}".strip().encode(), 160)
        measures: dict[str, float] = {"records_count": len(records)}
        if records:
            measures["ttl_seconds"] = min(rrset.ttl for rrset in answer.answer)
        missing = [each for each in self.expect if each not in records]
        verdict = Verdict.OK
        if code != self.rcode.upper():
            verdict, told = Verdict.FAIL, told if code != "NOERROR" else f"{told}, not {self.rcode}"
        elif missing:
            verdict, told = Verdict.FAIL, f"{told}, but not {quote(missing[0].encode(), 60)}"
        elif code == "NOERROR" and not records:
            verdict, told = Verdict.FAIL, f"no {self.record} record"
        return Result(verdict, told, measures=measures)
