"""Which slices of one token are gathered together, where attention gathers."""

from collections.abc import Sequence

from stage_server.core.batch import SequenceSlice

MAX_PADDING = 2
"""How many times the KV that a group of sequences holds may be gathered for it."""


def groups_of_like_length(
    slices: Sequence[SequenceSlice], *, block_size: int, max_tokens: int
) -> list[list[int]]:
    """Cuts the slices of one token into groups that padding at most doubles.

    So the time of a gather is bounded by the KV in use, whatever the mix of lengths, and its memory
    even where many sequences share their blocks. The members of a group are in the order of their
    rows.

    Args:
        slices: All of the micro-batch.
        block_size: Tokens a block; whole ones are gathered.
        max_tokens: Tokens that a group of several may gather, padding included.
    """
    singles = indices_of_single_tokens(slices)
    groups: list[list[int]] = []
    longest = held = most = 0
    for i in sorted(singles, key=lambda i: -slices[i].end_position):
        length = slices[i].end_position
        size = len(groups[-1]) + 1 if groups else 0
        if not groups or size > most or size * longest > MAX_PADDING * (held + length):
            groups.append([])
            longest, held = length, 0
            most = max_tokens // (-(-longest // block_size) * block_size)
        groups[-1].append(i)
        held += length
    return [sorted(group) for group in groups]


def indices_of_single_tokens(slices: Sequence[SequenceSlice]) -> list[int]:
    """Returns which slices have one token."""
    return [i for i, piece in enumerate(slices) if piece.is_single_token]
