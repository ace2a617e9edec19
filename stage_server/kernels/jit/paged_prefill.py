"""Attention of a prefill chunk over paged KV: scores never reach memory (FlashAttention).

A row is one query head of one token. One program takes one key head and a tile of its rows, those
of a token side by side, so that heads which share a key share its read. It reads the tiles of
positions that one of its rows sees, and no others.

The recurrence over tiles is that of FlashAttention-2 (arXiv:2307.08691).
"""

from typing import Any

import triton
import triton.language as tl

from stage_server.kernels.jit.scores import (
    decoded_scores,
    product_size,
    soft_capped,
    weights_of_codes,
)

_MAX_DIMS_OF_LARGE_TILES = 128

_NUM_STAGES = 2


@triton.jit(
    do_not_specialize=[
        "first_row",
        "num_tokens",
        "start_position",
        "scaling",
        "softcap",
        "window",
    ],
    do_not_specialize_on_alignment=["table"],
)
def prefill_kernel(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    sinks,
    output,
    first_row,
    num_tokens,
    start_position,
    scaling,
    softcap,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
):
    """Attends a tile of a chunk's rows of one key head. Grid: tiles of rows, key heads."""
    kv_head = tl.program_id(1)
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    # The last rows see the most, so they start first.
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS
    row, dim = first + tl.arange(0, ROWS), tl.arange(0, DIMS)
    token = tl.minimum(row // group, num_tokens - 1)  # rows behind the last token repeat it
    own = start_position + token
    last_token = tl.minimum((first + ROWS - 1) // group, num_tokens - 1)
    stop = start_position + last_token + 1
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(start_position + first // group + 1 - window, 0) // TILE * TILE

    head = (first_row + token).to(tl.int64) * NUM_HEADS + kv_head * group + row % group
    of_row = head[:, None] * HEAD_DIM + dim[None, :]
    is_dim = dim[None, :] < HEAD_DIM
    queries = tl.load(query + of_row, mask=is_dim, other=0.0)
    if HAS_SCALES:
        sums = tl.sum(queries.to(tl.float32), 1)
    # Finite, so that a row that sees nothing of a tile has weights of zero and no NaN.
    highest = tl.full([ROWS], -3.0e38, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        highest = tl.load(sinks + kv_head * group + row % group).to(tl.float32)
        total += 1.0
    result = tl.zeros([ROWS, DIMS], tl.float32)
    for first_position in range(start, stop, TILE):
        position = first_position + tl.arange(0, TILE)
        is_there = position < stop
        is_loaded = is_there[:, None] & is_dim
        block = tl.load(table + position // BLOCK_SIZE, mask=is_there, other=0).to(tl.int64)
        place = (block * BLOCK_SIZE + position % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
        at = place[:, None] * HEAD_DIM + dim[None, :]
        key = tl.load(keys + at, mask=is_loaded, other=0.0).to(queries.dtype)
        score = tl.dot(queries, tl.trans(key), input_precision="ieee")
        if HAS_SCALES:
            score = decoded_scores(score, sums, key_scales, place, is_there)
        score *= scaling
        if HAS_SOFTCAP:
            score = soft_capped(score, softcap)
        is_seen = position[None, :] <= own[:, None]
        if HAS_WINDOW:
            is_seen &= position[None, :] > own[:, None] - window
        score = tl.where(is_seen, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(values + at, mask=is_loaded, other=0.0).to(queries.dtype)
        result = result * shrink[:, None]
        if HAS_SCALES:
            weight, largest, added = weights_of_codes(weight, value_scales, place, is_there)
            result += added
        product = tl.dot(weight.to(queries.dtype), value, input_precision="ieee")
        if HAS_SCALES:
            product *= largest
        result += product
        highest = higher

    attended = (result / total[:, None]).to(output.dtype.element_ty)
    is_row = (row < num_tokens * group)[:, None] & is_dim
    tl.store(output + of_row, attended, mask=is_row)


def prefill_constants(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    on_tensor_cores: bool,
    has_window: bool,
    has_softcap: bool,
    has_sinks: bool,
    has_scales: bool,
) -> dict[str, Any]:
    """Returns what `prefill_kernel` is compiled for."""
    dims = product_size(head_dim)
    # With 256 elements a head, twice as many spill registers.
    rows = 16
    if on_tensor_cores:
        rows = 128 if dims <= _MAX_DIMS_OF_LARGE_TILES else 64
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "ROWS": rows,
        "DIMS": dims,
        "BLOCK_SIZE": block_size,
        "TILE": 32 if on_tensor_cores else 16,
        "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap,
        "HAS_SINKS": has_sinks,
        "HAS_SCALES": has_scales,
    }


def prefill_options(*, on_tensor_cores: bool) -> dict[str, int]:
    """Returns how `prefill_kernel` is compiled."""
    return {"num_warps": 8 if on_tensor_cores else 4, "num_stages": _NUM_STAGES}
