"""The model families that are served, one line each, each with a parity test of the same name.

A family is here when its decoder layers, called one after another, are all there is between the
embedding and the final norm. Whatever is not here is refused by name: an unknown detail would
generate wrong text silently.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.model_files import ModelConfig
from stagecoach.model_files.frozen_json import shown
from stagecoach.model_files.layer_kinds import FULL, SLIDING
from stagecoach.model_files.not_served import not_served

_ROPE_TYPES = frozenset({"default", "linear", "dynamic", "yarn", "llama3", "longrope"})
_LAYER_TYPES = frozenset({FULL, SLIDING})

_FOREIGN_FEATURES = (
    "add_cross_attention",
    "attention_chunk_size",
    "is_encoder_decoder",
    "num_experts",
    "num_kv_shared_layers",
    "num_local_experts",
    "per_layer_config",
    "use_bidirectional_attention",
)
"""Configuration keys that change what a layer is; served only when absent, null, false or 0."""

_NATIVE_FEATURES = ("is_causal",)
"""Configuration keys that change what a layer is when they are null, false or 0."""

_QUANTIZATIONS = ("quantization_config", "compression_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is special about a family, beyond its decoder layer in transformers.

    Names of configuration keys are those of `config.json`. An absent key has no effect.
    """

    module: str
    """`transformers.models.<module>.modeling_<module>`."""
    prefix: str
    """Of the class names: `<prefix>DecoderLayer`, `<prefix>RotaryEmbedding`."""
    norm: str = "RMSNorm"
    """Class of the final norm: `<prefix><norm>`, or `LayerNorm` of torch."""
    norm_eps: str | None = "rms_norm_eps"
    """Key of the final norm's epsilon; None: the norm has its own."""
    rope_per_layer_type: bool = False
    """True when sliding and full layers have rotary embeddings of their own."""
    lean: bool = False
    """True when `lean_layers` computes the same with less overhead."""
    embedding_scaled_by_width: bool = False
    """True when embeddings are multiplied by the square root of the hidden size."""
    embedding_multiplier: str | None = None
    """Key of a factor on the embeddings."""
    residual_multiplier: str | None = None
    """Key of a factor on what attention and MLP add; the layers of transformers know it."""
    logits_multiplier: str | None = None
    """Key of a factor on the logits."""
    logits_divisor: str | None = None
    """Key of a divisor of the logits."""
    logits_softcap: str | None = None
    """Key of a soft cap of the logits."""

    def embedding_scale(self, config: Mapping[str, object]) -> float:
        """Returns the factor on the embeddings."""
        if self.embedding_scaled_by_width:
            return math.sqrt(_number(config, "hidden_size", 1.0))
        return _number(config, self.embedding_multiplier, 1.0)

    def residual_scale(self, config: Mapping[str, object]) -> float:
        """Returns the factor on what attention and MLP add."""
        return _number(config, self.residual_multiplier, 1.0)

    def logits_scale(self, config: Mapping[str, object]) -> float:
        """Returns the factor on the logits."""
        multiplier = _number(config, self.logits_multiplier, 1.0)
        return multiplier / _number(config, self.logits_divisor, 1.0)

    def softcap(self, config: Mapping[str, object]) -> float | None:
        """Returns the soft cap of the logits: they become `cap * tanh(logits / cap)`."""
        return _number(config, self.logits_softcap, 0.0) or None


def _llama_like(module: str, prefix: str) -> Family:
    return Family(module=module, prefix=prefix, lean=True)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "arcee": Family(module="arcee", prefix="Arcee"),
        "cohere": Family(
            module="cohere",
            prefix="Cohere",
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            logits_multiplier="logit_scale",
        ),
        "cohere2": Family(
            module="cohere2",
            prefix="Cohere2",
            norm="LayerNorm",
            norm_eps="layer_norm_eps",
            logits_multiplier="logit_scale",
        ),
        "exaone4": Family(module="exaone4", prefix="Exaone4"),
        "gemma": Family(module="gemma", prefix="Gemma", embedding_scaled_by_width=True),
        "gemma2": Family(
            module="gemma2",
            prefix="Gemma2",
            embedding_scaled_by_width=True,
            logits_softcap="final_logit_softcapping",
        ),
        "gemma3_text": Family(
            module="gemma3",
            prefix="Gemma3",
            rope_per_layer_type=True,
            embedding_scaled_by_width=True,
            logits_softcap="final_logit_softcapping",
        ),
        "glm": Family(module="glm", prefix="Glm"),
        "glm4": Family(module="glm4", prefix="Glm4"),
        "granite": Family(
            module="granite",
            prefix="Granite",
            lean=True,
            embedding_multiplier="embedding_multiplier",
            residual_multiplier="residual_multiplier",
            logits_divisor="logits_scaling",
        ),
        "helium": Family(module="helium", prefix="Helium"),
        "llama": _llama_like("llama", "Llama"),
        "ministral": _llama_like("ministral", "Ministral"),
        "mistral": _llama_like("mistral", "Mistral"),
        "olmo": Family(module="olmo", prefix="Olmo", norm="LayerNorm", norm_eps=None),
        "olmo2": Family(module="olmo2", prefix="Olmo2"),
        "olmo3": Family(module="olmo3", prefix="Olmo3", rope_per_layer_type=True),
        "phi3": Family(module="phi3", prefix="Phi3"),
        "qwen2": _llama_like("qwen2", "Qwen2"),
        "qwen3": _llama_like("qwen3", "Qwen3"),
        "seed_oss": _llama_like("seed_oss", "SeedOss"),
        "smollm3": Family(module="smollm3", prefix="SmolLM3"),
        "starcoder2": Family(
            module="starcoder2", prefix="Starcoder2", norm="LayerNorm", norm_eps="norm_epsilon"
        ),
    }
)
"""By `model_type`."""


def family_of(config: ModelConfig) -> Family:
    """Finds the family of a model and checks that the model keeps to its layout.

    Raises:
        UnsupportedModelError: The family is not served, or the configuration changes its layout;
            names the family or the key.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise not_served(config.model_type, config.raw)
    for key in _QUANTIZATIONS:
        if config.raw.get(key):
            raise _quantized(config.raw[key])
    for key in _FOREIGN_FEATURES:
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
        changes_at = _number(each, "original_max_position_embeddings", config.max_model_len)
        if each.get("rope_type") == "longrope" and changes_at < config.max_model_len:
            raise _refused(config, "original_max_position_embeddings", changes_at)


def _quantized(settings: object) -> UnsupportedModelError:
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    known = f" by {method}" if isinstance(method, str) else ""
    return UnsupportedModelError(
        f"weights that are quantized{known} (quantization_config) are not served: take the model "
        "that they were made from, or a GGUF file of it",
        key="quantization_config",
    )


def _refused(config: ModelConfig, key: str, value: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"model type {config.model_type!r} with {key} {shown(value)} is not served",
        model_type=config.model_type,
        key=key,
    )


def _number(config: Mapping[str, object], key: str | None, default: float) -> float:
    value = default if key is None else config.get(key, default)
    return float(value) if isinstance(value, int | float) else default
