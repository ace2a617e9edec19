"""What a configuration says of its rotary embedding, in the one form that transformers 5 writes.

As `RotaryEmbeddingConfigMixin` of transformers (`modeling_rope_utils.py`) and what single families
make of it read the keys: `rope_scaling` of older files beside `rope_theta`, or `rope_parameters`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.model_files.layer_kinds import FULL, SLIDING

THETAS: Mapping[str, float] = MappingProxyType(
    {"cohere": 5e5, "gemma3_text": 1e6, "helium": 1e5, "olmo3": 5e5, "smollm3": 2e6}
)
"""Families whose rotary embedding has another base than 10 000 unless the configuration says so."""

BY_LAYER_TYPE = frozenset({"gemma3_text", "olmo3"})
"""Families in which layers with a window and those without have each their own."""

_PARTS: Mapping[str, float] = MappingProxyType({"glm": 0.5, "glm4": 0.5})
"""Families that rotate a part of each head unless the configuration says another one."""

ORIGINAL = "original_max_position_embeddings"
_PHI3_ORIGINAL = 4096
"""Positions of a Phi-3 that does not say how many it was first trained for."""

_DEFAULT = {"rope_type": "default"}

_FROM_ORIGINAL = ("llama3", "longrope", "yarn")
"""Kinds that start from the number of positions that a model was first trained for."""

ALL_LAYERS = "all_layers"


def rope_parameters(
    values: Mapping[str, object], model_type: str, max_positions: int
) -> dict[str, dict[str, object]]:
    """Returns the rotary embeddings by the type of layer, or one for `ALL_LAYERS`.

    Args:
        values: Of `config.json`. What is there of a scaling is an object.
        model_type: The family.
        max_positions: `max_position_embeddings`.
    """
    if model_type in BY_LAYER_TYPE:
        return _by_layer_type(values, model_type, max_positions)
    given = _mapping(values, "rope_scaling") or _mapping(values, "rope_parameters")
    theta = values.get("rope_theta", THETAS.get(model_type, 1e4))
    found = _written_out(given, theta, values, model_type)
    if found["rope_type"] in _FROM_ORIGINAL:
        found.setdefault(ORIGINAL, max_positions)
        # Beside the scaling, where Phi-3 has it, it counts before what the scaling says.
        beside = values.get(ORIGINAL)
        if beside is None and model_type == "phi3":
            beside = _PHI3_ORIGINAL
        if beside is not None:
            found[ORIGINAL] = beside
    return {ALL_LAYERS: found}


def _by_layer_type(
    values: Mapping[str, object], model_type: str, max_positions: int
) -> dict[str, dict[str, object]]:
    scaling, given = _mapping(values, "rope_scaling"), _mapping(values, "rope_parameters")
    full_theta = values.get("rope_theta", THETAS[model_type])
    # transformers gives the layers of an OLMo 3 that have a window no base but its default.
    is_said = model_type == "gemma3_text"
    theta = values.get("rope_local_base_freq", 1e4) if is_said else THETAS[model_type]
    full = {**(_mapping(given, FULL) or _DEFAULT), **scaling}
    sliding = _mapping(given, SLIDING) or _DEFAULT
    found = {
        FULL: _written_out(full, full_theta, values, model_type),
        SLIDING: _written_out(sliding, theta, values, model_type),
    }
    for one in found.values():
        one.pop("truncate", None)  # which it reads beside the types of layers
        if "truncate" in given:
            one["truncate"] = given["truncate"]
        if one["rope_type"] in _FROM_ORIGINAL:
            one.setdefault(ORIGINAL, max_positions)
    return found


def _written_out(
    given: Mapping[str, object], theta: object, values: Mapping[str, object], model_type: str
) -> dict[str, object]:
    """One rotary embedding, with what it leaves to the keys beside it."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "su" or (kind == "yarn" and model_type == "phi3"):
        kind = "longrope"  # as the first Phi-3 models called it
    part = values.get("partial_rotary_factor")
    return {
        "rope_theta": theta,
        "partial_rotary_factor": _PARTS.get(model_type, 1) if part is None else part,
        **{name: value for name, value in given.items() if name != "type"},
        "rope_type": kind,
    }


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
