"""Runs micro-batches through a stage's layers, against a pool of KV blocks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from stage_server.compute.decode_graphs import DecodeGraphs
from stage_server.compute.hidden_sums import HiddenSums
from stage_server.compute.host_copies import HostCopy, Moment
from stage_server.compute.logits import LogitsReduction, WantedLogits
from stage_server.compute.prompt_logits import PromptLogitsReduction
from stage_server.core.batch import ForwardBatch, ForwardOutput, SequenceSlice
from stage_server.core.engine import Launched, UnfinishedForward
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

    Attributes:
        graphs: Run the layers of the decode steps that they hold; None: there are none.
    """

    def __init__(self, stack: LayerStack, pool: KvPool) -> None:
        self.stack = stack
        self.pool = pool
        self.graphs: DecodeGraphs | None = None

    @torch.inference_mode()
    def launch(self, batch: ForwardBatch, plan: BlockPlan) -> Launched:
        """Computes a micro-batch, and writes its KV. To run it again changes nothing.

        On CUDA everything is enqueued and nothing is waited for. On the CPU it is done at once.

        Args:
            batch: At least one slice; slot operations are not looked at.
            plan: Has the blocks of each slice. Those that are new or copied are made ready first.
        """
        stack, pool = self.stack, self.pool
        wanted = WantedLogits.by(batch.logits)
        numbers = wanted.numbers()
        next_ids = [token_id for one in batch.prompt_logits for token_id in one.token_ids]
        indices = StepIndices.of(
            batch.slices,
            plan,
            batch.inputs,
            block_size=pool.block_size,
            device=stack.device,
            logits_rows=[request.row for request in batch.logits],
            logits_numbers=[*numbers, *next_ids],
            max_gathered_tokens=None if stack.kernels is not None else pool.max_gathered_tokens,
        )
        pool.prepare(indices)
        size = None if self.graphs is None else self.graphs.size_for(batch.slices)
        if self.graphs is not None and size is not None:
            hidden = self.graphs.run(indices, size)
        else:
            hidden = self.run_layers(batch.slices, plan, indices)
        forward: UnfinishedForward
        if not stack.is_last:
            forward = _HiddenStates(hidden.to(stack.wire_dtype))
        elif batch.logits or batch.prompt_logits or batch.hidden_sums:
            forward = self._reduced(hidden, batch, wanted, indices, len(numbers))
        else:
            forward = _StoredKv(stack.device)
        return forward.finish() if stack.device.type == "cpu" else forward

    def _reduced(
        self,
        hidden: torch.Tensor,
        batch: ForwardBatch,
        wanted: WantedLogits,
        indices: StepIndices,
        num_numbers: int,
    ) -> "_Reduced":
        """Launches the head over the rows that are wanted; `num_numbers` are those of `wanted`."""
        stack = self.stack
        of_prompts = sampled = hidden_sums = None
        if batch.prompt_logits:
            of_prompts = PromptLogitsReduction(
                stack.logits,
                hidden,
                batch.prompt_logits,
                indices.logits_numbers[num_numbers:],
                stack.config.vocab_size,
            )
        if batch.logits:
            logits = stack.logits(hidden[indices.logits_rows])
            sampled = LogitsReduction(logits, wanted, indices.logits_numbers[:num_numbers])
        if batch.hidden_sums:
            hidden_sums = HiddenSums(stack.final_hidden, hidden, batch.hidden_sums)
        return _Reduced(sampled, of_prompts, hidden_sums)

    def run_layers(
        self, slices: Sequence[SequenceSlice], plan: BlockPlan, indices: StepIndices
    ) -> torch.Tensor:
        """Runs the layers over a step whose blocks are ready, one launch after the other.

        Returns:
            `[num_tokens, hidden_size]`, in the compute dtype.
        """
        attention = PagedAttention(self.pool, slices, plan, indices, self.stack.kernels)
        hidden = self.stack.first_hidden(indices.inputs, indices.positions)
        return self.stack.forward(hidden, indices.positions, indices.num_positions, attention)


class _HiddenStates(HostCopy):
    """Hidden states on their way to the next stage."""

    def finish(self) -> ForwardOutput:
        return ForwardOutput(hidden_states=self.wait())


class _StoredKv:
    """Rows of a last stage of which nobody wants anything."""

    def __init__(self, device: torch.device) -> None:
        self._end = None if device.type == "cpu" else Moment()

    def due_in_s(self) -> float:
        return 0.0 if self._end is None else self._end.due_in_s()

    def finish(self) -> ForwardOutput:
        if self._end is not None:
            self._end.wait()
        return ForwardOutput()


class _Reduced(NamedTuple):
    """What the device makes of the rows of a last stage; at least one of the three."""

    sampled: LogitsReduction | None
    of_prompts: PromptLogitsReduction | None
    hidden_sums: HiddenSums | None

    def due_in_s(self) -> float:
        return max(one.due_in_s() for one in self if one is not None)

    @torch.inference_mode()
    def finish(self) -> ForwardOutput:
        return ForwardOutput(
            logits=() if self.sampled is None else self.sampled.rows(),
            prompt_logits=() if self.of_prompts is None else self.of_prompts.rows(),
            hidden_sums=() if self.hidden_sums is None else self.hidden_sums.sums(),
        )
