"""What a micro-batch takes of a device's memory while a stage computes it.

A stage server measures this where it can; a plan has only the shapes. The formula follows the
tensors that live at once where most do, on a card with kernels of ours. `tests/gpu/test_memory.py`
holds it against the engine.
"""

from stagecoach.contract.precision import DType
from stagecoach.roofline.few_bits import UNPACKED_BYTES
from stagecoach.roofline.model_shape import ModelShape
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
    stage: StageCost,
    *,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    context_tokens: int,
    has_tensor_cores: bool = True,
) -> int:
    """Returns what the largest micro-batch of a stage takes besides weights and KV.

    Args:
        stage: The stage.
        max_num_batched_tokens: Tokens in the micro-batch.
        max_num_seqs: Sequences in it, each of which may want its logits.
        context_tokens: Tokens of the longest sequence.
        has_tensor_cores: As `Capability.has_tensor_cores` of the card.
    """
    num_rows = min(max_num_batched_tokens, max_num_seqs)
    chunk_tokens = min(max_num_batched_tokens, context_tokens)
    kv_bytes = _kv_bytes(stage.model, chunk_tokens, context_tokens, has_tensor_cores)
    largest = max(
        _chunk_bytes(stage, chunk_tokens, context_tokens, kv_bytes),
        _chunk_bytes(stage, num_rows, num_rows, 0),  # one token of each of many sequences
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


def _kv_bytes(
    model: ModelShape, num_tokens: int, context_tokens: int, has_tensor_cores: bool
) -> int:
    """Keys and values that a chunk takes memory for beside the pool."""
    if model.reads_context_in_place(has_tensor_cores=has_tensor_cores):
        return 0
    if not model.has_foreign_kv:
        is_behind_context = num_tokens < context_tokens
        return context_tokens * model.kv_bytes_per_token_and_layer if is_behind_context else 0
    # Keys are converted by the time that values are gathered and, if codes, decoded in float32.
    decoded = DType.FLOAT32.itemsize if model.precision.kv.dtype is None else 0
    a_number = 2 * model.precision.compute.itemsize + decoded
    a_token = model.kv_width * a_number + model.kv_bytes_per_token_and_layer
    return context_tokens * a_token // 2


def _chunk_bytes(stage: StageCost, num_tokens: int, context_tokens: int, kv_bytes: int) -> int:
    """A chunk of one sequence, whose last tokens it is."""
    model = stage.model
    hidden, queries, keys = model.hidden_size, model.attention_width, model.kv_width // 2
    # For each token, hidden states that wait, such as the stage's input and the layer's.
    projected = 5 * hidden + queries + 2 * keys
    rotating = projected + 4 * queries + 3 * keys
    attending = projected + 4 * queries + 2 * keys
    in_mlp = 5 * hidden + 3 * model.mlp_width
    if model.num_experts > 1:  # what each of the chosen takes in, and what it makes
        in_mlp += 2 * model.num_chosen * hidden
    # Cosines and sines: the table of all positions, and the rows of this step.
    rotary = 3 * (context_tokens + 2 * num_tokens) * model.head_dim
    size = model.precision.compute.itemsize
    unpacked = UNPACKED_BYTES if model.is_in_few_bits else 0
    in_layer = max(
        num_tokens * max(rotating, in_mlp) * size, num_tokens * attending * size + kv_bytes
    )
    return rotary * size + in_layer + unpacked
