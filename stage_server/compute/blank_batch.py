"""Micro-batches of zeros, for runs whose values nobody reads."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.torch_dtypes import torch_dtype
from stage_server.model.layer_stack import LayerStack
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest


def blank_batch(
    stack: LayerStack,
    slices: Sequence[SequenceSlice],
    wanted: LogitsRequest,
    *,
    num_prompt_candidates: int | None = None,
    sums_hidden: bool = False,
) -> ForwardBatch:
    """Makes a micro-batch that a stage can take.

    Args:
        stack: The stage's layers.
        slices: Slices of the micro-batch.
        wanted: What is asked of the last row of each slice, where the stage has logits; its `row`
            says nothing.
        num_prompt_candidates: Candidates that are asked of all rows but the last of each slice, as
            of prompts; None: nothing is.
        sums_hidden: Whether the sum of the final hidden states of each slice is asked for.
    """
    ends = list(accumulate(piece.num_tokens for piece in slices))
    token_ids = hidden_states = None
    if stack.is_first:
        token_ids = torch.zeros(ends[-1], dtype=torch.int64)
    else:
        dtype = torch_dtype(stack.precision.wire)
        hidden_states = torch.zeros(ends[-1], stack.config.hidden_size, dtype=dtype)
    return ForwardBatch(
        slices=tuple(slices),
        token_ids=token_ids,
        hidden_states=hidden_states,
        logits=tuple(replace(wanted, row=end - 1) for end in ends) if stack.is_last else (),
        prompt_logits=tuple(
            PromptLogitsRequest(
                first_row=end - piece.num_tokens,
                token_ids=(0,) * (piece.num_tokens - 1),
                num_candidates=num_prompt_candidates,
            )
            for piece, end in zip(slices, ends, strict=True)
            if stack.is_last and num_prompt_candidates is not None and piece.num_tokens > 1
        ),
        hidden_sums=tuple(
            HiddenSumRequest(first_row=end - piece.num_tokens, num_rows=piece.num_tokens)
            for piece, end in zip(slices, ends, strict=True)
            if stack.is_last and sums_hidden
        ),
    )
