"""What happens to a request, in order.

`Accepted`; any number of `PromptLogprobs`, if they were asked for; any number of `TokensEvent`; one
`Finished`. A request that fails ends with a raised `StagecoachError` in the place of `Finished`.
"""

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

from coordinator.core.output_parts import OutputPart, joined_parts
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from stagecoach.contract.request_timings import RequestTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is valid and queued; always first."""

    request_id: str
    prompt_token_ids: Sequence[int]
    relaxed_fields: tuple[str, ...] = ()
    """Fields with the schemas of tools that calls are not held to, as no grammar can."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)


_LOGPROBS_BYTES = 113
"""Bytes of an object, a float and an empty bytes, which one token's log-probabilities take."""


class TokenLogprobs:
    """Log-probabilities at the place of one token of output; immutable.

    They are those of the model itself: before temperature, penalties, bias, truncation and grammar.
    Packed, because an answer may hold twenty for each of a million tokens.

    Args:
        logprob: Log-probability of the token that was chosen.
        top: Token id and log-probability of the most likely tokens, falling, equal ones by rising
            id; as many as `RequestSpec.logprobs`. The chosen token is among them only if it is one
            of these.
    """

    __slots__ = ("_packed_top", "logprob")

    def __init__(self, logprob: float, top: Collection[tuple[int, float]]) -> None:
        self.logprob = logprob
        self._packed_top = struct.pack("<" + len(top) * "Id", *chain.from_iterable(top))

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """The most likely tokens."""
        return tuple(struct.iter_unpack("<Id", self._packed_top))

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return _LOGPROBS_BYTES + len(self._packed_top)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenLogprobs):
            return NotImplemented
        return (self.logprob, self._packed_top) == (other.logprob, other._packed_top)

    def __hash__(self) -> int:
        return hash((self.logprob, self._packed_top))

    def __repr__(self) -> str:
        return f"TokenLogprobs({self.logprob!r}, {self.top!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensEvent:
    """New output since the last event."""

    token_ids: tuple[int, ...]
    """New tokens, at least one. End tokens are not among them."""
    text: str
    """May be empty while a character, or what may become a stop string, is incomplete."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Log-probabilities of each of `token_ids`; empty when the request asked for none."""
    text_ends: tuple[int, ...] = ()
    """Where the text of each of `token_ids` ends in all text of the request, in characters, as
    `OutputText.num_chars` counts them; empty when the request asked for no log-probabilities."""
    parts: tuple[OutputPart, ...] = ()
    """The text divided, with thinking and calls of tools, which are no part of `text`; empty when
    the request did not ask for it."""

    @classmethod
    def joined(cls, events: Sequence[Self]) -> Self:
        """Some events, each right after the one before, as one; at least one."""
        if len(events) == 1:
            return events[0]
        return cls(
            token_ids=tuple(chain.from_iterable(event.token_ids for event in events)),
            text="".join(event.text for event in events),
            logprobs=tuple(chain.from_iterable(event.logprobs for event in events)),
            text_ends=tuple(chain.from_iterable(event.text_ends for event in events)),
            parts=joined_parts([part for event in events for part in event.parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The end; always last."""

    finish_reason: FinishReason
    """Never `ERROR`: errors are raised."""
    text: str
    """Held back until the end; belongs after the text of the last `TokensEvent`."""
    num_prompt_tokens: int
    num_completion_tokens: int
    """A final end token is not counted."""
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache held, so that they were not computed."""
    timings: RequestTimings
    parts: tuple[OutputPart, ...] = ()
    """What was held back, divided; belongs after the parts of the last `TokensEvent`."""
    stop_string: str | None = None
    """The stop string that ended the output; None where none did."""
    num_calls: int = 0
    """Calls of tools that are whole."""
    num_reasoning_tokens: int = 0
    """Tokens of the output that are thinking; counted where the output is divided."""
    end_token: tuple[int, TokenLogprobs] | None = None
    """The end token that the model chose, which is not part of the output, where log-probabilities
    were asked for and it chose one."""
    embedding: Sequence[float] | None = None
    """The embedding of the prompt, a buffer of float32; None where none was asked for, or the
    request was aborted."""


MAX_JOINED_EVENTS = 256
"""`TokensEvent`s that are joined into one. Writing a larger one at once would hold up everybody."""

GenerationEvent = Accepted | PromptLogprobs | TokensEvent | Finished
