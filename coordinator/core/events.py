"""What happens to a request, in order: `Accepted`, any number of `TokensEvent`, one `Finished`.

A request that fails ends with a raised `StagecoachError` in the place of `Finished`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from coordinator.core.request import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTotals:
    """Sums over the steps of a request, for one stage, in nanoseconds."""

    queue_ns: int = 0
    """Waiting inside the stage."""
    compute_ns: int = 0
    """The forward."""
    serialize_ns: int = 0
    """Reading and writing messages, on both ends."""
    wire_ns: int = 0
    """The rest of the round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Sums over some steps of a request, in nanoseconds; fields as in `RequestTimings`."""

    num_steps: int
    schedule_ns: int
    sample_ns: int
    detokenize_ns: int
    step_ns: int
    stages: tuple[StageTotals, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimings:
    """Durations of one request, in nanoseconds.

    Per-step figures are sums over the steps that the request took part in; a step is shared by
    all sequences in its micro-batch.
    """

    queue_ns: int
    """From acceptance to the first scheduled step."""
    time_to_first_token_ns: int | None
    """From acceptance to the first token. None when there was none."""
    total_ns: int
    """From acceptance to the end."""
    num_steps: int
    """Steps that the request took part in."""
    schedule_ns: int
    """Deciding what runs."""
    sample_ns: int
    """Choosing tokens."""
    detokenize_ns: int
    """Turning tokens into text."""
    step_ns: int
    """Wall time of the steps: from the start of scheduling until the tokens were chosen, and the
    detokenization, which may overlap with the next step."""
    stages: tuple[StageTotals, ...]
    """One a stage, in order."""
    num_preemptions: int = 0
    """Times that the request was preempted and its KV computed again."""
    prefill: StepTotals | None = None
    """The part of these that is prefill: the steps up to the one that made the first token, and
    that one. None when there was no token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The request is valid and queued; always first."""

    request_id: str
    prompt_token_ids: tuple[int, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)


class TokenLogprobs(NamedTuple):
    """Log-probabilities at the place of one token of output.

    They are those of the model itself: before temperature, penalties, bias, truncation and grammar.
    """

    logprob: float
    """Of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability of the most likely tokens, falling, equal ones by rising id; as
    many as `RequestSpec.logprobs`. The chosen token is among them only if it is one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensEvent:
    """New output since the last event."""

    token_ids: tuple[int, ...]
    """At least one. End tokens are not among them."""
    text: str
    """May be empty while a character, or what may become a stop string, is incomplete."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`; empty when the request asked for none."""
    text_ends: tuple[int, ...] = ()
    """Where the text of each of `token_ids` ends in all text of the request, in characters, as
    `OutputText.num_chars` counts them; empty when the request asked for no log-probabilities."""

    def joined(self, later: Self) -> Self:
        """This event and the one right after it as one."""
        return replace(
            self,
            token_ids=self.token_ids + later.token_ids,
            text=self.text + later.text,
            logprobs=self.logprobs + later.logprobs,
            text_ends=self.text_ends + later.text_ends,
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


GenerationEvent = Accepted | TokensEvent | Finished
