"""Norms and rotates queries and keys, and writes keys and values to the KV pool, in one pass.

A pool in 8 bits is written codes, which are rounded from what a plain pool would be written.
"""

from typing import Any

import triton
import triton.language as tl

from stage_server.kernels.jit.coded_heads import coded, head_constants


@triton.jit(
    do_not_specialize=["eps"],
    do_not_specialize_on_alignment=["slots"],
)
def rotate_and_store_kernel(
    heads,
    cos,
    swapped_sin,
    head_norm,
    slots,
    query,
    keys,
    values,
    key_scales,
    value_scales,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    ROTARY_STRIDE: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """Takes `BLOCK_HEADS` heads of one row. Grid: rows, blocks of heads."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    dim = tl.arange(0, DIMS)[None, :]
    half: tl.constexpr = HEAD_DIM // 2
    swapped = tl.where(dim < half, dim + half, dim - half)
    first_value: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    in_head = dim < HEAD_DIM
    is_there = in_head & (head < first_value + NUM_KV_HEADS)
    is_rotated = in_head & (head < first_value)
    row = heads + (token * (first_value + NUM_KV_HEADS) + head) * HEAD_DIM
    given = tl.load(row + dim, mask=is_there, other=0.0)
    straight = given.to(tl.float32)
    crossed = tl.load(row + swapped, mask=is_rotated, other=0.0).to(tl.float32)
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(straight * straight, 1, keep_dims=True) / HEAD_DIM + eps)
        weights = head_norm + head * HEAD_DIM
        straight *= factor * tl.load(weights + dim, mask=is_rotated, other=0.0).to(tl.float32)
        crossed *= factor * tl.load(weights + swapped, mask=is_rotated, other=0.0).to(tl.float32)
    of_rotary = token * ROTARY_STRIDE + dim
    cosine = tl.load(cos + of_rotary, mask=in_head, other=0.0).to(tl.float32)
    sine = tl.load(swapped_sin + of_rotary, mask=in_head, other=0.0).to(tl.float32)
    rotated = (straight * cosine + crossed * sine).to(given.dtype)
    of_query = (token * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(query + of_query, rotated, mask=in_head & (head < NUM_HEADS))
    place = tl.load(slots + token).to(tl.int64) * NUM_KV_HEADS
    key_head, value_head = place + head - NUM_HEADS, place + head - first_value
    is_key = (head >= NUM_HEADS) & (head < first_value)
    is_value = (head >= first_value) & (head < first_value + NUM_KV_HEADS)
    stored = tl.where(is_value, given, rotated)
    if HAS_SCALES:
        stored, scale, offset = coded(stored.to(tl.float32), in_head)
        tl.store(key_scales + 2 * key_head, scale, mask=is_key)
        tl.store(key_scales + 2 * key_head + 1, offset, mask=is_key)
        tl.store(value_scales + 2 * value_head, scale, mask=is_value)
        tl.store(value_scales + 2 * value_head + 1, offset, mask=is_value)
    numbers_of_pool = stored.to(keys.dtype.element_ty)
    tl.store(keys + key_head * HEAD_DIM + dim, numbers_of_pool, mask=is_key & in_head)
    tl.store(values + value_head * HEAD_DIM + dim, numbers_of_pool, mask=is_value & in_head)


def rotate_constants(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_stride: int,
    has_norm: bool,
    has_scales: bool,
) -> dict[str, Any]:
    """Returns what `rotate_and_store_kernel` is compiled for."""
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        **head_constants(head_dim),
        "ROTARY_STRIDE": rotary_stride,
        "HAS_NORM": has_norm,
        "HAS_SCALES": has_scales,
    }
