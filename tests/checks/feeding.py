"""Feed a dialogue with bytes, as the driver would and without any socket."""

from __future__ import annotations

from checks._wire import Dialogue, nothing, until_eof
from hactl.core.model import Result, fail


def feed(talk: Dialogue, *chunks: bytes) -> tuple[Result, bytes, str]:
    """Let the server say *chunks* and close; return result, all that was said, and the last step."""
    said, buffer, step = b"", b"", ""
    arriving = iter(chunks)
    try:
        say = next(talk)
        while True:
            said += say.data
            if say.complete is nothing:
                say = talk.send(b"")
                continue
            step = say.step
            size = say.complete(buffer)
            while not size and (chunk := next(arriving, b"")):
                buffer += chunk
                size = say.complete(buffer)
            if say.complete is until_eof:
                size = len(buffer)
            elif not size:
                return fail("closed"), said, step
            answer, buffer = buffer[:size], buffer[size:]
            say = talk.send(answer)
    except StopIteration as stop:
        result: Result = stop.value
        return result, said, step
    except ValueError as error:
        return fail(str(error)), said, step
