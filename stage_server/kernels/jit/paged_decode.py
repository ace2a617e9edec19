"""Decode attention over paged KV with split KV (Flash-Decoding): every key and value is read once.

One program takes one sequence, one key head and one part of the sequence's positions. Parts that
are empty read nothing. Where there is one part, it writes the output; else `merge_splits_kernel`
joins the parts by their log-sum-exp.
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

_NUM_WARPS = 4
_NUM_STAGES = 2


@triton.jit(
    do_not_specialize=["scaling", "softcap", "window"],
    do_not_specialize_on_alignment=["rows", "tables", "starts", "lengths"],
)
def decode_splits_kernel(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    rows,
    tables,
    starts,
    lengths,
    sinks,
    output,
    partial,
    log_sums,
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
    IS_SPLIT: tl.constexpr,
):
    """Attends one sequence's query heads of one key head to one part of its positions.

    Grid: sequences, key heads, parts. `output` or `partial` and `log_sums` are written.
    """
    sequence, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_splits = tl.num_programs(2)
    group: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    length = tl.load(lengths + sequence).to(tl.int32)
    row_of_query = tl.load(rows + sequence).to(tl.int64)
    table = tables + tl.load(starts + sequence)
    first_seen = 0
    if HAS_WINDOW:
        first_seen = tl.maximum(length - window, 0)
    first_tile = first_seen // TILE
    tiles_per_split = tl.cdiv(tl.cdiv(length, TILE) - first_tile, num_splits)
    start = (first_tile + split * tiles_per_split) * TILE
    stop = tl.minimum(start + tiles_per_split * TILE, length)

    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    head = kv_head * group + row
    is_query = (row[:, None] < group) & (dim[None, :] < HEAD_DIM)
    of_query = (row_of_query * NUM_HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
    queries = tl.load(query + of_query, mask=is_query, other=0.0)
    if HAS_SCALES:
        sums = tl.sum(queries.to(tl.float32), 1)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if HAS_SINKS:
        # Of one part, which is empty only where all are.
        sink = tl.load(sinks + head, mask=row < group, other=0.0).to(tl.float32)
        highest = tl.where(split == 0, sink, highest)
        total = tl.where(split == 0, total + 1.0, total)
    result = tl.zeros([ROWS, DIMS], tl.float32)
    for first in range(start, stop, TILE):
        position = first + tl.arange(0, TILE)
        is_seen = (position >= first_seen) & (position < stop)
        is_loaded = is_seen[:, None] & (dim[None, :] < HEAD_DIM)
        block = tl.load(table + position // BLOCK_SIZE, mask=is_seen, other=0).to(tl.int64)
        place = (block * BLOCK_SIZE + position % BLOCK_SIZE) * NUM_KV_HEADS + kv_head
        at = place[:, None] * HEAD_DIM + dim[None, :]
        key = tl.load(keys + at, mask=is_loaded, other=0.0).to(queries.dtype)
        score = tl.dot(queries, tl.trans(key), input_precision="ieee")
        if HAS_SCALES:
            score = decoded_scores(score, sums, key_scales, place, is_seen)
        score *= scaling
        if HAS_SOFTCAP:
            score = soft_capped(score, softcap)
        score = tl.where(is_seen[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        value = tl.load(values + at, mask=is_loaded, other=0.0).to(queries.dtype)
        result = result * shrink[:, None]
        if HAS_SCALES:
            weight, largest, added = weights_of_codes(weight, value_scales, place, is_seen)
            result += added
        product = tl.dot(weight.to(queries.dtype), value, input_precision="ieee")
        if HAS_SCALES:
            product *= largest
        result += product
        highest = higher

    is_empty = start >= stop
    total = tl.where(is_empty, 1.0, total)
    attended = result / total[:, None]
    if IS_SPLIT:
        part = (sequence * NUM_HEADS + head) * num_splits + split
        of_part = part[:, None] * HEAD_DIM + dim[None, :]
        tl.store(partial + of_part, attended, mask=is_query & (start < stop))
        log_sum = tl.where(is_empty, float("-inf"), highest + tl.log(total))
        tl.store(log_sums + part, log_sum, mask=row < group)
    else:
        tl.store(output + of_query, attended.to(output.dtype.element_ty), mask=is_query)


@triton.jit(
    do_not_specialize=["num_splits"],
    do_not_specialize_on_alignment=["rows"],
)
def merge_splits_kernel(
    partial,
    log_sums,
    rows,
    output,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Joins the parts of one head of one sequence. Grid: sequences, heads."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, DIMS)
    part = (sequence * NUM_HEADS + head) * num_splits + split
    log_sum = tl.load(log_sums + part, mask=split < num_splits, other=float("-inf"))
    # Finite, so that a sequence of empty parts has weights of zero and no NaN.
    weight = tl.exp(log_sum - tl.maximum(tl.max(log_sum, 0), -3.0e38))
    total = tl.sum(weight, 0)
    weight /= tl.where(total > 0, total, 1.0)
    # An empty part has written nothing but its log-sum-exp.
    is_there = (log_sum > float("-inf"))[:, None] & (dim[None, :] < HEAD_DIM)
    parts = tl.load(partial + part[:, None] * HEAD_DIM + dim[None, :], mask=is_there, other=0.0)
    merged = tl.sum(parts * weight[:, None], 0).to(output.dtype.element_ty)
    row = tl.load(rows + sequence).to(tl.int64)
    at = (row * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(output + at, merged, mask=dim < HEAD_DIM)


def decode_constants(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    itemsize: int,
    has_window: bool,
    has_softcap: bool,
    has_sinks: bool,
    has_scales: bool,
    is_split: bool,
) -> dict[str, Any]:
    """Returns what `decode_splits_kernel` is compiled for."""
    dims = product_size(head_dim)
    return {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "HEAD_DIM": head_dim,
        "ROWS": product_size(num_heads // num_kv_heads),
        "DIMS": dims,
        "BLOCK_SIZE": block_size,
        # Twice as much spills registers.
        "TILE": 32 if dims * itemsize <= 256 else 16,
        "HAS_WINDOW": has_window,
        "HAS_SOFTCAP": has_softcap,
        "HAS_SINKS": has_sinks,
        "HAS_SCALES": has_scales,
        "IS_SPLIT": is_split,
    }


def decode_options() -> dict[str, int]:
    """Returns how `decode_splits_kernel` is compiled."""
    return {"num_warps": _NUM_WARPS, "num_stages": _NUM_STAGES}


def merge_constants(*, num_heads: int, head_dim: int, max_splits: int) -> dict[str, Any]:
    """Returns what `merge_splits_kernel` is compiled for."""
    return {
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "DIMS": triton.next_power_of_2(head_dim),
        "SPLITS": max_splits,
    }
