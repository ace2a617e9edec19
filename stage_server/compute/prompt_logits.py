"""Reduces rows of prompts to how likely their next tokens are.

A chunk of a prompt has thousands of rows, and a row as many logits as there are words; so the
logits are made of a few rows after the other, and none of them is kept.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from stage_server.compute.candidates import highest
from stage_server.compute.host_copies import HostCopies
from stage_server.core.batch import PromptLogits
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.roofline.activation_memory import num_prompt_rows

_NUM_TENSORS = 5
"""Tensors of a `PromptLogits`."""


class PromptLogitsReduction:
    """Rows of prompts that are being reduced, each as its request says.

    Args:
        make_logits: Makes float32 `[num_rows, vocab_size]` of hidden states.
        hidden: `[num_tokens, hidden_size]`, the micro-batch behind the last layer.
        requests: What is wanted, at least one.
        token_ids: int64, the next tokens of all requests, on the device of `hidden`.
        vocab_size: Logits in a row.
    """

    def __init__(
        self,
        make_logits: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        requests: Sequence[PromptLogitsRequest],
        token_ids: torch.Tensor,
        vocab_size: int,
    ) -> None:
        self._requests = requests
        num_rows = num_prompt_rows(vocab_size)
        found: list[torch.Tensor] = []
        next_ids = token_ids.split_with_sizes([len(one.token_ids) for one in requests])
        for request, ids in zip(requests, next_ids, strict=True):
            rows = hidden[request.first_row : request.end_row]
            parts = [
                _reduce(make_logits(some_rows), some_ids, request.num_candidates)
                for some_rows, some_ids in zip(
                    torch.split(rows, num_rows), torch.split(ids, num_rows), strict=True
                )
            ]
            found += map(torch.cat, zip(*parts, strict=True))
        self._found = HostCopies(found)

    def due_in_s(self) -> float:
        """Says in how many seconds to ask again; 0 once `rows` hardly waits. Never raises."""
        return self._found.due_in_s()

    def rows(self) -> tuple[PromptLogits, ...]:
        """Waits for the device, and returns the rows of each request, in order.

        Raises:
            torch.AcceleratorError: The device reports an error, of whatever it did before.
        """
        found = self._found.wait()
        return tuple(
            PromptLogits(
                first_row=request.first_row,
                log_sum_exps=log_sum_exps,
                token_logits=token_logits,
                token_ranks=token_ranks,
                candidate_ids=candidate_ids,
                candidate_logits=candidate_logits,
            )
            for request, (
                log_sum_exps,
                token_logits,
                token_ranks,
                candidate_ids,
                candidate_logits,
            ) in zip(self._requests, _in_groups(found), strict=True)
        )


def _in_groups(tensors: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    """The tensors of one request after those of the other."""
    for start in range(0, len(tensors), _NUM_TENSORS):
        yield tensors[start : start + _NUM_TENSORS]


def _reduce(
    logits: torch.Tensor, token_ids: torch.Tensor, num_candidates: int
) -> tuple[torch.Tensor, ...]:
    """Finds the tensors of `PromptLogits`, without waiting for a card; overwrites the logits."""
    is_on_cpu = logits.device.type == "cpu"
    candidate_ids, candidate_logits = highest(logits, num_candidates, may_wait=is_on_cpu)
    next_ids = token_ids[:, None]
    token_logits = logits.gather(1, next_ids)
    ids = torch.arange(logits.shape[1], device=logits.device)
    is_before = (logits == token_logits).logical_and_(ids < next_ids)
    ranks = is_before.logical_or_(logits > token_logits).sum(dim=1).add_(1)
    highest_logits = logits.amax(dim=1, keepdim=True)
    log_sum_exps = logits.sub_(highest_logits).exp_().sum(dim=1).log_()  # NaN if not all are finite
    return (
        log_sum_exps,
        (token_logits - highest_logits).squeeze(1),
        ranks,
        candidate_ids,
        candidate_logits - highest_logits,
    )
