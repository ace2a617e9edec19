"""Metadata of a GGUF file means what the same keys of config.json mean to transformers."""

import json
from pathlib import Path

import pytest

from tests.parity.test_contradictions import tokens_of
from tests.parity.test_published_configs import expected_tokens
from tests.tiny_models import tiny_gguf

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
