"""Writes the metadata of a GGUF file as the `config.json` that its model was converted from."""

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Family, WindowedLayers
from stagecoach.model_files.gguf_architecture import GgufArchitecture
from stagecoach.model_files.gguf_architectures import ARCHITECTURES
from stagecoach.model_files.gguf_metadata import GgufFields
from stagecoach.model_files.gguf_parts import GgufParts
from stagecoach.model_files.gguf_rope import rope_keys
from stagecoach.model_files.layer_kinds import FULL, SLIDING
from stagecoach.model_files.numbers import HEAD_DIM, VOCABULARY

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_NUM_AHEAD = "nextn_predict_layers"


def hf_config(fields: GgufFields, parts: GgufParts) -> dict[str, object]:
    """Writes the configuration.

    Raises:
        UnsupportedModelError: The architecture, or a feature of it, is not served.
        ModelFilesError: A field is missing or damaged, or contradicts the tensors.
    """
    architecture = served_architecture(fields)
    kind = parts.metadata.get("general.type", "model")
    if kind != "model":
        raise fields.refuse(f"a GGUF file that is no model but of type {kind!r}")
    model_type = _model_type(fields, architecture)
    family = FAMILIES[model_type]
    experts = _experts(fields, architecture, family)
    vocab_size = _num_rows_of_embedding(parts, fields.file_name)
    hidden_size = fields.number("embedding_length")
    num_heads = fields.number("attention.head_count")
    num_kv_heads = fields.number("attention.head_count_kv", num_heads)
    head_dim = fields.number("attention.key_length", hidden_size // num_heads)
    HEAD_DIM.check(head_dim, "embedding_length over attention.head_count", fields.file_name)
    if fields.number("attention.value_length", head_dim) != head_dim:
        value_length = fields.get("attention.value_length")
        raise fields.refuse(f"attention.value_length {value_length} beside head size {head_dim}")
    if fields.number("vocab_size", vocab_size) != vocab_size:
        raise ModelFilesError(
            f"{fields.file_name}: vocab_size is {fields.get('vocab_size')}, token_embd.weight has "
            f"{vocab_size} rows"
        )
    config = {
        "model_type": model_type,
        **architecture.says,
        "num_hidden_layers": _num_layers(fields, architecture),
        "hidden_size": hidden_size,
        "intermediate_size": fields.number("feed_forward_length"),
        "vocab_size": vocab_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": fields.number("context_length"),
        **_norm(fields, family),
        **experts,
        **_window(fields, architecture, family),
        **rope_keys(fields, architecture, family, parts, head_dim),
        **{key: f"blk.0.{name}" in parts.tensors for key, name in architecture.tensors_say.items()},
        **_said(fields, architecture),
        "tie_word_embeddings": "output.weight" not in parts.tensors,
        "bos_token_id": fields.token_id("bos_token_id"),
        "eos_token_id": _end_tokens(fields),
    }
    if family.one_kv_head is not None:
        config[family.one_kv_head] = num_kv_heads == 1
    fields.check_keys(head_dim=head_dim, gating=architecture.gating)
    return config


def served_architecture(fields: GgufFields) -> GgufArchitecture:
    """Finds the entry of a file's architecture.

    Raises:
        UnsupportedModelError: There is none.
    """
    if fields.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise fields.refuse(f"GGUF architecture {fields.architecture!r} (known: {known})")
    return ARCHITECTURES[fields.architecture]


def _num_layers(fields: GgufFields, architecture: GgufArchitecture) -> int:
    """Layers of the model, without those behind them that guess ahead.

    Raises:
        UnsupportedModelError: There are any, in an architecture that has none.
        ModelFilesError: There are no others.
    """
    num_blocks, num_ahead = fields.number("block_count"), fields.number(_NUM_AHEAD, 0)
    if num_ahead and not architecture.may_guess_ahead:
        raise fields.refuse(f"{_NUM_AHEAD} {num_ahead}")
    if num_ahead >= num_blocks:
        raise ModelFilesError(
            f"{fields.file_name}: {_NUM_AHEAD} is {num_ahead}, must be below the {num_blocks} of "
            "block_count"
        )
    return int(num_blocks - num_ahead)


def _model_type(fields: GgufFields, architecture: GgufArchitecture) -> str:
    """The family: Llama's layers are Mistral's with a window, or Mixtral's with experts."""
    if architecture.expert_model_type is not None and fields.number("expert_count", 0):
        return architecture.expert_model_type
    if architecture.windowed_model_type is not None and fields.number(_WINDOW, 0):
        return architecture.windowed_model_type
    return architecture.model_type


def _norm(fields: GgufFields, family: Family) -> dict[str, object]:
    """The epsilon of the norms, by the key of the family."""
    is_root_mean = family.norm == "RMSNorm"
    name = "attention.layer_norm_rms_epsilon" if is_root_mean else "attention.layer_norm_epsilon"
    epsilon = fields.number(name)
    if family.norm_eps is not None:
        return {family.norm_eps: epsilon}
    if abs(epsilon / 1e-5 - 1) > 1e-4:  # what torch's norm and llama.cpp take for granted
        raise fields.refuse(f"{name} {epsilon:g}")
    return {}


def _experts(
    fields: GgufFields, architecture: GgufArchitecture, family: Family
) -> dict[str, object]:
    """What the metadata says of experts, by the keys of their family in transformers."""
    count = fields.number("expert_count", 0)
    num_chosen = fields.optional("expert_used_count")
    width = fields.optional("expert_feed_forward_length")
    shared_width = fields.optional("expert_shared_feed_forward_length")
    layout = architecture.experts or family.experts
    if not count:
        if layout is not None:
            raise ModelFilesError(
                f"{fields.file_name} does not say {fields.architecture}.expert_count"
            )
        return {}
    if layout is None:
        raise fields.refuse("a mixture of experts")
    if num_chosen is None:
        raise ModelFilesError(
            f"{fields.file_name} does not say {fields.architecture}.expert_used_count"
        )
    keys = layout.keys
    found = {
        keys.num_experts: count,
        keys.num_chosen: num_chosen,
        keys.shared_width: shared_width,
        keys.width: width,
    }
    if shared_width and keys.shared_width is None and keys.num_shared is None:
        raise fields.refuse(f"expert_shared_feed_forward_length {shared_width}")
    return {key: value for key, value in found.items() if key and value is not None}


def _window(
    fields: GgufFields, architecture: GgufArchitecture, family: Family
) -> dict[str, object]:
    """Which layers attend within a window, and how long it is.

    Where the file does not say which, the family's default is what llama.cpp takes for granted.
    """
    window, pattern = fields.number(_WINDOW, 0), fields.window_pattern(_PATTERN)
    if pattern is not None and any(pattern) and not window:
        raise fields.refuse(f"{_PATTERN} without {_WINDOW}")
    if family.windows is None:
        if window:
            raise fields.refuse(f"{_WINDOW} {window}")
        return {}
    num_hidden_layers = _num_layers(fields, architecture)
    if not window and _WINDOW not in fields and "sliding_window" in architecture.says:
        return {}
    if not window:
        is_listed = family.windows.pattern_key in family.windows.keys
        nowhere = {"layer_types": [FULL] * num_hidden_layers} if is_listed else {}
        return {"sliding_window": None, **nowhere}
    found: dict[str, object] = {"sliding_window": window}
    if family.windows.on_request:
        found |= {"use_sliding_window": True, "max_window_layers": 0}
    if pattern is not None and family.windows.layers is WindowedLayers.ALL:
        if not all(pattern):
            raise fields.refuse(f"{_PATTERN} of some layers")
    elif pattern is not None:
        kinds = [SLIDING if has_window else FULL for has_window in pattern]
        found["layer_types"] = kinds[:num_hidden_layers]
    return found


def _said(fields: GgufFields, architecture: GgufArchitecture) -> dict[str, object]:
    """What the file says by keys of its own."""
    found = {key: fields.value(name) for name, key in architecture.keys.items()}
    return {key: value for key, value in found.items() if value is not None}


def _end_tokens(fields: GgufFields) -> list[int]:
    ends = [fields.token_id("eos_token_id"), fields.token_id("eot_token_id")]
    return sorted({token_id for token_id in ends if token_id is not None})


def _num_rows_of_embedding(parts: GgufParts, file_name: str) -> int:
    """Tokens of the vocabulary, as the matrix that embeds them has rows."""
    embedding = parts.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFilesError(f"{file_name} has no tensor token_embd.weight")
    if len(embedding.shape) != 2:
        raise ModelFilesError(
            f"{file_name}: token_embd.weight has {len(embedding.shape)} dimensions, must have 2"
        )
    VOCABULARY.check(embedding.shape[0], "the number of rows of token_embd.weight", file_name)
    return embedding.shape[0]
