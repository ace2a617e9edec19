"""Validates a large body in a sandboxed process; see `coordinator.sandbox`.

What comes back takes the event loop little time whatever the client sent: the fields that are of
use, content that needs no further look, and token ids as an array.
"""

import json
import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from coordinator.doors.http.field_names import field_names, renamed
from coordinator.doors.http.ignored_fields import IgnoredFields, ignored_fields, known_fields
from coordinator.doors.http.request_specs import content_text, grammar
from coordinator.doors.http.schema.base import ModelRequest, RequestModel
from coordinator.doors.http.schema.chat import ChatCompletionRequest, Message
from coordinator.doors.http.schema.completion import CompletionRequest
from coordinator.doors.http.schema.sampling import SamplingFields
from coordinator.doors.http.schema.tokens import DetokenizeRequest, TokenizeRequest
from coordinator.doors.http.validation import validate
from stagecoach.contract import error_facts
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError

MAX_OTHER_BYTES = 320 * 1024
"""Most bytes of all fields beside the content; the longest grammar fits."""

_KINDS: Mapping[str, type[ModelRequest]] = {
    kind.__name__: kind
    for kind in (ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
}
_STAND_INS: Mapping[str, object] = {
    "prompt": "-",
    "messages": [{"role": "user", "content": "-"}],
    "tokens": [],
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
    if isinstance(request, SamplingFields):
        _check_grammar(request)
    fields = {name: value for name, value in _facts(request).items() if name not in _STAND_INS}
    others = json.dumps(fields, ensure_ascii=False).encode()
    if len(others) > MAX_OTHER_BYTES:
        largest = max(fields, key=lambda name: len(json.dumps(fields[name])))
        raise InvalidArgumentError(
            f"{largest} and the other fields beside the prompt have {len(others)} bytes, at most"
            f" {MAX_OTHER_BYTES} are taken",
            field=largest,
        )
    ids = array("I")
    content = {
        name: _content(getattr(request, name), ids)
        for name in _STAND_INS
        if getattr(request, name, None) is not None
    }
    body = json.dumps(fields | {name: _STAND_INS[name] for name in content}).encode()
    facts = {"ignored": dict(ignored_fields(request)), "content": content}
    written = json.dumps(facts).encode()
    return _LENGTHS.pack(len(body), len(written)) + body + written + ids.tobytes()


def _check_grammar(request: SamplingFields) -> None:
    """Refuses a grammar here that the loop would read at length to refuse it."""
    try:
        grammar(request)
    except InvalidArgumentError as error:
        names = field_names(request)
        raise in_words_of(error, lambda field: renamed(field, names)) from error


def _content(value: str | Sequence[object], ids: "array[int]") -> object:
    """A prompt, messages or ids; the ids themselves are added to `ids`, and only counted."""
    if isinstance(value, str):
        return value
    if value and isinstance(value[0], str):
        return list(value)
    if value and isinstance(value[0], Message):
        return {"turns": [_turn(one) for one in value if isinstance(one, Message)]}
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


def _read_content(value: object, ids: "array[int]") -> object:
    if not isinstance(value, dict):
        return value
    if "turns" in value:
        return [Message.model_construct(**turn) for turn in value["turns"]]
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
    return value
