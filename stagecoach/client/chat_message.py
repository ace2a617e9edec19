"""One turn of a conversation, as a caller writes it, and its message. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stagecoach.client.output_parts import ToolCall
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """system, developer (the same), user, assistant or tool."""
    content: str = ""
    name: str | None = None
    """Who of several that have the role; for templates that tell them apart."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Calls that the assistant asked for."""
    tool_call_id: str | None = None
    """Id of the call that a message of the role tool answers."""
    reasoning: str | None = None
    """What the assistant thought before; most templates show it for the last turns only."""

    @classmethod
    def of(cls, message: "MessageLike") -> "ChatMessage":
        """Reads a message that may be a mapping, in OpenAI's form.

        Raises:
            InvalidArgumentError: It has other keys than a message has, or values of other types.
        """
        if isinstance(message, ChatMessage):
            return message
        given = {str(name): value for name, value in message.items() if value is not None}
        calls = _calls(given.pop("tool_calls", ()))
        reasoning = given.pop("reasoning_content", None)
        if reasoning is not None:
            given.setdefault("reasoning", reasoning)
        # Of a message that calls tools, OpenAI's content is null.
        required = frozenset({"role"} if calls else {"role", "content"})
        if not required <= set(given) <= _KEYS:
            raise InvalidArgumentError(
                f"prompt has a chat message with the keys {sorted(map(str, message))}, must have"
                " role and content, and may have name, tool_calls, tool_call_id and reasoning",
                field="prompt",
            )
        texts = {name: value for name, value in given.items() if isinstance(value, str)}
        if len(texts) < len(given):
            raise InvalidArgumentError(
                f"prompt has a chat message whose {', '.join(given)} must be text", field="prompt"
            )
        return cls(tool_calls=calls, **texts)

    def to_message(self) -> generation_pb2.ChatMessage:
        """Writes it.

        Raises:
            InvalidArgumentError: A text is not valid Unicode, or none at all.
        """
        try:
            return generation_pb2.ChatMessage(
                role=self.role,
                content=self.content,
                name=self.name,
                tool_calls=[
                    generation_pb2.ToolCall(
                        id=call.call_id, name=call.name, arguments=call.arguments
                    )
                    for call in self.tool_calls
                ],
                tool_call_id=self.tool_call_id,
                reasoning=self.reasoning,
            )
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                "prompt has a chat message that is not valid Unicode text", field="prompt"
            ) from error


MessageLike = ChatMessage | Mapping[str, object]
"""A turn; a mapping has the keys `role` and `content`, and perhaps `name`, `tool_calls`,
`tool_call_id` and `reasoning`, as OpenAI writes them."""

_KEYS = frozenset({"role", "content", "name", "tool_call_id", "reasoning"})


def _calls(given: object) -> tuple[ToolCall, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InvalidArgumentError(
            f"prompt has a chat message whose tool_calls are {given!r:.100}, must be a list",
            field="prompt",
        )
    return tuple(map(_call, given))


def _call(given: object) -> ToolCall:
    match given:
        case ToolCall():
            return given
        case {"id": str() as call_id, "function": {"name": str() as name, **function}}:
            arguments = function.get("arguments", "{}")
            if isinstance(arguments, str):
                return ToolCall(call_id=call_id, name=name, arguments=arguments)
    raise InvalidArgumentError(
        f"prompt has a chat message with the tool call {given!r:.100}, must be a ToolCall, or have"
        " id, and function with name and arguments, which are text",
        field="prompt",
    )
