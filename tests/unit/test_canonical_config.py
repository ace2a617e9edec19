"""One model whose configuration was saved by several releases of transformers has one fingerprint.

What transformers makes of a configuration is the twin: two that are one here must be one there.
"""

import inspect
import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PreTrainedConfig

from stagecoach.model_files import open_model
from stagecoach.model_files.canonical_config import canonical_config
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Sizes
from stagecoach.model_files.layer_kinds import FULL, SLIDING
from stagecoach.model_files.model_files import fingerprint_of
from stagecoach.model_files.rope_parameters import ALL_LAYERS, rope_parameters
from tests.published_configs import PUBLISHED
from tests.tiny_models import needed_keys, tiny_model


def fingerprint(raw: dict[str, Any]) -> str:
    return fingerprint_of(canonical_config(parse_config(raw)))


def of_transformers(raw: dict[str, Any]) -> PreTrainedConfig:
    """What transformers 5 reads of a configuration."""
    plain: dict[str, Any] = json.loads(json.dumps(raw))
    plain = {key: value for key, value in plain.items() if key not in ("dtype", "torch_dtype")}
    if (plain.get("rope_scaling") or {}).get("type") == "su":  # which it knows no more
        plain["rope_scaling"]["type"] = "longrope"
    found: PreTrainedConfig = CONFIG_MAPPING[raw["model_type"]].from_dict(plain)
    return found


@pytest.mark.parametrize("form", PUBLISHED)
def test_what_transformers_saves_again_is_read_as_the_same_model(form: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[form]))
    published = open_model(str(tmp_path))
    of_transformers(PUBLISHED[form]).save_pretrained(tmp_path)
    again = open_model(str(tmp_path))
    assert again.config.raw != published.config.raw
    assert canonical_config(again.config) == canonical_config(published.config)
    assert again.fingerprint == published.fingerprint
    assert again.config.max_model_len == published.config.max_model_len


@pytest.mark.parametrize(
    "without_effect",
    [
        {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": None},
        {"output_attentions": False, "output_hidden_states": True, "return_dict": True},
        {"is_encoder_decoder": False, "chunk_size_feed_forward": 0, "num_labels": 3},
        {"quantization_config": None, "compression_config": None},
        {"attention_dropout": 0.1, "pad_token_id": 0, "eos_token_id": [1, 2], "use_cache": False},
        {"torch_dtype": "float32", "transformers_version": "6.0.0", "architectures": ["X"]},
        {"num_key_value_heads": 4, "rope_theta": 10000, "rope_scaling": None, "mlp_bias": False},
        {"sliding_window": 5, "layer_types": ["sliding_attention"] * 4, "nobody_knows": 1},
    ],
)
def test_keys_that_no_layer_reads_change_no_fingerprint(without_effect: dict[str, object]) -> None:
    raw = PUBLISHED["llama-1, as first converted"]
    assert fingerprint({**raw, **without_effect}) == fingerprint(raw)


def test_of_a_family_that_nobody_serves_every_key_counts() -> None:
    raw = {**PUBLISHED["llama-2"], "model_type": "bamba"}
    assert fingerprint({**raw, "nobody_knows": 1}) != fingerprint(raw)


CHANGES: list[dict[str, Any]] = [
    {"rope_theta": 777.0},
    {"rope_theta": 777.0, "rope_parameters": None, "rope_scaling": None},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 777}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 32},
    {"partial_rotary_factor": 0.25},
    {"partial_rotary_factor": 1},
    {"attention_bias": True},
    {"attention_bias": False},
    {"mlp_bias": True},
    {"hidden_act": "relu", "hidden_activation": "relu"},
    {"rms_norm_eps": 0.25, "layer_norm_eps": 0.25, "norm_epsilon": 0.25},
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    {"layer_types": None, "use_sliding_window": False},
    {"layer_types": ["full_attention"] * 4},
    {"layer_types": ["sliding_attention"] * 4, "sliding_window": 5},
    {"layer_types": None, "sliding_window_pattern": 3, "no_rope_layer_interval": 3},
    {"no_rope_layers": [0, 1, 0, 1]},
    {"logit_scale": 0.5, "logits_scaling": 4.0, "final_logit_softcapping": 7.0},
    {"head_dim": 24},
    {"num_hidden_layers": 3, "layer_types": None},
    {"max_position_embeddings": 128},
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_has_one_fingerprint_is_one_to_transformers(name: str) -> None:
    raw = PUBLISHED[name]
    before, computed = fingerprint(raw), meaning(raw)
    same = 0
    for change in ({}, *CHANGES):
        changed = {**raw, **change}
        try:
            found, theirs = fingerprint(changed), meaning(changed)
        except Exception:  # transformers refuses some, with errors of every class
            continue
        same += found == before
        assert found != before or theirs == computed, change
    assert same


