"""Measures what the largest micro-batches of a stage take of its device, before KV takes the rest.

They are run for real, against a pool of one block that stands for all blocks of all sequences: the
values are wrong, and the memory is that of a full pool.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from stage_server.compute.blank_batch import blank_batch
from stage_server.compute.forward_pass import ForwardPass
from stage_server.core.batch import SequenceSlice
from stage_server.core.engine import finished
from stage_server.kv_cache.kv_pool import MAX_GATHERED_BYTES, KvPool
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.model.layer_stack import LayerStack
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import MAX_PROMPT_CANDIDATES

_NUM_CANDIDATES = 64
"""What a sampler asks for, and more than greedy decoding does."""


class StepSizes(NamedTuple):
    """How large micro-batches may be."""

    max_num_batched_tokens: int
    max_num_seqs: int
    context_tokens: int
    """Tokens of the longest sequence."""
    block_size: int


def activation_peak(stack: LayerStack, sizes: StepSizes) -> int:
    """Returns the bytes that the largest micro-batches take besides weights and KV. CUDA only.

    That is what one takes while it is launched, and what the one before it may keep until it is
    finished: its logits.

    What the device keeps after them, such as code of kernels, is not counted: it is no longer free.

    Args:
        stack: The stage's layers.
        sizes: What is possible.

    Raises:
        torch.OutOfMemoryError: One does not fit even without KV.
    """
    config = stack.config
    pool = KvPool(
        num_layers=len(stack.layers),
        num_blocks=1,
        block_size=sizes.block_size,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        kv_format=stack.precision.kv,
        device=stack.device,
        values_are_keys=config.latent is not None,
    )
    forward_pass = ForwardPass(stack, pool)
    wanted = LogitsRequest(  # all that can be
        row=0,
        num_candidates=min(_NUM_CANDIDATES, config.vocab_size - 1),
        wants_unit_log_sum_exp=True,
        num_contenders=1,
    )
    peak_bytes = kept_bytes = 0
    for slices in largest_steps(sizes, pool.bytes_per_token_and_layer):
        before_bytes = torch.cuda.memory_allocated(stack.device)
        torch.cuda.reset_peak_memory_stats(stack.device)
        batch = blank_batch(
            stack,
            slices,
            wanted,
            num_prompt_candidates=min(MAX_PROMPT_CANDIDATES, config.vocab_size),
            sums_hidden=True,
        )
        launched = forward_pass.launch(batch, _plan(slices, sizes.block_size))
        taken_bytes = torch.cuda.max_memory_allocated(stack.device) - before_bytes
        peak_bytes = max(peak_bytes, taken_bytes)
        launched_bytes = torch.cuda.memory_allocated(stack.device)
        finished(launched)
        del launched
        kept_bytes = max(kept_bytes, launched_bytes - torch.cuda.memory_allocated(stack.device))
    return peak_bytes + kept_bytes


def largest_steps(sizes: StepSizes, kv_bytes: int) -> Iterator[tuple[SequenceSlice, ...]]:
    """Yields the micro-batches that take the most memory, each for another reason.

    Args:
        sizes: What is possible.
        kv_bytes: KV of one token in one layer.
    """
    context = sizes.context_tokens
    chunk = min(sizes.max_num_batched_tokens, context)
    yield (SequenceSlice(0, 0, chunk),)
    if chunk < context:
        yield (SequenceSlice(0, context - chunk, chunk),)
        yield (SequenceSlice(0, context - 1, 1),)
    num_seqs = min(sizes.max_num_batched_tokens, sizes.max_num_seqs)
    length = max(1, min(context, MAX_GATHERED_BYTES // kv_bytes // num_seqs))
    yield tuple(SequenceSlice(slot, length - 1, 1) for slot in range(num_seqs))


def _plan(slices: Sequence[SequenceSlice], block_size: int) -> BlockPlan:
    """All sequences in the one block, over and over."""
    return BlockPlan(
        block_tables=tuple((0,) * -(-piece.end_position // block_size) for piece in slices),
        new_blocks=(),
        copies=(),
    )
