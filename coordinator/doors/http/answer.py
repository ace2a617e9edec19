"""What both kinds of completion have in common on their way out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from coordinator.core.events import MAX_JOINED_EVENTS, Finished, TokenLogprobs, TokensEvent
from coordinator.core.output_parts import OutputPart, joined_parts
from coordinator.core.prompt_logprobs import PromptLogprobs
from coordinator.core.request import FinishReason
from coordinator.doors.http.choices import Choice, TakenPrompt
from coordinator.doors.http.held_logprobs import Hold
from coordinator.doors.http.schema.chat import ChatCompletionChunk
from coordinator.doors.http.schema.completion import Completion
from coordinator.doors.http.schema.sampling import (
    CompletionTokensDetails,
    FinishReasonText,
    PromptTokensDetails,
    Usage,
)
from stagecoach.contract.errors import RequestAbortedError

TOKENS_PER_PIECE = 16
"""Log-probabilities that are written at one go, with twenty others each: about a millisecond."""

SpellToken = Callable[[int], bytes]
"""The bytes that a token stands for in a text."""


Chunk = ChatCompletionChunk | Completion
"""One event of a stream."""


class UsageInStream(Enum):
    """What a stream tells of the tokens that its request uses."""

    NONE = "none"
    AT_END = "at end"
    IN_EVERY_CHUNK = "in every chunk"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptForm:
    """What an answer has of its prompts."""

    is_echoed: bool = False
    """Whether their text stands before the completion."""
    num_echoed_top: int | None = None
    """Most likely tokens at each place of an echoed prompt; None: no log-probabilities."""
    num_listed_top: int | None = None
    """Most likely tokens at each place in the list `prompt_logprobs`; None: there is no list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What every object of one answer repeats."""

    id: str
    created_s: int
    """Unix time."""
    model: str
    with_token_ids: bool
    """Whether token ids are returned beside the text."""
    with_logprobs: bool
    """Whether log-probabilities were asked for: they are lists then, with or without tokens."""
    with_usage: bool
    """Whether a stream ends with the usage."""
    spell: SpellToken
    prompt: PromptForm = PromptForm()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOutput:
    """All that one choice brought."""

    text: str
    tokens: TokensEvent | None
    """All tokens as one event; None when there was none."""
    end: Finished
    parts: tuple[OutputPart, ...] = ()
    """All of it divided; empty where it is not."""
    prompt_logprobs: Sequence[PromptLogprobs] = ()
    """Log-probabilities of its prompt, in order; empty when none were asked for."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the whole output."""
        return () if self.tokens is None else self.tokens.token_ids

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...]:
        """Log-probabilities of each token; empty when none were asked for."""
        return () if self.tokens is None else self.tokens.logprobs


class Answer(Protocol):
    """Writes one kind of completion."""

    async def read_prompts(self, prompts: Sequence[TakenPrompt], num_choices: int) -> None:
        """Takes in the prompts, before anything else is called.

        Args:
            prompts: All of them, in order.
            num_choices: Choices of each.
        """
        ...

    def opening(self, index: int) -> Chunk | None:
        """The chunk of a stream that begins a choice, if there is one."""
        ...

    def of_prompt(self, index: int, logprobs: PromptLogprobs | None) -> Iterator[Chunk]:
        """The chunks of a stream that bring a part of the prompt of a choice.

        Args:
            index: Index of the choice.
            logprobs: Log-probabilities of the next tokens of the prompt; None: it has no more, and
                what is left of it comes.
        """
        ...

    def tokens(self, index: int, event: TokensEvent) -> Chunk | None:
        """The chunk of a stream that brings new tokens; None while there is nothing to show."""
        ...

    def ending(self, index: int, end: Finished) -> Chunk:
        """The chunk of a stream that ends a choice."""
        ...

    def usage(self, usage: Usage) -> Chunk:
        """The chunk of a stream that follows all choices when the usage was asked for."""
        ...

    def pieces(self, outputs: Sequence[ChoiceOutput], usage: Usage) -> Iterator[str]:
        """The answer that is not streamed, as JSON, in pieces none of which takes long."""
        ...


def finish_reason(end: Finished) -> FinishReasonText:
    """The word for why a choice ended.

    Raises:
        RequestAbortedError: It was aborted, because the client is gone.
    """
    match end.finish_reason:
        case FinishReason.STOP:
            return "tool_calls" if end.num_calls else "stop"
        case FinishReason.LENGTH:
            return "length"
        case FinishReason.ABORT | FinishReason.ERROR:
            raise RequestAbortedError("the request was aborted")


async def collect(choice: Choice, hold: Hold) -> ChoiceOutput:
    """Reads a choice to its end.

    Args:
        choice: What is read.
        hold: Told what the answer holds from now on.

    Raises:
        StagecoachError: The request failed, or `hold` refuses.
    """
    prompt_logprobs: list[PromptLogprobs] = []
    joined: list[TokensEvent] = []
    events: list[TokensEvent] = []  # after those; each of its own takes as much as ten joined ones
    async for event in choice:
        match event:
            case PromptLogprobs():
                hold(event)
                prompt_logprobs.append(event)
            case TokensEvent():
                hold(event)
                events.append(event)
                if len(events) == MAX_JOINED_EVENTS:
                    joined.append(TokensEvent.joined(events))
                    events.clear()
            case Finished():
                events = [*joined, *events]
                tokens = TokensEvent.joined(events) if events else None
                return ChoiceOutput(
                    text=("" if tokens is None else tokens.text) + event.text,
                    tokens=tokens,
                    parts=joined_parts([*(() if tokens is None else tokens.parts), *event.parts]),
                    end=event,
                    prompt_logprobs=prompt_logprobs,
                )
    raise AssertionError("a stream ended without Finished")


def usage_of(num_prompt_tokens: int, ends: Sequence[Finished], num_prompts: int) -> Usage:
    """Adds up the tokens of a request.

    Args:
        num_prompt_tokens: Tokens of every prompt, counted once each.
        ends: Ends of every choice; those of the first prompt come first.
        num_prompts: How many prompts there were.
    """
    num_completion_tokens = sum(end.num_completion_tokens for end in ends)
    firsts = ends[:: len(ends) // num_prompts]  # the others found what these computed
    usage = Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        total_tokens=num_prompt_tokens + num_completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=sum(end.num_cached_tokens for end in firsts)
        ),
    )
    num_reasoning_tokens = sum(end.num_reasoning_tokens for end in ends)
    if num_reasoning_tokens:
        usage.completion_tokens_details = CompletionTokensDetails(
            reasoning_tokens=num_reasoning_tokens
        )
    return usage
