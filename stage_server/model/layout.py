"""Whether a model keeps to the layout of its family, as the stage's layers take it to do.

What changes the layout is refused by name: an unknown detail would generate wrong text silently.
"""

from collections.abc import Mapping

from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.model_files import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Family, number
from stagecoach.model_files.frozen_json import shown
from stagecoach.model_files.layer_kinds import FULL, SLIDING
from stagecoach.model_files.not_served import EXPERT_KEYS, not_served

_ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "llama3", "longrope"})
_LAYER_TYPES = frozenset({FULL, SLIDING})

_FOREIGN_FEATURES = (
    "add_cross_attention",
    "attention_chunk_size",
    "is_encoder_decoder",
    "num_kv_shared_layers",
    "per_layer_config",
    "use_bidirectional_attention",
)
"""Configuration keys that change what a layer is; served only when absent, null, false or 0."""

_NATIVE_FEATURES = ("is_causal", "scale_embedding")
"""Configuration keys that change what a layer is when they are null, false or 0."""


def family_of(config: ModelConfig) -> Family:
    """Finds the family of a model and checks that the model keeps to its layout.

    Raises:
        UnsupportedModelError: The family is not served, or the configuration changes its layout;
            names the family or the key.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise not_served(config.model_type, config.raw)
    foreign = _FOREIGN_FEATURES if family.experts else (*_FOREIGN_FEATURES, *EXPERT_KEYS)
    for key in (*foreign, *sorted(family.refuses)):
        if config.raw.get(key):
            raise _refused(config, key, config.raw[key])
    for key in _NATIVE_FEATURES:
        if not config.raw.get(key, True):
            raise _refused(config, key, config.raw[key])
    layer_types = config.raw.get("layer_types")
    for layer_type in layer_types if isinstance(layer_types, tuple) else ():
        if layer_type not in _LAYER_TYPES:
            raise _refused(config, "layer_types", layer_type)
    return family


def check_rope(config: ModelConfig, parameters: Mapping[str, object]) -> None:
    """Checks the kinds of rotary embedding.

    Args:
        config: The model.
        parameters: `rope_parameters` of transformers' configuration: of all layers, or by layer
            type.

    Raises:
        UnsupportedModelError: A kind is not known here, or changes within `config.max_model_len`.
    """
    by_layer_type = [value for value in parameters.values() if isinstance(value, Mapping)]
    for each in by_layer_type or [parameters]:
        if each.get("rope_type") not in _ROPE_TYPES:
            raise _refused(config, "rope_type", each.get("rope_type"))
        changes_at = number(each, "original_max_position_embeddings", config.max_model_len)
        if each.get("rope_type") == "longrope" and changes_at < config.max_model_len:
            raise _refused(config, "original_max_position_embeddings", changes_at)


def _refused(config: ModelConfig, key: str, value: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"model type {config.model_type!r} with {key} {shown(value)} is not served",
        model_type=config.model_type,
        key=key,
    )
