"""A micro-batch, as far as its cost goes."""

from collections.abc import Iterable
from typing import NamedTuple, Self


class Work(NamedTuple):
    """What one micro-batch asks of a stage; all counts are sums over its sequences."""

    num_tokens: int
    """Rows."""
    num_context_tokens: int
    """Tokens whose KV is read, each once: the length of every sequence after the micro-batch."""
    num_attended_tokens: int
    """Pairs of a token and a token that it attends to."""
    num_logit_rows: int
    """Rows whose logits are wanted."""
    num_chunks: int = 0
    """Sequences that run several tokens, each of which is attended by itself."""
    num_gathered_tokens: int = 0
    """Tokens of those that run behind a context, for whom keys and values are gathered."""
    num_chunk_context_tokens: int = 0
    """Tokens whose KV chunks read: the length of each of those sequences after the micro-batch."""

    @classmethod
    def of(cls, slices: Iterable[tuple[int, int]], num_logit_rows: int) -> Self:
        """Adds up slices.

        Args:
            slices: Start position and number of tokens of each sequence.
            num_logit_rows: Rows whose logits are wanted.
        """
        num_tokens = num_context_tokens = num_attended_tokens = 0
        num_chunks = num_gathered_tokens = num_chunk_context_tokens = 0
        for start, count in slices:
            num_tokens += count
            num_context_tokens += start + count
            num_attended_tokens += count * start + count * (count + 1) // 2
            if count > 1:
                num_chunks += 1
                num_chunk_context_tokens += start + count
                num_gathered_tokens += start + count if start else 0
        return cls(
            num_tokens,
            num_context_tokens,
            num_attended_tokens,
            num_logit_rows,
            num_chunks,
            num_gathered_tokens,
            num_chunk_context_tokens,
        )

    @classmethod
    def decode(cls, batch_size: int, context_tokens: int) -> Self:
        """The work of a step that decodes.

        Args:
            batch_size: Sequences, of which each computes one token.
            context_tokens: Tokens that each of them holds after the step.
        """
        num_context_tokens = batch_size * context_tokens
        return cls(batch_size, num_context_tokens, num_context_tokens, batch_size)
