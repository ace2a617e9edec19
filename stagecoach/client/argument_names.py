"""What a caller of the SDK calls the fields of `stagecoach.v1`: the arguments of a method."""

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


def argument_name(field: str) -> str:
    """The argument that a caller wrote for a field, as a path into it.

    Args:
        field: Path into a request of `stagecoach.v1`, such as `prompt.chat.messages[0].content`.
    """
    path, bracket, rest = field.partition("[")
    return _BY_FIELD.get(path, path) + bracket + rest
