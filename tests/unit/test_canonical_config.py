"""One model whose configuration was saved by several releases of transformers has one fingerprint.

What transformers makes of a configuration is the twin: two that are one here must be one there.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from model_files import open_model
from model_files.canonical_config import (
    BIASED,
    OTHER_THETAS,
    ROPE_BY_LAYER_TYPE,
    canonical_config,
)
from model_files.config import parse_config
from model_files.model_files import fingerprint_of
from stage_server.model.families import FAMILIES
from tests.published_configs import PUBLISHED
from tests.tiny_models import tiny_model


def fingerprint(raw: dict[str, Any]) -> str:
    return fingerprint_of(canonical_config(parse_config(raw)))


def of_transformers(raw: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 writes of a configuration."""
    plain: dict[str, Any] = json.loads(json.dumps(raw))
    plain = {key: value for key, value in plain.items() if key not in ("dtype", "torch_dtype")}
    if (plain.get("rope_scaling") or {}).get("type") == "su":  # which it knows no more
        plain["rope_scaling"]["type"] = "longrope"
    found: dict[str, Any] = CONFIG_MAPPING[raw["model_type"]].from_dict(plain).to_diff_dict()
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


SAVED_AGAIN = ["llama", "mistral", "qwen2", "qwen3", "gemma", "granite"]


@pytest.mark.parametrize("model_type", SAVED_AGAIN)
@pytest.mark.parametrize("scaling", [None, {"type": "linear", "factor": 2.0}])
def test_saving_again_changes_no_fingerprint(
    model_type: str, scaling: dict[str, object] | None
) -> None:
    """Of what transformers 4 wrote, with and without what it left out."""
    old = {
        "architectures": ["X"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 2048,
        "model_type": model_type,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-05,
        "rope_scaling": scaling,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
        "use_cache": True,
        "vocab_size": 320,
        **(
            {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 2}
            if model_type.startswith("qwen")
            else {"sliding_window": 4096}
        ),
        **(
            {
                "embedding_multiplier": 12,
                "logits_scaling": 8,
                "attention_multiplier": 0.1,
                "residual_multiplier": 0.2,
            }
            if model_type == "granite"
            else {}
        ),
    }
    again = of_transformers(old)
    assert "rope_parameters" in again
    assert fingerprint(again) == fingerprint(old)
    trained = {**old, "attention_dropout": 0.1, "pad_token_id": 0, "rope_theta": 10000.0}
    assert fingerprint(trained) == fingerprint(old)


CHANGES: list[dict[str, Any]] = [
    {"rope_theta": 777.0},
    {"rope_theta": 777.0, "rope_parameters": None, "rope_scaling": None},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 777}},
    {"partial_rotary_factor": 0.25},
    {"attention_bias": True},
    {"attention_bias": False},
    {"mlp_bias": True},
    {"hidden_act": "relu", "hidden_activation": "relu"},
    {"rms_norm_eps": 0.25, "layer_norm_eps": 0.25, "norm_epsilon": 0.25},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    {"layer_types": None, "use_sliding_window": False},
    {"logit_scale": 0.5, "logits_scaling": 4.0, "final_logit_softcapping": 7.0},
    {"head_dim": 24},
    {"num_hidden_layers": 3, "layer_types": None},
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_has_one_fingerprint_is_one_to_transformers(name: str) -> None:
    raw = PUBLISHED[name]
    before, computed = fingerprint(raw), meaning(raw)
    again = of_transformers(raw)
    same = 0
    for change in ({}, *CHANGES):
        for first in (raw, again):
            changed = {**first, **change}
            try:
                found, theirs = fingerprint(changed), meaning(changed)
            except Exception:  # transformers refuses some, with errors of every class
                continue
            same += found == before
            assert found != before or theirs == computed, change
    assert same


def meaning(raw: dict[str, Any]) -> dict[str, Any]:
    """What transformers keeps of a configuration and its layers look at."""
    config_class = CONFIG_MAPPING[raw["model_type"]]
    found = of_transformers(raw)
    found = {key: value for key, value in found.items() if key in config_class.__dataclass_fields__}
    if raw["model_type"] in ("qwen2", "qwen3") and set(found["layer_types"]) == {"full_attention"}:
        for key in ("sliding_window", "use_sliding_window", "max_window_layers"):
            found.pop(key, None)
    found.get("rope_parameters", {}).pop("type", None)
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(model_type: str) -> None:
    config_class = CONFIG_MAPPING[model_type]
    fields = config_class.__dataclass_fields__
    assert getattr(fields.get("mlp_bias"), "default", False) is False
    assert getattr(fields.get("attention_bias"), "default", False) is (model_type in BIASED)
    assert FAMILIES[model_type].rope_per_layer_type == (model_type in ROPE_BY_LAYER_TYPE)
    if model_type not in ROPE_BY_LAYER_TYPE:
        assert config_class.default_theta == OTHER_THETAS.get(model_type, 1e4)


def test_a_tied_head_that_is_written_out_changes_nothing_unless_it_differs(tmp_path: Path) -> None:
    path = tiny_model("llama-gqa-tied", tmp_path)
    before = open_model(str(path))
    fingerprint, parts = before.fingerprint, before.weight_digests()
    file = path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    embedding = tensors["model.embed_tokens.weight"]
    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": embedding[0].clone()}
    save_file({**tensors, **inverse, "lm_head.weight": embedding.clone()}, file)
    written_out = open_model(str(path))
    assert written_out.fingerprint == fingerprint
    assert written_out.weight_digests() == parts
    save_file({**tensors, "lm_head.weight": embedding + 1}, file)
    differing = open_model(str(path)).weight_digests()
    assert {part for part in parts if parts[part] != differing[part]} == {"head"}
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, file)
    assert open_model(str(path)).fingerprint == fingerprint
    assert open_model(str(path)).weight_digests() == parts
