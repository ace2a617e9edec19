"""What a client gets: token events while a completion grows, and the completion at its end."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

from stagecoach.client.argument_names import argument_name
from stagecoach.client.output_parts import OutputPart, OutputReader, ToolCall
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.request_timings import RequestTimings, StepTotals
from stagecoach.contract.stage_timings import StageTimings
from stagecoach.v1 import generation_pb2


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"
    """An end token or a stop string."""
    LENGTH = "length"
    """`max_tokens`, or the length limit of the model."""
    ABORT = "abort"
    """An operator ended it."""
    TOOL_CALLS = "tool_calls"
    """An end token, after at least one call of a tool."""


_FINISH_REASONS: Mapping[int, FinishReason] = MappingProxyType(
    {
        generation_pb2.FINISH_REASON_STOP: FinishReason.STOP,
        generation_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
        generation_pb2.FINISH_REASON_ABORT: FinishReason.ABORT,
        generation_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    }
)


class TokenLogprobs(NamedTuple):
    """Log-probabilities at the place of one token of output.

    They are those of the model itself: before temperature, penalties, bias, truncation and grammar.
    """

    logprob: float
    """Log-probability of the token that was chosen."""
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability of the most likely tokens, falling. The chosen token is among
    them only if it is one of these."""


class PromptLogprob(NamedTuple):
    """Log-probabilities at the place of one token of the prompt, after all tokens before it.

    They are those of the model itself.
    """

    logprob: float
    """Log-probability of the token."""
    rank: int
    """Its place among all tokens by falling probability, from 1 on."""
    top: tuple[tuple[int, float], ...]
    """Token id and log-probability of the most likely tokens, falling. The token itself is among
    them only if it is one of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New output since the last event."""

    token_ids: tuple[int, ...]
    """Empty only in a last event, which holds text that was held back."""
    text: str
    """May be empty while a character, or what may become a stop string, is incomplete."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`; empty when none were asked for."""
    parts: tuple[OutputPart, ...] = ()
    """Where the output is divided: all that is new, in order, of which `text` is the content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one completion."""

    num_prompt_tokens: int
    num_completion_tokens: int
    """A final end token is not counted."""
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache held, so that they were not computed."""
    num_reasoning_tokens: int = 0
    """Generated tokens that are thinking; counted where the output is divided."""


if TYPE_CHECKING:
    StageTotals: TypeAlias = StageTimings[int]
else:
    StageTotals = StageTimings  # with a parameter it could be neither called nor asked for
"""Sums over the steps of a request, for one stage; the serialization is that on both ends."""

Timings: TypeAlias = RequestTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One finished completion."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of `token_ids`; empty when none were asked for."""
    prompt_logprobs: tuple[PromptLogprob | None, ...] = ()
    """One for each token of the prompt, None for the first, which none comes before; empty when
    none were asked for."""
    reasoning: str = ""
    """What the model thought; told where the output is divided."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the model asks for; told where the output is divided. One that was cut short is
    not among them."""
    relaxed_schemas: tuple[str, ...] = ()
    """Schemas of tools that calls were not held to, as no grammar can, such as
    `tools[1].function.parameters`."""

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first one, by the time since it.

        With fewer than two tokens: tokens by the whole time.
        """
        num_tokens, span_ns = len(self.token_ids), self.timings.total_ns
        if num_tokens > 1 and self.timings.time_to_first_token_ns is not None:
            num_tokens -= 1
            span_ns -= self.timings.time_to_first_token_ns
        return num_tokens * 1e9 / max(span_ns, 1)


class PartialCompletion:
    """Gathers the messages of one Generate call until the completion is whole. No I/O.

    Args:
        wants_prompt_logprobs: Whether log-probabilities of the prompt were asked for.
        divides_output: Whether the output is divided.
    """

    def __init__(self, *, wants_prompt_logprobs: bool, divides_output: bool = False) -> None:
        self._divides_output = divides_output
        self._output = OutputReader()
        self.request_id: str | None = None
        self.completion: Completion | None = None
        self._relaxed_schemas: tuple[str, ...] = ()
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[PromptLogprob | None] = [None] if wants_prompt_logprobs else []

    @classmethod
    def of(cls, request: generation_pb2.GenerateRequest) -> Self:
        """Starts with what a request asks for."""
        return cls(
            wants_prompt_logprobs=request.HasField("prompt_logprobs"),
            divides_output=request.divide_output
            if request.HasField("divide_output")
            else len(request.prompt.chat.tools) > 0,
        )

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """All that was thought so far."""
        return self._output.reasoning

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids so far."""
        return tuple(self._token_ids)

    def take(self, message: generation_pb2.GenerateResponse) -> TokenEvent | None:
        """Takes in one message; returns what it adds to the output, if anything.

        Raises:
            IncompatibleError: The completion has ended, and the log-probabilities of its prompt did
                not come: the coordinator is older than they are.
        """
        match message.WhichOneof("event"):
            case "accepted":
                self.request_id = message.accepted.request_id
                self._relaxed_schemas = tuple(map(argument_name, message.accepted.relaxed_fields))
            case "prompt_logprobs":
                self._prompt_logprobs += _prompt_logprobs(message.prompt_logprobs)
            case "tokens":
                return self._add(
                    TokenEvent(
                        token_ids=tuple(message.tokens.token_ids),
                        text=message.tokens.text,
                        logprobs=tuple(map(_token_logprobs, message.tokens.logprobs)),
                        parts=self._parts(message.tokens),
                    )
                )
            case "finished":
                text, parts = message.finished.text, self._parts(message.finished)
                held_back = None
                if text or parts:
                    held_back = self._add(TokenEvent(token_ids=(), text=text, parts=parts))
                completion = self._completed(message.finished)
                self._check_prompt(completion)
                self.completion = completion
                return held_back
        return None

    def _parts(
        self, message: generation_pb2.TokenChunk | generation_pb2.Finished
    ) -> tuple[OutputPart, ...]:
        return self._output.read(message.text, message.parts) if self._divides_output else ()

    def _add(self, event: TokenEvent) -> TokenEvent:
        self._token_ids += event.token_ids
        self._texts.append(event.text)
        self._logprobs += event.logprobs
        return event

    def _check_prompt(self, completion: Completion) -> None:
        """Refuses what a coordinator answers that does not know `prompt_logprobs`."""
        num_told, num_tokens = len(self._prompt_logprobs), completion.usage.num_prompt_tokens
        is_whole = completion.finish_reason is not FinishReason.ABORT
        if num_told and is_whole and num_told != num_tokens:
            raise IncompatibleError(
                f"prompt_logprobs is set, but the coordinator told of {num_told - 1} of"
                f" {num_tokens - 1} tokens: it is of an older version, update it",
                field="prompt_logprobs",
            )

    def _completed(self, finished: generation_pb2.Finished) -> Completion:
        return Completion(
            request_id=self.request_id or "",
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=_FINISH_REASONS[finished.finish_reason],
            usage=Usage(
                num_prompt_tokens=finished.num_prompt_tokens,
                num_completion_tokens=finished.num_completion_tokens,
                num_cached_tokens=finished.num_cached_tokens,
                num_reasoning_tokens=finished.num_reasoning_tokens,
            ),
            timings=_timings(finished.timings),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            reasoning=self._output.reasoning,
            tool_calls=tuple(self._output.calls),
            relaxed_schemas=self._relaxed_schemas,
        )


