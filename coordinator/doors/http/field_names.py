"""What a client calls the fields that the core's errors name.

Names in the core's errors are those of `stagecoach.v1`. A client of this API wrote others, and of
several it may have written either, so that the names depend on the request.
"""

import re
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType

from starlette.types import Scope

from coordinator.doors.http.message_turns import turns_of
from coordinator.doors.http.responses_tools import tool_places
from coordinator.doors.http.schema.anthropic import MessagesPrompt
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
)
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.sampling import SamplingFields
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest

FieldNames = Mapping[str, str]
"""This API's name of each field of the contract, or of all that begin with it."""

_CHAT = {
    "prompt.chat.messages": "messages",
    "prompt.chat.tools": "tools[].function",
    "prompt.chat.tool_choice": "tool_choice",
    "prompt.chat.template_arguments": "chat_template_kwargs",
    "prompt.chat.add_generation_prompt": "add_generation_prompt",
    "prompt.chat.continue_final_message": "continue_final_message",
    "prompt.add_special_tokens": "add_special_tokens",
    "prompt": "messages",
}
_MESSAGES = {
    "prompt.chat.messages": "messages",
    "prompt.chat.continue_final_message": "messages",
    "prompt.chat.tools": "tools[]",
    "prompt.chat.tools[].parameters": "tools[].input_schema",
    "prompt.chat.tool_choice": "tool_choice",
    "prompt.chat.template_arguments": "thinking",
    "prompt": "messages",
    "stop": "stop_sequences",
    "grammar.json_schema": "output_config.format.schema",
    "grammar": "output_config.format",
}
_OLLAMA = {
    "prompt.chat.messages": "messages",
    "prompt.chat.tools": "tools[].function",
    "prompt.chat.template_arguments": "think",
    "grammar": "format",
    "max_tokens": "options.num_predict",
    "stop": "options.stop",
    "sampling.repetition_penalty": "options.repeat_penalty",
    **{
        f"sampling.{name}": f"options.{name}"
        for name in (
            *("temperature", "top_p", "top_k", "min_p", "seed"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
}
_OLD_FORM = {"grammar.json_schema": "output_format.schema", "grammar": "output_format"}
_TEXT = {"prompt.add_special_tokens": "add_special_tokens", "prompt": "prompt"}
_INPUT = {"prompt.add_special_tokens": "add_special_tokens", "prompt": "input"}
_FORMAT_FIELDS = {
    "grammar.json_schema": "response_format.json_schema.schema",
    "grammar": "response_format",
}
_STRUCTURED_FIELDS = {
    "grammar.json_schema": "structured_outputs.json",
    "grammar.json_object": "structured_outputs.json_object",
    "grammar.regex": "structured_outputs.regex",
    "grammar.lark": "structured_outputs.grammar",
    "grammar": "structured_outputs",
}
_RESPONSES = {
    "prompt.chat.messages": "input",
    "prompt.chat.tools": "tools[]",
    "prompt.chat.tool_choice": "tool_choice",
    "prompt.chat.template_arguments": "reasoning.effort",
    "prompt": "input",
    "grammar.json_schema": "text.format.schema",
    "grammar": "text.format",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
}
_OF_FUNCTION = re.compile(r"(\.tool_calls\[\d+\])\.(?=name|arguments)")
"""Fields of a call that lie in an object of their own here."""
_INDEX = re.compile(r"\[\d+\]")
_SEPARATOR = re.compile(r"[.\[]")
_MAX_STEPS = 8
"""Separators in a path that has a name, and some more: `prompt.chat.messages[0].tool_calls[0].id`
has six."""
NO_NAMES: FieldNames = MappingProxyType({})
"""Names of a request that was not read: the contract's names stand."""


def field_names(request: ModelRequest) -> FieldNames:
    """The names that a request has for the contract's fields.

    Args:
        request: Validated.
    """
    match request:
        case ChatCompletionRequest():
            names = _CHAT | _sampling_names(request)
            if request.max_completion_tokens is not None:
                names["max_tokens"] = "max_completion_tokens"
            if request.top_logprobs is not None:
                names["logprobs"] = "top_logprobs"
            return names
        case CompletionRequest():
            names = _TEXT | _sampling_names(request)
            if request.prompt_logprobs is None:
                names["prompt_logprobs"] = "echo"
            return names
        case MessagesPrompt():
            turns = enumerate(turns_of(request))
            places = {f"prompt.chat.messages[{i}]": turn.place for i, turn in turns}
            return _MESSAGES | places | (_OLD_FORM if request.output_format else {})
        case OllamaChatRequest():
            return _OLLAMA | {"prompt": "messages"}
        case OllamaGenerateRequest():
            return _OLLAMA | {"prompt.chat.messages": "prompt", "prompt": "prompt"}
        case ResponsesRequest():
            tools = enumerate(tool_places(request))
            return _RESPONSES | {f"prompt.chat.tools[{i}]": f"{place}." for i, place in tools}
        case TokenizeRequest():
            return _TEXT if request.messages is None else _CHAT
        case EmbeddingRequest() | OllamaEmbedRequest():
            return _INPUT
        case DetokenizeRequest():
            return {"prompt": "tokens"}
    return NO_NAMES


def field_names_of(scope: Scope) -> FieldNames:
    """The names of the request in an ASGI scope, as far as it was read."""
    names: FieldNames = scope.get("state", {}).get("field_names", NO_NAMES)
    return names


def renamed(field: str, names: FieldNames) -> str:
    """This API's name of a field of the contract, as a path into the request.

    A name that has `[]` is that of something in a list; behind one that ends with a dot, the rest
    of the path is the contract's.

    Args:
        field: Field of the contract, as an error names it.
        names: Names that the request has; the name with the longest beginning in common counts.
    """
    for end in _ends(field):
        beginning = field[:end]
        known = names.get(beginning)
        index = None
        if known is None:
            index = _INDEX.search(beginning)
            known = names.get(without_indices(beginning))
        if known is None:
            continue
        rest = _OF_FUNCTION.sub(r"\1.function.", field[end:])
        name, is_list, within = known.partition("[]")
        if index is not None:
            return f"{name}{index[0]}{within}{rest}"
        if name.endswith("."):
            return name[:-1] + rest
        if is_list and rest.startswith("["):
            place, _, inside = rest.partition("]")
            return f"{name}{place}]{within}{inside}"
        # What the contract calls by a dot, such as `prompt.text`, stands in the field itself.
        return name + (rest if rest.startswith("[") else "")
    return field.removeprefix("sampling.")


def without_indices(place: str) -> str:
    """A path without its indices, such as `tools[].function`."""
    return _INDEX.sub("[]", place)


def _ends(field: str) -> list[int]:
    """Where the beginnings of a path end that may have names, the longest first.

    Behind them stands what a client chose, such as the name of a parameter.
    """
    ends = [found.start() for found in islice(_SEPARATOR.finditer(field, 1), _MAX_STEPS)]
    if len(ends) < _MAX_STEPS:
        ends.append(len(field))
    return ends[::-1]


def _sampling_names(request: SamplingFields) -> dict[str, str]:
    if request.structured_outputs is None:
        return _FORMAT_FIELDS
    if request.structured_outputs.choice is not None:
        return {"grammar": "structured_outputs.choice"}
    return _STRUCTURED_FIELDS
