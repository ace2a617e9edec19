"""What a configuration says of its rotary embedding, in the one form that transformers 5 writes.

As `RotaryEmbeddingConfigMixin` of transformers (`modeling_rope_utils.py`) and what single families
make of it read the keys: `rope_scaling` of older files beside `rope_theta`, or `rope_parameters`.
"""

from collections.abc import Mapping

from stagecoach.model_files.family import Rope
from stagecoach.model_files.layer_kinds import FULL, SLIDING

ORIGINAL = "original_max_position_embeddings"
_DEFAULT = {"rope_type": "default"}
_NOT_READ = ("type", "max_position_embeddings")
"""Keys that are not of the embedding: the old name of the kind, and what Ministral 3 repeats."""

_FROM_ORIGINAL = ("llama3", "longrope", "yarn")
"""Kinds that start from the number of positions that a model was first trained for."""

ALL_LAYERS = "all_layers"


def rope_parameters(
    values: Mapping[str, object], family: Rope, max_positions: int
) -> dict[str, dict[str, object]]:
    """Returns the rotary embeddings by the type of layer, or one for `ALL_LAYERS`.

    Args:
        values: Content of `config.json`. What is there of a scaling is an object.
        family: What holds where they say nothing.
        max_positions: `max_position_embeddings`.
    """
    if family.per_layer_type:
        return _by_layer_type(values, family, max_positions)
    given = _mapping(values, "rope_scaling") or _mapping(values, "rope_parameters")
    if not given and values.get("rope_parameters") is None:
        given = family.unless_said
    found = _written_out(given, values.get(family.theta_key, family.theta), values, family)
    if found["rope_type"] in _FROM_ORIGINAL:
        found.setdefault(ORIGINAL, max_positions)
        # Beside the scaling, where Phi-3 has it, it counts before what the scaling says.
        beside = values.get(ORIGINAL)
        if beside is None:
            beside = family.original_positions
        if beside is not None:
            found[ORIGINAL] = beside
    return {ALL_LAYERS: found}


def _by_layer_type(
    values: Mapping[str, object], family: Rope, max_positions: int
) -> dict[str, dict[str, object]]:
    scaling, given = _mapping(values, "rope_scaling"), _mapping(values, "rope_parameters")
    full_theta = values.get("rope_theta", family.theta)
    key = family.sliding_theta_key
    # transformers gives the layers of an OLMo 3 that have a window no base but its default.
    theta = family.theta if key is None else values.get(key, 1e4)
    full = {**(_mapping(given, FULL) or _DEFAULT), **scaling}
    sliding = _mapping(given, SLIDING) or _DEFAULT
    found = {
        FULL: _written_out(full, full_theta, values, family),
        SLIDING: _written_out(sliding, theta, values, family),
    }
    for one in found.values():
        one.pop("truncate", None)  # which it reads beside the types of layers
        if "truncate" in given:
            one["truncate"] = given["truncate"]
        if one["rope_type"] in _FROM_ORIGINAL:
            one.setdefault(ORIGINAL, max_positions)
    return found


def _written_out(
    given: Mapping[str, object], theta: object, values: Mapping[str, object], family: Rope
) -> dict[str, object]:
    """One rotary embedding, with what it leaves to the keys beside it."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "su":
        kind = "longrope"
    if isinstance(kind, str):
        kind = family.renamed_kinds.get(kind, kind)
    part = values.get(family.rotated_part_key)
    num_rotated = values.get(family.rotated_elements_key or "")
    head_dim = values.get("head_dim")
    if part is None and isinstance(num_rotated, int) and isinstance(head_dim, int):
        part = num_rotated / head_dim
    return {
        "rope_theta": theta,
        "partial_rotary_factor": family.rotated_part if part is None else part,
        **{name: value for name, value in given.items() if name not in _NOT_READ},
        "rope_type": kind,
    }


def _mapping(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
