"""How matrices in 4 or 8 bits are multiplied on a card."""

from stagecoach.roofline.capability import Capability

MAX_FEW_TOKENS = 64
"""Tokens that are multiplied by packed codes; for more, rows are unpacked first."""

UNPACKED_BYTES = 32 << 20
"""Numbers that are unpacked at once."""


def max_few_tokens(capability: Capability) -> int:
    """Returns how many tokens a card multiplies by packed codes.

    Triton multiplies matrices on tensor cores from compute capability 8.0 on; before, codes are
    multiplied by one token only.
    """
    return MAX_FEW_TOKENS if capability.has_bfloat16 else 1
