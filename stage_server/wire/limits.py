"""The largest messages of one stage, in both directions, computed from what the stage serves.

A request carries at most one micro-batch of hidden states, and a response one micro-batch of
hidden states or the logits of one. Logits could be large without end (rows x vocabulary x 4
bytes), so a micro-batch may ask for at most `stagecoach.contract.limits.max_logits_bytes` of them:
one full row for each sequence that the stage can hold, up to a ceiling.
"""

from typing import NamedTuple, Self

from stage_server.core.config import StageConfig
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.limits import ENVELOPE_BYTES, GRPC_CEILING_BYTES, max_logits_bytes

_WIDEST_ELEMENT_BYTES = 4
"""float32; the dtype of hidden states is known only after loading."""

_SLOT_ENVELOPE_BYTES = 256
"""For the slice, the slot operations and the logits request of one sequence, without its ids."""


class MessageLimits(NamedTuple):
    """Largest messages, in bytes; a larger one ends its call with RESOURCE_EXHAUSTED."""

    request_bytes: int
    response_bytes: int

    @classmethod
    def of_stage(cls, config: StageConfig, *, hidden_size: int, vocab_size: int) -> Self:
        """Computes the limits of a stage.

        A request may name ids whose logits are wanted; an id takes at most the 4 bytes that its
        logit takes in the answer, so both directions leave the same room for logits.

        Args:
            config: The stage's configuration.
            hidden_size: Width of a hidden state, in elements.
            vocab_size: Logits in a row.

        Raises:
            InvalidArgumentError: One micro-batch would exceed what gRPC can carry.
        """
        hidden_bytes = config.max_num_batched_tokens * hidden_size * _WIDEST_ELEMENT_BYTES
        logits_bytes = max_logits_bytes(max_num_seqs=config.max_num_seqs, vocab_size=vocab_size)
        envelope_bytes = ENVELOPE_BYTES + config.max_num_seqs * _SLOT_ENVELOPE_BYTES
        request_bytes = hidden_bytes + logits_bytes + envelope_bytes
        if request_bytes > GRPC_CEILING_BYTES:
            raise InvalidArgumentError(
                f"max_num_batched_tokens {config.max_num_batched_tokens} makes messages of "
                f"{request_bytes} bytes at hidden size {hidden_size}; gRPC carries at most "
                f"{GRPC_CEILING_BYTES}",
                field="max_num_batched_tokens",
            )
        return cls(request_bytes, max(hidden_bytes, logits_bytes) + envelope_bytes)
