"""What there is to know of a model family: its layout and its configuration.

Needs no torch, so that both servers read it. Names of keys are those of `config.json`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import NamedTuple

Keys = Mapping[str, object]
"""Keys of `config.json`, and their values."""

NOTHING: Mapping[str, str] = MappingProxyType({})


def keys_of(**values: object) -> Keys:
    """Makes keys and values that nobody changes."""
    return MappingProxyType(values)


MODULE_LAUNCHES = 44
"""Kernels of a decoder layer of transformers' modules, as most families have them."""


class Sizes(NamedTuple):
    """Values of absent keys of these names; a key that is null has none of them."""

    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int | None
    """Number of key and value heads; None for as many as attention heads."""
    head_dim: int | None
    """Elements of a head; None for the hidden size over the attention heads."""
    intermediate_size: int | None
    """Elements between the matrices of an MLP; None where the layers do not read it."""
    max_position_embeddings: int
    tie_word_embeddings: bool
    eos_token_id: int | None


class WindowedLayers(Enum):
    """Which layers have a window, where there is one and `layer_types` does not list them."""

    ALL = auto()
    """All layers have one, also where `layer_types` says otherwise."""
    ALL_UNLESS_LISTED = auto()
    FROM_MAX_WINDOW_LAYERS = auto()
    """Layers from `max_window_layers` on have a window."""
    EVEN_TO_MAX_WINDOW_LAYERS = auto()
    """Every other layer before `max_window_layers` has one, the first included."""
    ROTATED = auto()
    """Layers that do not know positions have one, by `no_rope_layers` or
    `no_rope_layer_interval`."""
    PATTERN = auto()
    """All layers but one in `sliding_window_pattern` have one."""
    FIXED_PATTERN = auto()
    """All layers but one in a number of layers that no key says have one."""
    FIXED_PATTERN_FROM_FULL = auto()
    """The same, and the one comes first."""


class Windows(NamedTuple):
    """Attention with windows, in a family that may have it."""

    layers: WindowedLayers
    default: int | None
    """Window of a configuration that says no `sliding_window`."""
    every: int | None = None
    """One in so many layers has no window: the default of a pattern, or a fixed one."""
    pattern_key: str = "sliding_window_pattern"
    """Key of how many layers a pattern has."""
    max_window_layers: int = 28
    """Default of `max_window_layers`."""
    on_request: bool = False
    """Whether there is a window only when `use_sliding_window` is true."""
    may_be_null: bool = True
    """False: `sliding_window` may be null only where `layer_types` lists the layers."""
    full_layers_ask: bool = False
    """Full layers compute otherwise where other layers have a window."""

    @property
    def keys(self) -> frozenset[str]:
        """Numbers of the configuration that say which layers have a window, and how long it is."""
        keys = {"sliding_window"}
        if self.on_request:
            keys.add("max_window_layers")
        if self.layers is WindowedLayers.ROTATED:
            keys.add("no_rope_layer_interval")
        if self.layers is WindowedLayers.PATTERN:
            keys.add(self.pattern_key)
        return frozenset(keys)


class Rope(NamedTuple):
    """Rotary embedding, as far as the configuration leaves it to the family."""

    theta: float = 1e4
    """Base of the frequencies."""
    theta_key: str = "rope_theta"
    """Key of the base."""
    rotated_part: float = 1
    """Share of each head that is rotated."""
    rotated_part_key: str = "partial_rotary_factor"
    """Key of that share."""
    unless_said: Keys = NOTHING
    """What `rope_parameters` is where the configuration has neither it nor `rope_scaling`."""
    per_layer_type: bool = False
    """True when layers with a window and those without have each their own."""
    sliding_theta_key: str | None = None
    """Key of the base of layers with a window, by default 10 000; None: they have `theta`, whatever
    the configuration says."""
    original_positions: int | None = None
    """Positions that the model was first trained for, which count before those that a scaling says;
    None: the scaling says it."""
    rotated_elements_key: str | None = None
    """Key of the number of elements of a head that are rotated; None: no key says it."""
    renamed_kinds: Mapping[str, str] = NOTHING
    """Kinds of scaling that are meant by other names."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys that say a number of it, beside those of every family's scaling."""
        keys = (
            *(self.theta_key, self.rotated_part_key),
            *(self.sliding_theta_key, self.rotated_elements_key),
        )
        return frozenset(key for key in keys if key is not None)