def meaning(raw: dict[str, Any]) -> dict[str, Any]:
    """What transformers keeps of a configuration and its layers look at."""
    found = of_transformers(raw).to_dict()
    model_type = raw["model_type"]
    read = attributes_read(model_type) - NOT_OF_LAYERS
    found = {key: value for key, value in found.items() if key in read}
    has_window = "sliding_attention" in found.get("layer_types", ["sliding_attention"])
    if not has_window and model_type != "exaone4":
        found.pop("sliding_window", None)
    if FAMILIES[model_type].first_position is not None:
        return found
    ropes = found["rope_parameters"]
    if FAMILIES[model_type].rope.per_layer_type:
        found["rope_parameters"] = ropes = {name: ropes[name] for name in (FULL, SLIDING)}
    for rope in ropes.values() if FAMILIES[model_type].rope.per_layer_type else [ropes]:
        rope.pop("type", None)
        rope.setdefault("partial_rotary_factor", 1.0)
    return found


@cache
def attributes_read(model_type: str) -> frozenset[str]:
    """What the modules of a family look up in a configuration, as their source has it."""
    module = FAMILIES[model_type].module
    sources = [
        inspect.getsource(import_module(name))
        for name in (
            f"transformers.models.{module}.modeling_{module}",
            "transformers.modeling_rope_utils",
        )
    ]
    return frozenset(
        name
        for source in sources
        for found in re.findall(r'\bconfig\.(\w+)|getattr\((?:self\.)?config, "(\w+)"', source)
        for name in found
        if name
    )


NOT_OF_LAYERS = frozenset(
    # What makes masks, caches and losses, or loads and trains a model, which are not asked for; and
    # the images of Gemma 3 and Aria.
    {"_attn_implementation", "get_text_config", "pad_token_id", "use_cache"}
    | {"initializer_range", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}
    | {"attention_dropout", "embd_pdrop", "embedding_dropout", "resid_pdrop", "residual_dropout"}
    | {"activation_dropout", "attention_probs_dropout_prob", "attn_pdrop", "hidden_dropout_prob"}
    | {"layerdrop", "problem_type", "add_cross_attention", "reorder_and_upcast_attn"}
    | {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}
    | {"classifier_dropout", "dtype", "hidden_dropout", "is_decoder", "num_labels"}
    | {"image_token_id", "mm_tokens_per_image", "text_config", "vision_config", "patch_size"}
    | {"projector_patch_to_query_dict", "max_value_projector_patch_to_query_dict"}
    | {"vision_feature_layer"}
    # What refuses a model, and what is a method, a constant or a word of a comment.
    | {"per_layer_config", "use_bidirectional_attention"}
    | {"standardize_rope_params", "validate_rope", "default_theta", "json"}
    | {"partial_rotary_factor"}
    # What only says how layers that are listed differ.
    | {"sliding_window_pattern", "use_sliding_window"}
)
ALWAYS_COUNT = frozenset(
    {*Sizes._fields, "model_type", "original_max_position_embeddings", "rope_parameters"}
)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_whatever_a_layer_reads_of_its_configuration_counts(model_type: str) -> None:
    raw = {"model_type": model_type, **needed_keys(model_type)}
    counted = canonical_config(parse_config(raw)).keys()
    theirs, ours = CONFIG_MAPPING[model_type].attribute_map, FAMILIES[model_type].other_keys
    other_names = theirs.keys() | ours.keys() | FAMILIES[model_type].refuses
    read = attributes_read(model_type) - NOT_OF_LAYERS - ALWAYS_COUNT
    assert {key for key in read - other_names if not key.startswith("summary_")} <= counted


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(model_type: str) -> None:
    needed = needed_keys(model_type)
    theirs = CONFIG_MAPPING[model_type](**needed)
    ours = parse_config({"model_type": model_type, **needed})
    counted = canonical_config(ours)
    for key in counted.keys() & theirs.to_dict().keys() - ALWAYS_COUNT - {"sliding_window"}:
        value = getattr(theirs, key)
        assert counted[key] == (tuple(value) if isinstance(value, list) else value), key
    if FAMILIES[model_type].first_position is not None:
        assert not hasattr(theirs, "rope_parameters")
        return
    ropes = rope_parameters({}, FAMILIES[model_type].rope, theirs.max_position_embeddings)
    if FAMILIES[model_type].rope.per_layer_type:
        assert theirs.rope_parameters.keys() == ropes.keys()
    else:
        read = theirs.rope_parameters.keys() - {"type", "max_position_embeddings"}
        assert {key: theirs.rope_parameters[key] for key in read}.items() <= (
            ropes[ALL_LAYERS].items()
        )


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
