"""Log-probabilities of tokens as OpenAI writes them."""

from collections.abc import Iterable

from coordinator.core.events import TokenLogprobs
from coordinator.doors.http.answer import SpellToken
from coordinator.doors.http.pieces import number
from coordinator.doors.http.schema.chat import TokenLogprob, TopLogprob

Pair = tuple[int, TokenLogprobs]
"""A token, and its log-probabilities."""


def token_logprobs(tokens: Iterable[Pair], spell: SpellToken) -> list[TokenLogprob]:
    """Log-probabilities of tokens, for an answer."""
    return [
        TokenLogprob(
            token=_text(spell(token_id)),
            logprob=one.logprob,
            bytes=list(spell(token_id)),
            top_logprobs=[
                TopLogprob(token=_text(spell(top)), logprob=value, bytes=list(spell(top)))
                for top, value in one.top
            ],
        )
        for token_id, one in tokens
    ]


def written_logprobs(tokens: Iterable[Pair], spell: SpellToken) -> list[object]:
    """The same as what JSON can write."""
    return [
        _written(token_id, one.logprob, spell)
        | {"top_logprobs": [_written(top, value, spell) for top, value in one.top]}
        for token_id, one in tokens
    ]


def _written(token_id: int, logprob: float, spell: SpellToken) -> dict[str, object]:
    spelling = spell(token_id)
    return {"token": _text(spelling), "logprob": number(logprob), "bytes": list(spelling)}


def _text(spelling: bytes) -> str:
    return spelling.decode(errors="replace")
