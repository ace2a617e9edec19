"""What a client may know of a model that a coordinator serves."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The model of one engine; never changes."""

    model_id: str
    """Name of the model, as the operator gave it."""
    names: tuple[str, ...]
    """What requests may call it, at least one; answers over HTTP show the first."""
    vocab_size: int
    """Number of token ids."""
    max_model_len: int
    """Most tokens that one request may hold, prompt and output together."""
    has_tokenizer: bool
    """Whether the model has a tokenizer; without one, only token ids are served."""
    marks_thinking: bool = False
    """Whether its chat template tells thinking from answers."""
    tokenizer_info: Mapping[str, object] | None = None
    """The tokenizer's configuration and chat template; None without a tokenizer."""
    template_variables: frozenset[str] = frozenset()
    """What the chat template makes something of, by name, if it is given."""
