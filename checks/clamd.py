"""clamd: ClamAV answers, its signatures are fresh, and it scans: text passes, a sample is found.

One session asks for PING, STATS and VERSION, and has a few bytes scanned.  Now and then the bytes are EICAR's, which
is no virus and by agreement taken for one; each time clamd logs it, and runs its VirusEvent.
Source: clamd(8); https://www.eicar.org/download-anti-malware-testfile/
"""

from __future__ import annotations

import calendar
import re
import struct
import time
from collections.abc import Callable
from operator import itemgetter
from typing import ClassVar

from checks import NOBODY, SCAN, Local, Target, Timing
from checks._wire import Dialogue, Say, nothing, quote
from hactl.core.model import fail, ok
from hactl.core.units import Duration

TEXT = b"hactl: a few harmless bytes\n"
# In two parts, lest this file is taken for it.
SAMPLE = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"

DAY = 86400.0

_NUMBERS = re.compile(rb"^(?:[0-9]+: )+")
_QUEUE = re.compile(rb"^QUEUE: ([0-9]{1,9}) items", re.MULTILINE)
_THREADS = re.compile(
    rb"^THREADS: live ([0-9]{1,9}) +idle ([0-9]{1,9}) max ([0-9]{1,9})", re.MULTILINE
)
# ClamAV 1.4.3/27800/Sun Nov 22 08:30:11 2026; without signatures of ClamAV's only the first part
_VERSION = re.compile(
    rb"ClamAV ([^/ ]+)(?:/([0-9]{1,9})/(\w{3} \w{3} [0-9 ]\d \d\d:\d\d:\d\d \d{4}))?"
)


class Clamd(Local, frozen=True, kw_only=True, tag="clamd"):
    """Options.  *sample*: how often the bytes to scan are EICAR's; 0: never."""

    port: int = 3310
    sample: Duration = Duration(600)

    timing: ClassVar[Timing] = SCAN

    def talk(self, target: Target = NOBODY) -> Dialogue:
        """Ask for everything in one session, and end it without waiting for an answer."""
        result = yield from self.look(target)
        yield Say(b"zEND\0", nothing, "end")
        return result

    def look(self, target: Target) -> Dialogue:
        """Go from PING to the scan, or to the first answer that is wrong."""
        # All at once: else clamd's small answers wait for our TCP's late acknowledgements.
        ask = b"zIDSESSION\0zPING\0zSTATS\0zVERSION\0"
        (pong,) = payloads((yield Say(ask, whole(1), "ping")))
        if pong != b"PONG":
            return fail(f"not a PONG: {quote(pong)}")
        # Whatever the order and the numbers: threads of clamd's have been seen to mix both up.
        both = [_NUMBERS.sub(b"", each) for each in payloads((yield Say(b"", whole(2), "stats")))]
        version, stats = sorted(both, key=lambda each: not each.startswith(b"ClamAV "))
        text, measures = describe(version, target.at)
        measures |= load(stats)
        if "queue_items" not in measures:
            return fail(f"not STATS: {quote(stats)}")
        if not target.due("sample", self.sample):
            (found,) = payloads((yield Say(stream(TEXT), whole(1), "scan")))
            if found != b"stream: OK":
                return fail(f"harmless text: {quote(found)}")
            return ok(text, **measures)
        (found,) = payloads((yield Say(stream(SAMPLE), whole(1), "sample")))
        if not found.endswith(b" FOUND"):
            return fail(f"the EICAR sample is not found: {quote(found)}")
        target.note(sample=target.at)  # a fail is looked at again
        return ok(text, **measures)


def whole(count: int) -> Callable[[bytes], int]:
    """Complete at so many NUL bytes; answers end with one as we ask with a `z` before each command."""

    def size(buffer: bytes) -> int:
        end = 0
        for _ in range(count):
            end = buffer.find(b"\0", end) + 1
            if not end:
                break
        return end

    return size


def payloads(answers: bytes) -> list[bytes]:
    """Return *answers* in the order of the questions: a session numbers them, as threads give them."""
    found = []
    for answer in answers[:-1].split(b"\0"):
        number, colon, text = answer.partition(b": ")
        numbered = bool(colon) and number.isdigit() and len(number) < 10
        found.append((int(number), text) if numbered else (0, answer))
    return [text for _, text in sorted(found, key=itemgetter(0))]


def stream(data: bytes) -> bytes:
    """Return the command that has *data* scanned: chunks with their lengths, then an empty one."""
    return b"zINSTREAM\0" + struct.pack(">I", len(data)) + data + struct.pack(">I", 0)


def describe(version: bytes, now: float) -> tuple[str, dict[str, float]]:
    """Return a text for people, and the age of the signatures where clamd knows it.

    clamd writes their date in its own time zone and does not say which; it is taken for UTC.
    """
    match = _VERSION.fullmatch(version)
    if match is None or match[3] is None:
        return quote(version, 60), {}
    try:
        made = time.strptime(match[3].decode(), "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return quote(version, 60), {}
    age = (now - calendar.timegm(made)) / DAY
    return f"ClamAV {quote(match[1], 20)}, signatures {match[2].decode()}", {
        "signatures_age_days": age
    }


def load(stats: bytes) -> dict[str, float]:
    """Return how many items wait, and how many threads there are and work."""
    queue, threads = _QUEUE.search(stats), _THREADS.search(stats)
    if queue is None or threads is None:
        return {}
    live, idle, most = (float(number) for number in threads.groups())
    return {
        "queue_items": float(queue[1]),
        "threads": live,
        "threads_busy": live - idle,
        "threads_max": most,
    }
