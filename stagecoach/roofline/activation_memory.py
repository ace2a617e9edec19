"""What a micro-batch takes of a device's memory while a stage computes it.

A stage server measures this where it can; a plan has only the shapes. The formula follows the
tensors that live at once where most do, on a card with kernels of ours. `tests/gpu/test_memory.py`
holds it against the engine.
"""

from stagecoach.roofline.few_bits import UNPACKED_BYTES
from stagecoach.roofline.stage_cost import StageCost

_LIVE_LOGIT_BYTES = 24
"""Bytes for each logit: itself in the compute dtype and in float32, and what sampling makes of
it."""

_LIVE_PROMPT_LOGIT_BYTES = 13
"""Bytes for each logit of a prompt, from which nothing is sampled."""

_KEPT_LOGIT_BYTES = 4
"""Bytes for each logit of the micro-batch before, which may not be finished."""

_PROMPT_LOGITS_BYTES = 32 << 20
"""Bytes of the logits of a prompt that there are at once, unless one row has more. With half as
many, a card would read the output head twice as often."""


def num_prompt_rows(vocab_size: int) -> int:
    """Returns of how many rows of a prompt a stage has the logits at once.

    Args:
        vocab_size: Logits in a row.
    """
    return max(1, _PROMPT_LOGITS_BYTES // (4 * vocab_size))


def activation_bytes(
    stage: StageCost, *, max_num_batched_tokens: int, max_num_seqs: int, context_tokens: int
) -> int:
    """Returns what the largest micro-batch of a stage takes besides weights and KV.

    Args:
        stage: The stage.
        max_num_batched_tokens: Tokens in the micro-batch.
        max_num_seqs: Sequences in it, each of which may want its logits.
        context_tokens: Tokens of the longest sequence.
    """
    num_rows = min(max_num_batched_tokens, max_num_seqs)
    largest = max(
        _chunk_bytes(stage, min(max_num_batched_tokens, context_tokens), context_tokens),
        _chunk_bytes(stage, num_rows, num_rows),  # one token of each of many sequences
    )
    if stage.is_last:
        model = stage.model
        rows = max_num_batched_tokens * model.hidden_size * model.precision.compute.itemsize
        num_logits = num_rows * model.vocab_size
        num_of_prompts = model.vocab_size * min(
            max_num_batched_tokens, num_prompt_rows(model.vocab_size)
        )
        live_bytes = max(num_logits * _LIVE_LOGIT_BYTES, num_of_prompts * _LIVE_PROMPT_LOGIT_BYTES)
        largest = max(largest, rows + live_bytes) + num_logits * _KEPT_LOGIT_BYTES
    return largest


def _chunk_bytes(stage: StageCost, num_tokens: int, context_tokens: int) -> int:
    """A chunk of one sequence, whose last tokens it is."""
    model = stage.model
    hidden, queries, keys = model.hidden_size, model.attention_width, model.kv_width // 2
    # For each token, hidden states that wait, such as the stage's input and the layer's.
    projected = 5 * hidden + queries + 2 * keys
    rotating = projected + 4 * queries + 3 * keys
    attending = projected + 4 * queries + 2 * keys
    in_mlp = 5 * hidden + 3 * model.mlp_width
    gathered = 0
    if num_tokens < context_tokens and not model.reads_context_in_place:
        gathered = context_tokens * model.kv_bytes_per_token_and_layer
    # Cosines and sines: the table of all positions, and the rows of this step.
    rotary = 3 * (context_tokens + 2 * num_tokens) * model.head_dim
    size = model.precision.compute.itemsize
    unpacked = UNPACKED_BYTES if model.is_in_few_bits else 0
    in_layer = max(
        num_tokens * max(rotating, in_mlp) * size, num_tokens * attending * size + gathered
    )
    return rotary * size + in_layer + unpacked
