"""Logits made of a hash, and their reduction without ever writing the row.

All rows are one list of logits, rotated: the logit of id `(hash + k) % vocab_size` is that of rank
k, which is `HIGHEST - 2 ln(1 + k)`. By Zipf's law with that exponent the first id holds 0.61 of the
probability and the first ten 0.94, much as a language model's do, so samplers ask for full rows
about as often. No two logits are equal.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from stage_server.compute.logits import covers
from stage_server.compute.noise import Contenders, find_contenders
from stage_server.core.batch import LogitsRow, PromptLogits
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.prompt_logits import PromptLogitsRequest

_HIGHEST = 20.0
_EXPONENT = 2.0


class HashedLogits:
    """Makes the logits of rows from hashes.

    Args:
        vocab_size: Logits in a row.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        ranks = np.arange(vocab_size, dtype=np.float64)
        by_rank = _HIGHEST - _EXPONENT * np.log1p(ranks)
        self._by_rank: npt.NDArray[np.float32] = by_rank.astype(np.float32)
        self._log_sum_exp = lru_cache(maxsize=64)(self._compute_log_sum_exp)
        self._weights = lru_cache(maxsize=64)(self._compute_weights)

    def row(self, prefix_hash: int) -> torch.Tensor:
        """Returns a whole row, float32 `[vocab_size]`."""
        return torch.from_numpy(np.roll(self._by_rank, prefix_hash % self._vocab_size))

    def reduce(self, prefix_hash: int, request: LogitsRequest) -> LogitsRow:
        """Reduces a row as `stage_server.compute.logits.LogitsReduction` would."""
        log_sum_exp = self._log_sum_exp(request.temperature)
        unit_log_sum_exp = self._log_sum_exp(1.0) if request.wants_unit_log_sum_exp else None
        candidates = self._by_rank[: request.num_candidates].tolist()
        if request.num_candidates >= self._vocab_size or not covers(
            request, log_sum_exp, candidates
        ):
            return LogitsRow(
                row=request.row,
                log_sum_exp=log_sum_exp,
                candidate_ids=[],
                candidate_logits=[],
                token_logits=[],
                full=self.row(prefix_hash),
                unit_log_sum_exp=unit_log_sum_exp,
            )
        first = prefix_hash % self._vocab_size
        contenders = self._contenders(first, request)
        return LogitsRow(
            row=request.row,
            log_sum_exp=log_sum_exp,
            candidate_ids=[(first + rank) % self._vocab_size for rank in range(len(candidates))],
            candidate_logits=candidates,
            token_logits=[
                float(self._by_rank[(token_id - first) % self._vocab_size])
                for token_id in request.token_ids
            ],
            unit_log_sum_exp=unit_log_sum_exp,
            contender_ids=contenders.ids,
            contender_logits=contenders.logits,
        )

    def reduce_prompt(
        self, prefix_hashes: Sequence[int], request: PromptLogitsRequest
    ) -> PromptLogits:
        """Reduces rows as `stage_server.compute.prompt_logits.PromptLogitsReduction` would."""
        first_ids = torch.tensor([one % self._vocab_size for one in prefix_hashes])
        ranks = (torch.tensor(request.token_ids) - first_ids) % self._vocab_size
        best = torch.arange(request.num_candidates)
        gaps = torch.from_numpy(self._by_rank - self._by_rank[0])
        return PromptLogits(
            first_row=request.first_row,
            log_sum_exps=torch.full((len(prefix_hashes),), self._log_sum_exp(1.0)),
            token_logits=gaps[ranks],
            token_ranks=ranks + 1,
            candidate_ids=(first_ids[:, None] + best) % self._vocab_size,
            candidate_logits=gaps[best].repeat(len(prefix_hashes), 1),
        )

    def _contenders(self, first: int, request: LogitsRequest) -> Contenders:
        if not request.num_contenders:
            return Contenders([], [])
        logits = torch.from_numpy(self._by_rank).roll(first)
        weights = self._weights(request.temperature).roll(first)
        (found,) = find_contenders(
            logits[None], weights[None], [0], [request.noise_key], request.num_contenders
        )
        return found

    def _compute_weights(self, temperature: float) -> torch.Tensor:
        gaps = torch.from_numpy(self._by_rank - self._by_rank[0])
        return (gaps / temperature).exp_()

    def _compute_log_sum_exp(self, temperature: float) -> float:
        gaps = self._by_rank.astype(np.float64) - float(self._by_rank[0])
        return float(np.log(np.exp(gaps / temperature).sum()))
