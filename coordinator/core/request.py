"""A validated request, immutable from admission to its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from coordinator.core.embedding import EmbeddingParams
from coordinator.core.sampling_params import SamplingParams


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked for, after validation and tokenization."""

    request_id: str
    """Unique among the requests that have not ended."""
    prompt_token_ids: Sequence[int]
    """Tokens of the prompt, at least one; never changed."""
    max_tokens: int
    """Most tokens of output; prompt and output together fit the model and the KV memory. 0 where
    at most log-probabilities and the embedding of the prompt are wanted: then the token that is
    sampled behind it ends the request and is no part of the output."""
    min_tokens: int = 0
    """Tokens before which neither an end token nor a stop string ends the text."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Its `seed` is set."""
    stop: tuple[str, ...] = ()
    """Stop strings."""
    stop_token_ids: frozenset[int] = frozenset()
    """Ids that end the output, the model's end-of-sequence tokens included unless ignored."""
    cache_salt: str | None = None
    """Only requests of the same salt share the KV of a prefix."""
    logprobs: int | None = None
    """Most likely tokens whose log-probabilities are wanted; None when not even the chosen one's
    is."""
    prompt_logprobs: int | None = None
    """Most likely tokens whose log-probabilities are wanted at each token of the prompt but the
    first; None when not even that of the token itself is."""
    embedding: EmbeddingParams | None = None
    """How the prompt becomes a vector; None: it does not."""
    arrival_ns: int = 0
    """When it came, on the clock of `time.perf_counter_ns`."""

    @property
    def wants_nothing(self) -> bool:
        """Whether nothing is to be computed for it."""
        return self.max_tokens == 0 and self.prompt_logprobs is None and self.embedding is None
