"""A stage of a Llama-like model, found from its configuration alone.

transformers' models take longer to import than torch, and most models that people run are plain:
their configuration has usual keys with usual values. What they consist of is written down here;
whatever else a configuration says is left to `ModuleBlueprint`, which is the slow twin in the
tests.
"""

import math
from collections.abc import Mapping, Sequence
from types import NoneType

from torch import nn

from stage_server.model.blueprint import AttentionTraits, Blueprint, layer_prefix
from stage_server.model.plain_rope import KINDS, PlainRope
from stage_server.model.rms_norm import RmsNorm
from stage_server.model.rotary import Rotary
from stage_server.model.tensor_names import NORM
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource, Shape
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import ModelConfig, ModelFiles
from stagecoach.model_files.canonical_config import canonical_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import WindowedLayers
from stagecoach.model_files.layer_kinds import FULL, SLIDING
from stagecoach.model_files.rope_parameters import ALL_LAYERS

_NUMBER = (int, float)

_USUAL: Mapping[str, tuple[type, ...]] = {
    "_name_or_path": (str,),
    "architectures": (tuple, NoneType),
    "attention_bias": (bool,),
    "attention_dropout": _NUMBER,
    "attention_multiplier": _NUMBER,
    "attention_out_bias": (bool,),
    "bos_token_id": (int, NoneType),
    "compression_config": (Mapping, NoneType),
    "dtype": (str, NoneType),
    "embedding_multiplier": _NUMBER,
    "eos_token_id": (int, tuple, NoneType),
    "head_dim": (int,),
    "hidden_act": (str,),
    "hidden_size": (int,),
    "initializer_range": (float,),
    "intermediate_size": (int,),
    "is_llama_config": (bool,),
    "layer_types": (tuple, NoneType),
    "logits_scaling": _NUMBER,
    "max_position_embeddings": (int,),
    "max_sequence_length": (int,),
    "max_window_layers": (int,),
    "mlp_bias": (bool,),
    "model_type": (str,),
    "num_attention_heads": (int,),
    "num_hidden_layers": (int,),
    "num_key_value_heads": (int,),
    "pad_token_id": (int, NoneType),
    "pretraining_tp": (int,),
    "quantization_config": (Mapping, NoneType),
    "residual_dropout": _NUMBER,
    "residual_multiplier": _NUMBER,
    "rms_norm_eps": (float,),
    "rope_interleaved": (bool,),
    "rope_parameters": (Mapping,),
    "rope_scaling": (Mapping, NoneType),
    "rope_theta": _NUMBER,
    "sliding_window": (int, NoneType),
    "tie_word_embeddings": (bool,),
    "torch_dtype": (str, NoneType),
    "transformers.js_config": (Mapping,),
    "transformers_version": (str,),
    "use_cache": (bool,),
    "use_mrope": (bool,),
    "use_sliding_window": (bool,),
    "vocab_size": (int,),
}
"""Keys that a plain configuration may have, and the types of their values.

Those that no layer reads are here because published models have them.
"""


def is_plain(config: ModelConfig) -> bool:
    """Returns whether `LeanBlueprint` knows what a configuration says.

    Where it does, transformers takes the configuration as well, and reads the same from it.
    """
    family = FAMILIES.get(config.model_type)
    if family is None or family.lean is None:
        return False
    says = canonical_config(config)
    return (
        all(_is_usual(name, value) for name, value in config.raw.items())
        and config.raw.get("hidden_act", "silu") == "silu"
        and config.hidden_size % config.num_attention_heads == 0
        and config.head_dim % 2 == 0
        and _has_plain_rope(config.raw, says)
        and _has_plain_windows(config, says)
    )


