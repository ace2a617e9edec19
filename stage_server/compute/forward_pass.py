"""Runs micro-batches through a stage's layers, against a pool of KV blocks."""

import torch

from stage_server.compute.host_copies import on_host
from stage_server.compute.logits import WantedLogits, reduce_logits
from stage_server.core.batch import ForwardBatch, ForwardOutput
from stage_server.core.torch_dtypes import torch_dtype
from stage_server.kv_cache.kv_pool import KvPool
from stage_server.kv_cache.paged_attention import PagedAttention
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.kv_cache.step_indices import StepIndices
from stage_server.model.layer_stack import LayerStack


class ForwardPass:
    """The arithmetic of a stage; which blocks belong to which slot is decided elsewhere.

    Args:
        stack: The stage's layers.
        pool: Where their KV lies.
    """

    def __init__(self, stack: LayerStack, pool: KvPool) -> None:
        self._stack = stack
        self._pool = pool
        self._compute_dtype = torch_dtype(stack.precision.compute)
        self._wire_dtype = torch_dtype(stack.precision.wire)

    @torch.inference_mode()
    def run(self, batch: ForwardBatch, plan: BlockPlan) -> ForwardOutput:
        """Computes a micro-batch, and writes its KV. To run it again changes nothing.

        Args:
            batch: At least one slice; slot operations are not looked at.
            plan: Has the blocks of each slice. Those that are new or copied are made ready first.
        """
        kernels, pool = self._stack.kernels, self._pool
        wanted = WantedLogits.by(batch.logits)
        indices = StepIndices.of(
            batch.slices,
            plan,
            batch.inputs,
            block_size=pool.block_size,
            device=self._stack.device,
            logits_rows=[request.row for request in batch.logits],
            logits_numbers=wanted.numbers(),
            max_gathered_tokens=None if kernels is not None else pool.max_gathered_tokens,
        )
        pool.prepare(indices)
        attention = PagedAttention(pool, batch.slices, plan, indices, kernels)
        hidden = self._hidden(indices.inputs)
        hidden = self._stack.forward(hidden, indices.positions, indices.num_positions, attention)
        if not self._stack.is_last:
            return ForwardOutput(hidden_states=on_host(hidden.to(self._wire_dtype)))
        if not batch.logits:
            return ForwardOutput()
        logits = self._stack.logits(hidden[indices.logits_rows])
        return ForwardOutput(logits=reduce_logits(logits, wanted, indices.logits_numbers))

    def _hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        """What goes into the first layer, `[num_tokens, hidden_size]`."""
        return self._stack.embed(inputs) if self._stack.is_first else inputs.to(self._compute_dtype)
