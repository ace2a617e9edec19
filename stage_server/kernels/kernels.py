"""What the stage calls of our kernels, with types, shapes and the launches' sizes."""

from dataclasses import dataclass
from typing import Self

import torch

from stage_server.kernels.operators import MAX_SPLITS  # defines torch.ops.stagecoach

_MIN_SPLIT_TOKENS = 128
"""Positions that are worth a part of their own."""

_PROGRAMS_PER_PROCESSOR = 4
"""Programs of decode attention that keep a streaming multiprocessor busy."""

_TENSOR_CORE_CAPABILITY = 8
"""Lowest major compute capability on whose tensor cores Triton multiplies."""

_TENSOR_CORE_ITEMSIZE = 2
"""Bytes of the elements that it multiplies there; it has no product of float32 that is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels that run on the stage's device; what launches a step needs is constant in them.

    Every tensor is contiguous and on that device. Every sum is taken in float32.
    """

    num_processors: int
    """Streaming multiprocessors of the device."""
    has_tensor_cores: bool = True
    """Whether matrices of 16 bits are multiplied on tensor cores."""

    @classmethod
    def of(cls, device: torch.device) -> Self:
        """Returns the kernels of a CUDA device."""
        properties = torch.cuda.get_device_properties(device)
        return cls(
            num_processors=properties.multi_processor_count,
            has_tensor_cores=properties.major >= _TENSOR_CORE_CAPABILITY,
        )

    def num_splits(self, num_sequences: int, num_kv_heads: int, max_num_positions: int) -> int:
        """Returns into how many parts `decode` cuts every sequence.

        Depends on no length, so a CUDA graph may hold the launch.

        Args:
            num_sequences: Sequences of the launch.
            num_kv_heads: Key heads.
            max_num_positions: Positions of the longest sequence that there may be.
        """
        wanted = _PROGRAMS_PER_PROCESSOR * self.num_processors
        parts = -(-wanted // (num_sequences * num_kv_heads))
        return max(1, min(parts, -(-max_num_positions // _MIN_SPLIT_TOKENS), MAX_SPLITS))

    def decode(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        rows: torch.Tensor,
        tables: torch.Tensor,
        starts: torch.Tensor,
        lengths: torch.Tensor,
        max_length: int,
        block_size: int,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        output: torch.Tensor,
        sinks: torch.Tensor | None = None,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
    ) -> None:
        """Attends one query a sequence to the sequence's keys, and writes the rows of `output`.

        Launches one kernel, or two where sequences are cut into parts.

        Args:
            query: `[num_tokens, num_heads, head_dim]`: float32, float16 or bfloat16.
            keys: `[num_slots, num_kv_heads, head_dim]`, of any of those, or int8 with scales.
            values: As `keys`.
            rows: int64 `[num_sequences]`: each sequence's row of `query` and `output`.
            tables: int64 `[num_blocks]`: blocks of the sequences, one block table behind the
                other, each in order.
            starts: int64 `[num_sequences]`: where the table of each begins in `tables`; that of a
                sequence of length 0 is not read.
            lengths: int64 `[num_sequences]`: positions of each, the query's included; 0: the row
                becomes zeros.
            max_length: No length is above this; decides with the other sizes what is launched.
            block_size: Slots a block.
            scaling: Factor on the scores.
            sliding_window: The query sees the last this many positions; None: all.
            softcap: Scores become `softcap * tanh(score / softcap)`; None: unchanged.
            output: As `query`; other rows stay as they are.
            sinks: `[num_heads]`: a score of each head beside those of the positions, which has no
                value; None: there is none.
            key_scales: float16 `[num_slots, num_kv_heads, 2]`: scale and offset of each head of
                int8 keys; None: no int8.
            value_scales: As `key_scales`.
        """
        num_sequences = len(rows)
        _, num_heads, head_dim = query.shape
        num_splits = self.num_splits(num_sequences, keys.shape[1], max_length)
        partial = log_sums = None
        if num_splits > 1:
            shape = (num_sequences, num_heads, num_splits)
            partial = query.new_empty(*shape, head_dim, dtype=torch.float32)
            log_sums = query.new_empty(shape, dtype=torch.float32)
        torch.ops.stagecoach.decode_splits(
            query,
            keys,
            values,
            key_scales,
            value_scales,
            rows,
            tables,
            starts,
            lengths,
            scaling,
            sliding_window,
            softcap,
            sinks,
            num_splits,
            output,
            partial,
            log_sums,
            block_size,
        )
        if num_splits > 1:
            torch.ops.stagecoach.merge_splits(partial, log_sums, rows, output)

    def prefill(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        table: torch.Tensor,
        first_row: int,
        num_tokens: int,
        start_position: int,
        block_size: int,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        output: torch.Tensor,
        sinks: torch.Tensor | None = None,
        key_scales: torch.Tensor | None = None,
        value_scales: torch.Tensor | None = None,
    ) -> None:
        """Attends a chunk of one sequence, each token up to itself; writes its rows of `output`.

        Launches one kernel, which takes no memory for scores.

        Args:
            query: `[num_rows, num_heads, head_dim]`, of a micro-batch: float32, float16 or
                bfloat16.
            keys: `[num_slots, num_kv_heads, head_dim]`, of any of those, or int8 with scales; has
                the chunk's own.
            values: As `keys`.
            table: int64 `[num_blocks]`: blocks of the sequence, in order.
            first_row: Where the chunk's rows of `query` and `output` begin.
            num_tokens: Tokens of the chunk, at least one.
            start_position: Position of the chunk's first token in the sequence.
            block_size: Slots a block.
            scaling: Factor on the scores.
            sliding_window: A token sees the last this many positions, itself included; None: all.
            softcap: Scores become `softcap * tanh(score / softcap)`; None: unchanged.
            output: As `query`; other rows stay as they are.
            sinks: `[num_heads]`: a score of each head beside those of the positions, which has no
                value; None: there is none.
            key_scales: float16 `[num_slots, num_kv_heads, 2]`: scale and offset of each head of
                int8 keys; None: no int8.
            value_scales: As `key_scales`.
        """
        torch.ops.stagecoach.prefill(
            query,
            keys,
            values,
            key_scales,
            value_scales,
            table,
            first_row,
            num_tokens,
            start_position,
            scaling,
            sliding_window,
            softcap,
            sinks,
            output,
            block_size,
            self.has_tensor_cores and query.itemsize == _TENSOR_CORE_ITEMSIZE,
        )


def rotate_and_store(
    heads: torch.Tensor,
    cos: torch.Tensor,
    swapped_sin: torch.Tensor,
    *,
    head_norm: torch.Tensor | None,
    eps: float,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Norms and rotates queries and keys, and writes keys and values into the pool.

    Args:
        heads: `[num_tokens, num_heads + 2 * num_kv_heads, head_dim]`: queries, keys, values.
        cos: `[num_tokens, head_dim]`, of the same dtype; rows may lie apart.
        swapped_sin: As `cos`, with the same strides; see `RotaryRows`.
        head_norm: `[num_heads + num_kv_heads, head_dim]`: weights of an RMS norm of each query
            and key before it is rotated; None: there is none.
        eps: Epsilon of that norm.
        slots: int64 `[num_tokens]`: where each row goes.
        keys: `[num_slots, num_kv_heads, head_dim]`, of any dtype to round to, or int8 with scales;
            written.
        values: As `keys`.
        key_scales: float16 `[num_slots, num_kv_heads, 2]`: scale and offset of each head of int8
            keys, written; None: no int8.
        value_scales: As `key_scales`.

    Returns:
        The queries, `[num_tokens, num_heads, head_dim]`.
    """
    query: torch.Tensor = torch.ops.stagecoach.rotate_and_store(
        heads, cos, swapped_sin, head_norm, eps, slots, keys, values, key_scales, value_scales
    )
    return query


def store_coded(
    heads: torch.Tensor, slots: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> None:
    """Rounds keys or values to codes of 8 bits, and writes them into the pool.

    Args:
        heads: `[num_tokens, num_kv_heads, head_dim]`; the elements of a head lie side by side.
        slots: int64 `[num_tokens]`: where each row goes.
        codes: int8 `[num_slots, num_kv_heads, head_dim]`; written.
        scales: float16 `[num_slots, num_kv_heads, 2]`: scale and offset of each head; written.
    """
    torch.ops.stagecoach.store_coded(heads, slots, codes, scales)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of `[num_tokens, 2 * size]`, gate first; `[num_tokens, size]`."""
    output: torch.Tensor = torch.ops.stagecoach.silu_and_mul(gate_up)
    return output


def add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, *, scale: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns `hidden + scale * update`, and the RMS norm of that.

    Args:
        hidden: `[num_tokens, hidden_size]`.
        update: As `hidden`.
        weight: `[hidden_size]`, of the norm.
        scale: Factor on the update.
        eps: Added to the mean of squares.
    """
    added, normed = torch.ops.stagecoach.add_rms_norm(hidden, update, weight, scale, eps)
    return added, normed
