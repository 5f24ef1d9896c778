"""Feed a dialogue with bytes, as the driver would and without any socket."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st

from checks._wire import Dialogue, StartTLS, nothing, until_eof
from hactl.core.model import Result, fail


def feed(talk: Dialogue, *chunks: bytes, tls: Iterable[bytes] = ()) -> tuple[Result, bytes, str]:
    """Let the server say *chunks*, after a handshake those of *tls*, and close.

    Return the result, all that was said with `<TLS>` for the handshake, and the last step.
    """
    said, buffer, step = b"", b"", ""
    arriving = iter(chunks)
    try:
        say = next(talk)
        while True:
            if isinstance(say, StartTLS):
                if buffer or any(arriving):
                    return fail("bytes after STARTTLS"), said, say.step
                said, step, arriving = said + b"<TLS>", say.step, iter(tls)
                say = talk.send(b"TLSv1.3")
                continue
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


def split(text: bytes, data: st.DataObject) -> list[bytes]:
    """Cut *text* anywhere, as a network would."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]
