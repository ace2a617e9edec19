"""A conversation in which the model calls functions, as decisions alone. No I/O.

One round is one completion. After it, the functions that it asks for are called, and the next round
is asked for with their results, until there is nothing to call.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Unpack, cast

from stagecoach.client.chat_events import ChatResult, ToolResult
from stagecoach.client.chat_message import ChatMessage, MessageLike
from stagecoach.client.completion import Completion, FinishReason, Usage
from stagecoach.client.function_tool import FunctionTool, ToolError
from stagecoach.client.output_parts import ToolCall
from stagecoach.client.request import GenerateOptions, generate_request
from stagecoach.client.tools import GivenTools, ToolChoiceLike, tool_choice_message
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.v1 import generation_pb2

DEFAULT_MAX_ROUNDS = 8
OnToolError = Callable[[ToolCall, Exception], str]
"""Says what the model is told of an exception that a function raised."""


class FunctionCall(NamedTuple):
    """A call that is to be answered."""

    call: ToolCall
    function: FunctionTool


class ChatRun:
    """The state of one chat.

    Args:
        messages: The conversation so far.
        max_rounds: Most rounds.
        on_tool_error: Says what the model is told of an exception; None: it is raised, unless it is
            a `ToolError`.
        **options: How each completion is made.

    Raises:
        InvalidArgumentError: A value has the wrong type, or one that no message can hold.
        TypeError: There is no such option.
    """

    def __init__(
        self,
        messages: Iterable[MessageLike],
        *,
        max_rounds: int,
        on_tool_error: OnToolError | None,
        **options: Unpack[GenerateOptions],
    ) -> None:
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 1:
            raise InvalidArgumentError(
                f"max_rounds is {max_rounds!r:.100}, must be a whole number from 1 on",
                field="max_rounds",
            )
        if options.get("divide_output") is False:
            raise InvalidArgumentError(
                "divide_output is False, but a chat tells content, thinking and calls apart",
                field="divide_output",
            )
        tools = options.get("tools") or ()
        if isinstance(tools, Iterator):  # each round asks anew
            options["tools"] = tools = tuple(tools)
        self._functions = GivenTools.of(tools).functions
        self._max_rounds = max_rounds
        self._on_tool_error = on_tool_error
        self._options = options
        self._completions: list[Completion] = []
        self._unanswered: tuple[ToolCall, ...] = ()
        self._has_calls = False
        try:
            self.messages = [*map(ChatMessage.of, _listed(messages))]
        except InvalidArgumentError as error:
            raise self.named(error) from error

    @property
    def functions(self) -> Iterable[FunctionTool]:
        """The tools that are Python functions."""
        return self._functions.values()

    def request(self) -> generation_pb2.GenerateRequest:
        """Writes the request of the next round.

        Raises:
            InvalidArgumentError: As the constructor.
        """
        options = cast(GenerateOptions, {**self._options})
        if not options.get("tools"):
            options["divide_output"] = True  # with tools it is; older coordinators name these then
        if self._completions:
            self._settle(options)
        try:
            return generate_request(self.messages, **options)
        except StagecoachError as error:
            raise self.named(error) from error

    def take(self, completion: Completion) -> list[FunctionCall]:
        """Takes in the answer of a round.

        Returns:
            The calls that are to be answered now, in order; none: the chat is over.
        """
        self._completions.append(completion)
        self._has_calls = False
        self.messages.append(
            ChatMessage(
                role="assistant",
                content=completion.text,
                tool_calls=completion.tool_calls,
                reasoning=completion.reasoning or None,
            )
        )
        self._unanswered = completion.tool_calls
        is_last = len(self._completions) == self._max_rounds
        if is_last or completion.finish_reason is not FinishReason.TOOL_CALLS:
            return []
        calls = [
            FunctionCall(call, self._functions[call.name])
            for call in completion.tool_calls
            if call.name in self._functions
        ]
        self._has_calls = len(calls) > 0
        return calls

    def answer(self, result: ToolResult) -> None:
        """Takes in the answer to one of the calls."""
        self._unanswered = tuple(call for call in self._unanswered if call is not result.call)
        self.messages.append(
            ChatMessage(
                role="tool",
                content=result.content,
                name=result.call.name,
                tool_call_id=result.call.call_id,
            )
        )

    def failed(self, call: ToolCall, error: Exception) -> ToolResult:
        """What the model is told of an exception.

        Raises:
            Exception: The same, when the model is told of none.
        """
        if self._on_tool_error is not None:
            return ToolResult(call=call, content=self._on_tool_error(call, error), error=error)
        if isinstance(error, ToolError):
            return ToolResult(call=call, content=f"Error: {error}", error=error)
        raise error

    @property
    def is_over(self) -> bool:
        """Whether no round follows, once all calls that `take` returned are answered."""
        return not self._has_calls or len(self._unanswered) > 0

    def result(self) -> ChatResult:
        """What the chat came to; after at least one round."""
        last = self._completions[-1]
        usages = [one.usage for one in self._completions]
        return ChatResult(
            content=last.text,
            reasoning=last.reasoning,
            tool_calls=self._unanswered,
            finish_reason=last.finish_reason,
            usage=Usage(
                num_prompt_tokens=sum(one.num_prompt_tokens for one in usages),
                num_completion_tokens=sum(one.num_completion_tokens for one in usages),
                num_cached_tokens=sum(one.num_cached_tokens for one in usages),
                num_reasoning_tokens=sum(one.num_reasoning_tokens for one in usages),
            ),
            messages=tuple(self.messages),
            completions=tuple(self._completions),
        )

    @staticmethod
    def named(error: StagecoachError) -> StagecoachError:
        """An error with the conversation called `messages`, as the caller of a chat gave it."""
        return in_words_of(error, _messages_name)

    def _settle(self, options: GenerateOptions) -> None:
        """Takes from the options of a later round what holds for the first alone."""
        choice = options.get("tool_choice")
        if choice is not None:
            options["tool_choice"] = _not_forced(choice)
        options.pop("continue_final_message", None)
        options.pop("add_generation_prompt", None)
        if options.get("request_id") is not None:
            options["request_id"] = f"{options['request_id']}-{len(self._completions) + 1}"


def declined(call: ToolCall) -> ToolResult:
    """What the model is told of a call that its caller did not let happen."""
    error = ToolError("the user declined this call")
    return ToolResult(call=call, content=f"Error: {error}", error=error)


def _listed(messages: Iterable[MessageLike]) -> list[MessageLike]:
    is_list = isinstance(messages, Iterable) and not isinstance(messages, str | bytes)
    listed = list(messages) if is_list else []
    if not listed or not all(isinstance(one, ChatMessage | Mapping) for one in listed):
        raise InvalidArgumentError("messages are no list of chat messages", field="messages")
    return listed


def _messages_name(field: str) -> str:
    path, bracket, rest = field.partition("[")
    return "messages" + bracket + rest if path == "prompt" else field


def _not_forced(choice: ToolChoiceLike) -> ToolChoiceLike:
    """The same choice, without a call that is forced: it would be in every round."""
    message = tool_choice_message(choice)
    match message.WhichOneof("choice"):
        case "allowed":
            return list(message.allowed.names)
        case "mode" if message.mode == generation_pb2.TOOL_MODE_NONE:
            return "none"
    return "auto"
