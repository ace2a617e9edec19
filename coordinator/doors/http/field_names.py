"""What a client calls the fields that the core's errors name.

Names in the core's errors are those of `stagecoach.v1`. A client of this API wrote others, and of
several it may have written either, so that the names depend on the request.
"""

from collections.abc import Mapping
from types import MappingProxyType

from starlette.types import Scope

from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.chat import ChatCompletionRequest
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.sampling import SamplingFields
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest

FieldNames = Mapping[str, str]
"""This API's name of each field of the contract, or of all that begin with it."""

PROMPT = "prompt"
"""The contract's name of what is continued."""

_CHAT = {
    "prompt.chat.messages": "messages",
    "prompt.chat.add_generation_prompt": "add_generation_prompt",
    "prompt.chat.continue_final_message": "continue_final_message",
    "prompt.add_special_tokens": "add_special_tokens",
    "prompt": "messages",
}
_TEXT = {"prompt.add_special_tokens": "add_special_tokens", "prompt": "prompt"}
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
        case TokenizeRequest():
            return _TEXT if request.messages is None else _CHAT
        case DetokenizeRequest():
            return {"prompt": "tokens"}
    return NO_NAMES


def field_names_of(scope: Scope) -> FieldNames:
    """The names of the request in an ASGI scope, as far as it was read."""
    names: FieldNames = scope.get("state", {}).get("field_names", NO_NAMES)
    return names


def renamed(field: str, names: FieldNames) -> str:
    """This API's name of a field of the contract, as a path into the request.

    Args:
        field: Field of the contract, as an error names it.
        names: Names that the request has; the name with the longest beginning in common counts.
    """
    for beginning in sorted(names, key=len, reverse=True):
        rest = field.removeprefix(beginning)
        if not field.startswith(beginning) or rest[:1] not in ("", ".", "["):
            continue
        # What the contract calls by a dot, such as `prompt.text`, stands in the field itself.
        return names[beginning] + (rest if rest.startswith("[") else "")
    return field.removeprefix("sampling.")


def _sampling_names(request: SamplingFields) -> dict[str, str]:
    if request.structured_outputs is None:
        return _FORMAT_FIELDS
    if request.structured_outputs.choice is not None:
        return {"grammar": "structured_outputs.choice"}
    return _STRUCTURED_FIELDS
