"""The numbers of a model's configuration: what each may be, checked once before any is used.

Bounds leave room for models larger than any that is published. What lies outside of them makes
infinities or overflows, or would keep a machine busy for ever.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.family import Family
from stagecoach.model_files.frozen_json import shown


class Bounds(NamedTuple):
    """What a number may be; both ends are included."""

    low: float
    high: float
    is_whole: bool = False
    or_null: bool = False

    def check(self, value: object, field: str, file_name: str) -> None:
        """Checks a value.

        Args:
            value: As the file has it.
            field: Name of the number as the file spells it.
            file_name: Name of the file, for the error.

        Raises:
            ModelFilesError: It is no number, or not within the bounds.
        """
        if value is None and self.or_null:
            return
        wanted = int if self.is_whole else int | float
        if isinstance(value, bool) or not isinstance(value, wanted) or not self._holds(value):
            raise ModelFilesError(f"{file_name}: {field} is {shown(value)}, must be {self}")

    def __str__(self) -> str:
        """Says what the bounds are."""
        kind = "a whole number" if self.is_whole else "a number"
        return f"{kind} from {self.low:.12g} to {self.high:.12g}{' or null' * self.or_null}"

    def _holds(self, value: float) -> bool:
        return self.low <= value <= self.high  # false for NaN


def _whole(low: int, high: int) -> Bounds:
    return Bounds(low, high, is_whole=True)


MAX_POSITIONS = 2**31 - 1
LAYERS = _whole(1, 512)
WIDTH = _whole(1, 2**20)
INNER_WIDTH = _whole(1, 2**24)
VOCABULARY = _whole(1, 2**28)
HEADS = _whole(1, 2**16)
HEAD_DIM = _whole(1, 2**16)
POSITIONS = _whole(1, MAX_POSITIONS)
TOKEN_ID = _whole(0, 2**31 - 1)
EPSILON = Bounds(0, 1)
FACTOR = Bounds(1e-6, 1e6)
THETA = Bounds(1, 1e18)

_EXPERTS = _whole(1, 2**16)
_SHARED_EXPERTS = _whole(0, 2**8)
_ANY_WIDTH = _whole(0, 2**24)
_LAYER = _whole(0, 2**16)

_OPTIONAL_FACTOR = FACTOR._replace(or_null=True)
_WINDOW = POSITIONS._replace(or_null=True)
_PART = Bounds(1e-6, 1, or_null=True)

SIZES: Mapping[str, Bounds] = MappingProxyType(
    {
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "vocab_size": VOCABULARY,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER_WIDTH,
        "max_position_embeddings": POSITIONS,
        "original_max_position_embeddings": POSITIONS,
    }
)
"""Numbers that every model has; one that is null is left to the family."""

_ROPE: Mapping[str, Bounds] = MappingProxyType(
    {
        "rope_theta": THETA,
        "factor": _OPTIONAL_FACTOR,
        "attention_factor": _OPTIONAL_FACTOR,
        "beta_fast": _OPTIONAL_FACTOR,
        "beta_slow": _OPTIONAL_FACTOR,
        "low_freq_factor": _OPTIONAL_FACTOR,
        "high_freq_factor": _OPTIONAL_FACTOR,
        "mscale": Bounds(0, 1e6, or_null=True),
        "mscale_all_dim": Bounds(0, 1e6, or_null=True),
        "alpha": _OPTIONAL_FACTOR,
        "llama_4_scaling_beta": Bounds(0, 1e6),
        "partial_rotary_factor": _PART,
        "original_max_position_embeddings": Bounds(1, MAX_POSITIONS, or_null=True),
        "short_factor": FACTOR,
        "long_factor": FACTOR,
    }
)
"""What describes a rotary embedding, by its key in `rope_scaling` or `rope_parameters`."""

_LISTS = frozenset({"moe_topk"})
"""Numbers that may be listed for each layer."""

_ROPE_LISTS = frozenset({"short_factor", "long_factor"})

_OF_ALL: Mapping[str, Bounds] = MappingProxyType(
    {
        "rope_theta": THETA,
        "partial_rotary_factor": _PART,
        "rms_norm_eps": EPSILON,
        **dict.fromkeys(
            (
                "activation_dropout",
                "attention_dropout",
                "hidden_dropout_prob",
                "residual_dropout",
            ),
            Bounds(0, 1, or_null=True),
        ),
        "num_nextn_predict_layers": _LAYER._replace(or_null=True),
    }
)
"""Numbers that have defaults, and what they may be in any family."""

_OF_SOME: Mapping[str, Bounds] = MappingProxyType(
    {
        "rope_local_base_freq": THETA._replace(or_null=True),
        "layer_norm_eps": EPSILON,
        "layer_norm_epsilon": EPSILON,
        "norm_epsilon": EPSILON,
        "norm_eps": EPSILON,
        "rotary_emb_base": THETA,
        "rotary_pct": _PART._replace(or_null=False),
        "logit_scale": FACTOR,
        "attn_logit_softcapping": _OPTIONAL_FACTOR,
        "final_logit_softcapping": _OPTIONAL_FACTOR,
        "query_pre_attn_scalar": FACTOR,
        "attention_multiplier": FACTOR,
        "embedding_multiplier": FACTOR,
        "residual_multiplier": FACTOR,
        "logits_scaling": FACTOR,
        "clip_qkv": _OPTIONAL_FACTOR,
        "sliding_window": _WINDOW,
        "sliding_window_pattern": POSITIONS,
        "global_attn_every_n_layers": POSITIONS,
        "route_scale": FACTOR,
        "swiglu_alpha": FACTOR,
        "swiglu_limit": FACTOR,
        "max_window_layers": _whole(0, MAX_POSITIONS),
        "no_rope_layer_interval": POSITIONS,
        **dict.fromkeys(
            (
                *("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
                *("num_experts_per_tok", "moe_k", "moe_topk", "n_group", "topk_group"),
            ),
            _EXPERTS,
        ),
        **dict.fromkeys(
            ("n_shared_experts", "moe_num_shared_experts", "num_shared_experts"), _SHARED_EXPERTS
        ),
        "moe_intermediate_size": INNER_WIDTH,
        **dict.fromkeys(
            ("shared_expert_intermediate_size", "shared_intermediate_size"), _ANY_WIDTH
        ),
        **dict.fromkeys(("decoder_sparse_step", "moe_layer_interval"), LAYERS),
        **dict.fromkeys(
            ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"), _LAYER
        ),
        "moe_layer_end_index": _whole(-1, 2**16),
        "moe_norm_min": EPSILON,
        "routed_scaling_factor": FACTOR,
        **dict.fromkeys(
            ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), HEAD_DIM
        ),
        "q_lora_rank": WIDTH._replace(or_null=True),
        "rotary_dim": HEAD_DIM._replace(or_null=True),
    }
)
"""Numbers that some families have, and what they may be in those."""


def check_numbers(raw: Mapping[str, object], family: Family | None, file_name: str) -> None:
    """Checks every number of a configuration that a model of its family reads.

    All others have to be finite.

    Args:
        raw: Content of the file.
        family: Family of the model; None: one that is not served.
        file_name: Name of the file, for errors.

    Raises:
        ModelFilesError: A number is not finite, or not within its bounds, or there is none where
            one has to be; names the field as the file spells it.
    """
    for name, value in raw.items():
        usual = name if family is None else family.other_keys.get(name, name)
        bounds = _bounds_of(usual, family, raw)
        if bounds is not None:
            is_list = name in _LISTS and isinstance(value, list | tuple)
            for one in value if is_list else [value]:  # type: ignore[attr-defined]
                bounds.check(one, name, file_name)
        elif name in ("rope_scaling", "rope_parameters") and isinstance(value, Mapping):
            _check_rope(value, name, file_name)
        elif not _is_finite(value):
            raise ModelFilesError(f"{file_name}: {name} is {shown(value)}, must be finite")


def _bounds_of(name: str, family: Family | None, raw: Mapping[str, object]) -> Bounds | None:
    if name in SIZES:
        return SIZES[name]._replace(or_null=True)
    if name in _OF_ALL:
        return _OF_ALL[name]
    if name not in _OF_SOME or family is None or not family.reads_number(name):
        return None
    is_listed = raw.get("layer_types") is not None
    if family.windows is not None and name == family.windows.pattern_key and is_listed:
        return None
    if name == "sliding_window" and family.windows is not None:
        if family.windows.on_request and not raw.get("use_sliding_window"):
            return None
        if not family.windows.may_be_null and not is_listed:
            return POSITIONS
    or_null = name in family.reads and family.reads[name] is None
    return _OF_SOME[name]._replace(or_null=True) if or_null else _OF_SOME[name]


def _check_rope(values: Mapping[str, object], path: str, file_name: str) -> None:
    """Checks the numbers of rotary embeddings: of all layers, or by the type of layer."""
    for name, value in values.items():
        field = f"{path}.{name}"
        bounds = _ROPE.get(name)
        if bounds is not None:
            is_list = name in _ROPE_LISTS and isinstance(value, list | tuple)
            for one in value if is_list else [value]:  # type: ignore[attr-defined]
                bounds.check(one, field, file_name)
        elif isinstance(value, Mapping):
            _check_rope(value, field, file_name)
        elif not _is_finite(value):
            raise ModelFilesError(f"{file_name}: {field} is {shown(value)}, must be finite")


def _is_finite(value: object) -> bool:
    """Whether a value has no number that is infinite, or none, or larger than any float."""
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:
        return False
