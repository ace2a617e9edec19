"""Writes log-probabilities of prompts as `prompt_logprobs`, which is a field of vLLM's."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from coordinator.core.prompt_logprobs import PromptLogprob, PromptLogprobs
from coordinator.doors.http.answer import TOKENS_PER_PIECE, SpellToken
from coordinator.doors.http.pieces import listed
from coordinator.doors.http.schema.sampling import PromptTokenLogprob


def prompt_list_pieces(
    token_ids: Sequence[int], pieces: Sequence[PromptLogprobs], num_top: int, spell: SpellToken
) -> Iterator[str]:
    """Makes the inside of the list as JSON, piece by piece; null for the first token.

    Args:
        token_ids: The prompt.
        pieces: Log-probabilities of all its tokens but the first, which none comes before.
        num_top: Most likely tokens that are wanted of each place; there may be more.
        spell: The bytes that a token stands for.
    """
    yield "null"
    rows = zip(islice(token_ids, 1, None), chain.from_iterable(pieces), strict=True)
    for inside in listed(
        rows, lambda part: _written(part, num_top, spell), num_items=TOKENS_PER_PIECE
    ):
        yield inside if inside.startswith(",") else f",{inside}"


def _written(
    rows: Sequence[tuple[int, PromptLogprob]], num_top: int, spell: SpellToken
) -> list[object]:
    return [
        {name: one.model_dump() for name, one in _entries(token_id, row, num_top, spell).items()}
        for token_id, row in rows
    ]


def _entries(
    token_id: int, one: PromptLogprob, num_top: int, spell: SpellToken
) -> dict[str, PromptTokenLogprob]:
    """The token's own entry, and those of the likeliest ones; equal keys are equal entries."""
    ranked = [(token_id, one.logprob, one.rank)]
    ranked += ((top, logprob, rank) for rank, (top, logprob) in enumerate(one.top[:num_top], 1))
    return {
        str(ranked_id): PromptTokenLogprob(
            logprob=logprob, rank=rank, decoded_token=spell(ranked_id).decode(errors="replace")
        )
        for ranked_id, logprob, rank in ranked
    }
