"""Log-probabilities of the tokens of a prompt, from what the last stage made of its rows."""

import numpy as np
import numpy.typing as npt

from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.step import PromptLogits
from stagecoach.contract.errors import InternalError


def prompt_logprobs(rows: PromptLogits, start: int) -> PromptLogprobs:
    """Returns the log-softmax of rows at the tokens that come next, and at the most likely ones.

    Args:
        rows: As the last stage sent them.
        start: Position in the prompt of the first next token.

    Raises:
        InternalError: The model produced NaN or infinite logits.
    """
    log_sum_exps: npt.NDArray[np.float32] = np.asarray(rows.log_sum_exps, dtype=np.float32)
    if not np.isfinite(log_sum_exps).all():
        raise InternalError("model produced NaN or infinite logits")
    num_top = len(rows.candidate_ids) // len(log_sum_exps)
    logprobs = np.asarray(rows.token_logits, dtype=np.float32) - log_sum_exps
    tops = np.asarray(rows.candidate_logits, dtype=np.float32) - np.repeat(log_sum_exps, num_top)
    return PromptLogprobs(
        start=start,
        logprobs=logprobs.data,
        ranks=rows.token_ranks,
        num_top=num_top,
        top_token_ids=rows.candidate_ids,
        top_logprobs=tops.data,
    )
