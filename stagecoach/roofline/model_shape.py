"""How many parameters and how much KV a decoder layer has, and what stands around the layers."""

from dataclasses import dataclass
from functools import cache
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError, UnsupportedModelError
from stagecoach.contract.precision import INT8, DType, Encoding, Precision
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import MODULE_LAUNCHES
from stagecoach.model_files.model_files import KeptMatrices
from stagecoach.roofline.few_bits import PLANNED
from stagecoach.roofline.layer_matrices import (
    LayerMatrices,
    LayerWeights,
    Matrix,
    layer_matrices,
)

DEVICE_DTYPES = (DType.FLOAT16, DType.BFLOAT16)
"""Dtypes for whose arithmetic the figures of the table of devices hold."""

_SCORE_CAP = "attn_logit_softcapping"
"""Key of configurations; None: scores are not capped."""

LEAN_LAUNCHES = 9
"""Kernel launches of a Llama-like layer: four matrices, and five kernels between them."""

_LEAN_ACTIVATION = "silu"
"""Activation between the matrices of an MLP for which there is a kernel."""

_FLOAT16 = Precision.uniform(DType.FLOAT16)


def device_precision(dtype: str) -> Precision:
    """Returns what `--dtype` stands for on a device of the table.

    Raises:
        InvalidArgumentError: The table does not hold for arithmetic in that dtype.
    """
    if dtype not in DEVICE_DTYPES:
        raise InvalidArgumentError(
            f"dtype {dtype!r} is not one of {', '.join(DEVICE_DTYPES)}: figures of devices are of "
            "16-bit floats",
            field="dtype",
        )
    return Precision.of(dtype, on_cpu=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model in one precision.

    Counts all matrices, and the two norms of a layer that every family has; biases, further norms
    and what chooses experts are less than a thousandth and are left out.
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    precision: Precision
    attention_width: int
    """Elements of the queries of one token in one layer: heads times their size."""
    kv_width: int
    """Elements of the keys and values of one token in one layer."""
    head_dim: int
    """Elements of a head."""
    caps_scores: bool
    """Whether attention caps scores."""
    layer_launches: int
    """Kernels that a layer launches for tokens of sequences that decode."""
    mlp_width: int
    """Elements between the matrices of all MLPs of a layer that compute one token."""
    num_experts: int
    """Experts of a layer that has some; 1: no layer has."""
    num_chosen: int
    """Experts that compute a token."""
    max_model_len: int
    """Positions that the model was made for."""
    layer_matrices: tuple[Matrix, ...]
    """The matrices of a layer by which every token is multiplied."""
    layer_weights: tuple[LayerWeights, ...]
    """All matrices of each layer."""
    embedding_row_bytes: int
    """Weights that embed one token; few bits keep them in 8."""
    ties_head: bool
    """True when the head is the embedding."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        precision: Precision = _FLOAT16,
        kept: KeptMatrices | None = None,
    ) -> Self:
        """Reads the sizes from a model's configuration.

        Args:
            config: The model.
            precision: The formats of its numbers.
            kept: What matrices take where they are kept in the bits of their files; None: all are
                as `precision` says.

        Raises:
            UnsupportedModelError: The configuration does not say how wide an MLP is.
        """
        experts = config.experts
        if config.intermediate_size is None and (experts is None or not all(experts.layers)):
            raise UnsupportedModelError(
                f"the cost of this {config.model_type} model is not known: its configuration has "
                "no intermediate_size",
                model_type=config.model_type,
            )
        attention_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_kv_rows * config.head_dim
        layer_launches = _layer_launches(config)
        layers = layer_matrices(config, are_joined=layer_launches == LEAN_LAUNCHES)
        if kept is None:
            kept = _all_alike(config, precision.weights, layers)
        return cls(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            precision=precision,
            attention_width=attention_width,
            kv_width=kv_width,
            head_dim=config.head_dim,
            caps_scores=_caps_scores(config),
            layer_launches=layer_launches,
            mlp_width=_mlp_width(config),
            num_experts=1 if experts is None else experts.num_experts,
            num_chosen=1 if experts is None else experts.num_chosen,
            max_model_len=config.max_model_len,
            layer_matrices=layers[-1].common,
            layer_weights=tuple(
                layer.weights(num_bytes)
                for layer, num_bytes in zip(layers, kept.layers, strict=True)
            ),
            embedding_row_bytes=kept.embedding_row,
            ties_head=config.tie_word_embeddings,
        )

    @property
    def layer_matrix_bytes(self) -> tuple[int, ...]:
        """Bytes of all matrices of each layer, as they are kept."""
        return tuple(layer.num_bytes for layer in self.layer_weights)

    @property
    def chosen_share(self) -> float:
        """Share of the experts of a layer that compute one token."""
        return self.num_chosen / self.num_experts

    def touched_share(self, num_tokens: int) -> float:
        """Share of the experts of a layer that some token of a micro-batch is expected to choose.

        Each token chooses without regard to the others, and no expert is chosen more often.
        """
        return 1 - (1 - self.chosen_share) ** num_tokens

    @property
    def layer_norm_bytes(self) -> int:
        """Weights of the norms of one layer."""
        return 2 * self._norm_bytes

    @property
    def is_in_few_bits(self) -> bool:
        """Whether matrices are codes, which are multiplied otherwise than plain numbers."""
        return self.precision.weights in PLANNED.values()

    @property
    def has_coded_embedding(self) -> bool:
        """Whether rows of the embedding are codes."""
        plain = Encoding.plain(self.precision.compute)
        is_plain = self.embedding_row_bytes == plain.row_bytes(self.hidden_size)
        return self.is_in_few_bits and not is_plain

    @property
    def shares_head(self) -> bool:
        """True when one matrix in memory is head and embedding."""
        return self.ties_head and not self.has_coded_embedding

    @property
    def embedding_bytes(self) -> int:
        """Weights of the embedding."""
        return self.vocab_size * self.embedding_row_bytes

    @property
    def head_bytes(self) -> int:
        """Weights of the final norm and the head; its matrix is never in few bits."""
        encoding = self.precision.weights
        if self.is_in_few_bits:
            encoding = Encoding.plain(self.precision.compute)
        return encoding.matrix_bytes(self.vocab_size, self.hidden_size) + self._norm_bytes

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """Keys and values of one token in one layer."""
        return self.kv_width // self.head_dim * self.precision.kv.head_bytes(self.head_dim)

    @property
    def has_foreign_kv(self) -> bool:
        """Whether keys and values are kept in another format than that of the arithmetic."""
        return self.precision.kv.dtype != self.precision.compute

    def reads_context_in_place(self, *, has_tensor_cores: bool) -> bool:
        """Whether a kernel of ours attends chunks, which gathers no context before.

        Args:
            has_tensor_cores: As `Capability.has_tensor_cores` of the card.
        """
        return self.caps_scores or (self.has_foreign_kv and has_tensor_cores)

    @property
    def hidden_bytes_per_token(self) -> int:
        """Bytes of one hidden state as it travels between stages."""
        return self.precision.wire.row_bytes(self.hidden_size)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        matrices = sum(layer.parameters for layer in self.layer_weights)
        layers = matrices + self.num_layers * 2 * self.hidden_size
        ends = self.vocab_size * self.hidden_size * (1 if self.ties_head else 2)
        return layers + ends + self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the whole model."""
        embedding_bytes = 0 if self.shares_head else self.embedding_bytes
        norm_bytes = self.num_layers * self.layer_norm_bytes
        return sum(self.layer_matrix_bytes) + norm_bytes + embedding_bytes + self.head_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of memory for each parameter, scales included."""
        return 8 * self.weight_bytes / self.num_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.num_layers * self.kv_bytes_per_token_and_layer

    @property
    def _norm_bytes(self) -> int:
        return self.hidden_size * self.precision.compute.itemsize


def _layer_launches(config: ModelConfig) -> int:
    family = FAMILIES.get(config.model_type)
    if family is None:
        return MODULE_LAUNCHES
    activation = config.raw.get("hidden_act", _LEAN_ACTIVATION)
    is_lean = family.lean is not None and activation == _LEAN_ACTIVATION
    return LEAN_LAUNCHES if is_lean else family.module_launches


@cache
def heaviest_start(layer_bytes: tuple[int, ...], count: int) -> int:
    """Returns where so many layers of a stage without ends begin that take most memory.

    Args:
        layer_bytes: Bytes of each layer.
        count: Layers of the stage.
    """
    if len(set(layer_bytes)) == 1:
        return 1
    starts = range(1, max(len(layer_bytes) - count, 2))
    return max(starts, key=lambda start: sum(layer_bytes[start : start + count]))


def _all_alike(
    config: ModelConfig, weights: Encoding, layers: tuple[LayerMatrices, ...]
) -> KeptMatrices:
    of_embedding = INT8 if weights in PLANNED.values() else weights
    row_bytes = of_embedding.row_bytes(config.hidden_size)
    return KeptMatrices(weights, tuple(layer.num_bytes(weights) for layer in layers), row_bytes)


def _mlp_width(config: ModelConfig) -> int:
    """Elements between the matrices of all MLPs that compute one token, in the widest layer."""
    experts = config.experts
    with_experts = 0
    if experts is not None:
        with_experts = experts.num_chosen * experts.width + experts.shared_width
    has_dense = experts is None or not all(experts.layers)
    return max(with_experts, (config.intermediate_size or 0) if has_dense else 0)


def _caps_scores(config: ModelConfig) -> bool:
    family = FAMILIES.get(config.model_type)
    default = None if family is None else family.reads.get(_SCORE_CAP)
    return config.raw.get(_SCORE_CAP, default) is not None
