"""Random numbers that depend on nothing but a seed and a position."""

import struct
from hashlib import blake2b


def uniform(seed: int, position: int) -> float:
    """Returns the number in [0, 1) that belongs to a seed and a position.

    Counter-based, after Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011),
    with BLAKE2b for their Philox because one number costs a microsecond. There is no state, so a
    token is drawn alike in any batch, after a preemption and after a replay.

    Args:
        seed: In [0, 2**64).
        position: Number of tokens generated before; in [0, 2**64).
    """
    digest = blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53
