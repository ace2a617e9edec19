"""Our kernels as operators of torch, `torch.ops.stagecoach.*`, with fakes for `FakeTensorMode`.

Triton is imported when the first of them is launched. An operator launches one kernel, on CUDA or,
in Triton's interpreter (`TRITON_INTERPRET=1`), on the CPU. They are defined by `Library.define`:
what `torch.library.custom_op` adds for gradients costs more host time than a launch.
"""

import torch

MAX_SPLITS = 32
"""Most parts that a sequence is cut into; `merge_splits` reads so many at once."""

_LIBRARY = torch.library.Library("stagecoach", "DEF")
_LIBRARY.define(
    "decode_splits(Tensor query, Tensor keys, Tensor values, Tensor? key_scales,"
    " Tensor? value_scales, Tensor rows, Tensor tables, Tensor starts, Tensor lengths,"
    " float scaling, int? sliding_window, float? softcap, Tensor? sinks, int num_splits,"
    " Tensor(a!) output,"
    " Tensor(b!)? partial, Tensor(c!)? log_sums, int block_size) -> ()"
)
_LIBRARY.define(
    "merge_splits(Tensor partial, Tensor log_sums, Tensor rows, Tensor(a!) output) -> ()"
)
_LIBRARY.define(
    "prefill(Tensor query, Tensor keys, Tensor values, Tensor? key_scales,"
    " Tensor? value_scales, Tensor table, int first_row, int num_tokens, int start_position,"
    " float scaling, int? sliding_window, float? softcap, Tensor? sinks, Tensor(a!) output,"
    " int block_size, bool on_tensor_cores) -> ()"
)
_LIBRARY.define(
    "rotate_and_store(Tensor heads, Tensor cos, Tensor swapped_sin, Tensor? head_norm, float eps,"
    " Tensor slots, Tensor(a!) keys, Tensor(b!) values, Tensor(c!)? key_scales,"
    " Tensor(d!)? value_scales) -> Tensor"
)
_LIBRARY.define(
    "store_coded(Tensor heads, Tensor slots, Tensor(a!) pool, Tensor(b!) pool_scales) -> ()"
)
_LIBRARY.define("silu_and_mul(Tensor gate_up) -> Tensor")
_LIBRARY.define(
    "add_rms_norm(Tensor hidden, Tensor update, Tensor weight, float scale, float eps)"
    " -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "grouped_product(Tensor hidden, Tensor codes, Tensor scales, Tensor? offsets, int num_bits)"
    " -> Tensor"
)
_LIBRARY.define(
    "unpack_groups(Tensor codes, Tensor scales, Tensor? offsets, int num_columns, int num_bits,"
    " ScalarType dtype) -> Tensor"
)


def _decode_splits(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    rows: torch.Tensor,
    tables: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    num_splits: int,
    output: torch.Tensor,
    partial: torch.Tensor | None,
    log_sums: torch.Tensor | None,
    block_size: int,
) -> None:
    from stage_server.kernels.jit.paged_decode import (
        decode_constants,
        decode_options,
        decode_splits_kernel,
    )

    _, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    decode_splits_kernel[(len(rows), num_kv_heads, num_splits)](
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
        0.0 if softcap is None else softcap,
        0 if sliding_window is None else sliding_window,
        **decode_constants(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            itemsize=query.itemsize,
            has_window=sliding_window is not None,
            has_softcap=softcap is not None,
            has_sinks=sinks is not None,
            has_scales=key_scales is not None,
            is_split=num_splits > 1,
        ),
        **decode_options(),
    )


