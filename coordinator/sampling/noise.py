"""The noise of a draw: for each token a number that depends on seed, position and token id alone.

A token is drawn by the Gumbel-max trick: the one with the highest `logit / temperature + G`, where
G has Gumbel's distribution, is distributed as softmax says (Maddison et al., "A* Sampling",
arXiv:1411.0030). Counter-based, after Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3"
(SC 2011): there is no state, so a draw is the same in any batch, after a preemption and after a
replay, and rounding of the logits changes it only when two tokens are as good as equal.

`stagecoach.v1.LogitsRequest.noise_key` specifies the numbers to the bit; the last stage computes
the same ones.
"""

import struct
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def noise_key(seed: int, position: int) -> int:
    """Names the numbers that belong to a seed and a position.

    Args:
        seed: In [0, 2**64).
        position: Number of tokens generated before; in [0, 2**64).

    Returns:
        A number in [0, 2**64).
    """
    digest = blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(key: int, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Returns the number in (0, 1) of each token.

    These are outputs of SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number
    Generators", OOPSLA 2014), one a token id. Exact: the same on any machine.

    Args:
        key: See `noise_key`.
        token_ids: `[num_tokens]`, any.
    """
    x = token_ids.astype(np.uint64)
    x *= np.uint64(_GAMMA)
    x += np.uint64((key + _GAMMA) & _MASK)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(12)
    return (x.astype(np.float64) + 0.5) * 2.0**-52


def gumbels(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns Gumbel noise for numbers in (0, 1): the smaller the number, the higher the noise."""
    return -np.log(-np.log1p(-numbers))
