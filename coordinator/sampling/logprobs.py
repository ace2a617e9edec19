"""Log-probabilities of the model's own distribution, exactly, from a reduced or a full row."""

import math
from collections.abc import Sequence

import numpy as np

from coordinator.core.events import TokenLogprobs
from coordinator.core.step import LogitsRow
from coordinator.sampling.ranking import Ranked, top_ranks
from stagecoach.contract.errors import InternalError
from stagecoach.contract.logits_request import LogitsRequest


def token_logprobs(
    row: LogitsRow, token_id: int, *, num_top: int, wanted: LogitsRequest
) -> TokenLogprobs:
    """Returns the log-softmax of a row, before anything that sampling does, at some tokens.

    Args:
        row: As the last stage sent it.
        token_id: The token that was chosen.
        num_top: Most likely tokens that are wanted; all, if there are fewer.
        wanted: What `row` answers: at least `num_top` candidates, and the sum of the exponentials
            at temperature 1.

    Raises:
        InternalError: A reduced row lacks what was asked for.
    """
    if row.full is not None:
        logits = np.asarray(row.full, dtype=np.float64)
        highest = float(logits.max())
        normalizer = highest + math.log(float(np.exp(logits - highest).sum()))
        chosen = float(logits[token_id])
        top = top_ranks(logits, min(num_top, len(logits)))
    else:
        log_sum_exp = row.unit_log_sum_exp if wanted.wants_unit_log_sum_exp else row.log_sum_exp
        if log_sum_exp is None:
            raise InternalError("the last stage sent no log-sum-exp at temperature 1")
        normalizer = row.candidate_logits[0] + log_sum_exp
        chosen = _known_logit(row, token_id, wanted.token_ids)
        top = Ranked(
            np.asarray(row.candidate_ids[:num_top], dtype=np.int64),
            np.asarray(row.candidate_logits[:num_top], dtype=np.float64),
        )
    return TokenLogprobs(
        logprob=chosen - normalizer,
        top=tuple(zip(top.ids.tolist(), (top.logits - normalizer).tolist(), strict=True)),
    )


def _known_logit(row: LogitsRow, token_id: int, named_ids: Sequence[int]) -> float:
    known: tuple[tuple[Sequence[int], Sequence[float]], ...] = (
        (row.candidate_ids, row.candidate_logits),
        (row.contender_ids, row.contender_logits),
        (named_ids, row.token_logits),
    )
    for ids, logits in known:
        places = np.flatnonzero(np.asarray(ids) == token_id)
        if len(places):
            return logits[int(places[0])]
    raise InternalError(f"the last stage sent no logit of token {token_id}")
