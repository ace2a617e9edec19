"""What a stage says of itself, for tests of what is made of it."""

from dataclasses import replace
from typing import Any

from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.contract.stage_info import StageInfo

_INFO = StageInfo(
    model_id="tiny",
    fingerprint="f" * 64,
    layers=LayerRange(0, 2),
    num_model_layers=4,
    hidden_size=8,
    vocab_size=32,
    precision=Precision.uniform(DType.FLOAT32),
    kv_block_size=16,
    num_kv_blocks=100,
    num_free_kv_blocks=100,
    max_num_seqs=8,
    max_num_batched_tokens=256,
    max_model_len=512,
    device="cpu",
    emulated=False,
    version="0",
    pid=1,
    weight_bytes=1,
    kv_bytes=1,
    adds_noise=False,
    answers_prompt_logits=False,
    answers_hidden_sums=False,
)


def create_info(layers: LayerRange, **changes: Any) -> StageInfo:
    """A small stage."""
    return replace(_INFO, layers=layers, **changes)
