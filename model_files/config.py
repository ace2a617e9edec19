"""The shape of a model, parsed once from its configuration; nothing below reads the raw one."""

from collections.abc import Mapping
from dataclasses import dataclass

from protos.errors import ModelFilesError, UnsupportedModelError

_TIED_BY_DEFAULT = frozenset({"cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""Families whose configuration leaves `tie_word_embeddings` out when it is true."""

_UNGATED = frozenset({"arcee", "starcoder2"})
"""Families whose MLP has no gate, and so two matrices instead of three."""

_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")

_DEFAULT_HEAD_DIM = {"gemma": 256, "gemma2": 256, "gemma3_text": 256, "qwen3": 128}
"""Families whose heads do not divide the hidden size evenly unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the system needs to know of a decoder-only model."""

    model_type: str
    """Family, as transformers names it."""
    num_layers: int
    hidden_size: int
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer knows."""
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int | None
    """Width of an MLP; None when the configuration leaves it to its family."""
    num_mlp_matrices: int
    """Three of a gated MLP, two of another."""
    has_experts: bool
    """True when a layer has several MLPs, of which a token uses some."""
    max_model_len: int
    """Positions that the model was made for."""
    tie_word_embeddings: bool
    """True when the output head is the embedding."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation; may be empty."""
    raw: Mapping[str, object]
    """The whole Hugging Face configuration."""


def parse_config(
    raw: Mapping[str, object], generation: Mapping[str, object] | None = None
) -> ModelConfig:
    """Parses a Hugging Face configuration.

    Args:
        raw: Content of `config.json`.
        generation: Content of `generation_config.json`; its end-of-sequence tokens win.

    Raises:
        UnsupportedModelError: It is not of a plain decoder-only model.
        ModelFilesError: A value has the wrong type or range.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFilesError(f"config.json: model_type is {model_type!r}, must be a string")
    if "num_hidden_layers" not in raw:
        raise UnsupportedModelError(
            f"model type {model_type!r} is not served: its configuration is not that of a plain "
            "decoder-only model (no num_hidden_layers)",
            model_type=model_type,
        )
    num_heads = _positive(raw, "num_attention_heads")
    hidden_size = _positive(raw, "hidden_size")
    default_head_dim = _DEFAULT_HEAD_DIM.get(model_type, hidden_size // num_heads)
    return ModelConfig(
        model_type=model_type,
        num_layers=_positive(raw, "num_hidden_layers"),
        hidden_size=hidden_size,
        vocab_size=_positive(raw, "vocab_size"),
        num_attention_heads=num_heads,
        num_kv_heads=_positive(raw, "num_key_value_heads", num_heads),
        head_dim=_positive(raw, "head_dim", default_head_dim),
        intermediate_size=(
            None if raw.get("intermediate_size") is None else _positive(raw, "intermediate_size")
        ),
        num_mlp_matrices=2 if model_type in _UNGATED else 3,
        has_experts=any(raw.get(key) for key in _EXPERT_KEYS),
        max_model_len=_max_model_len(raw),
        tie_word_embeddings=_flag(raw, "tie_word_embeddings", model_type in _TIED_BY_DEFAULT),
        eos_token_ids=_token_ids({**raw, **_present(generation or {})}, "eos_token_id"),
        raw=raw,
    )


def _max_model_len(raw: Mapping[str, object]) -> int:
    """Positions that the model was made for, as far as its rotary embedding stays the same.

    LongRoPE (arXiv:2402.13753) changes the frequencies of all positions once a sequence grows
    beyond the original length, which would make the KV computed before wrong.
    """
    max_position = _positive(raw, "max_position_embeddings")
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling")
    if not isinstance(scaling, Mapping):
        return max_position
    if scaling.get("rope_type", scaling.get("type")) not in ("longrope", "su"):
        return max_position
    # Phi-3 keeps it beside the scaling, and transformers gives that place priority.
    scaling = {**_present(scaling), **_present(raw)}
    original = _positive(scaling, "original_max_position_embeddings", max_position)
    return min(max_position, original)


def _present(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _positive(raw: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ModelFilesError(f"config.json: {name} is {value!r}, must be a positive integer")
    return value


def _flag(raw: Mapping[str, object], name: str, default: bool) -> bool:
    value = raw.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelFilesError(f"config.json: {name} is {value!r}, must be true or false")
    return value


def _token_ids(raw: Mapping[str, object], name: str) -> tuple[int, ...]:
    value = raw.get(name)
    ids = []
    for token_id in value if isinstance(value, list) else [value]:
        if isinstance(token_id, bool) or not isinstance(token_id, int | None):
            raise ModelFilesError(f"config.json: {name} has {token_id!r}, must be token ids")
        if token_id is not None and token_id >= 0:
            ids.append(token_id)
    return tuple(ids)