USUAL_ROPE = Rope()
"""Rotary embedding of most families; also assumed of models of unserved families."""


class TensorNames(NamedTuple):
    """What the names of a checkpoint's tensors begin with; most families have the defaults."""

    embedding: str = "model.embed_tokens."
    layers: str = "model.layers."
    """Before the number of a layer."""
    norm: str = "model.norm."
    """The final norm."""
    head: str = "lm_head."
    positions: str = "model.embed_positions."
    """Learned positions, where a family has them."""

    def in_files(self, name: str) -> str:
        """Returns the name in files of a tensor that is named as in most families."""
        return _renamed(name, USUAL_NAMES, self)

    def usual(self, name: str) -> str:
        """Returns the name that most families have for a tensor of the files."""
        return _renamed(name, self, USUAL_NAMES)


def _renamed(name: str, names: TensorNames, others: TensorNames) -> str:
    for prefix, other in zip(names, others, strict=True):
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name


USUAL_NAMES = TensorNames()
"""Names of most families, by which a stage calls its parameters in all."""


class ExpertKeys(NamedTuple):
    """Keys that say how many experts a layer has, and how wide they are."""

    num_experts: str = "num_experts"
    num_chosen: str = "num_experts_per_tok"
    """Key of how many of them compute a token."""
    width: str = "moe_intermediate_size"
    shared_width: str | None = None
    """Key of the width of the MLP that computes every token beside them; None: no key says it."""
    num_shared: str | None = None
    """Key of how many experts wide that MLP is; None: no key says it."""


class ExpertLayout(NamedTuple):
    """How checkpoints name what belongs to the experts of a layer, and say how large it is.

    Names are those within a layer. In names of matrices, `{}` stands for the number of an expert;
    one without it is of a tensor that has the matrices of all experts, one after another.
    """

    gate_up: tuple[str, ...] = (
        "mlp.experts.{}.gate_proj.weight",
        "mlp.experts.{}.up_proj.weight",
    )
    """Matrices whose rows, one after another, are those of gate and up."""
    down: str = "mlp.experts.{}.down_proj.weight"
    others: Mapping[str, str] = NOTHING
    """Names of other parameters, by those in transformers."""
    gate_up_bias: tuple[str, ...] = ()
    """Tensors whose rows, one for each expert, are the biases of gate and up; empty: there are
    none."""
    down_bias: tuple[str, ...] = ()
    num_dense_layers: int = 0
    """Layers before the first with experts, where no key says it."""
    are_transposed: bool = False
    """Whether a tensor of all experts has inputs as rows."""
    keys: ExpertKeys = ExpertKeys()
    """Keys of their sizes."""


