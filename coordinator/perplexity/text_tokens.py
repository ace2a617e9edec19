"""The tokens of a long text, as the coordinator's tokenizer makes them.

A coordinator takes no text that is far longer than its context. So it gets one piece after the
other, each of which ends with a line where there is one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from stagecoach.client import AsyncClient

_CHARS_PER_TOKEN = 16
"""Characters of a piece for each token of the context; half of what a coordinator takes."""

_MAX_PIECE_CHARS = 32_768
"""More take a tokenizer long, above all of one line."""

_SAMPLE = "a"


class TextTokens(NamedTuple):
    """Tokens of a text, or of its beginning."""

    begin_ids: list[int]
    """What the tokenizer puts before every text."""
    token_ids: list[int]
    """Tokens of the text, without these."""
    num_bytes: int
    """Bytes of what `token_ids` spell, in UTF-8."""


async def text_tokens(
    client: AsyncClient,
    text: str,
    *,
    model: str | None = None,
    max_model_len: int,
    num_wanted: int | None,
) -> TextTokens:
    """Asks for the tokens of a text.

    Args:
        client: The coordinator's.
        text: At least one character.
        model: A name of the model. None: the only one.
        max_model_len: Most tokens of one request.
        num_wanted: As many are enough, though there may be more; None: all.

    Raises:
        StagecoachError: The text cannot be tokenized.
    """
    max_chars = min(_CHARS_PER_TOKEN * max_model_len, _MAX_PIECE_CHARS)
    if num_wanted is not None:
        max_chars = min(max_chars, _CHARS_PER_TOKEN * num_wanted)
    begin_ids = await _begin_ids(client, model)
    token_ids: list[int] = []
    num_bytes = 0
    for piece in pieces(text, max_chars):
        token_ids += await client.tokenize(piece, model=model, add_special_tokens=False)
        num_bytes += len(piece.encode())
        if num_wanted is not None and len(token_ids) >= num_wanted:
            break
    return TextTokens(begin_ids, token_ids, num_bytes)


def pieces(text: str, max_chars: int) -> Iterator[str]:
    """Cuts a text, behind the last line that fits or else behind the last character that does."""
    start = 0
    while start < len(text):
        end = start + max_chars
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


async def _begin_ids(client: AsyncClient, model: str | None) -> list[int]:
    """What the tokenizer puts before a text; what it puts behind one is left out."""
    bare = await client.tokenize(_SAMPLE, model=model, add_special_tokens=False)
    whole = await client.tokenize(_SAMPLE, model=model)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []
