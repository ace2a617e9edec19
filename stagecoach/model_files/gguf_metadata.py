"""What the metadata of a GGUF file says of the arithmetic, read or refused key by key.

A key that is not known here may stand for anything, so it is refused by name unless its value is
one that changes nothing. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from collections.abc import Mapping

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.frozen_json import shown
from stagecoach.model_files.numbers import (
    EPSILON,
    FACTOR,
    HEAD_DIM,
    HEADS,
    INNER_WIDTH,
    LAYERS,
    POSITIONS,
    THETA,
    TOKEN_ID,
    VOCABULARY,
    WIDTH,
    Bounds,
)

_SWITCHABLE_FACTOR = FACTOR._replace(low=0.0)
"""0 is for llama.cpp the same as 1, or as nothing."""

NUMBERS: Mapping[str, Bounds] = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.sliding_window": POSITIONS._replace(low=0),
    "attention.value_length": HEAD_DIM,
    "block_count": LAYERS,
    "context_length": POSITIONS,
    "embedding_length": WIDTH,
    "expert_count": POSITIONS._replace(low=0),
    "expert_feed_forward_length": INNER_WIDTH,
    "expert_shared_feed_forward_length": INNER_WIDTH,
    "expert_used_count": POSITIONS._replace(low=0),
    "feed_forward_length": INNER_WIDTH,
    "rope.dimension_count": HEAD_DIM,
    "rope.freq_base": THETA,
    "rope.scale_linear": _SWITCHABLE_FACTOR,
    "rope.scaling.factor": _SWITCHABLE_FACTOR,
    "rope.scaling.original_context_length": POSITIONS,
    "rope.scaling.yarn_attn_factor": FACTOR,
    "rope.scaling.yarn_beta_fast": FACTOR,
    "rope.scaling.yarn_beta_slow": FACTOR,
    "vocab_size": VOCABULARY,
}
"""The numbers that are read, and what they may be."""

_READ = frozenset({*NUMBERS, "rope.scaling.type"})
_WITHOUT_EFFECT = frozenset(
    {
        "attention.layer_norm_epsilon",
        "pooling_type",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    }
)
"""Keys that change nothing in a model whose norms are RMS norms, and that generates."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "embedding_scale": (1,),
    "logit_scale": (1,),
    "residual_scale": (1,),
    "rope.scaling.attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (1, -1),
}
"""Values, besides nothing, that change nothing."""


class GgufFields:
    """Checked access to the metadata of one architecture.

    Args:
        file_name: Name of the file, for error messages.
        metadata: Metadata that the file holds.
    """

    def __init__(self, file_name: str, metadata: Mapping[str, object]) -> None:
        self.file_name = file_name
        self._metadata = metadata
        self.architecture = str(metadata.get("general.architecture"))

    def get(self, name: str) -> object:
        """A field of the architecture, or None."""
        return self._metadata.get(f"{self.architecture}.{name}")

    def number(self, name: str, default: float | None = None) -> float:
        """A number of the architecture; one for each layer where all are the same.

        Raises:
            ModelFilesError: It is missing without default, no number, or out of its bounds.
            UnsupportedModelError: It differs between layers.
        """
        value = self.optional(name)
        if value is None:
            value = default
        if value is None:
            raise ModelFilesError(f"{self.file_name} does not say {self.architecture}.{name}")
        return value

    def optional(self, name: str) -> float | None:
        """Reads a number; None for one that is missing."""
        value = self.get(name)
        if isinstance(value, list) and value:
            for one in value:
                self._check(name, one)
            if len(set(value)) > 1:
                raise self.refuse(f"{name} that differs between layers")
            value = value[0]
        return None if value is None else self._check(name, value)

    def token_id(self, name: str) -> int | None:
        """A token of the vocabulary, or None.

        Raises:
            ModelFilesError: It can be none of any vocabulary.
        """
        field = f"tokenizer.ggml.{name}"
        value = self._metadata.get(field)
        if value is None:
            return None
        TOKEN_ID.check(value, field, self.file_name)
        assert isinstance(value, int), "ids are whole numbers"
        return value

    def _check(self, name: str, value: object) -> float:
        NUMBERS[name].check(value, f"{self.architecture}.{name}", self.file_name)
        assert isinstance(value, int | float), "bounds are those of numbers"
        return value

    def refuse(self, feature: str) -> UnsupportedModelError:
        """Makes the error that says what of this file is not served."""
        return UnsupportedModelError(
            f"{self.file_name}: {feature} is not served", architecture=self.architecture
        )

    def check_keys(self, *, head_dim: float) -> None:
        """Refuses whatever would change the arithmetic and is not read.

        Args:
            head_dim: Elements of a head, which decide what attention is scaled by.

        Raises:
            UnsupportedModelError: There is such a key; names it and its value.
        """
        prefix = f"{self.architecture}."
        for key, value in self._metadata.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or name in _READ | _WITHOUT_EFFECT:
                continue
            is_usual_scale = (
                name == "attention.scale"
                and isinstance(value, int | float)
                and abs(value * head_dim**0.5 - 1) < 1e-4
            )
            is_nothing = value is not None and not any(
                value if isinstance(value, list) else [value]
            )
            if name == "attention.causal":
                is_nothing = False
            if not (is_nothing or is_usual_scale or value in _NEUTRAL.get(name, ())):
                raise self.refuse(f"{key} {shown(value)}")