class LeanLayout(NamedTuple):
    """What a Llama-like decoder layer has. A bias is always there, or where a key says so."""

    query_bias: bool | str = False
    """Whether queries, keys and values have biases, or the key that says so."""
    output_bias: bool | str = False
    """Whether the output of attention has a bias, or the key that says so."""
    mlp_bias: bool | str = False
    """Whether the three matrices of the MLP have biases, or the key that says so."""
    has_head_norms: bool = False
    """True when each head of the queries and keys is normed."""
    scaling: str | None = None
    """Key of the factor on the scores; None: one over the root of the head's size."""

    @property
    def keys(self) -> frozenset[str]:
        """Keys of the configuration that it goes by."""
        return frozenset(key for key in self if isinstance(key, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is special about a family, beyond its decoder layer in transformers."""

    module: str
    """`transformers.models.<module>.modeling_<module>`."""
    prefix: str
    """Beginning of transformers' class names: `<prefix>DecoderLayer`, `<prefix>RotaryEmbedding`."""
    sizes: Sizes
    reads: Keys
    """Keys that layers, or what stands before and behind them, look at beside sizes, rotary
    embeddings and windows; and their values when they are absent."""
    layer: str = "DecoderLayer"
    """Class of the layers: `<prefix><layer>`."""
    hands_arguments_on: bool = True
    """False when a layer does not hand arguments that it has no use for on to its attention."""
    names: TensorNames = USUAL_NAMES
    """What names in files begin with."""
    other_keys: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Usual names of keys, by those that the family also has for them."""
    end_tokens: tuple[int, ...] = ()
    """Tokens that end a generation where the configuration names none."""
    head_has_bias: bool = False
    """True when the logits have a bias."""
    norm: str = "RMSNorm"
    """Class of the final norm: `<prefix><norm>`, or `LayerNorm` of torch."""
    norm_has_width: bool = True
    """False when the class of the final norm takes an epsilon alone, as it has no parameters."""
    norms_embeddings: bool = False
    """True when embeddings are normed, by a norm like the final one."""
    first_position: int | None = None
    """Row of the learned positions, which are added to the embeddings, that is the first token's;
    None: there are none, and positions are rotary."""
    norm_eps: str | None = "rms_norm_eps"
    """Key of the final norm's epsilon; None: the norm has its own."""
    has_gate: bool = True
    """True when an MLP has three matrices, False when it has two."""
    gates_attention: bool = False
    """True when a matrix as wide as the queries weighs the output of attention."""
    mlp_widening: int | None = None
    """Width of an MLP over the hidden size, where the configuration says none."""
    one_kv_head: str | None = None
    """Key of whether all heads share their keys and values; None: no key says it."""
    rope: Rope = USUAL_ROPE
    windows: Windows | None = None
    """Which layers attend within a window; None where none ever does."""
    refuses: frozenset[str] = frozenset()
    """Keys with which a model is not served, unless they are absent, null, false or 0: what they
    mean depends on how transformers attends."""
    is_latent: bool = False
    """True when keys and values of all heads are made of one compressed row a token."""
    attention_of: str | None = None
    """Family whose attention and rotary embedding compute the same as its own, and are taken; None:
    its own are."""
    experts: ExpertLayout | None = None
    """What layers with experts have; None where no layer has any."""
    lean: LeanLayout | None = None
    """How lean layers, which have less overhead, compute the family; None: they cannot."""
    module_launches: int = MODULE_LAUNCHES
    """Kernels that transformers' decoder layer launches for tokens of sequences that decode."""
    overflows_in_float16: bool = False
    """True when hidden states grow beyond 65504, the largest number of float16. The same families
    as in vLLM."""
    embedding_scaled_by_width: bool | str = False
    """Whether embeddings are multiplied by the square root of the hidden size, or the key that says
    so."""
    embedding_multiplier: str | None = None
    """Key of a factor on the embeddings. A key that is absent has the value that `reads` says, here
    and in the four that follow."""
    residual_multiplier: str | None = None
    """Key of a factor on what attention and MLP add; the layers of transformers know it."""
    logits_multiplier: str | None = None
    """Key of a factor on the logits."""
    logits_divisor: str | None = None
    """Key of a divisor of the logits."""
    logits_softcap: str | None = None
    """Key of a soft cap of the logits."""

    def reads_number(self, key: str) -> bool:
        """Whether a number of the configuration is one that the family computes with."""
        return (
            key in self.reads
            or key in self.rope.keys
            or (self.windows is not None and key in self.windows.keys)
        )

    def embedding_scale(self, config: Keys) -> float:
        """Returns the factor on the embeddings."""
        scaled = self.embedding_scaled_by_width
        if config.get(scaled) if isinstance(scaled, str) else scaled:
            return math.sqrt(number(config, "hidden_size", 1.0))
        return self._factor(config, self.embedding_multiplier)

    def residual_scale(self, config: Keys) -> float:
        """Returns the factor on what attention and MLP add."""
        return self._factor(config, self.residual_multiplier)

    def logits_scale(self, config: Keys) -> float:
        """Returns the factor on the logits."""
        multiplier = self._factor(config, self.logits_multiplier)
        return multiplier / self._factor(config, self.logits_divisor)

    def softcap(self, config: Keys) -> float | None:
        """Returns the soft cap of the logits: they become `cap * tanh(logits / cap)`."""
        return self._factor(config, self.logits_softcap, 0.0) or None

    def _factor(self, config: Keys, key: str | None, neutral: float = 1.0) -> float:
        """A number of the configuration or the family's default; neutral without a key or null."""
        return number({**self.reads, **config}, key, neutral)


def number(values: Keys, key: str | None, default: float) -> float:
    """Returns a number of a configuration, or the default when it is absent or no number."""
    value = default if key is None else values.get(key, default)
    return float(value) if isinstance(value, int | float) else default
