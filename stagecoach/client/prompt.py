"""The three forms of a prompt, as a caller writes them, and their message."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypedDict, Unpack

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2, stage_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    """system, developer (the same), user, assistant or tool."""
    content: str
    name: str | None = None
    """Who of several that have the role; for templates that tell them apart."""


PromptLike = str | Sequence[int] | Sequence[ChatMessage | Mapping[str, str]]
"""Text; or token ids; or a conversation, oldest message first, whose messages may also be mappings
with the keys `role`, `content` and perhaps `name`."""


class PromptOptions(TypedDict, total=False):
    """How a prompt is read. Left out or None: the default."""

    add_special_tokens: bool | None
    """Put around the prompt the special tokens that the model wants there; a begin token that it
    begins with itself is not repeated. Default: true for text, false for chat messages, whose
    template writes its own."""
    add_generation_prompt: bool | None
    """End chat messages with what the assistant's next message begins with. Default: true, or
    false with `continue_final_message`."""
    continue_final_message: bool | None
    """End inside the last of the chat messages, so that the output goes on with it. Default:
    False."""


_NO_FORM = "prompt is neither text, nor token ids, nor chat messages"


def prompt_message(prompt: PromptLike, **options: Unpack[PromptOptions]) -> generation_pb2.Prompt:
    """Writes a prompt.

    Raises:
        InvalidArgumentError: It has none of the three forms, or an option is not one of its form.
        TypeError: There is no such option.
    """
    unknown = set(options) - set(PromptOptions.__annotations__)
    if unknown:
        raise TypeError(f"a prompt has no option {', '.join(sorted(unknown))}")
    message = _form_of(prompt)
    for name, value in options.items():
        if value is None:
            continue
        if not isinstance(value, bool):
            raise InvalidArgumentError(f"{name} is {value!r:.100}, which it cannot be", field=name)
        if name == "add_special_tokens":
            message.add_special_tokens = value
        elif not message.HasField("chat"):
            raise InvalidArgumentError(f"{name} is for chat messages only", field=name)
        elif name == "add_generation_prompt":
            message.chat.add_generation_prompt = value
        else:
            message.chat.continue_final_message = value
    return message


def _form_of(prompt: PromptLike) -> generation_pb2.Prompt:
    if isinstance(prompt, str):
        try:
            return generation_pb2.Prompt(text=prompt)
        except ValueError as error:
            raise InvalidArgumentError(
                "prompt is not valid Unicode text", field="prompt"
            ) from error
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Iterable):
        raise InvalidArgumentError(_NO_FORM, field="prompt")
    items = list(prompt)
    if not items:
        raise InvalidArgumentError("prompt is empty", field="prompt")
    messages = [_chat_message(item) for item in items if isinstance(item, ChatMessage | Mapping)]
    if len(messages) == len(items):
        return generation_pb2.Prompt(chat=generation_pb2.Chat(messages=messages))
    token_ids = [operator.index(item) for item in items if isinstance(item, SupportsIndex)]
    if len(token_ids) == len(items):
        return _token_ids_prompt(token_ids)
    raise InvalidArgumentError(_NO_FORM, field="prompt")


def _token_ids_prompt(token_ids: list[int]) -> generation_pb2.Prompt:
    try:
        return generation_pb2.Prompt(token_ids=stage_pb2.TokenIds(ids=token_ids))
    except ValueError as error:
        raise InvalidArgumentError(
            "prompt has a token id that is not in [0, 2**32)", field="prompt"
        ) from error


def _chat_message(message: ChatMessage | Mapping[str, str]) -> generation_pb2.ChatMessage:
    if isinstance(message, ChatMessage):
        name = {} if message.name is None else {"name": message.name}
        message = {"role": message.role, "content": message.content, **name}
    if not _REQUIRED <= set(message) <= _REQUIRED | {"name"}:
        raise InvalidArgumentError(
            f"prompt has a chat message with the keys {sorted(map(str, message))}, must have role"
            " and content, and may have name",
            field="prompt",
        )
    if not all(isinstance(value, str) for value in message.values()):
        raise InvalidArgumentError(
            f"prompt has a chat message whose {', '.join(message)} must be text", field="prompt"
        )
    try:
        return generation_pb2.ChatMessage(**message)
    except ValueError as error:
        raise InvalidArgumentError(
            "prompt has a chat message that is not valid Unicode text", field="prompt"
        ) from error


_REQUIRED = frozenset({"role", "content"})
