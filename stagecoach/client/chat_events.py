"""What a chat tells while it runs, and what it comes to. No I/O."""

from dataclasses import dataclass

from stagecoach.client.chat_message import ChatMessage
from stagecoach.client.completion import Completion, FinishReason, Usage
from stagecoach.client.output_parts import OutputPart, ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnds:
    """The model has answered once; its calls, if it asks for any, come next."""

    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """A function was called, or was not because its caller declined."""

    call: ToolCall
    content: str
    """What the model is told."""
    error: Exception | None = None
    """Why it is told that the call failed; None: it did not."""


ChatEvent = OutputPart | RoundEnds | ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResult:
    """An answer of the model, and all that led to it."""

    content: str
    """What the model says in the last round."""
    reasoning: str
    """What the model thought in the last round."""
    tool_calls: tuple[ToolCall, ...]
    """Calls of the last round that nobody has answered: of tools that are no Python functions, of
    an answer that was cut short, or of the last round that there may be."""
    finish_reason: FinishReason
    """Why the last round ended."""
    usage: Usage
    """Tokens of all rounds together."""
    messages: tuple[ChatMessage, ...]
    """The conversation, this answer included, to go on with."""
    completions: tuple[Completion, ...]
    """One for each round."""
