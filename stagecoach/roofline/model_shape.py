"""How many parameters and how much KV a decoder layer has, and what stands around the layers."""

from dataclasses import dataclass
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError, UnsupportedModelError
from stagecoach.contract.precision import INT8, DType, Encoding, Precision
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import MODULE_LAUNCHES
from stagecoach.roofline.few_bits import PLANNED

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

    Counts all matrices, and the two norms of a layer that every family has; the biases and further
    norms of some families are less than a thousandth and are left out.
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
    """Elements between the matrices of an MLP, of one token."""
    max_model_len: int
    """Positions that the model was made for."""
    layer_matrix_parameters: int
    """Parameters in the matrices of one layer."""
    layer_matrix_bytes: int
    """Bytes of the matrices of one layer, as they are kept."""
    ties_head: bool
    """True when the head is the embedding."""

    @classmethod
    def of(cls, config: ModelConfig, precision: Precision = _FLOAT16) -> Self:
        """Reads the sizes from a model's configuration.

        Args:
            config: The model.
            precision: The formats of its numbers.

        Raises:
            UnsupportedModelError: The configuration does not say how wide an MLP is, or there are
                several of them.
        """
        if config.has_experts:
            raise UnsupportedModelError(
                f"the cost of a {config.model_type} model with experts is not known",
                model_type=config.model_type,
            )
        if config.intermediate_size is None:
            raise UnsupportedModelError(
                f"the cost of this {config.model_type} model is not known: its configuration has "
                "no intermediate_size",
                model_type=config.model_type,
            )
        hidden_size, inner_size = config.hidden_size, config.intermediate_size
        attention_width = config.num_attention_heads * config.head_dim
        kv_width = 2 * config.num_kv_heads * config.head_dim
        matrices = (  # rows are outputs, columns inputs
            (attention_width + kv_width, hidden_size),
            (hidden_size, attention_width),
            ((config.num_mlp_matrices - 1) * inner_size, hidden_size),
            (hidden_size, inner_size),
        )
        return cls(
            num_layers=config.num_layers,
            hidden_size=hidden_size,
            vocab_size=config.vocab_size,
            precision=precision,
            attention_width=attention_width,
            kv_width=kv_width,
            head_dim=config.head_dim,
            caps_scores=_caps_scores(config),
            layer_launches=_layer_launches(config),
            mlp_width=inner_size,
            max_model_len=config.max_model_len,
            layer_matrix_parameters=sum(rows * columns for rows, columns in matrices),
            layer_matrix_bytes=sum(precision.weights.matrix_bytes(*shape) for shape in matrices),
            ties_head=config.tie_word_embeddings,
        )

    @property
    def layer_bytes(self) -> int:
        """Weights of one layer."""
        return self.layer_matrix_bytes + 2 * self._norm_bytes

    @property
    def is_in_few_bits(self) -> bool:
        """Whether matrices are codes, which are multiplied otherwise than plain numbers."""
        return self.precision.weights in PLANNED.values()

    @property
    def shares_head(self) -> bool:
        """True when one matrix in memory is head and embedding."""
        return self.ties_head and not self.is_in_few_bits

    @property
    def embedding_bytes(self) -> int:
        """Weights of the embedding, which few bits keep in 8."""
        return self.vocab_size * self.embedding_row_bytes

    @property
    def embedding_row_bytes(self) -> int:
        """Weights that embed one token."""
        encoding = INT8 if self.is_in_few_bits else self.precision.weights
        return encoding.row_bytes(self.hidden_size)

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
    def reads_context_in_place(self) -> bool:
        """Whether a kernel of ours attends chunks, which gathers no context before."""
        return self.caps_scores or self.precision.kv.dtype != self.precision.compute

    @property
    def hidden_bytes_per_token(self) -> int:
        """Bytes of one hidden state as it travels between stages."""
        return self.precision.wire.row_bytes(self.hidden_size)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        layers = self.num_layers * (self.layer_matrix_parameters + 2 * self.hidden_size)
        ends = self.vocab_size * self.hidden_size * (1 if self.ties_head else 2)
        return layers + ends + self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of the whole model."""
        embedding_bytes = 0 if self.shares_head else self.embedding_bytes
        return self.num_layers * self.layer_bytes + embedding_bytes + self.head_bytes

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


def _caps_scores(config: ModelConfig) -> bool:
    family = FAMILIES.get(config.model_type)
    default = None if family is None else family.reads.get(_SCORE_CAP)
    return config.raw.get(_SCORE_CAP, default) is not None
