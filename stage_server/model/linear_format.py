"""A form in which the matrices of a model are kept and multiplied.

One file each; `linear_formats` has a line for every one.
"""

from typing import Protocol

from torch import nn

from stage_server.model.embeddings import Embedding
from stage_server.model.weights import WeightSource


class Linear(nn.Module):
    """`input @ weight.T + bias`, of `[..., in_features]`, as `[..., out_features]`.

    Takes and returns the compute dtype of the precision that its format was made for.
    """

    packed_bytes = 0
    """Bytes of weights that are neither in a parameter nor in a buffer."""


class LinearFormat(Protocol):
    """Makes linear layers of weights in files."""

    def load(self, source: WeightSource, weight: str, bias: str | None) -> Linear:
        """Loads a linear layer, with little more memory than it takes in the end.

        Args:
            source: Where the weights are.
            weight: Name of the matrix `[out_features, in_features]`.
            bias: Name of the bias `[out_features]`; None: there is none.
        """
        ...

    def embedding(self, source: WeightSource, weight: str) -> Embedding:
        """Loads a matrix `[vocab_size, hidden_size]` whose rows are looked up.

        Args:
            source: Where the weights are.
            weight: Name of the matrix.
        """
        ...

    def sharing(self, embedding: Embedding) -> Linear | None:
        """Makes a head without bias that multiplies by an embedding and takes no more memory.

        Args:
            embedding: What `embedding` of this format returned.

        Returns:
            The head; None where a matrix that is multiplied has another form.
        """
        ...
