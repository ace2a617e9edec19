"""What a stage consists of, found before any weight is read.

So a model that is not served, or not complete, is refused at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from stage_server.model.layout import family_of
from stage_server.model.rotary import Rotary
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import ParameterSource
from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import ModelFiles
from stagecoach.model_files.family import Family
from stagecoach.model_files.weight_digest import EMBEDDING, HEAD


class AttentionTraits(NamedTuple):
    """How one layer calls its attention."""

    num_kv_heads: int
    head_dim: int
    scaling: float
    sliding_window: int | None
    softcap: float | None
    has_sinks: bool = False


class Blueprint(ABC):
    """The layers and the final norm of a stage, without memory.

    Args:
        files: The model; only its configuration and the names of its tensors are read.
        layers: The stage's range.

    Raises:
        UnsupportedModelError: The model is not served.
        ModelFilesError: Its configuration does not make sense, or has no such layers.
    """

    traits: Sequence[AttentionTraits]
    """Traits of each local layer."""
    rotary: Rotary
    hidden_act: str
    """Activation of the MLP, as transformers names it."""
    norm_eps: float
    """Added under the root of the layers' norms; 0 where they have their own."""

    def __init__(self, files: ModelFiles, layers: LayerRange) -> None:
        config = files.config
        if layers.end > config.num_layers:
            raise ModelFilesError(
                f"layers {layers} do not exist: the model has {config.num_layers} layers"
            )
        self.config = config
        self.range = layers
        self.family: Family = family_of(config)
        self._files = files

    @property
    def is_first(self) -> bool:
        """True for the stage that embeds tokens."""
        return self.range.start == 0

    @property
    def is_last(self) -> bool:
        """True for the stage that computes logits."""
        return self.range.end == self.config.num_layers

    @property
    def head_name(self) -> str:
        """Usual name of the matrix that makes logits.

        A head in the files is used even where the configuration calls it tied to the embedding, as
        transformers does: fine-tuned models have been saved so.
        """
        if self.config.tie_word_embeddings and not self._has(HEAD):
            return EMBEDDING
        return HEAD

    @property
    def embedding_name(self) -> str:
        """Usual name of the matrix that embeds tokens.

        It is the head, where that is all there is of a pair.
        """
        is_there = self._has(EMBEDDING) or not self._has(HEAD)
        return EMBEDDING if is_there or not self.config.tie_word_embeddings else HEAD

    def _has(self, name: str) -> bool:
        """Whether the files have a tensor, by its usual name."""
        return self.family.names.in_files(name) in self._files.tensor_names

    @abstractmethod
    def layer_sources(self) -> Sequence[dict[str, ParameterSource]]:
        """Returns what the parameters of each local layer are made of, by their names in files."""

    @abstractmethod
    def norm_sources(self) -> dict[str, ParameterSource]:
        """Returns the same of the final norm."""

    @abstractmethod
    def load_norm(self, loader: WeightLoader) -> nn.Module:
        """Makes the final norm, with its weights."""


def layer_prefix(layer_idx: int) -> str:
    """Returns what the names of a layer's tensors begin with; `layer_idx` is global."""
    return f"model.layers.{layer_idx}."
