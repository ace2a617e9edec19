"""The rotary embedding of a GGUF file, as `config.json` says it."""

import math

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.family import Family
from stagecoach.model_files.gguf_architecture import GgufArchitecture
from stagecoach.model_files.gguf_metadata import GgufFields
from stagecoach.model_files.gguf_parts import GgufParts
from stagecoach.model_files.gguf_reader import dequantized_rows
from stagecoach.model_files.numbers import FACTOR

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, how llama.cpp stores the scaling of Llama 3."""

SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
"""Divisors of the rotary frequencies in short and in long texts, of LongRoPE."""

_DIMENSIONS = "rope.dimension_count"


def rope_keys(
    fields: GgufFields,
    architecture: GgufArchitecture,
    family: Family,
    parts: GgufParts,
    head_dim: float,
) -> dict[str, object]:
    """Returns the keys of the rotary embedding, none of a family with learned positions.

    Raises:
        UnsupportedModelError: It is of a kind that the family is not served with.
        ModelFilesError: A number is out of bounds.
    """
    if family.first_position is not None:
        return {}
    return {
        family.rope.theta_key: fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(fields, architecture, parts),
        **_rotated(fields, architecture, family, head_dim),
    }


def _rotated(
    fields: GgufFields, architecture: GgufArchitecture, family: Family, head_dim: float
) -> dict[str, object]:
    """How much of each head is rotated."""
    num_rotated = fields.number(_DIMENSIONS, head_dim)
    if not architecture.rotates_part:
        if num_rotated != head_dim:
            raise fields.refuse(
                f"{_DIMENSIONS} {fields.get(_DIMENSIONS)} beside head size {head_dim}"
            )
        return {}
    if family.rope.rotated_elements_key is not None:
        return {family.rope.rotated_elements_key: num_rotated}
    part = num_rotated / head_dim
    if int(part * head_dim) < num_rotated:  # as transformers counts them
        part = math.nextafter(part, 1)
    return {family.rope.rotated_part_key: part}


def _scaling(
    fields: GgufFields, architecture: GgufArchitecture, parts: GgufParts
) -> dict[str, object] | None:
    context_length = fields.number("context_length")
    kind = fields.get("rope.scaling.type")
    # As llama.cpp reads it: a factor without a kind is linear, and older files have another key.
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0)) or 1.0
    if kind not in (None, "none", "linear", "yarn", "longrope"):
        raise fields.refuse(f"rope scaling {kind!r}")
    is_scaled = kind == "yarn" or (kind != "none" and factor != 1.0)
    original = fields.number("rope.scaling.original_context_length", context_length)
    for short, long in ((ROPE_FACTORS, ROPE_FACTORS), (SHORT_FACTORS, LONG_FACTORS)):
        if short not in parts.tensors and long not in parts.tensors:
            continue
        if is_scaled or not architecture.may_have_rope_factors:
            raise fields.refuse(f"{short} beside rope scaling {kind!r} by {factor:g}")
        # Frequencies divided by given factors are LongRoPE (arXiv:2402.13753) of one length.
        is_one = short == long
        return {
            "rope_type": "longrope",
            "short_factor": _factors(parts, short),
            "long_factor": _factors(parts, long),
            "attention_factor": fields.number("rope.scaling.attn_factor", 1.0) or 1.0,
            "original_max_position_embeddings": context_length if is_one else original,
        }
    if kind == "longrope":
        raise fields.refuse(f"rope scaling {kind!r} without {SHORT_FACTORS}")
    if not is_scaled:
        return None
    if kind != "yarn":
        return {"rope_type": "linear", "factor": factor}
    given = {
        "attention_factor": fields.optional("rope.scaling.yarn_attn_factor"),
        "beta_fast": fields.optional("rope.scaling.yarn_beta_fast"),
        "beta_slow": fields.optional("rope.scaling.yarn_beta_slow"),
    }
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **architecture.yarn_says,
        **{name: value for name, value in given.items() if value is not None},
    }


def _factors(parts: GgufParts, name: str) -> list[float]:
    if name not in parts.tensors:
        raise ModelFilesError(f"{parts.name} has no tensor {name}")
    factors = [float(one) for one in dequantized_rows(parts, name, 0, 1).reshape(-1)]
    for factor in factors:
        FACTOR.check(factor, name, parts.name)
    return factors
