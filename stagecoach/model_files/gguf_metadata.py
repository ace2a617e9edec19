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
    "attention.clamp_kqv": FACTOR._replace(low=0.0),
    "attention.head_count": HEADS,
    "attention.head_count_kv": HEADS,
    "attention.key_length": HEAD_DIM,
    "attention.layer_norm_epsilon": EPSILON,
    "attention.layer_norm_rms_epsilon": EPSILON,
    "attention.scale": FACTOR,
    "attention.sliding_window": POSITIONS._replace(low=0),
    "attention.value_length": HEAD_DIM,
    "attn_logit_softcapping": FACTOR,
    "block_count": LAYERS,
    "context_length": POSITIONS,
    "embedding_length": WIDTH,
    "embedding_scale": FACTOR,
    "expert_count": POSITIONS._replace(low=0),
    "expert_feed_forward_length": INNER_WIDTH,
    "expert_group_count": POSITIONS,
    "expert_group_used_count": POSITIONS,
    "expert_shared_count": POSITIONS._replace(low=0),
    "expert_shared_feed_forward_length": INNER_WIDTH,
    "expert_used_count": POSITIONS._replace(low=0),
    "expert_weights_scale": FACTOR,
    "feed_forward_length": INNER_WIDTH,
    "final_logit_softcapping": FACTOR,
    "interleave_moe_layer_step": LAYERS,
    "leading_dense_block_count": LAYERS._replace(low=0),
    "logit_scale": FACTOR,
    "nextn_predict_layers": LAYERS._replace(low=0),
    "residual_scale": FACTOR,
    "rope.dimension_count": HEAD_DIM,
    "rope.freq_base": THETA,
    "rope.freq_base_swa": THETA,
    "rope.scale_linear": _SWITCHABLE_FACTOR,
    "rope.scaling.attn_factor": _SWITCHABLE_FACTOR,
    "rope.scaling.factor": _SWITCHABLE_FACTOR,
    "rope.scaling.original_context_length": POSITIONS,
    "rope.scaling.yarn_attn_factor": FACTOR,
    "rope.scaling.yarn_beta_fast": FACTOR,
    "rope.scaling.yarn_beta_slow": FACTOR,
    "vocab_size": VOCABULARY,
}
"""The numbers that are read, and what they may be."""

_FLAGS = frozenset({"expert_weights_norm", "use_parallel_residual"})
"""The keys that are true or false and are read."""

_WITHOUT_EFFECT = frozenset(
    {
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "expert_shared_feed_forward_length",
        "nextn_predict_layers",
        "pooling_type",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    }
)
"""Keys that change nothing in a model that generates: of the norms, which the family has one kind
of; of layers behind it; of widths that tensors have."""

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
        self._read: set[str] = set()
        self.architecture = str(metadata.get("general.architecture"))

    def __contains__(self, name: str) -> bool:
        return f"{self.architecture}.{name}" in self._metadata

    def get(self, name: str) -> object:
        """A field of the architecture, or None; from now on it counts as read."""
        self._read.add(name)
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

    def value(self, name: str) -> object:
        """Reads a number, or what is true or false; None for one that is missing.

        Raises:
            ModelFilesError: It is neither, or out of its bounds.
        """
        if name not in _FLAGS:
            return self.optional(name)
        value = self.get(name)
        if not isinstance(value, bool | None):
            raise ModelFilesError(
                f"{self.file_name}: {self.architecture}.{name} is {shown(value)}, must be true or "
                "false"
            )
        return value

    def window_pattern(self, name: str) -> list[bool] | None:
        """Reads which layers have a window: a list, or a number of which the last has none.

        Raises:
            ModelFilesError: It is neither, or the list is not as long as there are blocks.
        """
        value = self.get(name)
        num_blocks = int(self.number("block_count"))
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return [(index + 1) % value != 0 for index in range(num_blocks)]
        if isinstance(value, list) and len(value) == num_blocks:
            return [bool(one) for one in value]
        raise ModelFilesError(
            f"{self.file_name}: {self.architecture}.{name} is {shown(value)}, must be a whole "
            f"number above 0 or a list for each of {num_blocks} blocks"
        )

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

    def check_keys(self, *, head_dim: float, gating: int) -> None:
        """Refuses whatever would change the arithmetic and was not read.

        Args:
            head_dim: Elements of a head, which decide what attention is scaled by.
            gating: What `expert_gating_func` may say.

        Raises:
            UnsupportedModelError: There is such a key; names it and its value.
        """
        prefix = f"{self.architecture}."
        for key, value in self._metadata.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or name in self._read:
                continue
            if name in _WITHOUT_EFFECT:
                if name in NUMBERS:
                    self._check(name, value)
                continue
            if name == "expert_gating_func" and value == gating:
                continue
            if name == "rope.freq_base_swa" and value == self.get("rope.freq_base"):
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
