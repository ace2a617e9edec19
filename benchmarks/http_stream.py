"""A client of streamed completions over HTTP that costs next to nothing itself."""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import closing

_EVENT = b'"finish_reason":null'
"""In every event that brings tokens, and once."""


class StreamFailedError(Exception):
    """The server answered something else than a stream of tokens."""


async def token_times(address: str, prompt: Sequence[int], num_tokens: int) -> list[float]:
    """Streams one completion.

    Args:
        address: HOST:PORT.
        prompt: Token ids.
        num_tokens: To generate.

    Returns:
        When each event arrived, in seconds of `time.perf_counter`, after the time of the request.

    Raises:
        StreamFailedError: It did not come to its end.
    """
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    with closing(writer):
        times = [time.perf_counter()]
        writer.write(request(prompt, num_tokens))
        tail = b""
        while piece := await reader.read(2**16):
            now = time.perf_counter()
            text = tail + piece
            times += [now] * text.count(_EVENT)
            tail = text[text.rfind(b"\n") + 1 :]
            if b"[DONE]" in text:
                return times
        raise StreamFailedError(text[-500:].decode(errors="replace"))


def request(prompt: Sequence[int], num_tokens: int, num_choices: int = 1) -> bytes:
    """The bytes of a request for a streamed completion.

    Args:
        prompt: Token ids.
        num_tokens: To generate.
        num_choices: Completions of the prompt.
    """
    body = json.dumps(
        {
            "prompt": list(prompt),
            "max_tokens": num_tokens,
            "n": num_choices,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
