"""What a layer range costs: the memory that it takes, and the least that a micro-batch moves."""

from dataclasses import dataclass
from typing import Self

from stagecoach.contract.layer_range import LayerRange
from stagecoach.roofline.layer_matrices import LayerWeights
from stagecoach.roofline.model_shape import ModelShape, heaviest_start
from stagecoach.roofline.work import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """Memory and time that a layer range of a model costs on a GPU, by the roofline model."""

    model: ModelShape
    layers: LayerRange

    @classmethod
    def of_count(cls, model: ModelShape, count: int, *, is_first: bool, is_last: bool) -> Self:
        """The stage with this many layers and these ends that takes most memory.

        Where there are fewer layers between the ends, it goes on with the first ones.
        """
        if is_first and is_last:
            layers = LayerRange(0, model.num_layers)
        elif is_last:
            layers = LayerRange(model.num_layers - count, model.num_layers)
        else:
            start = 0 if is_first else heaviest_start(model.layer_matrix_bytes, count)
            layers = LayerRange(start, start + count)
        return cls(model=model, layers=layers)

    @property
    def is_first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self.layers.end == self.model.num_layers

    @property
    def matrix_bytes(self) -> int:
        """Matrices of the layers, as they are kept."""
        return self.matrices.num_bytes

    def touched(self, num_tokens: int) -> LayerWeights:
        """Matrices of the layers that a micro-batch reads: of experts those that a token chose.

        Args:
            num_tokens: Tokens of the micro-batch.
        """
        return self.matrices.of_share(self.model.touched_share(num_tokens))

    @property
    def matrices(self) -> LayerWeights:
        """All matrices of the layers."""
        of_each = self.model.layer_weights
        return LayerWeights.sum(
            of_each[i % len(of_each)] for i in range(self.layers.start, self.layers.end)
        )

    @property
    def norm_bytes(self) -> int:
        """Weights of the norms of the layers."""
        return len(self.layers) * self.model.layer_norm_bytes

    @property
    def layer_bytes(self) -> int:
        """Weights of the layers."""
        return self.matrix_bytes + self.norm_bytes

    @property
    def weight_bytes(self) -> int:
        """Weights that the stage holds; the embedding that is also its head counts once."""
        num_bytes = self.layer_bytes
        if self.is_first:
            num_bytes += self.model.embedding_bytes
        if self.is_last:
            num_bytes += self.model.head_bytes
            if self.is_first and self.model.shares_head:
                num_bytes -= self.model.embedding_bytes
        return num_bytes

    @property
    def num_parameters(self) -> int:
        """Parameters that the stage holds; the embedding that is also its head counts once."""
        model = self.model
        ends = self.is_first + self.is_last
        if ends == 2 and model.ties_head:
            ends = 1
        norms = (2 * len(self.layers) + self.is_last) * model.hidden_size
        return self.matrices.parameters + norms + ends * model.vocab_size * model.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in the stage's layers."""
        return len(self.layers) * self.model.kv_bytes_per_token_and_layer

    def moved_bytes(self, work: Work) -> int:
        """The least bytes between memory and processor: weights of the layers once, KV, ends.

        Of the embedding only the rows of the tokens are read, and the head only when there are
        logits to compute. KV is read once for each sequence, whatever the number of its tokens.
        Activations stay in caches and are left out, and so are sliding windows, which would read
        less KV of long sequences.
        """
        num_bytes = 0
        if work.num_tokens:
            num_bytes = self.touched(work.num_tokens).num_bytes + self.norm_bytes
        num_bytes += self.kv_bytes_per_token * (work.num_context_tokens + work.num_tokens)
        if self.is_first:
            num_bytes += work.num_tokens * self.model.embedding_row_bytes
        if self.is_last and work.num_logit_rows:
            num_bytes += self.model.head_bytes
        return num_bytes
