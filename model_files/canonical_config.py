"""A configuration in one spelling, so that equal models have equal fingerprints.

Each release of transformers that saves a model again writes its `config.json` otherwise: keys move,
derived and default values are written out, what only training needs comes and goes. Two spellings
become one here only where transformers reads the same from both; whatever else differs stays.
"""

from collections.abc import Mapping

from model_files.config import ModelConfig

_WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "gradient_checkpointing",
        "initializer_range",
        "pretraining_tp",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
        # Of training.
        "attention_dropout",
        "embd_pdrop",
        "embedding_dropout",
        "hidden_dropout",
        "resid_pdrop",
        "residual_dropout",
        # Of the tokenizer and of generation, which the coordinator reads for itself.
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    }
)

_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")

OTHER_THETAS = {"cohere": 5e5, "helium": 1e5, "smollm3": 2e6}
"""Families whose rotary embedding has another base than 10 000 unless the configuration says so."""

ROPE_BY_LAYER_TYPE = frozenset({"gemma3_text", "olmo3"})
"""Families whose layers differ in their rotary embedding."""

BIASED = frozenset({"glm", "glm4", "seed_oss"})
"""Families whose attention has a bias unless the configuration says otherwise."""

_WINDOW_KEYS = ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window")
_SWITCHED_WINDOW = frozenset({"qwen2", "qwen3"})
"""Families whose windows count only where a switch says so."""


def canonical_config(config: ModelConfig) -> dict[str, object]:
    """Returns what of a configuration a stage computes with, in one spelling."""
    values: dict[str, object] = {
        **{key: value for key, value in config.raw.items() if key not in _WITHOUT_EFFECT},
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_model_len": config.max_model_len,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    if values.get("attention_bias", False) is False and config.model_type not in BIASED:
        values.pop("attention_bias", None)
    if values.get("mlp_bias", False) is False:
        values.pop("mlp_bias", None)
    if not values.get("use_bidirectional_attention"):
        values.pop("use_bidirectional_attention", None)
    if _has_no_window(config):
        values = {key: value for key, value in values.items() if key not in _WINDOW_KEYS}
    rope = _rope(config)
    if rope is not None:
        values = {key: value for key, value in values.items() if key not in _ROPE_KEYS}
        values["rope_parameters"] = rope
    return {key: _number(value) for key, value in values.items()}


def _has_no_window(config: ModelConfig) -> bool:
    """Whether no layer has a window, in a family with a switch for them."""
    if config.model_type not in _SWITCHED_WINDOW:
        return False
    layer_types = config.raw.get("layer_types")
    if layer_types is None:
        return not config.raw.get("use_sliding_window")
    return isinstance(layer_types, tuple) and set(layer_types) == {"full_attention"}


def _rope(config: ModelConfig) -> dict[str, object] | None:
    """The rotary embedding as newer configurations say it; None where that may say less.

    As `RotaryEmbeddingConfigMixin` of transformers (`modeling_rope_utils.py`) reads it.
    """
    raw = config.raw
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    default = OTHER_THETAS.get(config.model_type, 1e4)
    theta = raw.get("rope_theta", default)
    if (
        config.model_type in ROPE_BY_LAYER_TYPE
        or not isinstance(given, Mapping)
        or any(isinstance(value, Mapping) for value in given.values())
        or not isinstance(theta, int | float)
    ):
        return None
    kind = given.get("rope_type", given.get("type", "default"))
    part = raw.get("partial_rotary_factor")
    return {
        "rope_theta": _number(theta),
        **({} if part is None else {"partial_rotary_factor": _number(part)}),
        **{key: _number(value) for key, value in given.items() if key != "type"},
        "rope_type": "longrope" if kind == "su" else kind,
    }


def _number(value: object) -> object:
    """A number without the point that some writers leave out."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
