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
def decoded_scores(score, sums, scales, place, is_read):
    """Returns scores of keys from products with their codes.

    See `stage_server.kv_cache.coded_heads`; `sums` are those of the queries' elements.
    """
    scale, offset = scales_at(scales, place, is_read)
    return score * scale[None, :] + sums[:, None] * offset[None, :]


@triton.jit
def weights_of_codes(weight, scales, place, is_read):
    """Returns weights of the codes of values, a factor on their product, and what is added to it.

    Scales may be so small that a weight times one is lost in 16 bits: they are divided by the
    largest.
    """
    scale, offset = scales_at(scales, place, is_read)
    largest = tl.max(scale, 0)
    shares = scale / tl.where(largest > 0, largest, 1.0)
    return weight * shares[None, :], largest, tl.sum(weight * offset[None, :], 1)[:, None]


@triton.jit
def scales_at(scales, place, is_read):
    """Returns scales and offsets of coded heads in float32."""
    scale = tl.load(scales + 2 * place, mask=is_read, other=0.0)
    offset = tl.load(scales + 2 * place + 1, mask=is_read, other=0.0)
    return scale.to(tl.float32), offset.to(tl.float32)
