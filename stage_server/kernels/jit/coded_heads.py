"""Rounds heads to codes of 8 bits, and writes them to the KV pool.

See `stage_server.kv_cache.coded_heads` for what codes, scales and offsets are.
"""

from typing import Any

import triton
import triton.language as tl

MAX_CODE = tl.constexpr(127)
INFINITY = tl.constexpr(float("inf"))

_BLOCK_ELEMENTS = 1024
"""About as many as one program takes."""


@triton.jit
def coded(numbers, in_head):
    """Returns codes in float32, scales and offsets; `[heads, dims]`, `[heads, 1]` twice."""
    # Extremes pass over NaN; between infinite ones it is NaN that is halfway.
    is_number = numbers == numbers
    high = tl.where(is_number & in_head, numbers, tl.where(in_head, INFINITY, -INFINITY))
    low = tl.where(is_number & in_head, numbers, tl.where(in_head, -INFINITY, INFINITY))
    high, low = tl.max(high, 1, keep_dims=True), tl.min(low, 1, keep_dims=True)
    offset = ((low + high) / 2).to(tl.float16)
    centre = offset.to(tl.float32)
    scale = (tl.maximum(high - centre, centre - low) / MAX_CODE).to(tl.float16)
    step = scale.to(tl.float32)
    codes = tl.floor((numbers - centre) / tl.where(step > 0, step, 1.0) + 0.5)
    return tl.minimum(tl.maximum(codes, -MAX_CODE), MAX_CODE), scale, offset


@triton.jit(
    # Where there is one token or one head, its stride is any number, such as one of the tokens.
    do_not_specialize=["token_stride", "head_stride"],
    do_not_specialize_on_alignment=["heads", "slots"],
)
def store_coded_kernel(
    heads,
    slots,
    codes,
    scales,
    token_stride,
    head_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
):
    """Takes `BLOCK_HEADS` heads of one row. Grid: rows, blocks of heads."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS))[:, None]
    dim = tl.arange(0, DIMS)[None, :]
    is_there = (head < NUM_HEADS) & (dim < HEAD_DIM)
    given = tl.load(
        heads + token * token_stride + head * head_stride + dim, mask=is_there, other=0.0
    )
    stored, scale, offset = coded(given.to(tl.float32), dim < HEAD_DIM)
    place = tl.load(slots + token).to(tl.int64) * NUM_HEADS + head
    tl.store(codes + place * HEAD_DIM + dim, stored.to(tl.int8), mask=is_there)
    tl.store(scales + 2 * place, scale, mask=head < NUM_HEADS)
    tl.store(scales + 2 * place + 1, offset, mask=head < NUM_HEADS)


def store_coded_constants(*, num_heads: int, head_dim: int) -> dict[str, Any]:
    """Returns what `store_coded_kernel` is compiled for."""
    return {"NUM_HEADS": num_heads, **head_constants(head_dim)}


def head_constants(head_dim: int) -> dict[str, int]:
    """Returns how many elements a head has and takes room for, and how many a program takes."""
    dims = triton.next_power_of_2(head_dim)
    return {
        "HEAD_DIM": head_dim,
        "DIMS": dims,
        "BLOCK_HEADS": max(1, _BLOCK_ELEMENTS // dims),
    }
