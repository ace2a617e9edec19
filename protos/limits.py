"""Limits that both ends of a Forward stream keep to. Standard library only."""

LOGITS_CEILING_BYTES = 256 * 2**20
"""Bytes of logits that the answer to one micro-batch may hold: full rows of 262 144 logits for 256
sequences. The stage refuses a micro-batch that asks for more; the coordinator schedules no more
sequences at once than that."""

_LOGIT_BYTES = 4


def max_logits_bytes(*, max_num_seqs: int, vocab_size: int) -> int:
    """Returns the bytes of logits that the answer of a stage may hold.

    Args:
        max_num_seqs: Sequences that the stage can hold.
        vocab_size: Logits in a row.
    """
    return min(max_num_seqs * vocab_size * _LOGIT_BYTES, LOGITS_CEILING_BYTES)
