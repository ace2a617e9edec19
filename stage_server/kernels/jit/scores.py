"""What every kernel of attention does with its scores."""

import triton
import triton.language as tl


@triton.jit
def soft_capped(score, softcap):
    """Returns `softcap * tanh(score / softcap)`."""
    return softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
