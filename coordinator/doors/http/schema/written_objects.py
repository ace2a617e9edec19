"""JSON objects of an answer that go out as the model wrote them.

To read and rewrite them would lose what Python does not hold: a number of 5000 digits and an array
of 2000 levels are refused, `1e999` becomes infinity, and half of a surrogate pair is no text.
"""

import re
import secrets
from typing import Annotated

from pydantic import PlainSerializer, SerializationInfo, WithJsonSchema

from coordinator.doors.http.schema.base import ResponseModel

_MARK = secrets.token_hex(16)
"""What no model can write, as it does not know it."""
_PLACE = re.compile(rf'"{_MARK}([0-9]+)"')
_ONE_LINE = str.maketrans("\n\r", "  ")
"""In a string a line break is escaped; between values it would end a line of a stream."""


class _Texts(list[str]):
    """The objects that were met, in order."""


def _put_aside(text: str, info: SerializationInfo) -> str:
    texts = info.context
    assert isinstance(texts, _Texts), "an answer with objects is written by `json_text`"
    texts.append(text.translate(_ONE_LINE))
    return f"{_MARK}{len(texts) - 1}"


WrittenObject = Annotated[
    str,
    PlainSerializer(_put_aside, return_type=str),
    WithJsonSchema({"type": "object", "additionalProperties": True}),
]
"""The text of a JSON object, which an answer has as an object."""


def json_text(model: ResponseModel) -> str:
    """Writes an answer as JSON on one line, without the fields that are not set."""
    texts = _Texts()
    text = model.model_dump_json(exclude_unset=True, context=texts)
    return _PLACE.sub(lambda place: texts[int(place[1])], text) if texts else text
