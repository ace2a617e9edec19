"""Rows of logits as a stage answers them."""

from collections.abc import Sequence

import torch

from stage_server.compute import logits as stage_logits
from stage_server.core.batch import LogitsRow
from stagecoach.contract.logits_request import LogitsRequest


def reduce_logits(logits: torch.Tensor, requests: Sequence[LogitsRequest]) -> tuple[LogitsRow, ...]:
    """Reduces float32 `[num_requests, vocab_size]` as the requests say."""
    wanted = stage_logits.WantedLogits.by(requests)
    numbers = torch.tensor(wanted.numbers())
    return stage_logits.LogitsReduction(logits, wanted, numbers).rows()
