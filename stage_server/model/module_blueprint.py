"""A stage as transformers defines it: the way that knows every family.

A decoder layer is built with its index in the whole model, so per-layer lists of the configuration
need no slicing. To import transformers' models takes longer than to import torch.
"""

import importlib
import re
from collections.abc import Sequence

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig

from stage_server.model.blueprint import AttentionTraits, Blueprint, layer_prefix
from stage_server.model.conv1d import linears_of_conv1d
from stage_server.model.decoder_layer import IMPLEMENTATION, hand_arguments_on, run_layer
from stage_server.model.experts import layer_sources
from stage_server.model.latent_attention import keep_rows
from stage_server.model.layout import check_rope
from stage_server.model.rotary import NoRotary, Rotary
from stage_server.model.tensor_names import NORM
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource, module_sources, transposed_sources
from stagecoach.contract.errors import ModelFilesError, StagecoachError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import ModelConfig, ModelFiles
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import Family
from stagecoach.model_files.frozen_json import shown, thawed

_CHECKED = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "vocab_size": "vocab_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_kv_heads",
    "tie_word_embeddings": "tie_word_embeddings",
}
"""Attributes of transformers' configuration, and ours."""

_MODELING = "transformers.models.{0}.modeling_{0}"

_NOT_HANDED_ON = frozenset({"dtype", "torch_dtype", "quantization_config", "compression_config"})
"""Keys that say how to load, which is the operator's and the files' to say; transformers refuses
`auto` for a dtype."""


class ModuleBlueprint(Blueprint):
    """A stage's modules on the meta device; every family has them.

    Args:
        files: As `Blueprint`.
        layers: As `Blueprint`.

    Raises:
        UnsupportedModelError: As `Blueprint`; or transformers reads the configuration otherwise.
        ModelFilesError: As `Blueprint`.
    """

    def __init__(self, files: ModelFiles, layers: LayerRange) -> None:
        super().__init__(files, layers)
        try:
            self._build()
        except StagecoachError:
            raise
        except Exception as error:
            # transformers checks a configuration as it goes, with errors of every class.
            raise ModelFilesError(_in_words(self.config, error)) from error

    def _build(self) -> None:
        family, name = self.family, self.family.module
        hf_config = _hf_config(self.config)
        module = importlib.import_module(_MODELING.format(name))
        layer_class = getattr(module, f"{family.prefix}{family.layer}")
        attention, attention_prefix = module, family.prefix
        if family.attention_of is not None:
            other = FAMILIES[family.attention_of]
            attention = importlib.import_module(_MODELING.format(other.module))
            attention_prefix = other.prefix
            hf_config.rope_interleave = (
                True  # pairs of neighbours, as the family's own rotates them
            )
        rotary: nn.Module = NoRotary()
        if family.first_position is None:
            check_rope(self.config, hf_config.rope_parameters)
            rotary = getattr(attention, f"{attention_prefix}RotaryEmbedding")(config=hf_config)
        with torch.device("meta"):
            self.layers: list[nn.Module] = [layer_class(hf_config, i) for i in self.range]
            if family.attention_of is not None:
                attention_class = getattr(attention, f"{attention_prefix}Attention")
                for layer, layer_idx in zip(self.layers, self.range, strict=True):
                    layer.self_attn = attention_class(hf_config, layer_idx)
            self._norm = _final_norm(module, family, hf_config)
            self._transposed = [linears_of_conv1d(layer) for layer in self.layers]
        if self.config.latent is not None:
            for layer in self.layers:
                keep_rows(layer, self.config.latent)
        if not family.hands_arguments_on:
            for layer in self.layers:
                hand_arguments_on(layer)
        layer_types = None
        if family.rope.per_layer_type:
            layer_types = [hf_config.layer_types[i] for i in self.range]
        self.rotary = Rotary(
            rotary, layer_types, len(self.range), max_num_positions=self.config.max_model_len
        )
        self.hidden_act = getattr(hf_config, "hidden_act", "")
        self.norm_eps = getattr(hf_config, "rms_norm_eps", 0.0)
        types = layer_types or [None] * len(self.range)
        self.traits = [self._traits(index, layer_type) for index, layer_type in enumerate(types)]

    def layer_sources(self) -> Sequence[dict[str, ParameterSource]]:
        """Plans the weights of each layer; see `Blueprint.layer_sources`."""
        return [
            transposed_sources(
                layer_sources(layer, layer_prefix(layer_idx), self._files.experts),
                [layer_prefix(layer_idx) + name for name in transposed],
            )
            for layer_idx, layer, transposed in zip(
                self.range, self.layers, self._transposed, strict=True
            )
        ]

    def norm_sources(self) -> dict[str, ParameterSource]:
        """Plans the weights of the final norm."""
        return module_sources(self._norm, NORM)

    def load_norm(self, loader: WeightLoader) -> nn.Module:
        """Gives the final norm of transformers its weights."""
        loader.within(NORM).fill(self._norm)
        return self._norm

    def _traits(self, index: int, layer_type: str | None) -> AttentionTraits:
        """Runs a layer without memory and looks at the call of its attention."""
        positions = torch.zeros(1, dtype=torch.int64)
        cos, sin = self.rotary.compute(torch.zeros(1), positions, layer_type)
        try:
            run_layer(
                self.layers[index],
                torch.empty(1, 1, self.config.hidden_size, device="meta"),
                positions.unsqueeze(0).to("meta"),
                (cos.to("meta"), sin.to("meta")),
                _Recorder(),
                self.range.start,
            )
        except _AttendedError as attended:
            traits, config = attended.traits, self.config
        else:
            raise AssertionError("every layer attends")
        if (traits.num_kv_heads, traits.head_dim) != (config.num_kv_heads, config.head_dim):
            raise UnsupportedModelError(
                "config.json must say num_key_value_heads and head_dim: transformers takes "
                f"{traits.num_kv_heads} and {traits.head_dim}, the coordinator "
                f"{config.num_kv_heads} and {config.head_dim}"
            )
        return traits


