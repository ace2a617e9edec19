"""Buffers that always lie in the same place, and a forward of sequences that decode against them.

What a CUDA graph has recorded reads and writes the same addresses each time. A step of fewer
sequences than the graph has rows leaves rows over. They write their KV to a block that no sequence
holds, attend to nothing, and what they compute is dropped.
"""

import torch

from stage_server.core.batch import SequenceSlice
from stage_server.kv_cache.kv_pool import KvPool
from stage_server.kv_cache.paged_attention import PagedAttention
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.kv_cache.step_indices import DecodeIndices, StepIndices
from stage_server.model.layer_stack import LayerStack

_NAMES = _POSITIONS, _SLOTS, _ROWS, _LENGTHS, _STARTS = range(5)
"""Numbers of each row, in the order in which `StepIndices` packs them."""


class StaticDecodes:
    """The layers of a stage over steps in which every sequence runs one token.

    Args:
        stack: The layers; they have kernels.
        pool: Where their KV lies.
        scratch_block: A block of the pool that no sequence ever holds.
        max_rows: Sequences of the largest step.
        max_num_positions: Positions of the longest sequence.
    """

    def __init__(
        self,
        stack: LayerStack,
        pool: KvPool,
        *,
        scratch_block: int,
        max_rows: int,
        max_num_positions: int,
    ) -> None:
        assert stack.kernels is not None, "only kernels read the lengths where they lie"
        self.max_num_positions = max_num_positions
        self._stack = stack
        self._pool = pool
        self._scratch_slot = scratch_block * pool.block_size
        device = stack.device
        self._numbers = torch.zeros(len(_NAMES), max_rows, dtype=torch.int64, device=device)
        self._numbers[_SLOTS].fill_(self._scratch_slot)
        torch.arange(max_rows, out=self._numbers[_ROWS])
        num_blocks = -(-max_num_positions // pool.block_size)
        self._tables = torch.zeros(max_rows * num_blocks, dtype=torch.int64, device=device)
        self._inputs = (
            torch.zeros(max_rows, dtype=torch.int64, device=device)
            if stack.is_first
            else torch.zeros(
                max_rows, stack.config.hidden_size, dtype=stack.wire_dtype, device=device
            )
        )

    def fill(self, indices: StepIndices, num_rows: int) -> None:
        """Takes over a step, behind whatever the device has to do before.

        Args:
            indices: Indices of sequences that run one token each, all of them one group.
            num_rows: Rows of the forward that comes next, at least as many as sequences.
        """
        (decodes,) = indices.decodes
        count = len(decodes.rows)
        numbers = indices.packed[: len(_NAMES) * count].view(-1, count)
        self._numbers[:, :count].copy_(numbers)
        if count < num_rows:
            self._numbers[_SLOTS, count:num_rows].fill_(self._scratch_slot)
            self._numbers[_LENGTHS, count:num_rows].zero_()
        # What lies behind them, or beyond a sequence's length, is never read.
        self._tables[: len(decodes.tables)].copy_(decodes.tables)
        self._inputs[:count].copy_(indices.inputs)

    def forward(self, num_rows: int) -> torch.Tensor:
        """Runs the layers over the first rows of the buffers.

        Launches the same work each time, and reads and writes the same memory but for what it
        allocates.

        Returns:
            `[num_rows, hidden_size]`, in the compute dtype.
        """
        numbers = self._numbers[:, :num_rows]
        nothing = self._numbers[0, :0]
        indices = StepIndices(
            positions=numbers[_POSITIONS],
            num_positions=self.max_num_positions,
            slots=numbers[_SLOTS],
            logits_rows=nothing,
            logits_numbers=nothing,
            new_blocks=nothing,
            copy_sources=nothing,
            copy_targets=nothing,
            groups=(tuple(range(num_rows)),),
            decodes=(
                DecodeIndices(
                    numbers[_ROWS],
                    numbers[_LENGTHS],
                    numbers[_STARTS],
                    self._tables,
                    self.max_num_positions,
                ),
            ),
            chunk_tables=(),
            inputs=self._inputs[:num_rows],
            packed=nothing,
        )
        # Attention by kernels takes from these that no row belongs to a chunk.
        slices = [SequenceSlice(row, 0, 1) for row in range(num_rows)]
        plan = BlockPlan(block_tables=((0,),) * num_rows, new_blocks=(), copies=())
        attention = PagedAttention(self._pool, slices, plan, indices, self._stack.kernels)
        return self._stack.forward(
            self._stack.first_hidden(indices.inputs, indices.positions),
            indices.positions,
            indices.num_positions,
            attention,
        )
