"""What emulated stages generate: a function of the whole sequence, and of nothing else.

Each token is mixed into a hash of those before it. The most likely next token of a sequence is its
hash, modulo the vocabulary.
"""

EMPTY_HASH = 0x9E3779B9
"""Hash of a sequence without tokens."""

_MULTIPLIER = 0x85EBCA6B
_MASK = 0xFFFFFFFF


def mix(value: int, token_id: int) -> int:
    """Returns the hash of a sequence from that of all but its last token."""
    value = ((value ^ token_id) * _MULTIPLIER + token_id) & _MASK
    return value ^ (value >> 15)