def _merge_splits(
    partial: torch.Tensor, log_sums: torch.Tensor, rows: torch.Tensor, output: torch.Tensor
) -> None:
    from stage_server.kernels.jit.paged_decode import merge_constants, merge_splits_kernel

    num_sequences, num_heads, num_splits, head_dim = partial.shape
    merge_splits_kernel[(num_sequences, num_heads)](
        partial,
        log_sums,
        rows,
        output,
        num_splits,
        **merge_constants(num_heads=num_heads, head_dim=head_dim, max_splits=MAX_SPLITS),
    )


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
    table: torch.Tensor,
    first_row: int,
    num_tokens: int,
    start_position: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    output: torch.Tensor,
    block_size: int,
    on_tensor_cores: bool,
) -> None:
    from stage_server.kernels.jit.paged_prefill import (
        prefill_constants,
        prefill_kernel,
        prefill_options,
    )

    _, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    constants = prefill_constants(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        on_tensor_cores=on_tensor_cores,
        has_window=sliding_window is not None,
        has_softcap=softcap is not None,
        has_sinks=sinks is not None,
        has_scales=key_scales is not None,
    )
    num_rows = num_tokens * (num_heads // num_kv_heads)
    prefill_kernel[(-(-num_rows // constants["ROWS"]), num_kv_heads)](
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
        0.0 if softcap is None else softcap,
        0 if sliding_window is None else sliding_window,
        **constants,
        **prefill_options(on_tensor_cores=on_tensor_cores),
    )


def _rotate_and_store(
    heads: torch.Tensor,
    cos: torch.Tensor,
    swapped_sin: torch.Tensor,
    head_norm: torch.Tensor | None,
    eps: float,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
) -> torch.Tensor:
    from stage_server.kernels.jit.rotate_and_store import rotate_and_store_kernel, rotate_constants

    num_tokens, num_all_heads, head_dim = heads.shape
    num_queries = num_all_heads - 2 * keys.shape[1]
    query = heads.new_empty(num_tokens, num_queries, head_dim)
    constants = rotate_constants(
        num_heads=num_queries,
        num_kv_heads=keys.shape[1],
        head_dim=head_dim,
        rotary_stride=cos.stride(0),
        has_norm=head_norm is not None,
        has_scales=key_scales is not None,
    )
    rotate_and_store_kernel[(num_tokens, -(-num_all_heads // constants["BLOCK_HEADS"]))](
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
        **constants,
    )
    return query


def _store_coded(
    heads: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor, pool_scales: torch.Tensor
) -> None:
    from stage_server.kernels.jit.coded_heads import store_coded_constants, store_coded_kernel

    num_tokens, num_heads, head_dim = heads.shape
    token_stride, head_stride, _ = heads.stride()
    constants = store_coded_constants(num_heads=num_heads, head_dim=head_dim)
    store_coded_kernel[(num_tokens, -(-num_heads // constants["BLOCK_HEADS"]))](
        heads, slots, pool, pool_scales, token_stride, head_stride, **constants
    )


def _silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    from stage_server.kernels.jit.elementwise import silu_and_mul_kernel, silu_constants

    output = _fake_silu_and_mul(gate_up)
    num_tokens, size = output.shape
    constants = silu_constants(size)
    silu_and_mul_kernel[(num_tokens, -(-size // constants["BLOCK"]))](gate_up, output, **constants)
    return output


def _add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, scale: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from stage_server.kernels.jit.elementwise import (
        add_rms_norm_kernel,
        norm_constants,
        norm_options,
    )

    added, normed = _fake_add_rms_norm(hidden, update, weight, scale, eps)
    num_tokens, size = hidden.shape
    add_rms_norm_kernel[(num_tokens,)](
        hidden,
        update,
        weight,
        added,
        normed,
        scale,
        eps,
        **norm_constants(size),
        **norm_options(size),
    )
    return added, normed


def _grouped_product(
    hidden: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    num_bits: int,
) -> torch.Tensor:
    from stage_server.kernels.jit.grouped_linear import (
        few_tokens_constants,
        few_tokens_kernel,
        one_token_constants,
        one_token_kernel,
    )

    output = _fake_grouped_product(hidden, codes, scales, offsets, num_bits)
    num_tokens, num_columns = hidden.shape
    num_rows = len(codes)
    if num_tokens == 1:
        constants = one_token_constants(num_columns=num_columns, num_bits=num_bits)
        one_token_kernel[(-(-num_rows // constants["ROWS"]),)](
            hidden, codes, scales, offsets, output, num_rows, **constants
        )
        return output
    constants = few_tokens_constants(
        num_tokens=num_tokens, num_columns=num_columns, num_bits=num_bits
    )
    few_tokens_kernel[(-(-num_rows // constants["ROWS"]),)](
        hidden, codes, scales, offsets, output, num_tokens, num_rows, **constants
    )
    return output


def _unpack_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    num_columns: int,
    num_bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    from stage_server.kernels.jit.grouped_linear import unpack_constants, unpack_kernel

    output = _fake_unpack_groups(codes, scales, offsets, num_columns, num_bits, dtype)
    num_rows, num_groups = scales.shape
    constants = unpack_constants(num_columns=num_columns, num_bits=num_bits)
    grid = -(-num_rows // constants["ROWS"]), -(-num_groups // constants["TILE_GROUPS"])
    unpack_kernel[grid](codes, scales, offsets, output, num_rows, **constants)
    return output


def _fake_nothing(*_: object) -> None:
    """Stands for operators that return nothing, where shapes alone are traced."""


def _fake_rotate_and_store(
    heads: torch.Tensor,
    cos: torch.Tensor,
    swapped_sin: torch.Tensor,
    head_norm: torch.Tensor | None,
    eps: float,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None,
    value_scales: torch.Tensor | None,
) -> torch.Tensor:
    num_tokens, num_all_heads, head_dim = heads.shape
    return heads.new_empty(num_tokens, num_all_heads - 2 * keys.shape[1], head_dim)


def _fake_silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    num_tokens, size = gate_up.shape
    return gate_up.new_empty(num_tokens, size // 2)


def _fake_add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, scale: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(hidden), torch.empty_like(hidden)


def _fake_grouped_product(
    hidden: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    num_bits: int,
) -> torch.Tensor:
    return hidden.new_empty(len(hidden), len(codes))


def _fake_unpack_groups(
    codes: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    num_columns: int,
    num_bits: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty(len(codes), num_columns, dtype=dtype)


for _name, _launch, _fake in (
    ("decode_splits", _decode_splits, _fake_nothing),
    ("merge_splits", _merge_splits, _fake_nothing),
    ("prefill", _prefill, _fake_nothing),
    ("rotate_and_store", _rotate_and_store, _fake_rotate_and_store),
    ("store_coded", _store_coded, _fake_nothing),
    ("silu_and_mul", _silu_and_mul, _fake_silu_and_mul),
    ("add_rms_norm", _add_rms_norm, _fake_add_rms_norm),
    ("grouped_product", _grouped_product, _fake_grouped_product),
    ("unpack_groups", _unpack_groups, _fake_unpack_groups),
):
    for _key in ("CUDA", "CPU"):
        _LIBRARY.impl(_name, _launch, _key)
    torch.library.register_fake(f"stagecoach::{_name}", _fake, lib=_LIBRARY)
