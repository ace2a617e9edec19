"""Prompts of a fixed length, the same in every run and for every system."""

import random

COMMON_VOCAB_SIZE = 32000
"""Token ids that every model measured in `benchmarks` has."""

_SPECIAL_SHARE = 32
"""The lowest ids, one in so many of all, are left out: special tokens and bytes are there."""


def fixed_prompts(
    num_prompts: int, num_tokens: int, *, vocab_size: int = COMMON_VOCAB_SIZE, seed: int = 0
) -> list[list[int]]:
    """Makes prompts of token ids, drawn at random and equal for equal arguments.

    Args:
        num_prompts: How many.
        num_tokens: Length of each.
        vocab_size: Ids are below it.
        seed: Another one gives other prompts.
    """
    draw = random.Random(seed)
    lowest = vocab_size // _SPECIAL_SHARE
    return [
        [draw.randrange(lowest, vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)
    ]
