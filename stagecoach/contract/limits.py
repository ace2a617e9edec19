"""Limits that both ends of a connection keep to. Standard library only."""

from typing import NamedTuple, Self

from stagecoach.contract.prompt_logits import MAX_PROMPT_CANDIDATES

LOGITS_CEILING_BYTES = 256 * 2**20
"""Bytes of logits that the answer to one micro-batch may hold: full rows of 262 144 logits for 256
sequences. The stage refuses a micro-batch that asks for more; the coordinator schedules no more
sequences at once than that."""

LOGIT_BYTES = 4
"""Bytes of a logit on the wire, which is a float32."""


def max_logits_bytes(*, max_num_seqs: int, vocab_size: int) -> int:
    """Returns the bytes of logits that the answer of a stage may hold.

    Args:
        max_num_seqs: Sequences that the stage can hold.
        vocab_size: Logits in a row.
    """
    return min(max_num_seqs * vocab_size * LOGIT_BYTES, LOGITS_CEILING_BYTES)


GRPC_CEILING_BYTES = 2**31 - 1
"""Most bytes of a message: gRPC keeps its size in a 32-bit integer."""

ENVELOPE_BYTES = 2**20
"""Room in a message or a body for everything but its tensors, or the text and token ids that count
for the length of a request: shapes and ids, long templates, schemas, biases, stop strings."""

_WIDEST_ELEMENT_BYTES = 4
"""float32; the dtype of hidden states is known only after loading."""

_PROMPT_ROW_BYTES = 12 + 8 * MAX_PROMPT_CANDIDATES
"""Bytes of the answer to one row of a prompt: a sum, a logit, a rank, and candidates with ids. Its
next token, in the request, takes less."""

_SLOT_ENVELOPE_BYTES = 256
"""Bytes of the slice, the slot operations and the requests for logits and a sum of hidden states of
one sequence, without its ids."""


class MessageLimits(NamedTuple):
    """Largest messages between a coordinator and one stage, in bytes."""

    request_bytes: int
    response_bytes: int

    @classmethod
    def of_stage(
        cls, *, max_num_batched_tokens: int, max_num_seqs: int, hidden_size: int, vocab_size: int
    ) -> Self:
        """Computes the limits of a stage.

        A request carries at most one micro-batch of hidden states, and may name ids whose logits
        are wanted; a response carries hidden states, or logits and a sum of hidden states for each
        sequence. An id takes at most the 4 bytes that its logit takes in the answer, so both
        directions leave the same room for logits, those of prompts included.

        Args:
            max_num_batched_tokens: Most tokens of one micro-batch.
            max_num_seqs: Sequences that the stage can hold.
            hidden_size: Width of a hidden state, in elements.
            vocab_size: Logits in a row.
        """
        hidden_bytes = max_num_batched_tokens * hidden_size * _WIDEST_ELEMENT_BYTES
        logits_bytes = max_logits_bytes(max_num_seqs=max_num_seqs, vocab_size=vocab_size)
        logits_bytes += max_num_batched_tokens * _PROMPT_ROW_BYTES
        sums_bytes = min(max_num_seqs, max_num_batched_tokens) * hidden_size * _WIDEST_ELEMENT_BYTES
        envelope_bytes = ENVELOPE_BYTES + max_num_seqs * _SLOT_ENVELOPE_BYTES
        return cls(
            hidden_bytes + logits_bytes + envelope_bytes,
            max(hidden_bytes, logits_bytes + sums_bytes) + envelope_bytes,
        )


_BYTES_PER_TOKEN = 64
"""Bytes of text for each token, far above the mean of any tokenizer; a token id takes at most 5."""


def max_request_bytes(max_model_len: int) -> int:
    """Returns the bytes of the longest message or body between a client and a coordinator.

    Args:
        max_model_len: Most tokens of one request, prompt and output together.
    """
    return max_model_len * _BYTES_PER_TOKEN + ENVELOPE_BYTES


MAX_HEADER_BYTES = 16 * 1024
"""Most bytes of the metadata of one call; errors with their details fit in."""

_HANDSHAKE_TIMEOUT_MS = 10_000
"""When a server closes a connection that has not said what it wants."""
_IDLE_CONNECTION_MS = 300_000
"""A connection without a call; clients connect again by themselves."""

_MAX_UNREAD_S = 86_400
"""A call that the event loop has not taken up for so long is cancelled. gRPC's own bound of 30 s
hits calls that wait their turn on a starved box, and gives no reason."""


def server_limits(*, max_calls_per_connection: int) -> list[tuple[str, int]]:
    """Returns options of a gRPC server that bound what strangers can make it hold.

    Args:
        max_calls_per_connection: Calls at once; a client keeps back further ones itself, but calls
            too soon when one has ended, and is refused with UNAVAILABLE. So this must be more than
            a client may have open.
    """
    return [
        ("grpc.max_concurrent_streams", max_calls_per_connection),
        # Calls that the event loop has not taken up yet. By itself gRPC cancels one or the other
        # from 1000 on, and all from 3000.
        ("grpc.server.max_pending_requests", max_calls_per_connection),
        ("grpc.server.max_pending_requests_hard_limit", max_calls_per_connection),
        ("grpc.server_max_unrequested_time_in_server", _MAX_UNREAD_S),
        ("grpc.max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
        ("grpc.enable_channelz", 0),
    ]
