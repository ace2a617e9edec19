"""How matrices in 4 or 8 bits are multiplied on a card."""

MAX_FEW_TOKENS = 64
"""Tokens that are multiplied by packed codes; for more, rows are unpacked first."""

UNPACKED_BYTES = 32 << 20
"""Numbers that are unpacked at once."""
