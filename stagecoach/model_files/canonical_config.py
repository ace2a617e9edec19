"""What of a configuration a stage computes with, so that equal models have equal fingerprints.

Each release of transformers that saves a model again writes its `config.json` otherwise: keys move,
derived and default values are written out, what only training or the tokenizer needs comes and
goes. So what counts is named here, with the value that an absent key has; nothing else counts.
"""

from collections.abc import Mapping

from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import WindowedLayers, Windows
from stagecoach.model_files.layer_kinds import (
    has_sliding,
    layer_types,
    no_rope_layers,
    sliding_window,
)
from stagecoach.model_files.rope_parameters import rope_parameters


def canonical_config(config: ModelConfig) -> dict[str, object]:
    """Returns what of a configuration a stage computes with, in one spelling.

    Of a family that is not served, which nothing here knows, all of it.
    """
    raw, family = config.raw, FAMILIES.get(config.model_type)
    if family is None:
        return dict(raw)
    max_positions = raw.get("max_position_embeddings", family.sizes.max_position_embeddings)
    assert isinstance(max_positions, int), "no model without it is parsed"
    values = {
        "model_type": config.model_type,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": max_positions,
        "max_model_len": config.max_model_len,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_parameters": rope_parameters(raw, family.rope, max_positions),
        **({} if family.windows is None else _windows(config, family.windows)),
        **{key: raw.get(key, absent) for key, absent in family.reads.items()},
    }
    if config.model_type == "gemma" and values["hidden_act"] == "gelu":
        # The first Gemma models said so and meant this; transformers reads it so.
        values["hidden_act"] = "gelu_pytorch_tanh"
    if "attention_multiplier" in values and values["attention_multiplier"] is None:
        values["attention_multiplier"] = config.head_dim**-0.5
    if "mlp_only_layers" in values and values["mlp_only_layers"] is None:
        values["mlp_only_layers"] = ()
    if "mlp_layer_types" in values and config.experts is not None:
        kinds = ("sparse" if has_experts else "dense" for has_experts in config.experts.layers)
        values["mlp_layer_types"] = tuple(kinds)
    if values.get("moe_layer_end_index") == -1:
        values["moe_layer_end_index"] = config.num_layers - 1
    return {key: _plain(value) for key, value in values.items()}


def _windows(config: ModelConfig, family: Windows) -> dict[str, object]:
    """Which layers have a window, and how long it is."""
    raw = config.raw
    kinds = layer_types(raw, family, config.num_layers)
    is_read = kinds is None or has_sliding(kinds) or family.full_layers_ask
    window = sliding_window(raw, family) if is_read else None
    found = {"layer_types": kinds, "sliding_window": window}
    if family.layers is WindowedLayers.ROTATED:
        found["no_rope_layers"] = no_rope_layers(raw, config.num_layers)
    return found


def _plain(value: object) -> object:
    """A value whose numbers have no point that some writers leave out."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value
