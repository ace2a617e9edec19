"""What every kernel of attention does with what it reads."""

import triton
import triton.language as tl

_MIN_SIZE = 16


def product_size(size: int) -> int:
    """Returns the rows, or columns, of a matrix product on tensor cores that has room for `size`.

    They are a power of two, and there are at least 16.
    """
    return max(_MIN_SIZE, int(triton.next_power_of_2(size)))


@triton.jit
def soft_capped(score, softcap):
    """Returns `softcap * tanh(score / softcap)`."""
    return softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)


@triton.jit
def scales_at(scales, place, is_read):
    """Returns scales of coded heads in float32; see `stage_server.kv_cache.coded_heads`."""
    return tl.load(scales + 2 * place, mask=is_read, other=0.0).to(tl.float32)


@triton.jit
def offsets_at(scales, place, is_read):
    """Returns their offsets."""
    return tl.load(scales + 2 * place + 1, mask=is_read, other=0.0).to(tl.float32)
