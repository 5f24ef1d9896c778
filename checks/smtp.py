"""smtp: the mail server greets, and answers up to RCPT."""

from __future__ import annotations

from typing import Literal

from checks import Option


class Smtp(Option, frozen=True, kw_only=True, tag="smtp"):
    """Options.  *greeting*: the reply codes of the greeting that count as alive."""

    port: int = 25
    depth: Literal["greeting", "ehlo", "mail", "rcpt"] = "ehlo"
    greeting: tuple[int, ...] = (220,)
    helo: str = "hactl.invalid"
    mail_from: str = ""
    mail_to: str = ""
