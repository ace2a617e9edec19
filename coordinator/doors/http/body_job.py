"""Validates a large body in a sandboxed process; see `coordinator.sandbox`.

What comes back takes the event loop little time whatever the client sent: the fields that are of
use, content that needs no further look, and token ids as an array.
"""

import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import ToolCall
from coordinator.doors.http.field_names import field_names, renamed
from coordinator.doors.http.ignored_fields import IgnoredFields, ignored_fields, known_fields
from coordinator.doors.http.message_specs import message_grammar
from coordinator.doors.http.message_turns import turns_of
from coordinator.doors.http.ollama_specs import ollama_grammar
from coordinator.doors.http.ollama_turns import ollama_turns
from coordinator.doors.http.placed_turn import PlacedTurn
from coordinator.doors.http.request_specs import content_text, grammar
from coordinator.doors.http.responses_items import Item, from_facts, given_items, to_facts
from coordinator.doors.http.responses_specs import text_grammar
from coordinator.doors.http.schema.anthropic import (
    CountTokensRequest,
    MessagesPrompt,
    MessagesRequest,
)
from coordinator.doors.http.schema.base import ModelRequest, RequestModel
from coordinator.doors.http.schema.chat import ChatCompletionRequest, Message
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.embedding import EmbeddingRequest
from coordinator.doors.http.schema.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaRequest,
    OllamaShowRequest,
)
from coordinator.doors.http.schema.responses import ResponsesRequest
from coordinator.doors.http.schema.sampling import SamplingFields
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest
from coordinator.doors.http.schema.tools import CalledFunction, MessageToolCall
from coordinator.doors.http.validation import validate
from stagecoach.contract import error_facts
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError

MAX_OTHER_BYTES = 320 * 1024
"""Most bytes of all fields beside the content; the longest grammar fits."""

_KINDS: Mapping[str, type[ModelRequest]] = {
    kind.__name__: kind
    for kind in (
        *(ChatCompletionRequest, CompletionRequest, EmbeddingRequest),
        *(ResponsesRequest, MessagesRequest, CountTokensRequest),
        *(OllamaChatRequest, OllamaGenerateRequest, OllamaShowRequest),
        *(OllamaEmbedRequest, OllamaEmbeddingsRequest),
        *(TokenizeRequest, DetokenizeRequest),
    )
}
_STAND_INS: Mapping[str, object] = {
    "prompt": "-",
    "messages": [{"role": "user", "content": "-"}],
    "tokens": [],
    "input": "-",
}
"""Fields of content, and what stands for each among the other fields."""

_DONE, _REFUSED = b"d", b"r"
_LENGTHS = struct.Struct("<II")

Wanted = TypeVar("Wanted", bound=ModelRequest)


def encode_call(body: bytes, kind: type[ModelRequest]) -> bytes:
    """The call that asks for a body to be validated."""
    return b"%b\n%b" % (kind.__name__.encode(), body)


def read_answer(answer: bytes, kind: type[Wanted]) -> tuple[Wanted, IgnoredFields]:
    """Reads the answer to `encode_call`.

    Raises:
        StagecoachError: The body is wrong.
    """
    if answer[:1] == _REFUSED:
        raise error_facts.from_json(answer[1:])
    num_body_bytes, num_content_bytes = _LENGTHS.unpack_from(answer, 1)
    start = 1 + _LENGTHS.size
    end = start + num_body_bytes
    request = validate(answer[start:end], kind)
    facts = json.loads(answer[end : end + num_content_bytes])
    ids = array("I")
    ids.frombytes(memoryview(answer)[end + num_content_bytes :])
    content = {name: _read_content(value, ids) for name, value in facts["content"].items()}
    return request.model_copy(update=content), facts["ignored"]


def prepare(_: bytes) -> Callable[[bytes], bytes]:
    """Makes the job."""

    def handle(call: bytes) -> bytes:
        name, _, body = call.partition(b"\n")
        try:
            return _DONE + _answer(validate(body, _KINDS[name.decode()]))
        except StagecoachError as error:
            return _REFUSED + error_facts.to_json(error)

    return handle