class LeanBlueprint(Blueprint):
    """The layers of a Llama-like model.

    Args:
        files: As `Blueprint`; `is_plain` of its configuration.
        layers: As `Blueprint`.

    Raises:
        UnsupportedModelError: As `Blueprint`.
        ModelFilesError: As `Blueprint`.
    """

    def __init__(self, files: ModelFiles, layers: LayerRange) -> None:
        super().__init__(files, layers)
        config, layout = self.config, self.family.lean
        assert layout is not None, "a plain configuration is of a lean family"
        self._layout = layout
        self._says = canonical_config(config)
        self.hidden_act = "silu"
        self.norm_eps = _number(self._says, "rms_norm_eps")
        self.rotary = Rotary(
            _rope(self._says, config.head_dim),
            None,
            len(layers),
            max_num_positions=config.max_model_len,
        )
        scaling = config.head_dim**-0.5
        if layout.scaling is not None:
            scaling = _number(self._says, layout.scaling)
        self.traits = [
            AttentionTraits(
                config.num_kv_heads, config.head_dim, scaling, self._window(layer_idx), None
            )
            for layer_idx in layers
        ]

    def layer_sources(self) -> Sequence[dict[str, ParameterSource]]:
        """Plans the weights of each layer; see `Blueprint.layer_sources`."""
        shapes = self._layer_shapes()
        return [
            {
                prefix + name: ParameterSource.one(prefix + name, shape)
                for name, shape in shapes.items()
            }
            for prefix in map(layer_prefix, self.range)
        ]

    def norm_sources(self) -> dict[str, ParameterSource]:
        """Plans the weight of the final norm."""
        name = f"{NORM}weight"
        return {name: ParameterSource.one(name, (self.config.hidden_size,))}

    def load_norm(self, loader: WeightLoader) -> nn.Module:
        """Makes the final norm."""
        return RmsNorm(loader.other(f"{NORM}weight"), self.norm_eps)

    def _layer_shapes(self) -> dict[str, Shape]:
        """Shapes of the tensors of one layer, by their names in it."""
        config, layout = self.config, self._layout
        width, inner = config.hidden_size, config.intermediate_size
        assert inner is not None, "every lean family has a default"
        num_queries = config.num_attention_heads * config.head_dim
        num_keys = config.num_kv_heads * config.head_dim
        linears = {
            "self_attn.q_proj": (num_queries, width, layout.query_bias),
            "self_attn.k_proj": (num_keys, width, layout.query_bias),
            "self_attn.v_proj": (num_keys, width, layout.query_bias),
            "self_attn.o_proj": (width, num_queries, layout.output_bias),
            "mlp.gate_proj": (inner, width, layout.mlp_bias),
            "mlp.up_proj": (inner, width, layout.mlp_bias),
            "mlp.down_proj": (width, inner, layout.mlp_bias),
        }
        shapes: dict[str, Shape] = {}
        for name, (num_outputs, num_inputs, bias) in linears.items():
            shapes[f"{name}.weight"] = (num_outputs, num_inputs)
            if bias is True or (isinstance(bias, str) and self._says[bias]):
                shapes[f"{name}.bias"] = (num_outputs,)
        shapes["input_layernorm.weight"] = shapes["post_attention_layernorm.weight"] = (width,)
        if layout.has_head_norms:
            head = (config.head_dim,)
            shapes["self_attn.q_norm.weight"] = shapes["self_attn.k_norm.weight"] = head
        return shapes

    def _window(self, layer_idx: int) -> int | None:
        kinds, window = self._says.get("layer_types"), self._says.get("sliding_window")
        assert isinstance(window, int | None), "a plain window is a number"
        if isinstance(kinds, tuple) and kinds[layer_idx] == FULL:
            return None
        return window


def _is_usual(name: str, value: object) -> bool:
    types = _USUAL.get(name)
    if types is None or not isinstance(value, types) or isinstance(value, bool) != (bool in types):
        return False
    if isinstance(value, tuple):
        kind = int if name == "eos_token_id" else str
        return all(isinstance(one, kind) and not isinstance(one, bool) for one in value)
    return name != "initializer_range" or (isinstance(value, float) and 0 <= value <= 1)


def _has_plain_rope(raw: Mapping[str, object], config_says: Mapping[str, object]) -> bool:
    if "rope_parameters" in raw and ("rope_theta" in raw or "rope_scaling" in raw):
        return False
    says = _rope_says(config_says)
    kind = says.get("rope_type")
    if not isinstance(kind, str) or kind not in KINDS:
        return False
    numbers = {"rope_theta", "partial_rotary_factor", *KINDS[kind]}
    return (
        says.keys() == {"rope_type", *numbers}
        and all(_is_positive(says[name]) for name in numbers)
        and says["partial_rotary_factor"] == 1
        and (kind != "llama3" or says["low_freq_factor"] != says["high_freq_factor"])
    )


def _has_plain_windows(config: ModelConfig, says: Mapping[str, object]) -> bool:
    windows = FAMILIES[config.model_type].windows
    if windows is None or windows.layers is WindowedLayers.ALL:
        if "layer_types" in config.raw:
            return False
        return windows is None or _is_window(config.raw.get("sliding_window", windows.default))
    kinds = says["layer_types"]
    return (
        isinstance(kinds, tuple)
        and len(kinds) == config.num_layers
        and set(kinds) <= {FULL, SLIDING}
        and _is_window(says["sliding_window"])
    )


def _is_window(value: object) -> bool:
    return value is None or (isinstance(value, int) and value > 0)


def _is_positive(value: object) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and 0 < value < math.inf


def _rope_says(config_says: Mapping[str, object]) -> Mapping[str, object]:
    parameters = config_says["rope_parameters"]
    assert isinstance(parameters, Mapping), "by the types of layers"
    says = parameters[ALL_LAYERS]
    assert isinstance(says, Mapping), "no lean family has an embedding for each type of layer"
    return says


def _rope(config_says: Mapping[str, object], head_dim: int) -> PlainRope:
    says = _rope_says(config_says)
    kind = says["rope_type"]
    assert isinstance(kind, str), "a plain embedding has a kind"
    return PlainRope(
        kind,
        head_dim=head_dim,
        base=_number(says, "rope_theta"),
        numbers={name: _number(says, name) for name in KINDS[kind]},
    )


def _number(says: Mapping[str, object], key: str) -> float:
    value = says[key]
    assert isinstance(value, int | float), f"{key} of a plain configuration is a number"
    return value
