"""How many parameters and how much KV a decoder layer has, and what stands around the layers."""

from dataclasses import dataclass
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError, UnsupportedModelError
from stagecoach.model_files.config import ModelConfig

DTYPE_BYTES = {"float16": 2, "bfloat16": 2}
"""Bytes an element: the dtypes for whose arithmetic the table of devices holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model in one dtype.

    Counts all matrices, and the two norms of a layer that every family has; the biases and further
    norms of some families are less than a thousandth and are left out.
    """

    num_layers: int
    hidden_size: int
    vocab_size: int
    element_bytes: int
    """Of weights, KV and hidden states."""
    attention_width: int
    """Elements of the queries of one token in one layer: heads times their size."""
    kv_width: int
    """Elements of the keys and values of one token in one layer."""
    layer_matrix_parameters: int
    """Of one layer."""
    ties_head: bool
    """True when the head is the embedding."""

    @classmethod
    def of(cls, config: ModelConfig, dtype: str = "float16") -> Self:
        """Reads the sizes from a model's configuration.

        Args:
            config: The model.
            dtype: A key of `DTYPE_BYTES`.

        Raises:
            InvalidArgumentError: The dtype is not in the table.
            UnsupportedModelError: The configuration does not say how wide an MLP is, or there are
                several of them.
        """
        if dtype not in DTYPE_BYTES:
            raise InvalidArgumentError(
                f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}: figures of devices are "
                "of 16-bit floats",
                field="dtype",
            )
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
        attention_width = config.num_attention_heads * config.head_dim
        kv_width = 2 * config.num_kv_heads * config.head_dim
        attention = config.hidden_size * (2 * attention_width + kv_width)
        mlp = config.num_mlp_matrices * config.hidden_size * config.intermediate_size
        return cls(
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            element_bytes=DTYPE_BYTES[dtype],
            attention_width=attention_width,
            kv_width=kv_width,
            layer_matrix_parameters=attention + mlp,
            ties_head=config.tie_word_embeddings,
        )

    @property
    def layer_bytes(self) -> int:
        """Weights of one layer."""
        return (self.layer_matrix_parameters + 2 * self.hidden_size) * self.element_bytes

    @property
    def embedding_bytes(self) -> int:
        """Weights of the embedding, and of the head's matrix."""
        return self.vocab_size * self.hidden_size * self.element_bytes

    @property
    def head_bytes(self) -> int:
        """Weights of the final norm and the head, as a stage without the embedding holds them."""
        return self.embedding_bytes + self.hidden_size * self.element_bytes

    @property
    def kv_bytes_per_token_and_layer(self) -> int:
        """Keys and values of one token in one layer."""
        return self.kv_width * self.element_bytes

    @property
    def hidden_bytes_per_token(self) -> int:
        """One hidden state."""
        return self.hidden_size * self.element_bytes

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        layers = self.num_layers * (self.layer_matrix_parameters + 2 * self.hidden_size)
        ends = self.vocab_size * self.hidden_size * (1 if self.ties_head else 2)
        return layers + ends + self.hidden_size

    @property
    def weight_bytes(self) -> int:
        """Of the whole model."""
        return self.num_parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.num_layers * self.kv_bytes_per_token_and_layer
