"""What a caller of the SDK calls the fields of `stagecoach.v1`: the arguments of a method."""

import re

from google.protobuf.message import Message

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.v1 import generation_pb2

_PROMPT = "prompt"
_FORMS_OF_PROMPT = ("prompt.text", "prompt.token_ids", "prompt.chat.messages", "prompt.chat")
"""What a caller writes as the prompt itself."""

_BY_FIELD = {
    f"{path}.{field.name}": field.name
    for path, message in (
        ("prompt", generation_pb2.Prompt),
        ("prompt.chat", generation_pb2.Chat),
        ("sampling", generation_pb2.SamplingParams),
        ("grammar", generation_pb2.Grammar),
    )
    for field in message.DESCRIPTOR.fields
} | dict.fromkeys(_FORMS_OF_PROMPT, _PROMPT)
"""The argument that holds each field which lies inside a message of a request."""

_OF_TOOL = re.compile(r"(^tools\[\d+\])\.")
"""A tool as callers write it, in OpenAI's form, has its fields in an object."""

_MESSAGES: dict[str, type[Message]] = {
    "GenerateRequest": generation_pb2.GenerateRequest,
    "EmbedRequest": generation_pb2.EmbedRequest,
    "TokenizeRequest": generation_pb2.TokenizeRequest,
    "prompt": generation_pb2.Prompt,
    "prompt.chat": generation_pb2.Chat,
    "prompt.chat.messages": generation_pb2.ChatMessage,
    "sampling": generation_pb2.SamplingParams,
    "grammar": generation_pb2.Grammar,
}
"""Messages of requests, by the names that coordinators call them."""

_UNKNOWN = re.compile(
    r"(?P<path>\S+) has field number (?P<number>\d+), which version (?P<version>\S+) does not know"
)


def argument_name(field: str) -> str:
    """The argument that a caller wrote for a field, as a path into it.

    Args:
        field: Path into a request of `stagecoach.v1`, such as `prompt.chat.messages[0].content`.
    """
    path, bracket, rest = field.partition("[")
    beginning = path
    while beginning and beginning not in _BY_FIELD:
        beginning = beginning.rpartition(".")[0]
    name = _BY_FIELD.get(beginning, path) + bracket + rest
    return _OF_TOOL.sub(r"\1.function.", name)


def unknown_argument(error: InvalidArgumentError) -> tuple[str, str] | None:
    """The argument that a coordinator says it does not know, and its version; None: it does not.

    Args:
        error: As the coordinator sent it.
    """
    found = _UNKNOWN.match(error.message)
    if found is None:
        return None
    path, number, version = found["path"], int(found["number"]), found["version"]
    message = _MESSAGES.get(re.sub(r"\[\d+\]", "", path))
    field = None if message is None else message.DESCRIPTOR.fields_by_number.get(number)
    if field is None:
        return None
    return field.name, version