def _token_logprobs(message: generation_pb2.TokenLogprobs) -> TokenLogprobs:
    top = zip(message.top_token_ids, message.top_logprobs, strict=True)
    return TokenLogprobs(message.logprob, tuple(top))


def _prompt_logprobs(message: generation_pb2.PromptLogprobs) -> Iterator[PromptLogprob]:
    num_top = len(message.top_token_ids) // max(len(message.logprobs), 1)
    for index, (logprob, rank) in enumerate(zip(message.logprobs, message.ranks, strict=True)):
        part = slice(index * num_top, (index + 1) * num_top)
        top = zip(message.top_token_ids[part], message.top_logprobs[part], strict=True)
        yield PromptLogprob(logprob, rank, tuple(top))


def _timings(message: generation_pb2.RequestTimings) -> Timings:
    ttft_ns = message.time_to_first_token_ns
    return Timings(
        queue_ns=message.queue_ns,
        time_to_first_token_ns=ttft_ns if message.HasField("time_to_first_token_ns") else None,
        total_ns=message.total_ns,
        num_steps=message.num_steps,
        schedule_ns=message.schedule_ns,
        sample_ns=message.sample_ns,
        detokenize_ns=message.detokenize_ns,
        step_ns=message.step_ns,
        stages=tuple(map(_stage_totals, message.stages)),
        num_preemptions=message.num_preemptions,
        num_replays=message.num_replays,
        prefill=_step_totals(message.prefill) if message.HasField("prefill") else None,
    )


def _step_totals(message: generation_pb2.StepTimeTotals) -> StepTotals:
    return StepTotals(
        num_steps=message.num_steps,
        schedule_ns=message.schedule_ns,
        sample_ns=message.sample_ns,
        detokenize_ns=message.detokenize_ns,
        step_ns=message.step_ns,
        stages=tuple(map(_stage_totals, message.stages)),
    )


def _stage_totals(message: generation_pb2.StageTimeTotals) -> StageTotals:
    return StageTimings(
        queue_ns=message.queue_ns,
        compute_ns=message.compute_ns,
        serialize_ns=message.serialize_ns,
        wire_ns=message.wire_ns,
    )