class _AttendedError(Exception):
    """Ends a layer that has called its attention: what follows may need numbers to go by."""

    def __init__(self, traits: AttentionTraits) -> None:
        super().__init__()
        self.traits = traits


class _Recorder:
    """An `Attention` that raises what it is told and computes nothing."""

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        _, num_kv_heads, head_dim = key.shape
        traits = AttentionTraits(
            num_kv_heads, head_dim, scaling, sliding_window, softcap, sinks is not None
        )
        raise _AttendedError(traits)


def _hf_config(config: ModelConfig) -> PreTrainedConfig:
    """Makes transformers' configuration and checks that it says what ours says."""
    config_class = CONFIG_MAPPING[config.model_type]
    own_keys = {
        usual: own
        for own, usual in FAMILIES[config.model_type].other_keys.items()
        if usual not in config_class.__dataclass_fields__
    }
    raw = {
        own_keys.get(name, name): thawed(value)
        for name, value in config.raw.items()
        if name not in _NOT_HANDED_ON
    }
    scaling = raw.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("type") == "su":
        # The name that LongRoPE had when the first Phi-3 was published.
        raw["rope_scaling"] = {**scaling, "type": "longrope"}
    hf_config: PreTrainedConfig = config_class.from_dict(raw)
    if getattr(hf_config, "head_dim", config.head_dim) is None:  # some families take it as it is
        hf_config.head_dim = config.head_dim
    for theirs, ours in _CHECKED.items():
        if config.latent is not None and ours == "num_kv_heads":
            continue  # what is kept has one
        expected = getattr(config, ours)
        found = getattr(hf_config, theirs, expected)  # without a key for it, layers show it
        if expected != found:
            raise UnsupportedModelError(
                f"config.json must say {theirs}: transformers takes {shown(found)}, "
                f"the coordinator {shown(expected)}"
            )
    hf_config._attn_implementation = IMPLEMENTATION
    return hf_config


def _in_words(config: ModelConfig, error: Exception) -> str:
    """Says what transformers does not take, as far as its error tells."""
    family = f"{config.model_type} model"
    field = re.search(r"for field '(\w+)'", str(error))
    if field is not None:
        value = shown(config.raw.get(field[1]))
        return f"config.json: {field[1]} is {value}, which no {family} has"
    cause = error.__cause__ or error
    reason = " ".join(str(cause.args[0] if cause.args else "").split())
    named = [key for key, value in config.raw.items() if value == reason]
    if isinstance(cause, KeyError) and named:
        return f"config.json: {named[0]} is {shown(reason)}, which no {family} has"
    if isinstance(cause, KeyError) and reason.isidentifier():
        return f"config.json does not say {reason}, which a {family} needs"
    if isinstance(cause, AttributeError | TypeError):
        return f"config.json has values of types that no {family} has"
    return f"config.json is not one of a {family}: {reason}"


def _final_norm(module: object, family: Family, hf_config: PreTrainedConfig) -> nn.Module:
    norm_class = getattr(module, f"{family.prefix}{family.norm}", nn.LayerNorm)
    width = [hf_config.hidden_size] if family.norm_has_width else []
    eps = {} if family.norm_eps is None else {"eps": getattr(hf_config, family.norm_eps)}
    norm: nn.Module = norm_class(*width, **eps)
    return norm
