"""Whether gRPC can carry the largest messages of one stage, computed from what the stage serves.

Logits could be large without end (rows x vocabulary x 4 bytes), so a micro-batch may ask for at
most `stagecoach.contract.limits.max_logits_bytes` of them: one full row for each sequence that the
stage can hold, up to a ceiling.
"""

from stage_server.core.config import StageConfig
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.limits import GRPC_CEILING_BYTES, MessageLimits
from stagecoach.roofline.kv_memory import MAX_DEFAULT_BATCHED_TOKENS


def message_limits(config: StageConfig, *, hidden_size: int, vocab_size: int) -> MessageLimits:
    """Returns the largest messages of a stage; a larger one ends its call with RESOURCE_EXHAUSTED.

    Args:
        config: The stage's configuration.
        hidden_size: Width of a hidden state, in elements.
        vocab_size: Logits in a row.

    Raises:
        InvalidArgumentError: One micro-batch would exceed what gRPC can carry.
    """
    # The device, which decides where the operator does not, is known only after loading.
    num_tokens = config.max_num_batched_tokens or MAX_DEFAULT_BATCHED_TOKENS
    limits = MessageLimits.of_stage(
        max_num_batched_tokens=num_tokens,
        max_num_seqs=config.max_num_seqs,
        hidden_size=hidden_size,
        vocab_size=vocab_size,
    )
    if limits.request_bytes > GRPC_CEILING_BYTES:
        raise InvalidArgumentError(
            f"max_num_batched_tokens {num_tokens} makes messages of "
            f"{limits.request_bytes} bytes at hidden size {hidden_size}; gRPC carries at most "
            f"{GRPC_CEILING_BYTES}",
            field="max_num_batched_tokens",
        )
    return limits
