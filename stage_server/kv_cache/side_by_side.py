"""Where a sequence's blocks lie in one piece, so that they are read in place."""

from collections.abc import Sequence


def place_side_by_side(
    block_table: Sequence[int], block_size: int, num_tokens: int
) -> slice | None:
    """Returns where in the pool's tokens a sequence lies in one piece; None when it does not.

    Args:
        block_table: Blocks of the sequence, at least one.
        block_size: Tokens a block.
        num_tokens: Tokens of the sequence.
    """
    first = block_table[0]
    if [*block_table] != [*range(first, first + len(block_table))]:
        return None
    return slice(first * block_size, first * block_size + num_tokens)
