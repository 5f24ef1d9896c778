"""lmtp: the server that delivers into mailboxes greets, and answers up to RCPT.

The recipient is looked up at RCPT, so that is the step at which a hung user database shows.  DATA is
never sent, and nothing is delivered.
Source: RFC 2033.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from checks.smtp import Envelope


class Lmtp(Envelope, frozen=True, kw_only=True, tag="lmtp"):
    """Options: those of `checks.smtp.Envelope` and `checks._login.Account`."""

    port: int = 24
    depth: Literal["greeting", "lhlo", "mail", "rcpt"] = "lhlo"

    hello: ClassVar[str] = "LHLO"
