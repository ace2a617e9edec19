"""What else lies between a layer's matrices: the gate of an MLP, and a residual with its norm."""

from typing import Any

import triton
import triton.language as tl

_SILU_BLOCK = 1024
"""Elements that one program of `silu_and_mul_kernel` takes."""


@triton.jit
def silu_and_mul_kernel(gate_up, output, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Takes `BLOCK` elements of one row. Grid: rows, blocks of elements."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    row = gate_up + token * 2 * SIZE + column
    gate = tl.load(row, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(row + SIZE, mask=inside, other=0.0).to(tl.float32)
    gated = (gate * tl.sigmoid(gate) * up).to(output.dtype.element_ty)
    tl.store(output + token * SIZE + column, gated, mask=inside)


@triton.jit(do_not_specialize=["scale", "eps"])
def add_rms_norm_kernel(
    hidden,
    update,
    weight,
    added,
    normed,
    scale,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes one row. Grid: rows."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    at = token * SIZE + column
    given = tl.load(hidden + at, mask=inside, other=0.0)
    change = tl.load(update + at, mask=inside, other=0.0)
    # The norm is of what is kept, so of the rounded sum.
    total = (given.to(tl.float32) + scale * change.to(tl.float32)).to(given.dtype)
    tl.store(added + at, total, mask=inside)
    total = total.to(tl.float32)
    factor = tl.rsqrt(tl.sum(total * total, 0) / SIZE + eps)
    weights = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + at, (total * factor * weights).to(given.dtype), mask=inside)


def silu_constants(size: int) -> dict[str, Any]:
    """Returns what `silu_and_mul_kernel` is compiled for."""
    return {"SIZE": size, "BLOCK": _SILU_BLOCK}


def norm_constants(size: int) -> dict[str, Any]:
    """Returns what `add_rms_norm_kernel` is compiled for."""
    return {"SIZE": size, "BLOCK": triton.next_power_of_2(size)}


def norm_options(size: int) -> dict[str, int]:
    """Returns how `add_rms_norm_kernel` is compiled: up to 32 elements a thread."""
    return {"num_warps": min(16, max(4, triton.next_power_of_2(size) // 1024))}
