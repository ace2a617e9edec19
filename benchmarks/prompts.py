"""Prompts of a fixed length, the same in every run and for every system."""

import random

SMALLEST_VOCABULARY = 32000


def fixed_prompts(num_prompts: int, num_tokens: int) -> list[list[int]]:
    """Makes prompts of token ids that every model measured here has, special tokens excepted."""
    draw = random.Random(0)
    return [
        [draw.randrange(1000, SMALLEST_VOCABULARY) for _ in range(num_tokens)]
        for _ in range(num_prompts)
    ]