def _answer(request: ModelRequest) -> bytes:
    _check_grammar(request)
    fields = {name: value for name, value in _facts(request).items() if name not in _STAND_INS}
    if isinstance(request, MessagesPrompt):
        fields.pop("system", None)  # it is a turn
    others = json.dumps(fields, ensure_ascii=False).encode()
    if len(others) > MAX_OTHER_BYTES:
        largest = max(fields, key=lambda name: len(json.dumps(fields[name])))
        raise InvalidArgumentError(
            f"{largest} and the other fields beside the prompt have {len(others)} bytes, at most"
            f" {MAX_OTHER_BYTES} are taken",
            field=largest,
        )
    ids = array("I")
    content = _contents(request, ids)
    body = json.dumps(fields | {name: _STAND_INS[name] for name in content}).encode()
    facts = {"ignored": dict(ignored_fields(request)), "content": content}
    written = json.dumps(facts).encode()
    return _LENGTHS.pack(len(body), len(written)) + body + written + ids.tobytes()


def _check_grammar(request: ModelRequest) -> None:
    """Refuses a grammar here that the loop would read at length to refuse it."""
    try:
        match request:
            case SamplingFields():
                grammar(request)
            case MessagesPrompt():
                message_grammar(request)
            case OllamaRequest():
                ollama_grammar(request)
            case ResponsesRequest():
                text_grammar(request)
    except InvalidArgumentError as error:
        names = field_names(request)
        raise in_words_of(error, lambda field: renamed(field, names)) from error


def _contents(request: ModelRequest, ids: "array[int]") -> Mapping[str, object]:
    """The fields of content; token ids are added to `ids`, and only counted."""
    turns: Sequence[PlacedTurn] = ()
    match request:
        case MessagesPrompt():
            turns = turns_of(request)
        case OllamaChatRequest():
            turns = ollama_turns(request)
    if turns:
        return {"messages": {"placed": [[one.place, asdict(one.message)] for one in turns]}}
    return {
        name: _content(value, ids)
        for name in _STAND_INS
        if (value := _content_of(request, name)) is not None
    }


def _content_of(request: ModelRequest, name: str) -> str | Sequence[object] | None:
    """The value of a field of content; items are read here rather than on the loop."""
    if isinstance(request, ResponsesRequest) and request.input is not None and name == "input":
        return given_items(request.input)
    value: str | Sequence[object] | None = getattr(request, name, None)
    return value


def _content(value: str | Sequence[object], ids: "array[int]") -> object:
    """A prompt, messages or ids; the ids themselves are added to `ids`, and only counted."""
    if isinstance(value, str):
        return value
    if value and isinstance(value[0], str):
        return list(value)
    if value and isinstance(value[0], Message):
        return {"turns": [_turn(one) for one in value if isinstance(one, Message)]}
    if value and isinstance(value[0], Item):
        return {"items": [to_facts(one) for one in value if isinstance(one, Item)]}
    if value and isinstance(value[0], list):
        counts = []
        for one in value:
            assert isinstance(one, list), "all are lists"
            ids.extend(one)
            counts.append(len(one))
        return {"lists": counts}
    ids.extend(one for one in value if isinstance(one, int))
    return {"ids": len(value)}


def _turn(message: Message) -> Mapping[str, object]:
    return _facts(message) | {"content": content_text(message)}


def _read_turn(facts: Mapping[str, Any]) -> Message:
    calls = facts.get("tool_calls")
    if calls is not None:
        facts = {**facts, "tool_calls": [_read_call(one) for one in calls]}
    return Message.model_construct(**facts)


def _read_call(facts: Mapping[str, Any]) -> MessageToolCall:
    function = CalledFunction.model_construct(**facts["function"])
    return MessageToolCall.model_construct(**{**facts, "function": function})


def _read_placed(place: str, facts: Mapping[str, Any]) -> PlacedTurn:
    calls = tuple(ToolCall(**call) for call in facts["tool_calls"])
    return PlacedTurn(ChatMessage(**{**facts, "tool_calls": calls}), place)


def _read_content(value: object, ids: "array[int]") -> object:
    if not isinstance(value, dict):
        return value
    if "placed" in value:
        return [_read_placed(place, facts) for place, facts in value["placed"]]
    if "turns" in value:
        return [_read_turn(turn) for turn in value["turns"]]
    if "items" in value:
        return [from_facts(item) for item in value["items"]]
    if "ids" in value:
        return ids
    lists, start = [], 0
    for count in value["lists"]:
        lists.append(ids[start : start + count])
        start += count
    return lists


def _facts(model: RequestModel) -> dict[str, object]:
    """The fields of a request that are set and of use, by the names that a client writes."""
    return {
        field.name: _plain(getattr(model, field.attribute))
        for field in known_fields(type(model))
        if field.attribute in model.model_fields_set
        and field.is_of_use
        and field.attribute not in _STAND_INS
    }


def _plain(value: object) -> object:
    if isinstance(value, RequestModel):
        return _facts(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
