"""Metadata of a GGUF file means what the same keys of config.json mean to transformers."""

import json
from pathlib import Path

import pytest
import torch

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, DType, Precision
from stagecoach.model_files import open_model
from tests.few_bits import QType
from tests.parity.test_contradictions import tokens_of
from tests.parity.test_layer_stack import PROMPT, SplitModel
from tests.parity.test_published_configs import expected_tokens
from tests.tiny_models import NUM_LAYERS, tiny_gguf
from tests.unit.test_gguf_model import EXPERTS

CPU = torch.device("cpu")
FLOAT32 = Precision.uniform(DType.FLOAT32)
IN_4_BITS = FLOAT32._replace(weights=INT4)
WHOLE = LayerRange(0, NUM_LAYERS)

_YARN = {"type": "yarn", "factor": 4.0, "original_context_length": 64}


@pytest.mark.parametrize(
    ("case", "metadata", "config"),
    [
        ("llama", {"attention.sliding_window": 8}, {"model_type": "mistral", "sliding_window": 8}),
        (
            "qwen2",
            {"attention.sliding_window": 8},
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
        ),
        (
            "llama-yarn",
            {f"rope.scaling.{key}": value for key, value in _YARN.items()},
            {},
        ),
        (
            "llama",
            {
                **{f"rope.scaling.{key}": value for key, value in _YARN.items()},
                "rope.scaling.yarn_attn_factor": 0.7,
                "rope.scaling.yarn_beta_fast": 8.0,
                "rope.scaling.yarn_beta_slow": 2.0,
            },
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                    "attention_factor": 0.7,
                    "beta_fast": 8.0,
                    "beta_slow": 2.0,
                }
            },
        ),
    ],
    ids=["window", "window of all layers", "yarn", "yarn with factors"],
)
def test_a_gguf_file_generates_what_transformers_does_with_the_same_settings(
    case: str, metadata: dict[str, object], config: dict[str, object], tmp_path: Path
) -> None:
    architecture = case.partition("-")[0]
    named = {f"{architecture}.{key}": value for key, value in metadata.items()}
    path = tiny_gguf(case, tmp_path, metadata=named)
    file = tmp_path / case / "config.json"
    raw = {**json.loads(file.read_text()), **config}
    if "model_type" in config or "max_window_layers" in config:
        raw.pop("layer_types", None)
    file.write_text(json.dumps(raw))
    assert tokens_of(path, 2) == expected_tokens(tmp_path / case)


@pytest.mark.parametrize("case", EXPERTS)
@pytest.mark.parametrize("num_stages", [1, 3])
def test_a_gguf_file_with_experts_generates_what_transformers_does(
    case: str, num_stages: int, tmp_path: Path
) -> None:
    path = tiny_gguf(case, tmp_path, **EXPERTS[case])
    assert tokens_of(path, num_stages) == expected_tokens(tmp_path / case)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_experts_of_a_gguf_file_keep_their_bits(case: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256}
    wide["head_dim"] = 64
    few = tiny_gguf(case, tmp_path, quantization=QType.Q4_K, **{**EXPERTS[case], **wide})
    files = open_model(str(few))
    assert files.encoding == INT4
    layers = LayerRange(1, 3)
    kept = load_layer_stack(files, layers, precision=IN_4_BITS, device=CPU)
    plain = load_layer_stack(files, layers, precision=FLOAT32, device=CPU)
    assert kept.weight_bytes < 0.2 * plain.weight_bytes
    twin = SplitModel([load_layer_stack(files, WHOLE, precision=FLOAT32, device=CPU)])
    found = SplitModel([load_layer_stack(files, WHOLE, precision=IN_4_BITS, device=CPU)])
    right, logits = twin.logits(PROMPT), found.logits(PROMPT)
    assert ((logits - right).norm(dim=1) / right.norm(dim=1)).median() < 0.1
