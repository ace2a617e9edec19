"""Token throttling: how much decode and how much prefill goes into the next micro-batch.

After gLLM (arXiv:2504.14775): decodes are spread evenly over the micro-batches in flight; prefill
follows the tokens that wait and the KV memory that is empty. Where gLLM caps prefill at a constant,
this caps it at what the running streams feel: the time between two of their tokens grows by three
quarters at most, by the times that were measured.
"""

from coordinator.scheduler.load import Load, StepBudget
from coordinator.scheduler.step_times import StepTimes

MAX_SLOWDOWN = 1.75
"""Factor by which prefill may lengthen a micro-batch that decodes."""

MIN_PREFILL_TOKENS = 32
"""A prompt goes on by as much, whatever the decodes feel; gLLM's constant."""

MIN_EMPTY_KV_SHARE = 0.05
"""Empty KV memory at which prefill falls to its minimum; gLLM's constant."""


def step_budget(
    load: Load, *, depth: int, max_num_batched_tokens: int, times: StepTimes
) -> StepBudget:
    """Divides the load among `depth` micro-batches, and says what the next one takes.

    Args:
        load: What there is to do.
        depth: Micro-batches in flight; at least 1.
        max_num_batched_tokens: Tokens in one micro-batch.
        times: What was measured.
    """
    max_num_decodes = max(1, _ceil_div(load.num_decodes, depth))
    if load.num_prefills == 0:
        return StepBudget(
            max_num_decodes=max_num_decodes, max_num_prefill_tokens=max_num_batched_tokens
        )
    num_tokens = _ceil_div(load.num_prefill_tokens, min(depth, load.num_prefills))
    if load.num_decodes > 0:
        usable = (load.empty_kv_share - MIN_EMPTY_KV_SHARE) / (1 - MIN_EMPTY_KV_SHARE)
        num_tokens = min(num_tokens, int(usable * max_num_batched_tokens))
        if times.is_known:
            slowest_ns = MAX_SLOWDOWN * times.of(max_num_decodes).slowest_ns
            num_tokens = min(num_tokens, times.max_num_tokens(slowest_ns) - max_num_decodes)
        max_num_batched_tokens = max(1, max_num_batched_tokens - max_num_decodes)
    return StepBudget(
        max_num_decodes=max_num_decodes,
        max_num_prefill_tokens=min(max(num_tokens, MIN_PREFILL_TOKENS), max_num_batched_tokens),
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
