"""The three forms of a prompt, as a caller writes them, and their message."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsIndex, TypedDict, Unpack

from stagecoach.client.chat_message import ChatMessage, MessageLike
from stagecoach.client.tools import (
    GivenTools,
    ToolChoiceLike,
    ToolLike,
    json_text,
    tool_choice_message,
)
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2, stage_pb2

PromptLike = str | Sequence[int] | Sequence[MessageLike]
"""Text; or token ids; or a conversation, oldest message first, whose messages may also be mappings
with the keys `role`, `content` and perhaps `name`, `tool_calls`, `tool_call_id` and `reasoning`."""


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
    tools: Sequence[ToolLike] | None
    """Functions that the model is shown, and may ask for: Python functions, or mappings in OpenAI's
    form. With any, the output is divided. Default: none."""
    tool_choice: ToolChoiceLike | None
    """`auto`, `none`, `required`, the name of the tool that is called, or a list of those that
    alone may be; also in OpenAI's form. Default: auto."""
    parallel_tool_calls: bool | None
    """Whether one output may have several calls. Default: True."""
    template_arguments: Mapping[str, object] | None
    """What the model's chat template is given by name, besides; over HTTP `chat_template_kwargs`.
    Default: nothing."""
    reasoning_effort: str | None
    """How long to think, in words of the model's chat template, such as low; `none` is not at all.
    Default: as the template does by itself."""
    enable_thinking: bool | None
    """Whether to think, where the model's chat template can be told. Default: as
    `reasoning_effort` says."""


_NO_FORM = "prompt is neither text, nor token ids, nor chat messages"
_SWITCHES = frozenset(
    {
        *("add_generation_prompt", "continue_final_message"),
        *("parallel_tool_calls", "enable_thinking"),
    }
)
"""Options of chat messages that are true or false."""


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
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("tools") in ((), []):
        del given["tools"]
    if "add_special_tokens" in given:
        message.add_special_tokens = _switch("add_special_tokens", given.pop("add_special_tokens"))
    for name, value in given.items():
        if not message.HasField("chat"):
            raise InvalidArgumentError(f"{name} is for chat messages only", field=name)
        _set_option(message.chat, name, value)
    return message


def _set_option(chat: generation_pb2.Chat, name: str, value: object) -> None:
    if name in _SWITCHES:
        setattr(chat, name, _switch(name, value))
    elif name == "tools":
        chat.tools.extend(GivenTools.of(value).messages)  # type: ignore[arg-type]
    elif name == "tool_choice":
        chat.tool_choice.CopyFrom(tool_choice_message(value))  # type: ignore[arg-type]
    elif name == "template_arguments":
        chat.template_arguments = json_text(value, name)
    else:
        try:
            chat.reasoning_effort = value  # type: ignore[assignment]
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"{name} is {value!r:.100}, must be text", field=name
            ) from error


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} is {value!r:.100}, which it cannot be", field=name)
    return value


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
    turns = [ChatMessage.of(item) for item in items if isinstance(item, ChatMessage | Mapping)]
    if len(turns) == len(items):
        messages = [turn.to_message() for turn in turns]
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
